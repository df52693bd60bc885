"""Images for a known reward: what is sampled, what is written, and what is refused."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bbo import align_folder
from bbo.align import Alignment, Lost, align
from bbo.align_folder import AlignFolder, FolderError, write_png
from bbo.cli import app
from bbo.config.align_plan import load_align_plan
from bbo.errors import ConfigError, ConfigMismatchError
from experiments.tiny_pipelines import save_tiny
from oracles.errors import OracleError
from oracles.images.function import FunctionReward
from oracles.images.jpeg import JpegSize
from oracles.images.reward import WeightedSum
from smc.priors.gaussian import GaussianPrior
from smc.priors.pipelines import DDPMPrior, StableDiffusionPrior
from smc.sampler import SamplerConfig

PROMPTS = ["a cat", "red house in the rain"]


def brightness(images, prompts):
    """Bright for long prompts, dark for short ones."""
    sign = torch.tensor([1.0 if len(prompt) > 10 else -1.0 for prompt in prompts])
    return 1000 * sign * (images.flatten(1).mean(1) - 0.47)  # random networks paint everything alike


REWARD = FunctionReward(brightness)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("stable_diffusion", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def prior(folder):
    return StableDiffusionPrior.from_pretrained(folder, prompts=PROMPTS, n_steps=5)


def settings(prior, **changes):
    sampler = SamplerConfig(n_particles=3)
    chosen = {"reward": REWARD, "kl_coef": 0.1, "images_per_prompt": 2, "sampler": sampler, **changes}
    return Alignment(prior, **chosen)


def test_each_prompt_gets_images_that_suit_its_reward(prior):
    """Against the same islands with a reward that counts for nothing: each moves the way its own prompt asks for."""
    steered = list(align(settings(prior)))
    plain = list(align(settings(prior, kl_coef=1e6)))
    assert [island.prompt for island in steered] == [*PROMPTS, *PROMPTS]
    for ours, theirs in zip(steered, plain, strict=True):
        assert ours.values["reward"].mean() > theirs.values["reward"].mean() + 0.3
        assert theirs.result.log_w.std() < 1e-3


def test_values_are_the_rewards_of_the_images_and_weights_the_samplers(prior):
    for island in align(settings(prior, sampler=SamplerConfig(n_particles=4, max_batch=3))):
        again = brightness(island.images, [island.prompt] * 4)
        torch.testing.assert_close(island.values["reward"], again, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(island.result.log_psi[0], again / 0.1, atol=1e-2, rtol=1e-3)
        assert 0 <= island.drawn < 4
        assert island.images.shape == (4, 3, 16, 16)


def test_an_image_is_the_same_however_many_are_asked_for(prior):
    few, more = (list(align(settings(prior, images_per_prompt=n))) for n in (1, 2))
    for ours, theirs in zip(few, more, strict=False):
        assert torch.equal(ours.images, theirs.images)
        assert ours.drawn == theirs.drawn
    assert not torch.equal(more[0].images, more[2].images)
    other = next(align(settings(prior, seed=1)))
    assert not torch.equal(few[0].images, other.images)


def test_terms_of_a_sum_are_told_apart(prior):
    both = WeightedSum([REWARD, replace(REWARD, name="again")], [2.0, -0.5])
    island = next(align(settings(prior, reward=both)))
    assert set(island.values) == {"reward", "function", "again"}
    torch.testing.assert_close(island.values["reward"], 1.5 * island.values["again"])


def test_a_black_box_is_sampled_by_weights_alone(prior):
    sampler = SamplerConfig(n_particles=3, guidance=None)
    island = next(align(settings(prior, reward=JpegSize(), sampler=sampler, kl_coef=0.01)))
    assert island.result.log_w.std() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl_coef": 0.0}, "kl_coef must be a finite number above 0, got 0.0"),
        ({"images_per_prompt": 0}, "images_per_prompt must be at least 1, got 0"),
        (
            {"reward": JpegSize()},
            "the reward jpeg size has no gradient, so it cannot guide; set sampler.guidance to",
        ),
    ],
)
def test_settings_that_cannot_be(changes, said, prior):
    with pytest.raises(ConfigError, match=said):
        settings(prior, **changes)


def test_a_reward_that_reads_prompts_needs_a_prior_that_has_some(tmp_path):
    prior = DDPMPrior.from_pretrained(save_tiny("ddpm", tmp_path), n_steps=2)
    with pytest.raises(
        ConfigError, match="the reward function reads the prompt of an image, and this prior has none"
    ):
        settings(prior, reward=replace(REWARD, reads_prompt=True))


def test_designs_that_are_no_images():
    with pytest.raises(ConfigError, match=r"images of shape .* this prior's designs have shape \(2,\)"):
        settings(GaussianPrior(mean=torch.zeros(2)))


# ---------------------------------------------------------------- files
def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_is_written_down(prior, tmp_path):
    alignment = settings(prior)
    written = AlignFolder.open(tmp_path / "out", alignment)
    islands = list(align(alignment))
    for island in islands:
        written.add(island)
    particles, steps = rows(tmp_path / "out/particles.csv"), rows(tmp_path / "out/steps.csv")
    assert len(particles) == 4 * 3
    assert len(steps) == 4 * 5
    for island in islands:
        own = [row for row in particles if int(row["island"]) == island.island]
        assert sum(float(row["weight"]) for row in own) == pytest.approx(1)
        assert [row["is_drawn"] for row in own].index("True") == island.drawn
        for row, image, value in zip(own, island.images, island.values["reward"], strict=True):
            assert row["prompt"] == island.prompt
            assert float(row["reward"]) == pytest.approx(float(value))
            with Image.open(tmp_path / "out" / row["image"]) as png:
                assert png.size == (16, 16)
                expected = (image.permute(1, 2, 0) * 255).round().to(torch.uint8)
                assert np.asarray(png)[1, 1].tolist() == expected[1, 1].tolist()
    last = [row for row in steps if row["island"] == "0"][-1]
    assert float(last["ess"]) == pytest.approx(float(islands[0].result.trace.ess[-1, 0]))
    assert [int(row["t"]) for row in steps[:5]] == [t for t, _ in prior.steps]
    told = json.loads((tmp_path / "out/align.json").read_text())
    assert told["settings"]["prior"]["prompts"] == PROMPTS
    assert told["settings"]["prior"]["guidance_scale"] == 7.5
    assert told["settings"]["kl_coef"] == 0.1
    assert told["settings"]["sampler"]["n_islands"] == 1
    assert {"diffusers", "transformers", "torch"} <= set(told["versions"])


def test_nothing_is_overwritten(prior, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FolderError, match="holds something already, and nothing is overwritten"):
        AlignFolder.open(tmp_path, settings(prior))
    with pytest.raises(FolderError, match="holds something already"):
        AlignFolder.open(tmp_path / "mine.txt", settings(prior))


def test_grey_images_and_images_of_the_dead(tmp_path):
    write_png(torch.tensor([[[0.0, 1.0], [0.5, torch.nan]]]), tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as png:
        assert (png.mode, np.asarray(png).tolist()) == ("L", [[0, 255], [128, 0]])


class Interrupted(Exception):
    """Stands for a kill."""


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("where", ["particles.csv", "steps.csv", "drawn"])
def test_a_run_that_was_broken_off_goes_on(after, where, prior, tmp_path, monkeypatch):
    """At any place of an island's writing; what comes out is what an unbroken run writes, to the bit."""
    alignment = settings(prior)
    whole = AlignFolder.open(tmp_path / "whole", alignment)
    for island in align(alignment):
        whole.add(island)
    broken = AlignFolder.open(tmp_path / "broken", alignment)
    islands = align(alignment)
    for _ in range(after):
        broken.add(next(islands))
    written = []

    def kill(path, *args, write, **kwargs):
        if where in str(path):
            raise Interrupted
        written.append(path)
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        append, png = align_folder._append, align_folder.write_png
        patch.setattr(align_folder, "_append", lambda path, rows: kill(path, rows, write=append))
        patch.setattr(
            align_folder, "write_png", lambda image, path: kill(path, write=lambda p: png(image, p))
        )
        with pytest.raises(Interrupted):
            broken.add(next(islands))
    if where == "steps.csv":  # a line that was cut in the middle
        with (tmp_path / "broken/particles.csv").open("a") as file:
            file.write(f"{after},a cat,9")
    again = AlignFolder.open(tmp_path / "broken", alignment)
    assert again.done == set(range(after))
    for island in align(alignment, again.done):
        again.add(island)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_run_that_was_killed_before_its_first_image_goes_on(prior, tmp_path):
    alignment = settings(prior)
    AlignFolder.open(tmp_path / "out", alignment)
    for folder in ("drawn", "particles"):
        (tmp_path / "out" / folder).rmdir()
    again = AlignFolder.open(tmp_path / "out", alignment)
    again.add(next(align(alignment, again.done)))
    assert (tmp_path / "out/drawn/0000.png").exists()


