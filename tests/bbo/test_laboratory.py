"""Ask and tell over days and processes: pending designs, measurements from elsewhere, changed minds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bbo.campaign import Campaign
from bbo.desk import design_shape
from bbo.errors import BudgetError, CampaignError, ConfigError, LedgerError
from bbo.exchange.plates import write_plate
from bbo.exchange.telling import edit_plate, tell_given, tell_plate
from bbo.explain import explain
from bbo.ledger import Counts, Ledger, QueryState
from bbo.proposals import Observations
from bbo.steering import SteeredPrior
from oracles.callables import FunctionOracle
from oracles.evaluation import Evaluation
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.ensemble import DeepEnsemble

PRIOR = GaussianPrior(torch.zeros(3), n_steps=10)
METHOD = SteeredPrior(kl_coef=0.1, sampler=SamplerConfig(n_islands=4, n_particles=8))


def bowl(design):
    return -float(((design - 1.5) ** 2).sum())


def opened(directory, **changes):
    settings = {"prior": PRIOR, "budget": 24, "batch_size": 4, "method": METHOD, **changes}
    return Campaign.open(directory, **settings)


class TestPending:
    X = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].repeat(1, 2)

    @pytest.mark.parametrize("surrogate", [METHOD.surrogate, DeepEnsemble(n_iterations=200)])
    def test_a_pending_design_keeps_its_mean_and_loses_its_uncertainty(self, surrogate):
        pending = torch.tensor([[3.0, 3.0]], dtype=torch.float64)
        observed = Observations(self.X, torch.ones(9, dtype=torch.bool), self.X[:, 0].sin())
        method = replace(METHOD, surrogate=surrogate)
        before = method.fit(observed, seed=0).predicted(pending)
        after = method.fit(replace(observed, pending=pending), seed=0).predicted(pending)
        assert after.std < 0.5 * before.std
        assert (after.mean - before.mean).abs() < 2 * before.std

    def test_known_noise_stays_known(self):
        observed = Observations(
            self.X, torch.ones(9, dtype=torch.bool), self.X[:, 0].sin(), torch.full((9,), 0.1), self.X[:2] + 5
        )
        METHOD.fit(observed, seed=0)

    def test_the_next_ask_knows_what_is_under_way(self, tmp_path):
        with opened(tmp_path) as campaign:
            for item in campaign.ask(8):
                campaign.tell(item.id, bowl(item.design))
            assert campaign.observations().pending is None
            first = campaign.ask(4)
            observed = campaign.observations()
            expected = campaign.executor.encode(torch.tensor(np.stack([item.design for item in first])))
            assert torch.equal(observed.pending, expected)
            blind = METHOD.fit(replace(observed, pending=None), seed=0).predicted(observed.pending)
            aware = METHOD.fit(observed, seed=0).predicted(observed.pending)
            assert (aware.std < blind.std).all()
            second = campaign.ask(4)
            assert {i.id for i in first}.isdisjoint(i.id for i in second)
            campaign.tell(first[0].id, 1.0)
            campaign.abandon([first[1].id])
            campaign.reject([first[2].id])
            assert len(campaign.observations().pending) == 1 + len(second)

    def test_an_ask_that_was_killed_before_it_was_sent_comes_first_and_is_filled_up(self, tmp_path):
        with opened(tmp_path) as campaign:
            for item in campaign.ask(4):
                campaign.tell(item.id, bowl(item.design))
            campaign.send = lambda queries, is_asked: (_ for _ in ()).throw(KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                campaign.ask(3)
        with opened(tmp_path) as campaign:
            assert campaign.ledger.counts().reserved == 3
            asked = campaign.ask(5)
            assert [q.round for q in campaign.ledger.queries(ids=[a.id for a in asked])] == [1, 1, 1, 2, 2]
            assert campaign.ledger.counts().sent == 5


class TestMeasuredElsewhere:
    def test_the_campaign_learns_from_it_at_no_cost(self, tmp_path):
        designs = np.random.default_rng(0).normal(1.5, 0.3, (20, 3))
        with opened(tmp_path, budget=8) as campaign:
            ids = campaign.tell_new(designs, [bowl(design) for design in designs])
            assert len(ids) == 20
            assert campaign.ledger.counts() == Counts(given=20)
            asked = campaign.ask(8)
            assert campaign.ledger.queries(ids=[asked[0].id])[0].provenance["from"] == "target"
            assert np.median([bowl(a.design) for a in asked]) > bowl(np.zeros(3)) + 2
            with pytest.raises(BudgetError):
                campaign.ask(1)
            table = campaign.history()
            assert list(table["from"]) == ["given"] * 20 + ["target"] * 8
            assert campaign.best(1)["from"][0] == "given"

    def test_the_same_is_taken_once(self, tmp_path):
        designs = np.ones((3, 3)) * [[1], [2], [3]]
        with opened(tmp_path) as campaign:
            assert len(campaign.tell_new(designs, [1.0, 2.0, 3.0])) == 3
            assert campaign.tell_new(designs[::-1], [3.0, 2.0, 1.0]) == []
            assert (
                len(campaign.tell_new(designs, [1.0, 2.5, 3.0])) == 1
            )  # measured again, with another result
            assert len(campaign.tell_new(np.ones((2, 3)) * 9, [1.0, 1.0])) == 1
            assert campaign.ledger.counts() == Counts(given=5)

    def test_failures_teach_too_and_nonsense_is_refused(self, tmp_path):
        with opened(tmp_path) as campaign:
            campaign.tell_new(np.ones((1, 3)), [Evaluation.failed("does not dissolve")])
            assert campaign.observations().is_feasible.tolist() == [False]
            with pytest.raises(CampaignError, match=r"designs of shape \(3,\), got \(2,\)"):
                campaign.tell_new(np.ones((1, 2)), [1.0])
            with pytest.raises(CampaignError, match="design 1 has numbers that are not finite"):
                campaign.tell_new(np.array([[1, 2, 3], [1, np.nan, 3]]), [1.0, 2.0])
            with pytest.raises(CampaignError, match="expected one answer a design, got 2 for 1"):
                campaign.tell_new(np.ones((1, 3)), [1.0, 2.0])
            assert campaign.ledger.counts() == Counts(given=1)


class TestChangedMinds:
    def test_a_rejected_design_costs_nothing(self, tmp_path):
        with opened(tmp_path, budget=4) as campaign:
            asked = campaign.ask(4)
            campaign.reject([asked[1].id, asked[2].id], "cannot be made")
            assert campaign.ledger.counts() == Counts(sent=2, rejected=2)
            assert len(campaign.ask(2)) == 2
            with pytest.raises(LedgerError, match=r"got rejected; it was rejected; a measurement of it"):
                campaign.tell(asked[1].id, 1.0)
            with pytest.raises(
                LedgerError, match="cannot be rejected: expected reserved or sent, got rejected"
            ):
                campaign.reject([asked[1].id])

    def test_what_an_oracle_was_sent_is_not_rejected(self, tmp_path):
        with opened(tmp_path, oracle=bowl) as campaign:
            (query,) = campaign.reserve(
                METHOD.propose(campaign.observations(), campaign.executor, 1, seed=0, stage=campaign.stage)
            )
            campaign.send([query])
            with pytest.raises(
                LedgerError, match=r"an oracle was sent it, so it may have been paid; abandon it"
            ):
                campaign.reject([query.id])

    def test_an_abandoned_one_stays_spent_and_its_late_answer_is_welcome(self, tmp_path):
        with opened(tmp_path, budget=4) as campaign:
            asked = campaign.ask(4)
            campaign.abandon([asked[0].id], "lost in the post")
            assert campaign.ledger.counts() == Counts(sent=3, abandoned=1)
            with pytest.raises(BudgetError):
                campaign.ask(1)
            assert [item.id for item in campaign.pending()] == [item.id for item in asked[1:]]
            campaign.tell(asked[0].id, 1.0)
            assert campaign.ledger.counts() == Counts(sent=3, done=1)

    def test_an_edited_design_takes_the_place_of_the_old(self, tmp_path):
        with opened(tmp_path, budget=4) as campaign:
            asked = campaign.ask(4)
            rounded = asked[0].design.round(1)
            edited = campaign.edit(asked[0].id, rounded, "pipettes have steps")
            assert np.array_equal(edited.design, rounded)
            assert campaign.ledger.counts() == Counts(sent=4, rejected=1)
            campaign.tell(edited.id, bowl(rounded))
            (query,) = campaign.ledger.queries(ids=[edited.id])
            assert query.provenance == {"from": "edited", "query": asked[0].id, "why": "pipettes have steps"}
            assert np.array_equal(campaign.archive.designs([query])[0].numpy(), rounded)
            with pytest.raises(LedgerError, match="cannot be rejected: expected reserved or sent, got done"):
                campaign.edit(edited.id, rounded)
            with pytest.raises(CampaignError, match=r"designs of \(3,\) finite numbers"):
                campaign.edit(asked[1].id, np.ones(2))
            with pytest.raises(LedgerError, match="there is no such query"):
                campaign.edit(99, rounded)


class TestTables:
    @pytest.fixture
    def plate(self, tmp_path):
        """A campaign of which four designs were asked for, and their table."""
        with opened(tmp_path / "run") as campaign:
            write_plate(tmp_path / "plate.csv", campaign.ask(4), "value")
        lines = (tmp_path / "plate.csv").read_text().splitlines()
        return tmp_path, lines

    def filled(self, plate, *cells):
        home, lines = plate
        rows = [
            line.rsplit(",", 4)[0] + "," + cell for line, cell in zip(lines[1:], cells, strict=False) if cell
        ]
        (home / "filled.csv").write_text("\n".join([lines[0], *reversed(rows)]) + "\n")
        return home / "filled.csv"

    def test_partly_in_any_order_and_once(self, plate):
        home, _ = plate
        path = self.filled(plate, "1.5,0.1,2,", None, ",,,broke", ",,,")
        with Ledger.open(home / "run").drive() as ledger:
            told = tell_plate(ledger, path)
            assert set(told.new) == {1, 3}
            assert told.n_empty == 1
            first = ledger.queries()[0].evaluation
            assert (first.outcomes, first.noise_std, first.cost) == ({"value": 1.5}, {"value": 0.1}, 2.0)
            path = self.filled(plate, "1.5,0.1,2,", "2.5,,,", ",,,broke", ",,,")
            told = tell_plate(ledger, path)
            assert (set(told.new), sorted(told.before)) == ({2}, [1, 3])
            with pytest.raises(
                ConfigError, match=r"query 1 was told value 1.5 before, and the file says value 1.6"
            ):
                tell_plate(ledger, self.filled(plate, "1.6,0.1,2,", "2.5,,,", ",,,broke", "9,,,"))
            assert ledger.counts() == Counts(sent=1, done=2, failed=1)

    def test_a_table_of_another_campaign_is_refused_whole(self, plate, tmp_path_factory):
        path = self.filled(plate, "1,,,", "2,,,", "3,,,", "4,,,")
        other = tmp_path_factory.mktemp("other")
        with opened(other / "run") as campaign:
            campaign.ask(4)
        with Ledger.open(other / "run").drive() as ledger:
            with pytest.raises(
                ConfigError, match=r"(?s)nothing was written down.*query 4 is not one of this campaign"
            ):
                tell_plate(ledger, path)
            assert ledger.counts() == Counts(sent=4)

    def test_another_design_than_was_asked_for_is_refused_and_can_be_an_edit(self, plate):
        home, lines = plate
        cells = lines[2].split(",")
        cells[2] = "0.25"
        (home / "changed.csv").write_text("\n".join([lines[0], lines[1], ",".join(cells)]) + "\n")
        with Ledger.open(home / "run").drive() as ledger:
            with pytest.raises(
                ConfigError, match=r"line 3: not the design that query 2 asked for \(x0 was .*, got 0.25\)"
            ):
                tell_plate(ledger, home / "changed.csv")
            ((old, new),) = edit_plate(ledger, home / "changed.csv", "rounded").items()
            assert old == 2
            assert ledger.counts() == Counts(sent=4, rejected=1)
            assert new.provenance["why"] == "rounded"

    def test_rows_that_nobody_asked_for(self, plate):
        home, _ = plate
        (home / "new.csv").write_text("x0,x1,x2,value,error\n1,1,1,0.5,\n2,2,2,,exploded\n")
        with Ledger.open(home / "run").drive() as ledger:
            with pytest.raises(ConfigError, match="line 2: no query number"):
                tell_plate(ledger, home / "new.csv")
            assert tell_given(ledger, home / "new.csv") == (2, 0)
            assert tell_given(ledger, home / "new.csv") == (0, 2)
            assert ledger.counts() == Counts(sent=4, given=2)
            (home / "bad.csv").write_text("value\n1\n")
            with pytest.raises(ConfigError, match="an answer and no design"):
                tell_given(ledger, home / "bad.csv")
            (home / "bad.csv").write_text("x0,value\n1,1\n")
            with pytest.raises(ConfigError, match=r"designs of 3 numbers \(3,\), got 1 columns"):
                tell_given(ledger, home / "bad.csv")
            assert design_shape(ledger) == (3,)


def test_the_story_of_a_query(tmp_path):
    with opened(tmp_path, oracle=FunctionOracle(bowl), budget=8) as campaign:
        campaign.run()
        steered = campaign.ledger.queries({QueryState.DONE}, rounds={1})[0]
        told = dict(explain(campaign.ledger, steered.id))
        record = campaign.ledger.rounds()[1]
        expected = campaign.method.fit(campaign.observations(), record.seed)
        assert expected is not None
    assert told["key"] == steered.key
    assert told["from"] == "a draw from the prior, steered by what had been learnt"
    assert str(record.seed) in told["round seed"]
    assert "island" in told["lineage"]
    assert PRIOR.fingerprint() in told["prior"]
    assert record.summary["belief"] in told["belief"]
    assert told["surrogate"] == record.summary["surrogate"]
    assert f"{record.summary['kl_coef']:.4g}" in told["tilt"]
    assert f"{record.summary['kl_nats']:.4g}" in told["tilt"]
    beta, kl_coef = steered.provenance["beta"], steered.provenance["island_kl_coef"]
    assert told["tilt"].endswith(f"; its island looked for mean + {beta:.3g} std at kl_coef {kl_coef:.3g}")
    assert "torch" in told["versions"]
    assert f"{steered.evaluation.outcomes['value']:.9g}" == told["value"]
    with Ledger.open(tmp_path) as ledger, pytest.raises(LedgerError, match="got 99"):
        explain(ledger, 99)


def test_the_belief_of_a_round_can_be_fitted_again(tmp_path):
    """The state that the ledger names is the one that the same observations and seed give."""
    from bbo.config.describe import digest

    with opened(tmp_path, oracle=FunctionOracle(bowl), budget=8) as campaign:
        campaign.run()
        record = campaign.ledger.rounds()[1]
        first = campaign.observations().before(1)
        assert digest(campaign.method.fit(first, record.seed)) == record.summary["belief"]
