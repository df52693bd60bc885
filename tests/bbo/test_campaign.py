"""What a campaign promises: it improves, stops at the budget, loses nothing, and repeats itself to the bit."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bbo.campaign import Campaign
from bbo.errors import (
    BudgetError,
    CampaignBusyError,
    CampaignError,
    ConfigError,
    ConfigMismatchError,
    LedgerError,
)
from bbo.ledger import Ledger, QueryState
from bbo.settings import InDoubt
from bbo.steering import SteeredPrior
from oracles.callables import BatchFunctionOracle, FunctionOracle
from oracles.evaluation import Evaluation
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.acquisition import Thompson
from surrogate.ensemble import DeepEnsemble
from surrogate.errors import SurrogateError
from surrogate.features import PrincipalComponents, Standardize

PRIOR = GaussianPrior(torch.zeros(3), n_steps=10)
METHOD = SteeredPrior(kl_coef=0.1, sampler=SamplerConfig(n_islands=4, n_particles=8))


def bowl(design):
    return -float(((design - 1.5) ** 2).sum())


def dying_at(n):
    """Return the bowl, whose nth call is interrupted."""
    calls = []

    def oracle(design):
        calls.append(design)
        if len(calls) == n:
            raise KeyboardInterrupt
        return bowl(design)

    return oracle


def opened(directory, oracle=bowl, **changes):
    settings = {"prior": PRIOR, "budget": 24, "batch_size": 4, "method": METHOD, **changes}
    return Campaign.open(directory, oracle=oracle, **settings)


def designs(campaign):
    return campaign.archive.designs(campaign.ledger.queries()).numpy()


def spoiled(**fields):
    """Return an evaluation whose fields are not what their types say, as a user's may be."""
    evaluation = Evaluation({"value": 1.0})
    for name, value in fields.items():
        object.__setattr__(evaluation, name, value)
    return evaluation


# ---------------------------------------------------------------- promises
def test_it_improves_on_the_prior_and_stops_at_the_budget(tmp_path):
    with opened(tmp_path / "run", budget=40) as campaign:
        campaign.run()
        table = campaign.history()
        assert len(table) == 40
        assert campaign.ledger.counts().done == 40
        assert table.value[-12:].mean() > table.value[:4].mean() + 2
        campaign.run()  # nothing is left to spend
        assert len(campaign.history()) == 40


@pytest.mark.parametrize("budget", [1, 4, 6])
def test_the_last_batch_is_what_is_left(tmp_path, budget):
    with opened(tmp_path / "run", budget=budget) as campaign:
        campaign.run()
        assert len(campaign.history()) == budget


def test_same_seed_same_designs_to_the_bit_other_seed_others(tmp_path):
    found = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        with opened(tmp_path / name, seed=seed, budget=12) as campaign:
            campaign.run()
            found.append(designs(campaign))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_predictions_are_made_before_the_answer_and_kept(tmp_path):
    with opened(tmp_path / "run") as campaign:
        campaign.run()
        table = campaign.history()
        assert table.predicted_mean[:4].isna().all()
        assert table.predicted_std[4:].gt(0).all()
        later = table[table["round"] >= 4]
        assert (later.value - later.predicted_mean).abs().mean() < later.value.std() + 5


def test_best_has_the_design_that_was_asked_for(tmp_path):
    asked = []

    def oracle(design):
        asked.append(design.copy())
        return bowl(design)

    with opened(tmp_path / "run", oracle) as campaign:
        campaign.run()
        best = campaign.best(3)
        assert list(best.value) == sorted(map(bowl, asked), reverse=True)[:3]
        design = best[["x0", "x1", "x2"]].to_numpy()[0]
        assert bowl(design) == pytest.approx(best.value[0])


def test_thompson_with_an_ensemble_runs(tmp_path):
    method = replace(METHOD, surrogate=DeepEnsemble(n_iterations=50), acquisition=Thompson())
    with opened(tmp_path / "run", method=method, budget=12) as campaign:
        campaign.run()
        assert campaign.ledger.counts().done == 12


