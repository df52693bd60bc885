"""Paying while the next batch is sampled: what overlaps, what is never exceeded, and what an interruption leaves."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bbo import loop, tables
from bbo.campaign import Campaign
from bbo.errors import CampaignError, ConfigError, ConfigMismatchError
from bbo.ledger import Ledger, Query, QueryState
from bbo.paying import Cashier
from bbo.progress import INTERRUPTED
from bbo.settings import Settings, describe_settings
from bbo.steering import SteeredPrior
from oracles import processes
from oracles.callables import FunctionOracle
from oracles.command import CommandOracle
from oracles.concurrency import Concurrent
from oracles.errors import NotAccepted, Unanswered
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.gp import ExactGP
from tests.interruptions import ctrl_c_allowed, ctrl_c_soon, seconds_to_leave, start_programs

PRIOR = GaussianPrior(torch.zeros(3), n_steps=6)
METHOD = SteeredPrior(surrogate=ExactGP(), kl_coef=0.3, sampler=SamplerConfig(n_islands=4, n_particles=4))


def bowl(design):
    return -float(((design - 1.5) ** 2).sum())


def opened(directory, oracle=bowl, **changes):
    settings = {"budget": 24, "batch_size": 4, "max_pending": 8, "method": METHOD, **changes}
    return Campaign.open(directory, prior=PRIOR, oracle=oracle, **settings)


def run(directory, oracle=bowl, **changes):
    """Run a campaign and return its designs, in order."""
    with opened(directory, oracle, **changes) as campaign:
        campaign.run()
        return campaign.archive.designs(campaign.ledger.queries())


# ------------------------------------------------------------------- the cashier
def slip(number, id_=0):
    """Return a query of a round."""
    nothing = {
        "predicted_mean": None,
        "predicted_std": None,
        "sent_at": None,
        "ended_at": None,
        "evaluation": None,
    }
    fresh = {
        "reserved_at": 0.0,
        "n_sent": 0,
        "is_given": False,
        "is_asked": False,
        "provenance": {},
        **nothing,
    }
    return Query(id_, number, slot=0, key="", state=QueryState.RESERVED, artifact="", row=0, **fresh)


def paid_in_order(n_threads, n_rounds=5, n_groups=3):
    seen = []
    with Cashier(seen.append, n_threads, print) as cashier:
        for number in range(n_rounds):
            cashier.take([[slip(number, i)] for i in range(n_groups)])
        cashier.wait()
    return seen


class TestCashier:
    @pytest.mark.parametrize("n_threads", [0, 1])
    def test_pays_everything_in_order(self, n_threads):
        assert paid_in_order(n_threads) == [[slip(number, i)] for number in range(5) for i in range(3)]

    def test_many_threads_pay_everything_once(self):
        seen = paid_in_order(8, n_rounds=20)
        assert sorted((group[0].round, group[0].id) for group in seen) == [
            (number, i) for number in range(20) for i in range(3)
        ]

    @pytest.mark.parametrize("n_threads", [0, 1, 3])
    def test_waits_for_the_rounds_before_one_and_no_others(self, n_threads):
        is_allowed, paid = threading.Event(), []

        def pay(group):
            if group[0].round == 2:
                assert is_allowed.wait(10)
            paid.append(group[0].round)

        with Cashier(pay, n_threads, print) as cashier:
            for number in range(3):
                cashier.take([[slip(number)]])
            cashier.wait(before=2)
            assert sorted(paid) == [0, 1]
            is_allowed.set()
            cashier.wait()
            assert sorted(paid) == [0, 1, 2]

    def test_as_many_are_under_way_as_there_are_threads(self):
        together = threading.Barrier(3)
        with Cashier(lambda group: together.wait(10), 3, print) as cashier:
            cashier.take([[slip(0)] for _ in range(6)])
            cashier.wait()  # a barrier that three never reached would have raised

    @pytest.mark.parametrize("n_threads", [0, 1, 2])
    def test_after_a_failure_nothing_more_is_begun_and_it_is_raised(self, n_threads):
        paid = []

        def pay(group):
            paid.append(group[0].id)
            if group[0].id == 1:
                raise CampaignError("the oracle is gone")
            time.sleep(0.05)

        with Cashier(pay, n_threads, print) as cashier:
            cashier.take([[slip(0, i)] for i in range(20)])
            with pytest.raises(CampaignError, match="the oracle is gone"):
                cashier.wait()
        time.sleep(0.2)
        assert len(paid) <= 2 + n_threads

    def test_what_is_under_way_when_another_fails_is_waited_for(self):
        has_begun, told = threading.Event(), []

        def pay(group):
            if group[0].id == 0:
                assert has_begun.wait(10)
                raise CampaignError("the oracle is gone")
            has_begun.set()
            time.sleep(0.3)
            told.append(group[0].id)

        with pytest.raises(CampaignError, match="the oracle is gone"):
            self.paid(pay, 2)
        assert told == [1]

    def paid(self, pay, n_groups):
        with Cashier(pay, 2, print) as cashier:
            cashier.take([[slip(0, i)] for i in range(n_groups)])
            cashier.wait()

    @pytest.mark.parametrize("error", [CampaignError("no fit"), KeyboardInterrupt()])
    def test_what_is_under_way_when_something_else_ends_it_is_waited_for(self, error):
        told, said, has_begun = [], [], threading.Event()

        def pay(group):
            has_begun.set()
            time.sleep(0.3)
            told.append(group[0].id)

        def ended():
            with Cashier(pay, 1, lambda: said.append("waits")) as cashier:
                cashier.take([[slip(0, i)] for i in range(5)])
                assert has_begun.wait(10)
                raise error

        with pytest.raises(type(error)):
            ended()
        assert told == [0]
        assert said == (["waits"] if isinstance(error, KeyboardInterrupt) else [])

    def test_threads_end_with_it(self):
        before = threading.active_count()
        paid_in_order(4)
        until = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < until:
            time.sleep(0.01)
        assert threading.active_count() == before


# ------------------------------------------------------------------- settings
class TestSettings:
    @pytest.mark.parametrize(("max_pending", "lag"), [(None, 0), (4, 0), (7, 0), (8, 1), (11, 1), (12, 2)])
    def test_as_many_rounds_are_ahead_as_fit(self, max_pending, lag):
        assert Settings(budget=24, batch_size=4, max_pending=max_pending).lag == lag

    @pytest.mark.parametrize("max_pending", [3, 0, -8, True])
    def test_less_than_a_batch_is_refused(self, max_pending):
        with pytest.raises(ConfigError, match="max_pending must be null or at least the batch size, 4, got"):
            Settings(budget=24, batch_size=4, max_pending=max_pending)

    @pytest.mark.parametrize("parallel", [0, -1, True])
    def test_no_call_at_a_time_is_refused(self, parallel):
        with pytest.raises(ConfigError, match="parallel must be null or at least 1, got"):
            Settings(budget=24, parallel=parallel)

    def test_what_decides_no_result_is_not_recorded(self):
        plain = describe_settings(Settings(budget=24, batch_size=4))
        assert "max_pending" not in plain
        assert plain == describe_settings(Settings(budget=99, batch_size=4, max_pending=7, parallel=3))
        assert describe_settings(Settings(budget=24, batch_size=4, max_pending=8))["max_pending"] == 8

    def test_another_lag_is_another_campaign(self, tmp_path):
        run(tmp_path / "c", budget=8)
        with pytest.raises(ConfigMismatchError, match=r"campaign\.max_pending is 8 there and not set here"):
            opened(tmp_path / "c", budget=8, max_pending=None)


# ------------------------------------------------------------------- campaigns that overlap
class TestOverlap:
    def test_the_next_batch_is_sampled_while_the_oracle_works(self, tmp_path):
        rounds_seen = []

        def patient(design):
            """Answer when there is a round that is not sent yet, or there will be none."""
            until = time.monotonic() + 20
            with Ledger.open(tmp_path / "c") as ledger:
                while ledger.counts().reserved == 0 and ledger.counts().n < 24 and time.monotonic() < until:
                    time.sleep(0.01)
                rounds_seen.append(ledger.n_rounds())
            return bowl(design)

        run(tmp_path / "c", FunctionOracle(patient, n_per_call=4))
        assert rounds_seen[0] == 2
        assert rounds_seen[4] == 3

    def test_no_more_are_under_way_than_may_be(self, tmp_path):
        under_way = []

        def counting(design):
            with Ledger.open(tmp_path / "c") as ledger:
                counts = ledger.counts()
            under_way.append(counts.n - counts.done)
            time.sleep(0.1)
            return bowl(design)

        run(tmp_path / "c", counting, max_pending=12)
        assert 8 < max(under_way) <= 12

    def test_who_is_faster_changes_no_design(self, tmp_path):
        def slow(design):
            time.sleep(0.03)
            return bowl(design)

        fast = run(tmp_path / "a")
        assert torch.equal(fast, run(tmp_path / "b", slow))
        assert not torch.equal(fast, run(tmp_path / "sync", max_pending=None))

    def test_a_round_knows_the_answers_of_all_but_the_last_and_believes_those(self, tmp_path):
        with opened(tmp_path / "c", budget=12) as campaign:
            campaign.run()
            late, all_ = campaign.observations(lag=1), campaign.observations()
        assert (len(late.y), len(late.pending)) == (8, 4)
        assert torch.equal(late.y, all_.y[:8])
        assert torch.equal(late.pending, all_.X[8:])
        assert len(late.designs) == 12
        assert all_.pending is None
        assert [h.round for h in all_.rounds] == [2]
        assert late.rounds == ()

    def test_what_was_given_is_known_whatever_its_round(self, tmp_path):
        with opened(tmp_path / "c", budget=8) as campaign:
            campaign.run()
            campaign.tell_new(torch.ones(2, 3).numpy(), [1.0, 2.0])
            observed = campaign.observations(lag=2)
        assert observed.y.tolist()[-2:] == [1.0, 2.0]
        assert len(observed.y) == 6  # round 0 and what was given; round 1 is the last but one

    def test_all_failing_still_stops_it(self, tmp_path):
        def broken(design):
            raise ValueError("no licence")

        with opened(tmp_path / "c", broken) as campaign:
            with pytest.raises(
                CampaignError, match=r"so far have failed, the first with: ValueError: no licence"
            ):
                campaign.run()
            assert 4 <= campaign.ledger.counts().failed <= 8

    def test_it_is_as_good_as_it_was(self, tmp_path):
        assert max(map(bowl, run(tmp_path / "c", budget=48).numpy())) > -1.0


# ------------------------------------------------------------------- interruptions
PROGRAM = """
import sys, time
from tests.bbo.test_paying import *

