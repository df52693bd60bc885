"""What becomes of queries in doubt, policy by policy, and of a driver that cannot write."""

import errno
import os

import numpy as np
import pytest
import torch

from bbo import stages
from bbo.campaign import Campaign
from bbo.config.describe import digest
from bbo.errors import BlobError, CampaignError, ConfigError, StorageError
from bbo.executor import LocalExecutor, SampleRequest
from bbo.ledger import Counts, Ledger, QueryState
from bbo.stages import RecallingExecutor
from bbo.steering import SteeredPrior
from oracles.callables import FunctionOracle
from oracles.errors import OracleError
from oracles.evaluation import Evaluation
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.features import Flatten

PRIOR = GaussianPrior(torch.zeros(2), n_steps=6)
PLAIN = SamplerConfig(n_islands=4, n_particles=4, guidance=None)
METHOD = SteeredPrior(kl_coef=0.1, sampler=SamplerConfig(n_islands=4, n_particles=4))


class Service:
    """An oracle that knows keys; it dies in the call of its `dies_at`th key, the odd ones after it has charged."""

    name = "service"
    design_shape = None
    n_per_call = 2
    is_idempotent = False

    def __init__(self, dies_at=0):
        self.dies_at = dies_at
        self.is_reachable = True
        self.answers = {}
        self.keys = []

    def evaluate(self, designs):
        raise AssertionError("keys are wanted")

    def evaluate_keyed(self, designs, keys):
        for design, key in zip(designs, keys, strict=True):
            self.keys.append(key)
            if len(self.keys) == self.dies_at and self.dies_at % 2 == 0:
                raise KeyboardInterrupt  # the second of a call: it was not accepted
            self.answers[key] = Evaluation.of(-float(design.square().sum()))
            if len(self.keys) == self.dies_at:
                raise KeyboardInterrupt
        return [self.answers[key] for key in keys]

    def lookup(self, key):
        if not self.is_reachable:
            raise OracleError("no route to host")
        return self.answers.get(key)


def opened(directory, oracle, **changes):
    settings = {
        "prior": PRIOR,
        "budget": 8,
        "batch_size": 4,
        "method": METHOD,
        "in_doubt": "lookup",
        **changes,
    }
    return Campaign.open(directory, oracle=oracle, **settings)


def account(campaign):
    queries = campaign.ledger.queries()
    return [
        (tuple(row), q.evaluation)
        for row, q in zip(campaign.archive.designs(queries).tolist(), queries, strict=True)
    ]


class TestLookup:
    @pytest.mark.parametrize("dies_at", [1, 2, 3, 6, 8])
    def test_what_was_charged_is_looked_up_and_the_rest_asked_again(self, tmp_path, dies_at):
        with opened(tmp_path / "whole", Service()) as campaign:
            campaign.run()
            whole = account(campaign)
        service = Service(dies_at)
        with pytest.raises(KeyboardInterrupt), opened(tmp_path / "run", service) as campaign:
            campaign.run()
        n_asked = len(service.keys)
        with opened(tmp_path / "run", service) as campaign:
            campaign.run()
            assert account(campaign) == whole
            assert campaign.ledger.counts() == Counts(done=8)
            why = [event.detail["why"] for event in campaign.ledger.events() if event.kind == "retried"]
        assert len(service.answers) == 8
        # Only what was not charged was asked twice.
        assert len(service.keys) - len(set(service.keys)) == (dies_at % 2 == 0)
        assert n_asked == dies_at
        assert why == ["the oracle never accepted it"] * len(why)
        assert why or dies_at % 2 == 0 or dies_at % 4 != 0

    def test_a_service_out_of_reach_stops_the_campaign_and_costs_nothing(self, tmp_path):
        service = Service(dies_at=3)
        with pytest.raises(KeyboardInterrupt), opened(tmp_path / "run", service) as campaign:
            campaign.run()
        service.is_reachable = False
        with opened(tmp_path / "run", service) as campaign:
            with pytest.raises(CampaignError, match=r"what became of query 3 .*no route to host; run again"):
                campaign.run()
            assert campaign.ledger.counts() == Counts(done=2, in_doubt=2)
            service.is_reachable = True
            campaign.run()
            assert campaign.ledger.counts() == Counts(done=8)

    def test_an_oracle_that_does_not_remember_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"has no lookup\(key\); use 'count_as_spent'"):
            opened(tmp_path / "run", FunctionOracle(np.sum))