def test_every_shard_samples_designs_of_its_own(tmp_path):
    method = replace(METHOD, n_shards=3)
    with opened(tmp_path / "run", method=method, budget=20, batch_size=10) as campaign:
        campaign.run()
        queries = campaign.ledger.queries(rounds={1})
        assert {q.provenance["shard"] for q in queries} == {0, 1, 2}
        assert len({row.tobytes() for row in campaign.archive.designs(queries).numpy()}) == 10


# ---------------------------------------------------------------- bad oracles
def test_one_bad_design_never_loses_the_rest(tmp_path):
    answers = iter([1.0, math.nan, "soup", None, math.inf, 2.0, [1, 2], {}])

    def oracle(design):
        answer = next(answers)
        if answer == 2.0:
            raise RuntimeError("pump 3 is broken")
        return answer

    with opened(tmp_path / "run", oracle, budget=8, batch_size=8) as campaign:
        campaign.run()
        table = campaign.history()
    assert list(table.state) == ["done"] + ["failed"] * 7
    assert table.error[1] == "the oracle answered nan for 'value', not a finite number"
    assert "'soup'" in table.error[2]
    assert table.error[5] == "RuntimeError: pump 3 is broken"


def test_a_batch_of_the_wrong_length_fails_as_a_whole_and_is_spent(tmp_path):
    oracle = BatchFunctionOracle(lambda designs: [1.0] * (len(designs) - (len(designs) == 4)))
    with opened(tmp_path / "run", oracle, budget=11, batch_size=4) as campaign:
        with pytest.raises(CampaignError, match="all 4 queries so far have failed"):
            campaign.run()
        with pytest.raises(CampaignError, match="all 8 queries so far have failed"):
            campaign.run()
        campaign.run()  # three are left
        table = campaign.history()
    assert list(table.state) == ["failed"] * 8 + ["done"] * 3
    assert "got 4 designs and must answer as many, got 3" in table.error[0]


def test_an_oracle_without_the_objective_stops_after_one_batch_and_keeps_what_was_paid(tmp_path):
    with opened(tmp_path / "run", lambda d: {"lift": 1.0}, budget=8, objective="drag") as campaign:
        with pytest.raises(CampaignError, match=r"no outcome 'drag' among \['lift'\]"):
            campaign.run()
        assert len(campaign.history()) == 4
        assert campaign.ledger.queries()[0].evaluation.metadata["outcomes"] == {"lift": 1.0}


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Evaluation({"value": 1.0}, noise_std={"value": math.nan}),
        lambda: spoiled(noise_std={"value": "big"}),
        lambda: spoiled(outcomes={"value": "big"}),
        lambda: Evaluation({"value": 1.0}, cost=math.nan),
        lambda: spoiled(error=ValueError("x")),
        lambda: 10**400,
        lambda: np.array("soup"),
        lambda: 1e300,
    ],
)
def test_a_malformed_answer_in_a_batch_costs_nobody_else_anything(tmp_path, bad):
    oracle = BatchFunctionOracle(lambda designs: [bad(), *[float(d.sum()) for d in designs[1:]]])
    with opened(tmp_path / "run", oracle, budget=8) as campaign:
        campaign.run()
        assert (campaign.history().state[[1, 2, 3, 5, 6, 7]] == "done").all()
        assert campaign.ledger.counts().in_doubt == 0


@pytest.mark.parametrize("unit", [1e-90, 1e90])
def test_the_unit_of_the_outcome_does_not_matter(tmp_path, unit):
    found = []
    for name, factor in (("plain", 1.0), ("scaled", unit)):
        with opened(tmp_path / name, lambda d, factor=factor: factor * bowl(d), budget=12) as campaign:
            campaign.run()
            found.append(designs(campaign))
    np.testing.assert_allclose(found[0], found[1], atol=1e-2)


