"""The digits problem: its prior, its judge, its examples, and what its benchmark counts."""

import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("sklearn")
from bbo.config.plan import load_plan
from experiments.benchmarks.digits_campaign import (
    Level,
    Passes,
    Run,
    Variant,
    counted,
    samples_a_round,
)
from experiments.problems.digits import (
    CONFIG,
    CONFIG_BOOTSTRAP,
    class_probabilities,
    compressible,
    digits_prior,
    diversity,
    incompressible,
    prior_designs,
    recognisability,
    rewards,
)
from experiments.problems.digits_prior_card import CARD, accuracy, nearest
from experiments.problems.train_digits_prior import FOLDER, halves, main, real_digits
from smc.priors.pipelines import DDPMPrior
from smc.sampler import SamplerConfig, sample
from surrogate.acquisition import DecayingUCB, Optimistic


@pytest.fixture(scope="module")
def samples():
    return prior_designs(256, seed=5)


class TestPrior:
    def test_is_small_and_its_card_is_about_it(self):
        assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 3e6
        assert 150_000 <= sum(p.numel() for p in digits_prior().unet.parameters()) <= 700_000
        assert digits_prior().design_shape == (1, 8, 8)
        assert f"fingerprint `{digits_prior().fingerprint()}`" in CARD.read_text()

    def test_its_samples_are_digits_of_all_kinds(self, samples):
        """Held-out digits: recognisability 0.75, mean distance 3.02, nearest training digit 1.04 at the median."""
        assert 0 <= samples.min() < 0.01
        assert 0.99 < samples.max() <= 1
        assert recognisability(samples) > 0.68
        shares = np.bincount(class_probabilities(samples).argmax(1), minlength=10) / len(samples)
        assert shares.min() > 0.03
        assert shares.max() < 0.2
        assert diversity(samples) == pytest.approx(2.9, abs=0.15)
        assert nearest(samples, real_digits()[0].images)[2] == pytest.approx(1.02, abs=0.1)

    def test_a_few_iterations_write_a_folder_that_loads_and_the_same_one_again(self, tmp_path):
        weights = []
        for name in ("first", "again"):
            main(["--out", str(tmp_path / name), "--iterations", "3"])
            weights.append(load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors"))
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        prior = DDPMPrior.from_pretrained(tmp_path / "first", n_steps=4, local_files_only=True)
        config = SamplerConfig(n_islands=3, n_particles=1, guidance=None)
        drawn = sample(prior, lambda x0, _: x0.new_zeros(len(x0)), config, generator=torch.Generator())
        assert prior.decode(drawn.x0).shape == (3, 1, 8, 8)
        assert drawn.x0.isfinite().all()
        assert prior.fingerprint() != digits_prior().fingerprint()


class TestJudge:
    def test_recognises_digits_that_it_has_not_seen(self):
        _, held_out = real_digits()
        assert accuracy(held_out.images, held_out.labels) > 0.97
        assert class_probabilities(held_out.images).sum(1) == pytest.approx(1)

    def test_is_unsure_of_what_is_no_digit(self):
        noise = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert recognisability(noise) < 0.25
        assert recognisability(real_digits()[1].images) > 0.7

    def test_shares_no_digit_with_the_classifier_that_is_a_reward(self):
        """Trees are as sure as can be of what they learnt, and of nothing else."""
        theirs, mine = halves(real_digits()[0])
        assert recognisability(mine.images) == pytest.approx(1)
        assert recognisability(theirs.images) < 0.85

    def test_data_are_split_without_a_rest(self):
        train, held_out = real_digits()
        even, odd = halves(train)
        assert (len(even.images), len(odd.images), len(held_out.images)) == (809, 808, 180)
        assert torch.equal(even.images[1], train.images[2])
        assert torch.equal(odd.labels[1], train.labels[3])


class TestMeasures:
    def test_diversity_is_the_mean_distance_of_two(self):
        """Three images with 0, 4 and 4 pixels of ink, the latter in other places: distances 2, 2 and √8."""
        images = torch.zeros(3, 1, 8, 8)
        images[1, 0, 0, :4] = images[2, 0, 7, :4] = 1
        assert diversity(images) == pytest.approx((2 + 2 + math.sqrt(8)) / 3)

    def test_rewards_are_minus_the_size(self, samples):
        sizes = [e.outcomes["value"] for e in incompressible().evaluate(samples[:5])]
        assert rewards(samples[:5]) == pytest.approx([-size for size in sizes])
        assert [e.outcomes["value"] for e in compressible().evaluate(samples[:5])] == [-s for s in sizes]


class TestExamples:
    @pytest.mark.parametrize(
        ("config", "acquisition"), [(CONFIG, DecayingUCB), (CONFIG_BOOTSTRAP, Optimistic)]
    )
    def test_a_tiny_budget_runs_without_scikit_learn(self, config, acquisition, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)  # importing it raises from here on
        plan = load_plan(
            config,
            [
                f"campaign.directory={tmp_path}/run",
                "campaign.budget=24",
                "campaign.batch_size=12",
                "prior.n_steps=5",
                "method.sampler.n_islands=12",
            ],
        )
        assert isinstance(plan.method.acquisition, acquisition)
        with plan.open() as campaign:
            campaign.run()
            queries = campaign.ledger.queries()
            designs = campaign.archive.designs(queries)
        assert [q.evaluation.outcomes["value"] for q in queries] == pytest.approx(rewards(designs).tolist())
        assert {q.provenance["from"] for q in queries[12:]} == {"target"}

    def test_both_are_the_campaigns_that_are_published(self):
        plans = [load_plan(config) for config in (CONFIG, CONFIG_BOOTSTRAP)]
        for plan in plans:
            assert plan.settings.budget == 512
            assert plan.prior.fingerprint() == digits_prior().fingerprint()
            assert plan.oracle == compressible()


class TestBenchmark:
    def test_every_row_is_counted_forward_and_backward(self):
        prior, t = digits_prior(), digits_prior().steps[30][0]
        with counted(prior.unet) as passes:
            x = torch.zeros(5, 1, 8, 8, requires_grad=True)
            prior.denoise(x, t).eps.sum().backward()
            with torch.no_grad():
                prior.denoise(x[:3], t)
        prior.denoise(x[:2], t)  # nobody counts any more
        assert (passes.forward, passes.backward, passes.evaluations) == (8, 5, 18)

    def test_a_guided_sampling_costs_what_is_said_of_it(self):
        """T passes forward, T - 1 back: the last step has no noise and is not guided."""
        prior = DDPMPrior.from_pretrained(FOLDER, n_steps=6, local_files_only=True)
        config = SamplerConfig(n_islands=2, n_particles=3)
        with counted(prior.unet) as passes:
            sample(prior, lambda x0, _: x0.flatten(1).sum(1), config, generator=torch.Generator())
        assert (passes.forward, passes.backward) == (6 * 6, 5 * 6)

    def test_best_of_n_costs_as_much_and_less_than_one_sample_a_round_more(self):
        n = samples_a_round(319_616, n_steps=50, budget=512, batch_size=64)
        shared = (1024 + 64) * 50
        assert shared + 7 * (n - 1) * 50 < 319_616 <= shared + 7 * n * 50
        assert samples_a_round(0, n_steps=50, budget=512, batch_size=64) == 64

    def test_figures_are_in_units_of_the_prior(self, samples):
        prior = Level(reward=-1.4, recognisability=0.9, diversity=3.0, reward_std=0.1)
        runs = [Run(samples[:100], 10, 1.0), Run(samples[100:200], 10, 3.0)]
        variant = Variant.of("digits", runs, prior)
        last = [samples[36:100], samples[136:200]]
        assert variant.reward.tolist() == pytest.approx([(rewards(d).mean() + 1.4) / 0.1 for d in last])
        baseline = Variant(np.array([1.0, -2.0]), 1.0, 1.0, 1.0)
        figures = variant.figures("", baseline)
        gains = variant.reward - [1.0, -2.0]
        assert figures["gain_over_best_of_n"] == pytest.approx(gains.mean())
        assert figures["gain_se"] == pytest.approx(abs(gains[0] - gains[1]) / 2)
        assert figures["diversity_ratio"] == pytest.approx(sum(map(diversity, last)) / 2 / 3.0)
        assert figures["recognisability_ratio"] == pytest.approx(sum(map(recognisability, last)) / 2 / 0.9)
        assert figures["seconds"] == 3.0

    def test_passes_back_count_twice(self):
        assert Passes(forward=10, backward=4).evaluations == 18
