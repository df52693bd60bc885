"""A campaign as people with image models run it: Stable Diffusion, two prompts, CLIP features, a reward."""

import pytest
import torch

from bbo.config.plan import load_plan
from bbo.errors import ConfigMismatchError
from bbo.explain import explain
from bbo.report import write_report
from experiments.tiny_pipelines import save_tiny
from experiments.tiny_rewards import write_clip

CONFIG = """
campaign: {{directory: {folder}/run, budget: 8, batch_size: 4, in_doubt: retry}}
prior:
  type: stable_diffusion
  path_or_id: sd
  prompts_file: prompts.txt
  n_steps: 3
  precision: {{checkpointing: false}}
encoder: {{type: clip, model: clip}}
oracle:
  type: reward
  prompt: a cat
  reward:
    type: weighted_sum
    weights: [1, 2.0]
    rewards:
      - {{type: jpeg_compressibility}}
      - {{type: clip_score, model: clip}}
method:
  surrogate: {{type: gp}}
  sampler: {{n_islands: 4, n_particles: 2}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    save_tiny("stable_diffusion", folder / "sd")
    write_clip(folder / "clip", n_tokens=77)
    (folder / "prompts.txt").write_text("a cat\na red house\n")
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def test_it_runs_from_a_file_and_is_told_apart_by_prompt(folder):
    plan = load_plan(folder / "run.yaml")
    with plan.open() as campaign:
        campaign.run()
        queries = campaign.ledger.queries()
        assert len(queries) == 8
        assert all(
            set(q.evaluation.outcomes) == {"value", "jpeg compressibility", "clip score"} for q in queries
        )
        designs = campaign.archive.designs(queries)
        assert designs.shape == (8, 3, 16, 16)
        assert 0 <= designs.min() <= designs.max() <= 1
        features = campaign.archive.features(queries)
        torch.testing.assert_close(features.norm(dim=1).float(), torch.ones(8))
        first, steered = (dict(explain(campaign.ledger, q.id)) for q in (queries[0], queries[-1]))
        assert first["prompt"] == "a cat"
        assert steered["prompt"] in ("a cat", "a red house")
        prompts = [dict(explain(campaign.ledger, q.id))["prompt"] for q in queries[:4]]
        assert prompts == ["a cat", "a red house", "a cat", "a red house"]
        assert campaign.ledger.config["prior"]["prompts"] == ["a cat", "a red house"]
    with load_plan(folder / "run.yaml").open() as again:
        again.run()  # the same parts, loaded anew, are recognised, and nothing is left to spend
        assert len(again.ledger.queries()) == 8
    page = write_report(folder / "run").read_text()
    assert page.count("data:image/png") >= 8


def test_other_prompts_are_another_campaign(folder):
    (folder / "prompts.txt").write_text("a cat\na blue house\n")
    try:
        with pytest.raises(ConfigMismatchError, match=r"prior\.prompts"):
            load_plan(folder / "run.yaml").open()
    finally:
        (folder / "prompts.txt").write_text("a cat\na red house\n")