def test_interrupted_and_run_again_in_the_same_process(tmp_path):
    calls = []

    def oracle(design):
        calls.append(design)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return bowl(design)

    with opened(tmp_path / "run", oracle, budget=8) as campaign:
        with pytest.raises(KeyboardInterrupt):
            campaign.run()
        assert campaign.ledger.counts().in_doubt == 1
        campaign.run()
        assert campaign.ledger.counts().done == 7


def test_a_late_answer_is_welcome_whatever_the_policy(tmp_path):
    oracle = FunctionOracle(dying_at(2), is_idempotent=True, n_per_call=4)
    with (
        pytest.raises(KeyboardInterrupt),
        opened(tmp_path / "run", oracle, in_doubt="retry", budget=4) as campaign,
    ):
        campaign.run()
    with opened(tmp_path / "run", oracle, in_doubt="retry", budget=4) as campaign:
        first = campaign.ledger.queries({QueryState.IN_DOUBT})[0]
        campaign.tell(first.id, 5.0)
        campaign.run()  # asks for the other three again
        assert campaign.ledger.counts().done == 4
        assert campaign.best(1).value[0] == 5.0


@pytest.mark.parametrize(
    ("noise", "is_known"), [((0.1, 0.2, 0.3, 0.4), True), ((0.1, None, 0.3, 0.4), False)]
)
def test_noise_that_is_known_of_every_answer_reaches_the_surrogate(tmp_path, noise, is_known):
    said = iter(noise)

    def oracle(design):
        std = next(said)
        return Evaluation({"value": bowl(design)}, noise_std={} if std is None else {"value": std})

    with opened(tmp_path / "run", oracle, budget=4) as campaign:
        campaign.run()
        told = campaign.observations().noise_std
        assert told.tolist() == list(noise) if is_known else told is None


def test_every_round_has_a_stream_of_its_own(tmp_path):
    with opened(tmp_path / "run", budget=12) as campaign:
        found = {campaign.round_seed()}
        for _ in range(2):
            campaign.ask(4)
            found.add(campaign.round_seed())
        assert len(found) == 3
        assert {record.seed for record in campaign.ledger.rounds()} == found - {campaign.round_seed()}


def test_failures_teach_feasibility(tmp_path):
    """The best designs lie along the edge of what fails: only a model of failures stays on the right side."""

    def oracle(design):
        return Evaluation.failed("too long") if design[0] > 1.0 else float(design.sum())

    feasible_share = {}
    for name, method in (("with", METHOD), ("without", replace(METHOD, feasibility=None))):
        with opened(tmp_path / name, oracle, budget=64, batch_size=8, method=method) as campaign:
            campaign.run()
            feasible_share[name] = (campaign.history().state[-32:] == "done").mean()
            told = campaign.ledger.queries(rounds={7})[0].provenance
            assert ("log_p_feasible" in told) == (name == "with")
    assert feasible_share["with"] > feasible_share["without"] + 0.15


def test_a_campaign_without_any_outcome_stops_and_asks_the_prior_again(tmp_path):
    with opened(tmp_path / "run", lambda d: math.nan, budget=8) as campaign:
        for _ in range(2):
            with pytest.raises(CampaignError, match="Mend the oracle"):
                campaign.run()
        assert [q.provenance["from"] for q in campaign.ledger.queries()] == ["prior"] * 8
        assert campaign.best(1).empty


# ---------------------------------------------------------------- ask and tell
def test_ask_and_tell_by_hand(tmp_path):
    with opened(tmp_path / "run", budget=6) as campaign:
        asked = campaign.ask(4)
        assert [a.design.shape for a in asked] == [(3,)] * 4
        assert campaign.ledger.counts().sent == 4
        for item in reversed(asked[1:]):
            campaign.tell(item.id, bowl(item.design))
        campaign.tell(asked[0].id, Evaluation.failed("dropped on the floor"))
        with pytest.raises(LedgerError, match="told before"):
            campaign.tell(asked[0].id, 1.0)
        with pytest.raises(BudgetError):
            campaign.ask(4)
        assert len(campaign.ask(2)) == 2


