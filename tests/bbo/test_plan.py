"""Campaign files: what is accepted, and that every mistake is reported at once with its path and a hint."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from bbo.config.describe import describe
from bbo.config.files import locate
from bbo.config.plan import load_plan
from bbo.errors import ConfigError
from bbo.places import Local, Ray
from bbo.selection import Conditioned
from bbo.settings import InDoubt, Settings
from bbo.steering import SteeredPrior
from bbo.temperature import Budgeted
from oracles.airfoil import AirfoilOracle
from smc.priors.training import TrainingSettings, train_denoiser
from smc.resampling import stratified
from smc.sampler import Guidance, SamplerConfig
from smc.tempering import Adaptive
from surrogate.acquisition import UCB, DecayingUCB, FeasibilityOnly, GrowingUCB, Optimistic
from surrogate.auto import Auto, AutoFeasibility
from surrogate.averaged_gp import AveragedGP
from surrogate.ensemble import DeepEnsemble
from surrogate.feasibility_ensemble import EnsembleFeasibility
from surrogate.features import Flatten, Identity, PrincipalComponents, Standardizer
from surrogate.gp import ExactGP
from surrogate.improvement import LogExpectedImprovement, LogProbabilityOfImprovement
from surrogate.kernels import RBF
from surrogate.sparse_gp import SparseGP

EXAMPLES = Path(__file__).parents[2] / "examples"

MISTAKES = """
campaign:
  directory: runs/x
  budgt: 256
  batch_size: "many"
  seed: 1.5
  in_doubt: rettry
prior: {type: denoisr, path: x}
oracle: {type: airfoil, alfa: 3}
method:
  surrogate: {max_iterations: 3}
  acquisition: {type: ucb, beta: two}
  sampler: {tempering: {type: exponental}, resampling: systemtic, guidance: {max_drif: 3}}
  kl_coef: true
extra: 1
"""


@pytest.fixture(scope="module")
def prior_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "small.safetensors"
    settings = TrainingSettings(n_iterations=2, width=8, n_blocks=1, batch_size=16)
    train_denoiser(np.random.default_rng(0).normal(size=(32, 2)), settings=settings).save(path)
    return path


def written(tmp_path, prior_file, text="", oracle="{type: function, function: 'mine.py:bowl'}"):
    (tmp_path / "mine.py").write_text("def bowl(design):\n    return -float((design ** 2).sum())\n")
    path = tmp_path / "campaign.yaml"
    path.write_text(
        f"campaign: {{directory: {tmp_path / 'run'}, budget: 6, batch_size: 3}}\n"
        f"prior: {{type: denoiser, path: {prior_file}, n_steps: 5}}\noracle: {oracle}\n{text}"
    )
    return path


def test_the_example_builds_the_defaults():
    plan = load_plan(EXAMPLES / "airfoil.yaml")
    assert plan.settings == Settings(256, 16, 0, in_doubt=InDoubt.RETRY)
    assert plan.method == SteeredPrior()
    assert plan.oracle == AirfoilOracle()
    assert plan.prior.design_shape == (18,)


def test_every_part_of_a_method_can_be_set(tmp_path, prior_file):
    text = """
method:
  surrogate: {type: gp, max_iterations: 7}
  acquisition: {type: ucb, beta: 1}
  feasibility: null
  kl_coef: 2e-1
  n_shards: 2
  sampler: {n_islands: 3, tempering: {type: adaptive, ess_target: 0.5}, resampling: stratified,
            guidance: {max_drift: 3}, ess_min: 1}