class TestAPersonDecides:
    @pytest.fixture
    def doubted(self, tmp_path):
        with (
            pytest.raises(KeyboardInterrupt),
            opened(tmp_path, Service(dies_at=3), in_doubt="ask") as campaign,
        ):
            campaign.run()
        with opened(tmp_path, Service(), in_doubt="ask") as campaign:
            yield campaign

    def test_the_campaign_does_not_run_before(self, doubted):
        with pytest.raises(CampaignError, match=r"2 queries are in doubt .*\(3, 4\): bbo resolve .*--retry"):
            doubted.run()
        assert doubted.oracle.keys == []
        doubted.tell(3, 1.5)
        doubted.abandon([4], "the machine burnt")
        doubted.run()
        assert doubted.ledger.counts() == Counts(done=7, abandoned=1)
        assert doubted.ledger.counts().n == 8

    def test_asking_again_is_shown(self, doubted):
        doubted.abandon([3])
        doubted.retry([4])
        doubted.run()
        assert doubted.ledger.counts() == Counts(done=7, abandoned=1)
        (query,) = doubted.ledger.queries(ids=[4])
        assert query.n_sent == 2
        doubted.tell(3, 2.0)  # late, and welcome
        assert doubted.ledger.counts() == Counts(done=8)


class TestStages:
    REQUESTS = (SampleRequest(PLAIN, seed=1), SampleRequest(PLAIN, seed=2, first_island=4))

    def counting(self, fails_at=0):
        calls = []

        class Counting(LocalExecutor):
            def _shard(self, potential, request):
                calls.append(request.seed)
                if len(calls) == fails_at:
                    raise KeyboardInterrupt
                return super()._shard(potential, request)

        return Counting(PRIOR, Flatten()), calls

    def test_a_kill_in_the_middle_of_sampling_repeats_nothing_that_was_sampled(self, tmp_path):
        executor, calls = self.counting(fails_at=2)
        recalling = RecallingExecutor(executor, tmp_path / "stages", "observations")
        with pytest.raises(KeyboardInterrupt):
            recalling.sample(None, self.REQUESTS)
        again = recalling.sample(None, self.REQUESTS)
        assert calls == [1, 2, 2]
        fresh = LocalExecutor(PRIOR, Flatten()).sample(None, self.REQUESTS)
        for kept, new in zip(again, fresh, strict=True):
            for name, tensor in stages._tensors(new).items():
                assert torch.equal(stages._tensors(kept)[name], tensor), name

    @pytest.mark.parametrize(
        "damage", [lambda data: data[:-3], lambda data: data[:40] + b"?" + data[41:], lambda data: b""]
    )
    def test_what_is_damaged_is_sampled_again(self, tmp_path, damage):
        executor, calls = self.counting()
        recalling = RecallingExecutor(executor, tmp_path, "observations")
        (first,) = recalling.sample(None, self.REQUESTS[:1])
        (path,) = tmp_path.iterdir()
        path.write_bytes(damage(path.read_bytes()))
        (second,) = recalling.sample(None, self.REQUESTS[:1])
        assert calls == [1, 1]
        assert torch.equal(first.result.x0, second.result.x0)

    def test_nothing_is_taken_up_for_other_observations_or_another_belief(self, tmp_path):
        executor, calls = self.counting()
        RecallingExecutor(executor, tmp_path, "a").sample(None, self.REQUESTS[:1])
        RecallingExecutor(executor, tmp_path, "b").sample(None, self.REQUESTS[:1])
        RecallingExecutor(executor, tmp_path, "a").sample(None, [SampleRequest(PLAIN, seed=3)])
        assert calls == [1, 1, 3]

    def test_digests_tell_tensors_apart_to_the_bit(self):
        one = torch.tensor([1.0, 2.0])
        assert digest({"x": one}) == digest({"x": one.clone()})
        assert digest({"x": one}) != digest({"x": torch.nextafter(one, torch.tensor(9.0))})
        assert digest({"x": one}) != digest({"x": one.view(2, 1)})

    def test_a_round_that_is_reserved_leaves_none(self, tmp_path):
        with opened(tmp_path, Service()) as campaign:
            campaign.run()
        assert list((tmp_path / "stages").iterdir()) == []