def test_a_campaign_by_hand_needs_no_oracle_and_remembers_what_is_pending(tmp_path):
    with opened(tmp_path / "run", None, budget=6) as campaign:
        asked = campaign.ask(4)
        campaign.tell(asked[1].id, 1.0)
        with pytest.raises(CampaignError, match="use ask and tell"):
            campaign.run()
    with opened(tmp_path / "run", None, budget=6) as campaign:
        pending = campaign.pending()
        assert [item.id for item in pending] == [asked[i].id for i in (0, 2, 3)]
        assert np.array_equal(pending[2].design, asked[3].design)
        for item in pending:
            campaign.tell(item.id, bowl(item.design))
        assert campaign.pending() == []
        assert campaign.ledger.counts().done == 4


def test_what_people_were_asked_is_theirs_whoever_dies(tmp_path):
    with opened(tmp_path / "run", budget=6) as campaign:
        asked = campaign.ask(4)
    with opened(tmp_path / "run", budget=6) as campaign:
        assert campaign.ledger.counts().sent == 4
        campaign.tell(asked[2].id, 3.5)
        assert campaign.best(1).value[0] == 3.5
        campaign.run()  # leaves alone what people are working on
        assert campaign.ledger.counts().sent == 3
        assert campaign.ledger.counts().n == 6


# ---------------------------------------------------------------- killed and resumed
SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[3])
from tests.bbo.test_campaign import opened, designs
from oracles.callables import BatchFunctionOracle, FunctionOracle
directory, kill_at = sys.argv[1], int(sys.argv[2])
n_calls = 0
def oracle(design):
    global n_calls
    n_calls += 1
    if n_calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return -float(((design - 1.5) ** 2).sum())
with opened(directory, FunctionOracle(oracle, is_idempotent=True), in_doubt="retry") as campaign:
    campaign.run()