def test_other_settings_are_another_folder(prior, tmp_path):
    AlignFolder.open(tmp_path, settings(prior))
    AlignFolder.open(tmp_path, settings(prior, sampler=SamplerConfig(n_particles=3, max_batch=1)))
    with pytest.raises(ConfigMismatchError, match=r"the alignment .*kl_coef is 0\.1 there and 0\.2 here"):
        AlignFolder.open(tmp_path, settings(prior, kl_coef=0.2))


def test_an_image_in_which_nobody_is_left_takes_no_other_along(prior, tmp_path):
    """A reward that is not finite for one of the prompts."""
    nowhere = FunctionReward(lambda images, prompts: brightness(images, prompts) / (len(prompts[0]) > 10))
    alignment = settings(prior, reward=nowhere)
    written = AlignFolder.open(tmp_path, alignment)
    outcomes = list(align(alignment))
    for outcome in outcomes:
        written.add(outcome)
    assert [isinstance(outcome, Lost) for outcome in outcomes] == [True, False, True, False]
    assert "no particle of 3 was left alive" in outcomes[0].reason
    assert [row["island"] for row in rows(tmp_path / "lost.csv")] == ["0", "2"]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["0001.png", "0003.png"]
    assert AlignFolder.open(tmp_path, alignment).done == {0, 1, 2, 3}