def answer(design):
    time.sleep(0.02)
    return bowl(design)

with opened(sys.argv[1], FunctionOracle(answer, is_idempotent=True), in_doubt="retry") as campaign:
    campaign.run()
"""


class TestInterruptions:
    @pytest.fixture(autouse=True)
    def ctrl_c(self):
        with ctrl_c_allowed():
            yield

    def test_kills_at_any_moment_change_no_design(self, tmp_path):
        whole = run(tmp_path / "whole")
        directory = tmp_path / "killed"
        n_done = []
        for pause in (0.1, 0.4, 0.25, 0.6, None):
            with subprocess.Popen([sys.executable, "-c", PROGRAM, str(directory)]) as program:
                if pause is not None:
                    _wait_for_a_lock(directory, program)
                    time.sleep(pause)
                    program.kill()
            with Ledger.open(directory) as ledger:
                n_done.append(ledger.counts().done)
        assert program.returncode == 0
        assert n_done[-1] == 24
        assert len(set(n_done)) > 2, n_done  # the kills came in the middle
        with Ledger.open(directory) as ledger:
            assert np.array_equal(tables.designs(ledger, ledger.queries()), whole.numpy())

    def test_a_refusal_in_a_thread_costs_nothing_and_comes_first_next_time(self, tmp_path):
        calls = []

        def closing(design):
            calls.append(design)
            if len(calls) == 6:
                raise NotAccepted("closed")
            return bowl(design)

        with opened(tmp_path / "c", closing) as campaign:
            with pytest.raises(CampaignError, match="did not accept 1 designs: closed"):
                campaign.run()
            counts = campaign.ledger.counts()
            assert (counts.done, counts.sent, counts.in_doubt) == (5, 0, 0)
            campaign.run()
            found = campaign.archive.designs(campaign.ledger.queries())
        assert torch.equal(found, run(tmp_path / "whole"))

    def interrupted(self, directory, oracle, has_begun, n_interrupts, then=lambda: None):
        """Open a campaign whose run is interrupted once the oracle has begun, and again while it waits for that."""
        is_waiting = threading.Event()

        def listen(progress):
            if progress.stage == INTERRUPTED:
                is_waiting.set()

        def interrupt():
            for moment in (has_begun, is_waiting)[:n_interrupts]:
                assert moment.wait(30)
                time.sleep(0.2)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert is_waiting.wait(30)
            then()

        threading.Thread(target=interrupt).start()
        return opened(directory, oracle, listener=listen)

    def stuck(self):
        """Return an oracle that waits, what says that it has begun, what lets it answer, and its calls."""
        has_begun, may_answer, calls = threading.Event(), threading.Event(), []

        def oracle(design):
            calls.append(design)
            has_begun.set()
            assert may_answer.wait(30)
            return bowl(design)

        return oracle, has_begun, may_answer, calls

    def test_ctrl_c_waits_for_what_is_paid_and_sends_nothing_more(self, tmp_path):
        oracle, has_begun, may_answer, calls = self.stuck()
        with self.interrupted(tmp_path / "c", oracle, has_begun, 1, then=may_answer.set) as campaign:
            with pytest.raises(KeyboardInterrupt):
                campaign.run()
            counts = campaign.ledger.counts()
            assert (counts.done, counts.in_doubt, counts.sent) == (1, 0, 0)
            time.sleep(0.2)
            assert len(calls) == 1

    def test_the_first_and_the_second_ctrl_c_are_noticed_while_threads_start_programs(self, monkeypatch):
        monkeypatch.setattr(processes, "WAKE_S", 0.05)
        n_told = []
        with ctrl_c_soon() as interrupt:

            def again():
                n_told.append(1)
                interrupt()

            def wait():
                with Cashier(lambda group: start_programs(60), 2, on_interrupt=again) as cashier:
                    cashier.take([[slip(0)], [slip(1)]])
                    interrupt()
                    cashier.wait()

            assert max(seconds_to_leave(wait) for _ in range(30)) < 20
        assert len(n_told) > 15  # it came while they were at work

    @pytest.mark.parametrize("wrapped", [lambda program: program, Concurrent], ids=["alone", "concurrent"])
    def test_programs_end_with_the_second_ctrl_c(self, tmp_path, wrapped):
        script = tmp_path / "slow.sh"
        script.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pid\nexec sleep 300\n")
        script.chmod(0o755)

        has_begun = threading.Event()

        def watch():
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
                time.sleep(0.05)
            has_begun.set()

        threading.Thread(target=watch, daemon=True).start()
        with self.interrupted(
            tmp_path / "c", wrapped(CommandOracle((str(script),))), has_begun, 2
        ) as campaign:
            with pytest.raises(KeyboardInterrupt):
                campaign.run()
            assert campaign.ledger.counts().in_doubt > 0
        begun = (tmp_path / "pid").read_text().split()
        assert not [pid for pid in begun if Path(f"/proc/{pid}").exists()]

    def test_a_thread_whose_work_is_over_sends_nothing(self, tmp_path):
        refused = []

        def send(campaign):
            is_over = threading.Event()
            is_over.set()
            processes.enlist(is_over)
            try:
                campaign.send(campaign.reserved())
            except CampaignError as error:
                refused.append(str(error))

        with opened(tmp_path / "c") as campaign:
            loop.propose(campaign, 4)
            thread = threading.Thread(target=send, args=(campaign,))
            thread.start()
            thread.join()
            assert campaign.ledger.counts().reserved == 4
        assert refused == ["the campaign was interrupted before these queries were sent"]

    def test_a_call_that_is_lost_leaves_the_others_as_they_are(self, tmp_path):
        with opened(tmp_path / "c") as campaign:
            one, other = (loop.propose(campaign, 1) for _ in range(2))
            campaign.send(one)
            campaign.send(other)
            with pytest.raises(CampaignError, match="gave no answer: broken line"):
                campaign.tell_group(one, [Unanswered("broken line")])
            states = [query.state for query in campaign.ledger.queries()]
            assert states == [QueryState.IN_DOUBT, QueryState.SENT]

    def test_people_can_be_asked_after_a_run_that_failed(self, tmp_path):
        def broken(design):
            raise ValueError("no licence")

        with opened(tmp_path / "c", broken) as campaign:
            with pytest.raises(CampaignError):
                campaign.run()
            assert len(campaign.ask(1)) == 1

    def test_ctrl_c_twice_leaves_in_doubt_what_is_under_way(self, tmp_path):
        oracle, has_begun, may_answer, calls = self.stuck()
        with self.interrupted(tmp_path / "c", oracle, has_begun, 2) as campaign:
            with pytest.raises(KeyboardInterrupt):
                campaign.run()
            counts = campaign.ledger.counts()
            assert (counts.in_doubt, counts.sent) == (1, 0)
            may_answer.set()
            until = time.monotonic() + 10
            while campaign.ledger.counts().done == 0 and time.monotonic() < until:
                time.sleep(0.02)
            assert campaign.ledger.counts().done == 1  # late, and welcome
            time.sleep(0.2)
            assert len(calls) == 1
            campaign.run()
            assert campaign.ledger.counts().done == 24


def _wait_for_a_lock(directory, program):
    """Wait until the program drives the campaign, or has ended."""
    lock = directory / "lock"
    while program.poll() is None and not (lock.exists() and f'"pid": {program.pid}' in lock.read_text()):
        time.sleep(0.005)