"""


def test_killed_in_the_middle_and_run_again_it_is_the_same_campaign(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    finished = {}
    for name, kills in (("whole", []), ("killed", [7, 1, 6])):
        for kill_at in [*kills, 0]:
            command = [sys.executable, "-c", SCRIPT, str(tmp_path / name), str(kill_at), str(root)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
        with Ledger.open(tmp_path / name) as ledger:
            queries = ledger.queries()
            tensors = [ledger.blobs.get_tensors(q.artifact)["design"][q.row] for q in queries]
            values = [q.evaluation.outcomes["value"] for q in queries]
            finished[name] = (torch.stack(tensors), values, sum(q.n_sent for q in queries))
    assert torch.equal(finished["whole"][0], finished["killed"][0])
    assert finished["whole"][1] == finished["killed"][1]
    assert finished["whole"][2] == 24
    assert finished["killed"][2] == 27  # three were in doubt and asked again, as the oracle allows


def test_by_default_a_query_in_doubt_is_shown_and_never_asked_again(tmp_path):
    calls = []

    def oracle(design):
        calls.append(design.copy())
        if len(calls) == 6:
            raise KeyboardInterrupt
        return bowl(design)

    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "run", oracle, budget=12) as campaign:
        campaign.run()
    with opened(tmp_path / "run", oracle, budget=12) as campaign:
        campaign.run()
        assert campaign.ledger.counts().in_doubt == 1
        assert campaign.ledger.counts().done == 11
        assert [q.slot for q in campaign.ledger.queries({QueryState.IN_DOUBT})] == [1]
    assert len({call.tobytes() for call in calls}) == len(calls) == 12


# ---------------------------------------------------------------- refusals
def test_another_config_is_refused_with_every_difference(tmp_path):
    opened(tmp_path / "run").close()
    with pytest.raises(ConfigMismatchError) as refused:
        opened(tmp_path / "run", seed=3, method=replace(METHOD, kl_coef=0.5))
    assert "campaign.seed is 0 there and 3 here" in str(refused.value)
    assert "method.kl_coef is 0.1 there and 0.5 here" in str(refused.value)
    with pytest.raises(ConfigMismatchError, match=r"prior\.fingerprint is .* A fingerprint is of"):
        opened(tmp_path / "run", prior=replace(PRIOR, std=2.0))
    opened(tmp_path / "run").close()  # the refusals changed nothing and left no lock


def test_a_second_driver_is_refused(tmp_path):
    with opened(tmp_path / "run"), pytest.raises(CampaignBusyError, match=str(os.getpid())):
        opened(tmp_path / "run")
    opened(tmp_path / "run").close()


@pytest.mark.parametrize(
    "wrong",
    [{"budget": 0}, {"budget": -3}, {"batch_size": 0}, {"budget": True}, {"budget": 2**40}, {"seed": -1}],
)
def test_budgets_that_are_none_are_refused_and_nothing_is_created(tmp_path, wrong):
    with pytest.raises(ConfigError, match="must be a whole number, at least"):
        opened(tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def test_prior_and_oracle_must_agree_on_the_design(tmp_path):
    with pytest.raises(CampaignError, match=r"takes designs of shape \(5,\), but the prior makes \(3,\)"):
        opened(tmp_path / "run", FunctionOracle(bowl, design_shape=(5,)))
    assert not (tmp_path / "run").exists()


def test_an_oracle_that_takes_no_designs_a_call_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="n_per_call"):
        opened(tmp_path / "run", FunctionOracle(bowl, n_per_call=-1))


def test_asking_for_nothing_is_refused(tmp_path):
    with opened(tmp_path / "run") as campaign, pytest.raises(ConfigError, match="at least 1 design"):
        campaign.ask(0)


def test_retry_needs_an_oracle_that_says_it_may_be_asked_twice(tmp_path):
    with pytest.raises(ConfigError, match="does not declare itself idempotent"):
        opened(tmp_path / "run", in_doubt=InDoubt.RETRY)


def test_a_method_is_told_how_features_vary_and_how_earlier_rounds_fared(tmp_path):
    with opened(tmp_path / "run", budget=16) as campaign:
        campaign.run()
        observed, queries = campaign.observations(), campaign.ledger.queries()
    assert torch.equal(observed.covariance, campaign.executor.covariance)
    assert [h.round for h in observed.rounds] == [1, 2, 3]
    errors = [
        (q.evaluation.outcomes["value"] - q.predicted_mean) / q.predicted_std
        for q in queries
        if q.round == 2 and q.provenance["beta"] <= 1
    ]
    assert observed.rounds[1].mean_error == pytest.approx(sum(errors) / len(errors))
    assert {h.kl_coef for h in observed.rounds} == {0.1}


def test_a_temperature_that_is_found_is_found_again_after_an_interruption(tmp_path):
    method = SteeredPrior(sampler=SamplerConfig(n_islands=4, n_particles=8))
    with opened(tmp_path / "whole", method=method) as campaign:
        campaign.run()
        expected = [(q.provenance.get("kl_coef"), q.predicted_mean) for q in campaign.ledger.queries()]
    oracle = FunctionOracle(
        dying_at(14), is_idempotent=True
    )  # the fourteenth call only; asked again, it answers
    torn = {"oracle": oracle, "method": method, "in_doubt": InDoubt.RETRY}
    with opened(tmp_path / "torn", **torn) as campaign, pytest.raises(KeyboardInterrupt):
        campaign.run()
    with opened(tmp_path / "torn", **torn) as campaign:
        campaign.run()
        found = [(q.provenance.get("kl_coef"), q.predicted_mean) for q in campaign.ledger.queries()]
    assert found == expected
    assert len({kl_coef for kl_coef, _ in found[4:]}) > 1


def test_an_encoder_that_cannot_be_fitted_is_refused_before_there_is_a_ledger(tmp_path):
    with pytest.raises(SurrogateError, match="vary in at least 10 directions"):
        opened(tmp_path / "run", encoder=PrincipalComponents(n_components=10))
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_was_fitted_is_taken_as_it_is(tmp_path):
    encoder = Standardize(torch.zeros(3), torch.full((3,), 100.0))
    with opened(tmp_path / "run", encoder=encoder) as campaign:
        assert campaign.executor.encoder is encoder