"""
    method = load_plan(written(tmp_path, prior_file, text)).method
    sampler = SamplerConfig(
        3, tempering=Adaptive(0.5), guidance=Guidance(max_drift=3.0), resampling=stratified, ess_min=1.0
    )
    assert method == SteeredPrior(ExactGP(max_iterations=7), UCB(1.0), None, 0.2, sampler, 2)


def test_overrides_change_and_add_sections(tmp_path, prior_file):
    path = written(tmp_path, prior_file)
    plan = load_plan(
        path, ["campaign.seed=5", "method.sampler.guidance=null", "campaign.in_doubt=count_as_spent"]
    )
    assert plan.settings.seed == 5
    assert plan.method == replace(SteeredPrior(), sampler=SamplerConfig(guidance=None))


def test_a_tilde_is_the_home_directory(tmp_path, prior_file, monkeypatch):
    """As in a shell, which leaves it to the program in campaign.directory=~/mine."""
    monkeypatch.setenv("HOME", str(prior_file.parent))
    path = written(tmp_path, Path("~") / prior_file.name)
    assert load_plan(path, ["campaign.directory=~/mine"]).directory == prior_file.parent / "mine"
    path.write_text("campaign: {directory: ~/mine}")
    assert locate(path)[0] == prior_file.parent / "mine"


def test_a_plan_runs(tmp_path, prior_file):
    plan = load_plan(written(tmp_path, prior_file))
    with plan.open() as campaign:
        campaign.run()
        assert len(campaign.history()) == 6


def test_every_mistake_is_reported_at_once(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(MISTAKES)
    with pytest.raises(ConfigError) as refused:
        load_plan(path)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{path}:"
    assert lines[1:] == [
        "  campaign.batch_size: input should be a valid integer, got 'many'",
        "  campaign.budget: is missing",
        "  campaign.budgt: unknown key; did you mean 'budget'?",
        "  campaign.in_doubt: unknown value 'rettry'; did you mean 'retry'?",
        "  campaign.seed: input should be a valid integer, got 1.5",
        "  extra: unknown key; did you mean 'executor'?",
        "  method.acquisition.beta: input should be a number, got 'two'",
        "  method.kl_coef: input should be a number, got True",
        "  method.sampler.guidance.max_drif: unknown key; did you mean 'max_drift'?",
        "  method.sampler.resampling: unknown value 'systemtic'; did you mean 'systematic'?",
        "  method.sampler.tempering: unknown type 'exponental'; did you mean 'exponential'?",
        "  method.surrogate: needs a 'type'; known are gp, averaged_gp, sparse_gp, ensemble, neural_linear, auto",
        "  oracle.alfa: unknown key; did you mean 'alpha'?",
        "  prior: unknown type 'denoisr'; did you mean 'denoiser'?",
    ]


def test_one_bad_section_hides_no_mistake_in_another(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "campaign: {directory: x, budget: 0}\nprior: {type: denoisr, path: x}\noracle: {type: airfoil, reynolds: -1}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_plan(path)
    for said in ("budget must be a whole number", "did you mean 'denoiser'?", "reynolds must be above 0"):
        assert said in str(refused.value)


def test_what_constructors_refuse_is_reported_with_its_section(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "campaign: {directory: x, budget: 0}\nprior: {type: denoiser, path: nowhere.safetensors}\n"
        "oracle: {type: airfoil, reynolds: -1}\nmethod: {sampler: {n_islands: 0}}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_plan(path)
    text = str(refused.value)
    assert "campaign: budget must be a whole number, at least 1 query, got 0" in text
    assert f"prior: no prior at {tmp_path / 'nowhere.safetensors'}" in text
    assert "reynolds must be above 0" in text
    assert "at least 1 island" in text


def test_a_prior_of_another_dimension_than_the_oracle_is_refused(tmp_path, prior_file):
    with pytest.raises(ConfigError, match=r"takes designs of shape \(18,\), but the prior makes \(2,\)"):
        load_plan(written(tmp_path, prior_file, oracle="{type: airfoil}"))


@pytest.mark.parametrize(
    ("oracle", "said"),
    [
        ("{type: function, function: 'mine.py:bwl'}", "mine.py has no 'bwl'"),
        ("{type: function, function: 'nowhere.py:f'}", "no file"),
        ("{type: function, function: 'no.such.module:f'}", "cannot import no.such.module"),
        ("{type: function, function: 'bowl'}", "expected 'package.module:attribute'"),
    ],
)
def test_user_code_that_cannot_be_loaded(tmp_path, prior_file, oracle, said):
    with pytest.raises(ConfigError, match=said):
        load_plan(written(tmp_path, prior_file, oracle=oracle))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words", "must hold sections"),
        ("campaign: [1, 2", "is not YAML: line 1, column 16: expected"),
        ("campaign: {budget: 1, budget: 2}", "'budget' stands twice"),
        (
            "campaign: 5\nprior: {type: denoiser, path: x}\noracle: {type: airfoil}",
            "campaign: expected a section",
        ),
    ],
)
def test_files_that_are_no_campaign(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_plan(path)


@pytest.mark.parametrize("override", ["seed", "=5", "campaign..seed=5", "campaign.seed.x=5"])
def test_overrides_that_are_none(override):
    with pytest.raises(ConfigError):
        load_plan(EXAMPLES / "airfoil.yaml", [override])


def test_a_missing_file_is_one_line():
    with pytest.raises(ConfigError, match=r"cannot read nowhere.yaml: No such file"):
        load_plan(Path("nowhere.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("surrogate: {type: sparse_gp, n_inducing: 64}", SteeredPrior(surrogate=SparseGP(n_inducing=64))),
        ("surrogate: {type: auto, max_exact: 100}", SteeredPrior(surrogate=Auto(max_exact=100))),
        ("acquisition: {type: log_ei}", SteeredPrior(acquisition=LogExpectedImprovement())),
        ("acquisition: {type: log_pi, best: 2}", SteeredPrior(acquisition=LogProbabilityOfImprovement(2.0))),
        (
            "surrogate: {type: ensemble}, acquisition: {type: optimistic}",
            SteeredPrior(surrogate=DeepEnsemble(), acquisition=Optimistic()),
        ),
        ("acquisition: {type: feasibility_only}", SteeredPrior(acquisition=FeasibilityOnly())),
        ("acquisition: {type: ucb, beta: 2}", SteeredPrior(acquisition=UCB(2.0))),
        (
            "acquisition: {type: growing_ucb, n_candidates: 1000}",
            SteeredPrior(acquisition=GrowingUCB(n_candidates=1000)),
        ),
        (
            "acquisition: {type: decaying_ucb, start: 3, half: 32}",
            SteeredPrior(acquisition=DecayingUCB(start=3.0, half=32)),
        ),
        ("feasibility: {type: ensemble, width: 32}", SteeredPrior(feasibility=EnsembleFeasibility(width=32))),
        ("feasibility: {type: auto}", SteeredPrior(feasibility=AutoFeasibility())),
        ("surrogate: {type: gp, kernel: {type: rbf}}", SteeredPrior(surrogate=ExactGP(kernel=RBF()))),
        ("surrogate: {type: averaged_gp}", SteeredPrior(surrogate=AveragedGP())),
        ("selection: {type: conditioned, n_steps: 4}", SteeredPrior(selection=Conditioned(4))),
        ("kl_coef: auto", SteeredPrior(kl_coef="auto")),
        (
            "temperature: {nats_per_observation: 0.2}",
            SteeredPrior(temperature=Budgeted(nats_per_observation=0.2)),
        ),
    ],
)
def test_surrogates_acquisitions_and_feasibility_by_name(tmp_path, prior_file, text, expected):
    assert load_plan(written(tmp_path, prior_file, f"method: {{{text}}}")).method == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{type: identity}", Identity()),
        ("{type: flatten}", Flatten()),
        ("{type: pca, n_components: 3}", PrincipalComponents(n_components=3)),
        ("{type: standardize}", Standardizer()),
    ],
)
def test_encoders_by_name(tmp_path, prior_file, text, expected):
    assert load_plan(written(tmp_path, prior_file, f"encoder: {text}")).encoder == expected


def test_without_an_encoder_features_are_standardised(tmp_path, prior_file):
    assert load_plan(written(tmp_path, prior_file, "")).encoder == Standardizer()


def test_a_temperature_that_is_neither_a_number_nor_auto(tmp_path, prior_file):
    for word, told in (("aut", "did you mean 'auto'?"), ("warm", "known are auto, or a number")):
        with pytest.raises(ConfigError) as caught:
            load_plan(written(tmp_path, prior_file, f"method: {{kl_coef: {word}}}"))
        assert str(caught.value).endswith(f"method.kl_coef: unknown value {word!r}; {told}")


def test_a_bad_word_hides_no_mistake_beside_it(tmp_path, prior_file):
    text = "method: {kl_coef: true, sampler: {n_islands: x, resampling: sys}}"
    with pytest.raises(ConfigError) as caught:
        load_plan(written(tmp_path, prior_file, text))
    assert str(caught.value).splitlines()[1:] == [
        "  method.kl_coef: input should be a number, got True",
        "  method.sampler.n_islands: input should be a valid integer, got 'x'",
        "  method.sampler.resampling: unknown value 'sys'; did you mean 'ssp'?",
    ]


class TestExecutors:
    def plan(self, tmp_path, prior_file, text="", overrides=(), executor=None):
        return load_plan(written(tmp_path, prior_file, text), overrides, executor)

    def test_without_one_everything_is_done_here(self, tmp_path, prior_file):
        assert self.plan(tmp_path, prior_file).executor == Local()

    def test_every_setting_has_its_place(self, tmp_path, prior_file):
        text = (
            "executor: {type: ray, address: auto, n_workers: 8, gpus_per_worker: 0.25, cpus_per_worker: 2, "
            "max_batch: 64}"
        )
        executor = self.plan(tmp_path, prior_file, text).executor
        assert executor == Ray("auto", 8, gpus_per_worker=0.25, cpus_per_worker=2.0, max_batch=64)

    def test_the_prior_may_compute_on_a_device_of_this_process(self, tmp_path, prior_file):
        text = "executor: {type: local, device: 'cuda:1', max_batch: 8}"
        assert self.plan(tmp_path, prior_file, text).executor == Local(max_batch=8, device="cuda:1")
        with pytest.raises(ConfigError, match=r"executor.*device must be a device of torch .* got 'gpu'"):
            self.plan(tmp_path, prior_file, "executor: {type: local, device: gpu}")

    def test_how_a_prior_is_loaded_may_be_the_users_own_function(self, tmp_path, prior_file):
        executor = self.plan(
            tmp_path, prior_file, "executor: {type: ray, load_prior: 'mine.py:bowl'}"
        ).executor
        assert executor.load_prior.__name__ == "bowl"

    def test_another_type_on_the_command_line_starts_from_its_defaults_and_the_same_keeps_its_settings(
        self, tmp_path, prior_file
    ):
        text = "executor: {type: ray, n_workers: 8}"
        assert self.plan(tmp_path, prior_file, text, executor="local").executor == Local()
        assert self.plan(tmp_path, prior_file, text, executor="ray").executor.n_workers == 8
        assert self.plan(tmp_path, prior_file, executor="ray").executor == Ray()
        overrides = ["executor.n_workers=3"]
        assert self.plan(tmp_path, prior_file, text, overrides, "ray").executor.n_workers == 3
        assert self.plan(tmp_path, prior_file, "", overrides, "ray").executor.n_workers == 3

    def test_calls_at_a_time_are_no_setting_of_the_oracle(self, tmp_path, prior_file):
        oracle = "{type: function, function: 'mine.py:bowl', parallel: 8}"
        path = written(tmp_path, prior_file, "executor: {type: ray}", oracle=oracle)
        plan = load_plan(path)
        assert plan.settings.parallel == 8
        assert load_plan(path, ["oracle.parallel=null"]).settings.parallel is None
        assert describe(plan.oracle) == describe(load_plan(path, ["oracle.parallel=null"]).oracle)

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (
                ["oracle.parallel=4"],
                "oracle.parallel makes calls as tasks on Ray, so it needs the executor type ray",
            ),
            (
                ["oracle.parallel=0", "executor.type=ray"],
                "oracle.parallel: must be null or a whole number of at least 1, got 0",
            ),
            (
                ["oracle.parallel=many", "executor.type=ray"],
                "oracle.parallel: must be null or a whole number of at least 1, got 'many'",
            ),
            (["campaign.max_pending=2"], "max_pending must be null or at least the batch size, 3, got 2"),
            (["executor.type=rey"], "executor: unknown type 'rey'; did you mean 'ray'?"),
            (
                ["executor.type=ray", "executor.n_worker=2"],
                "executor.n_worker: unknown key; did you mean 'n_workers'?",
            ),
            (["executor.type=ray", "executor.n_workers=0"], "executor: n_workers must be at least 1, got 0"),
            (
                ["executor.type=ray", "executor.gpus_per_worker=1.5"],
                "gpus_per_worker may be a fraction below 1 only",
            ),
            (
                ["executor.type=ray", "executor.max_batch=0"],
                "executor: max_batch must be at least 1 or null, got 0",
            ),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tmp_path, prior_file, overrides, said):
        with pytest.raises(ConfigError) as told:
            self.plan(tmp_path, prior_file, overrides=overrides)
        assert said in str(told.value)

    def test_max_pending_is_a_setting_of_the_campaign(self, tmp_path, prior_file):
        plan = self.plan(tmp_path, prior_file, overrides=["campaign.max_pending=6"])
        assert plan.settings.lag == 1

    def test_the_clusters_page_shows_a_section_that_works(self, tmp_path, prior_file):
        page = (EXAMPLES.parent / "cluster" / "README.md").read_text()
        shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
        assert shown["oracle"].pop("parallel") == 8
        text = yaml.safe_dump({"executor": shown["executor"]})
        executor = self.plan(tmp_path, prior_file, text).executor
        assert executor == Ray("auto", 8, gpus_per_worker=1.0, cpus_per_worker=1.0, max_batch=64)
        assert set(shown["executor"]) == {"type", *(f.name for f in fields(Ray))}

    def test_the_readme_shows_a_file_that_works(self, tmp_path, prior_file):
        blocks = (EXAMPLES.parent / "README.md").read_text().split("```yaml\n")[1:]
        (block,) = [found.split("```")[0] for found in blocks if "type: ray" in found]
        (tmp_path / "my_oracle.py").write_text("def oracle(design):\n    return 1.0\n")
        path = tmp_path / "shown.yaml"
        path.write_text(f"{block}prior: {{type: denoiser, path: {prior_file}}}\n")
        plan = load_plan(path)
        assert (plan.settings.parallel, plan.settings.lag, plan.method.n_shards) == (8, 1, 8)
        assert plan.executor == Ray("auto", 8, gpus_per_worker=1.0, max_batch=64)
