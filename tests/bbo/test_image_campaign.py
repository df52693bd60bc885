"""A campaign as people with image models run it: Stable Diffusion, two prompts, CLIP features, a reward."""

import pytest
import torch
from safetensors.torch import save_file

from bbo.config.plan import load_plan
from bbo.errors import ConfigError, ConfigMismatchError
from bbo.explain import explain
from bbo.report import write_report
from experiments.tiny_pipelines import save_tiny
from experiments.tiny_rewards import head, write_clip

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
  device: cpu
  reward:
    type: weighted_sum
    weights: [1, 2.0]
    rewards:
      - {{type: jpeg_compressibility}}
      - {{type: aesthetic, model: clip, head: head.safetensors}}
method:
  surrogate: {{type: gp}}
  sampler: {{n_islands: 4, n_particles: 2}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    save_tiny("stable_diffusion", folder / "sd")
    write_clip(folder / "clip", n_tokens=77)
    save_file(head(8, 5, 1), folder / "head.safetensors")
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
            set(q.evaluation.outcomes) == {"value", "jpeg compressibility", "aesthetic"} for q in queries
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
    with load_plan(folder / "run.yaml", ["oracle.device=null"]).open() as again:
        again.run()  # the same parts, loaded anew, are recognised wherever they compute, and nothing is left to spend
        assert len(again.ledger.queries()) == 8
    page = write_report(folder / "run").read_text()
    assert page.count("data:image/png") >= 8


SCORED = "oracle.reward={type: clip_score, model: clip}"


def test_a_reward_that_reads_the_prompt_is_for_one_prompt(folder):
    """Refused when the file is read, so that `bbo check` says it as well."""
    two = [SCORED, "oracle.prompt=a cat", "prior.prompts_file=null"]
    with pytest.raises(
        ConfigError, match="2 prompts, and the reward 'clip score' would score the images of all"
    ):
        load_plan(folder / "run.yaml", [*two, "prior.prompts=[a cat, a dog]"])
    assert load_plan(folder / "run.yaml", [*two, "prior.prompts=[a cat]"]).oracle.reward.reads_prompt


def test_more_prompts_than_islands_are_refused(folder):
    with pytest.raises(ConfigError, match=r"2 prompts, one an island, and the method has 1 islands"):
        load_plan(folder / "run.yaml", ["method.sampler.n_islands=1"])


def test_a_prompt_that_was_forgotten_and_a_device_that_is_not_there_are_told_with_the_file(folder):
    with pytest.raises(
        ConfigError, match="oracle: the reward clip score reads the prompt, and its oracle has none"
    ):
        load_plan(folder / "run.yaml", [SCORED])
    with pytest.raises(ConfigError, match="oracle: there is no device 'nonsense' here"):
        load_plan(folder / "run.yaml", ["oracle.device=nonsense"])


def test_other_prompts_are_another_campaign(folder):
    (folder / "prompts.txt").write_text("a cat\na blue house\n")
    try:
        with pytest.raises(ConfigMismatchError, match=r"prior\.prompts"):
            load_plan(folder / "run.yaml").open()
    finally:
        (folder / "prompts.txt").write_text("a cat\na red house\n")