class TestDisks:
    @pytest.mark.parametrize("fails_at", range(1, 13))
    def test_a_full_disk_is_one_clear_line_and_the_campaign_goes_on_later(
        self, tmp_path, monkeypatch, fails_at
    ):
        with opened(tmp_path / "whole", Service()) as campaign:
            campaign.run()
            whole = account(campaign)
        service, fsync, calls = Service(), os.fsync, []

        def full(descriptor):
            calls.append(descriptor)
            if len(calls) >= fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with (
                pytest.raises((BlobError, OSError), match="No space left on device"),
                opened(tmp_path / "run", service) as campaign,
            ):
                campaign.run()
        with opened(tmp_path / "run", service) as campaign:
            campaign.run()
            assert account(campaign) == whole
        assert len(service.keys) == 8

    def test_answers_that_cannot_be_written_are_in_the_message(self, tmp_path):
        with opened(tmp_path, None, in_doubt="count_as_spent") as campaign:
            asked = campaign.ask(2)
            with campaign.ledger._engine.connect() as connection:
                n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
                connection.exec_driver_sql(f"PRAGMA max_page_count = {n_pages}")
            with pytest.raises(
                StorageError, match=r"full.*were paid for .*tell them later: .*\"1\": \{\"value\": 2.5\}"
            ):
                campaign.tell(asked[0].id, Evaluation({"value": 2.5}, metadata={"log": "x" * 100_000}))
            assert campaign.ledger.counts() == Counts(sent=2)
            with campaign.ledger._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
            campaign.tell(asked[0].id, 2.5)

    def test_a_lost_design_is_named(self, tmp_path):
        with opened(tmp_path, Service()) as campaign:
            campaign.run()
            query = campaign.ledger.queries()[5]
        blob = tmp_path / "blobs" / query.artifact
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        with opened(tmp_path, Service(), in_doubt="lookup") as campaign:
            with pytest.raises(BlobError, match=r"design of query [5-8] is lost: .*damaged"):
                campaign.best(8)
            with pytest.raises(BlobError, match=query.artifact):
                campaign.observations()

    def test_a_clock_that_jumps_back_changes_nothing(self, tmp_path, monkeypatch):
        with opened(tmp_path / "whole", Service()) as campaign:
            campaign.run()
            whole = account(campaign)
        now = [2e9]

        def backwards():
            now[0] -= 3600
            return now[0]

        monkeypatch.setattr("time.time", backwards)
        with opened(tmp_path / "run", Service()) as campaign:
            campaign.ledger._clock = backwards
            campaign.run()
            assert account(campaign) == whole
            first, *_, last = campaign.ledger.queries()
            assert last.ended_at < first.reserved_at

    def test_every_driver_leaves_its_versions(self, tmp_path):
        with opened(tmp_path, Service()) as campaign:
            campaign.run()
            (driven,) = (event for event in campaign.ledger.events() if event.kind == "driven")
            assert driven.detail["versions"]["torch"] == torch.__version__
            assert driven.detail["settings"]["in_doubt"] == "lookup"
            assert {record.fence for record in campaign.ledger.rounds()} == {1}
            assert {q.state for q in campaign.ledger.queries()} == {QueryState.DONE}

    def test_a_newer_ledger_is_refused(self, tmp_path):
        opened(tmp_path, Service()).close()
        with Ledger.open(tmp_path) as ledger, ledger._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE meta SET schema_version = 99")
        with pytest.raises(Exception, match="newer bbo"):
            opened(tmp_path, Service())