def test_particles_that_do_not_fit_the_memory_go_in_smaller_groups(prior):
    """A reward that a GPU has no room for more than two images of."""
    sizes = []

    def hungry(images, prompts):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return brightness(images, prompts)

    sampler = SamplerConfig(n_particles=5)
    ours = list(align(settings(prior, reward=FunctionReward(hungry), sampler=sampler)))
    theirs = list(align(settings(prior, sampler=sampler)))
    assert sizes.count(5) == sizes.count(3) == 1, "what was found to fit is kept for the next islands"
    for small, large in zip(ours, theirs, strict=True):
        torch.testing.assert_close(small.images, large.images, atol=1e-3, rtol=1e-3)


def test_images_are_drawn_by_weight(tmp_path):
    """Over many islands the best particle is drawn as often as its weight says, not always."""
    prior = DDPMPrior.from_pretrained(save_tiny("ddpm", tmp_path), n_steps=2)
    sampler = SamplerConfig(n_particles=4, guidance=None, ess_min=0.0)
    islands = list(align(settings(prior, images_per_prompt=200, sampler=sampler, kl_coef=30.0)))
    weights = torch.stack([island.result.log_w[0].exp() for island in islands])
    drawn = torch.tensor([island.drawn for island in islands])
    best = weights.amax(1)
    is_best = weights.gather(1, drawn[:, None])[:, 0] == best
    error = float((best * (1 - best)).sum().sqrt()) / len(islands)
    assert 0.4 < float(best.mean()) < 0.9, "weights that are neither all alike nor all in one particle"
    assert float(is_best.float().mean()) == pytest.approx(float(best.mean()), abs=4 * error)


# ---------------------------------------------------------------- the command
CODE = """
def dark(images, prompts):
    return -images.flatten(1).mean(1)
"""


@pytest.fixture
def config(folder, tmp_path):
    (tmp_path / "rewards.py").write_text(CODE)
    path = tmp_path / "cats.yaml"
    path.write_text(
        f"align: {{directory: {tmp_path}/out, kl_coef: 0.01}}\n"
        f"prior: {{type: stable_diffusion, path_or_id: {folder}, prompts: [a cat, a dog], n_steps: 3}}\n"
        "reward:\n"
        "  type: weighted_sum\n"
        "  weights: [1, 0.5]\n"
        "  rewards:\n"
        "    - {type: function, function: 'rewards.py:dark', name: dark}\n"
        "    - {type: function, function: 'rewards.py:dark', name: again}\n"
        "sampler: {n_particles: 2}\n"
    )
    return path


def test_bbo_align(config, tmp_path):
    done = CliRunner().invoke(app, ["align", str(config), "align.images_per_prompt=2"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("image   1 of 4  reward -")
    assert lines[0].endswith("a cat")
    assert sorted(path.name for path in (tmp_path / "out/drawn").iterdir()) == [
        f"000{i}.png" for i in range(4)
    ]
    assert set(rows(tmp_path / "out/particles.csv")[0]) >= {"weight", "reward", "dark", "again"}


def test_every_mistake_of_a_file_is_told_at_once(config):
    text = (
        config.read_text()
        .replace("kl_coef: 0.01", "kl_coef: warm")
        .replace("type: weighted_sum", "type: sum")
    )
    config.write_text(text.replace("n_steps: 3", "n_stepz: 3"))
    with pytest.raises(ConfigError) as refusal:
        load_align_plan(config, ["sampler.n_islands=4"])
    said = str(refusal.value)
    assert "align.kl_coef: input should be a number" in said
    assert "prior.n_stepz: unknown key; did you mean 'n_steps'?" in said
    assert "reward: unknown type 'sum'" in said
    assert "sampler.n_islands: there is one island an image; set align.images_per_prompt instead" in said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a cat", r"prior\.prompts: expected a list, got the text 'a cat'; write \['a cat'\]"),
        ("null", "expected a list, got None"),
    ],
)
def test_prompts_that_are_no_list(written, said, config):
    config.write_text(config.read_text().replace("prompts: [a cat, a dog]", f"prompts: {written}"))
    with pytest.raises(ConfigError, match=said):
        load_align_plan(config)


def test_a_reward_that_raises_is_told_in_one_line(config, tmp_path):
    (tmp_path / "rewards.py").write_text("def dark(images):\n    return images.mean()\n")
    with pytest.raises(OracleError, match=r"the reward dark raised TypeError: dark\(\) takes 1 positional"):
        list(align(load_align_plan(config).alignment))


def test_a_mistake_inside_a_sum_has_its_place(config):
    config.write_text(config.read_text().replace("name: again", "nam: again"))
    with pytest.raises(ConfigError, match=r"reward\.rewards\.1\.nam: unknown key; did you mean 'name'\?"):
        load_align_plan(config)


def test_what_a_prior_refuses_is_told_with_its_section(config, tmp_path):
    config.write_text(config.read_text().replace("stable_diffusion", "latent_consistency", 1))
    with pytest.raises(
        ConfigError, match="prior: LatentConsistencyPrior adapts a LatentConsistencyModelPipeline"
    ):
        load_align_plan(config)


def test_a_device_that_is_not_there(config):
    with pytest.raises(ConfigError, match=r"align\.device: .*nonsense"):
        load_align_plan(config, ["align.device=nonsense"])
    with pytest.raises(ConfigError, match=r"align\.device: the device 'meta' is not there"):
        load_align_plan(config, ["align.device=meta"])


def test_threes_are_threes_to_a_classifier_that_was_not_asked(tmp_path):
    """By Bayes' rule at kl_coef 1: p(x)·P(3|x) is what the prior knows of threes. Few of its own draws are."""
    pytest.importorskip("sklearn")
    from experiments.problems.digits import EXAMPLES, class_probabilities, prior_designs

    plan = load_align_plan(EXAMPLES / "align_digits.yaml", [f"align.directory={tmp_path}"])
    images = torch.stack([island.images[island.drawn] for island in align(plan.alignment)])
    assert images.shape == (16, 1, 8, 8)
    is_three = class_probabilities(images).argmax(1) == 3
    assert is_three.mean() >= 0.75
    assert (class_probabilities(prior_designs(64, seed=0)).argmax(1) == 3).mean() < 0.3
