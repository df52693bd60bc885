"""Wrappers: one concept each, the contract of an oracle kept, and no way to pay twice."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from oracles import processes
from oracles.base import Lookup
from oracles.callables import BatchFunctionOracle, FunctionOracle
from oracles.calls import Incomplete, call
from oracles.command import CommandOracle
from oracles.concurrency import Concurrent
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation
from oracles.time_limit import TimeLimited
from oracles.wrappers import Cached, Negated, Noisy, RateLimited, Retried, Wrapper
from tests.contracts.oracle_contract import OracleContract
from tests.interruptions import ctrl_c_soon, seconds_to_leave, start_programs
from tests.oracles.foils import foils
from tests.oracles.test_command import has_died, wait_for

ROOT = Path(__file__).parents[2]
DESIGNS = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 1.0], [2.0, 2.0]])
KEYS = ["a", "b", "c", "d"]


def bowl(design):
    if not np.isfinite(design).all():
        raise ValueError("not finite")
    return -float((design**2).sum())


def bowls(designs):
    return [bowl(d) if np.isfinite(d).all() else Evaluation.failed("not finite") for d in designs]


PLAIN = FunctionOracle(bowl, is_idempotent=True)


@dataclass
class Scripted:
    """An oracle that gives what its script says, call by call, and keeps what it was asked."""

    script: list
    """One list a call: an answer for each design."""
    asked: list = field(default_factory=list)
    name: str = "scripted"
    design_shape: tuple[int, ...] | None = None
    n_per_call: int | None = None
    is_idempotent: bool = False

    def evaluate(self, designs):
        return self.evaluate_keyed(designs, [""] * len(designs))

    def evaluate_keyed(self, designs, keys):
        self.asked.append((designs[:, 0].tolist(), list(keys)))
        answers = self.script.pop(0)
        if any(not isinstance(a, Evaluation) for a in answers):
            raise Incomplete(answers)
        return answers

    def lookup(self, key):
        return {"known": Evaluation.of(2.0)}.get(key)


def of(*values):
    return [Evaluation.of(v) for v in values]


def values(answers):
    return [a.outcomes.get("value") if isinstance(a, Evaluation) else type(a) for a in answers]


# ------------------------------------------------------------------- the contract, on each of them
class TestPlainContract(OracleContract):
    @pytest.fixture
    def oracle(self):
        return PLAIN

    @pytest.fixture
    def designs(self):
        return DESIGNS


class TestBatchContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return BatchFunctionOracle(bowls, is_idempotent=True)


class TestIdentityContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return Wrapper(PLAIN)


class TestNegatedContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return Negated(PLAIN)


class TestNoisyContract(TestPlainContract):
    is_noisy = True

    @pytest.fixture
    def oracle(self):
        return Noisy(PLAIN, 0.1)


class TestCachedContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return Cached(PLAIN)


class TestRetriedContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return Retried(PLAIN)


class TestRateLimitedContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return RateLimited(PLAIN, 1000, 0.01)


class TestTimeLimitedContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return TimeLimited(PLAIN, 20.0)


class TestConcurrentContract(TestPlainContract):
    @pytest.fixture
    def oracle(self):
        return Concurrent(PLAIN, 3)


class TestAllTogetherContract(OracleContract):
    @pytest.fixture
    def designs(self):
        return foils(3)

    @pytest.fixture
    def oracle(self):
        shell = CommandOracle(("sh", "examples/area.sh"), directory=ROOT, is_idempotent=True)
        return Cached(Negated(Retried(RateLimited(Concurrent(TimeLimited(shell, 20.0), 2), 100, 0.1))))


def test_wrappers_pass_on_what_the_oracle_inside_promises():
    inside = FunctionOracle(bowl, design_shape=(2,), is_idempotent=True, n_per_call=3)
    for wrapper in (Negated(inside), Cached(inside), Retried(inside), TimeLimited(inside, 1.0)):
        assert (wrapper.name, wrapper.design_shape, wrapper.n_per_call) == ("bowl", (2,), 3)
        assert wrapper.is_idempotent
    assert not Noisy(inside, 0.1).is_idempotent


def test_lookup_is_offered_where_the_oracle_inside_has_it_and_is_changed_like_an_answer():
    assert not isinstance(Negated(Retried(PLAIN)), Lookup)
    wrapper = Negated(Retried(Scripted([])))
    assert isinstance(wrapper, Lookup)
    assert wrapper.lookup("known").outcomes == {"value": -2.0}
    assert wrapper.lookup("unknown") is None
    noisy = Noisy(Scripted([of(2.0)]), 1.0)
    assert noisy.lookup("known") == noisy.evaluate_keyed(DESIGNS[:1], ["known"])[0]


# ------------------------------------------------------------------- noise and sign
def test_noise_has_its_std_and_is_declared():
    designs = torch.zeros(4000, 1)
    answers = Noisy(BatchFunctionOracle(lambda x: [3.0] * len(x)), 0.5).evaluate(designs)
    y = np.array([e.outcomes["value"] for e in answers])
    assert y.mean() == pytest.approx(3.0, abs=4 * 0.5 / 4000**0.5)
    assert y.std() == pytest.approx(0.5, rel=0.05)
    assert {e.noise_std["value"] for e in answers} == {0.5}


def test_noise_adds_to_the_noise_there_is_and_outcomes_have_noise_of_their_own():
    inside = Scripted([[Evaluation({"a": 1.0, "b": 1.0}, noise_std={"a": 3.0})]])
    (answer,) = Noisy(inside, 4.0).evaluate(DESIGNS[:1])
    assert answer.noise_std == {"a": 5.0, "b": 4.0}
    assert answer.outcomes["a"] != answer.outcomes["b"]


def test_a_query_keeps_its_noise_and_others_have_another():
    first = Noisy(PLAIN, 0.1).evaluate_keyed(DESIGNS, KEYS)
    assert Noisy(PLAIN, 0.1).evaluate_keyed(DESIGNS.flip(0), KEYS[::-1])[::-1] == first
    assert Noisy(PLAIN, 0.1, seed=1).evaluate_keyed(DESIGNS, KEYS) != first
    assert Noisy(PLAIN, 0.1).evaluate_keyed(DESIGNS, ["e", "f", "g", "h"]) != first
    oracle = Noisy(PLAIN, 0.1)
    assert oracle.evaluate(DESIGNS) != oracle.evaluate(DESIGNS)


def test_a_failure_has_no_noise():
    (answer,) = Noisy(PLAIN, 0.1).evaluate(torch.tensor([[float("nan"), 0.0]]))
    assert "not finite" in answer.error


def test_only_the_named_outcome_is_negated():
    inside = Scripted(
        [[Evaluation({"lift": 1.0, "drag": 0.5}, noise_std={"drag": 0.1}), Evaluation.failed("x")]]
    )
    first, second = Negated(inside, "drag").evaluate(DESIGNS[:2])
    assert first.outcomes == {"lift": 1.0, "drag": -0.5}
    assert first.noise_std == {"drag": 0.1}
    assert second.error == "x"


# ------------------------------------------------------------------- cache
def test_a_design_is_asked_once():
    inside = Scripted([of(1.0, 2.0), of(3.0)])
    oracle = Cached(inside)
    assert values(oracle.evaluate_keyed(DESIGNS[[0, 1, 0]], ["k0", "k1", "k2"])) == [1.0, 2.0, 1.0]
    again = oracle.evaluate_keyed(DESIGNS[[1, 2]], ["k3", "k4"])
    assert values(again) == [2.0, 3.0]
    assert inside.asked == [([1.0, 3.0], ["k0", "k1"]), ([0.0], ["k4"])]
    assert [e.cost for e in again] == [0.0, 1.0]


def test_a_repeat_within_one_call_costs_nothing():
    answers = Cached(Scripted([of(1.0)])).evaluate(DESIGNS[[0, 0]])
    assert [e.cost for e in answers] == [1.0, 0.0]


@pytest.mark.parametrize("first", [Evaluation.failed("network"), Unanswered("?"), NotAccepted("no")])
def test_only_outcomes_are_remembered(first):
    oracle = Cached(Scripted([[first], of(5.0)]))
    call(oracle, DESIGNS[:1])
    assert values(call(oracle, DESIGNS[:1])) == [5.0]


def test_noisy_oracles_are_not_cached():
    with pytest.raises(OracleError, match="is noisy"):
        Cached(Retried(Noisy(PLAIN, 0.1)))
    noisy = [Evaluation({"value": y}, noise_std={"value": 0.1}) for y in (1.0, 2.0)]
    oracle = Cached(Scripted([noisy[:1], noisy[1:]]))
    assert values(oracle.evaluate(DESIGNS[:1])) == [1.0]
    assert values(oracle.evaluate(DESIGNS[:1])) == [2.0]


# ------------------------------------------------------------------- retry
def test_only_what_was_not_accepted_is_asked_again():
    first = [Evaluation.of(1.0), NotAccepted("busy"), Unanswered("?"), Evaluation.failed("bad")]
    inside = Scripted([first, [NotAccepted("busy")], of(7.0)])
    answers = call(Retried(inside, n_retries=3, wait_s=0.0), DESIGNS, KEYS)
    assert values(answers) == [1.0, 7.0, Unanswered, None]
    assert inside.asked[1:] == [([3.0], ["b"]), ([3.0], ["b"])]


def test_an_error_of_any_other_kind_is_never_repeated():
    calls = []

    def broken(designs):
        calls.append(len(designs))
        raise ConnectionResetError("after it was sent")

    answers = call(Retried(BatchFunctionOracle(broken), wait_s=0.0), DESIGNS)
    assert calls == [4]
    assert all("after it was sent" in a.error for a in answers)


def test_retries_end_and_wait_longer_each_time(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    refusals = [[NotAccepted("busy", retry_after_s=s)] for s in (0.0, 9.0, 0.0, 0.0)]
    (answer,) = call(Retried(Scripted(refusals), n_retries=3, wait_s=1.0), DESIGNS[:1])
    assert isinstance(answer, NotAccepted)
    assert waits == [1.0, 9.0, 4.0]


def test_a_function_may_say_that_it_was_not_accepted():
    turns = itertools.count()

    def sometimes(design):
        if next(turns) == 1:
            raise NotAccepted("busy")
        return 1.0

    assert values(Retried(FunctionOracle(sometimes), wait_s=0.0).evaluate(DESIGNS)) == [1.0] * 4
    assert next(turns) == 5


# ------------------------------------------------------------------- rate
def test_no_window_sees_more_than_the_rate():
    times = []
    oracle = RateLimited(FunctionOracle(lambda d: times.append(time.monotonic()) or 1.0), n=3, seconds=0.3)
    threads = [threading.Thread(target=call, args=(oracle, DESIGNS)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 8
    assert all(later - earlier > 0.28 for earlier, later in zip(times, times[3:], strict=False))
    assert times[2] - times[0] < 0.1  # what the rate allows is not held back


def test_a_call_larger_than_the_rate_is_divided_or_refused():
    inside = Scripted([of(1.0, 2.0), of(3.0, 4.0)])
    assert values(RateLimited(inside, 2, 0.05).evaluate(DESIGNS)) == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(OracleError, match="takes 4 designs, more than the rate of 2"):
        RateLimited(Scripted([], n_per_call=4), 2, 1.0)


# ------------------------------------------------------------------- concurrency
def test_calls_run_at_the_same_time_and_answers_stay_in_order():
    together = threading.Barrier(4, timeout=10)

    def meet(design):
        together.wait()
        return design[0]

    assert values(Concurrent(FunctionOracle(meet), 4).evaluate(DESIGNS)) == [1.0, 3.0, 0.0, 2.0]


def test_no_more_calls_than_workers_run_and_a_crash_leaves_no_more_in_doubt():
    running, most = [], []

    def slow(design):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return 0.0

    oracle = Concurrent(FunctionOracle(slow), 2)
    oracle.evaluate(torch.zeros(10, 1))
    assert max(most) == 2
    assert oracle.n_per_call == 2
    assert Concurrent(BatchFunctionOracle(bowls), 2).n_per_call is None


def test_one_call_without_an_answer_loses_no_other():
    def sometimes(design):
        if design[0] == 3.0:
            raise Unanswered("?")
        return design[0]

    assert values(call(Concurrent(FunctionOracle(sometimes), 4), DESIGNS)) == [1.0, Unanswered, 0.0, 2.0]


@pytest.mark.parametrize("n_per_call", [1, None])
def test_ctrl_c_ends_the_programs_of_all_threads(tmp_path, n_per_call):
    script = tmp_path / "slow.sh"
    script.write_text(f"echo $$ >> {tmp_path / 'pids'}; sleep 600")
    code = f"""
    import torch
    from oracles.command import CommandOracle
    from oracles.concurrency import Concurrent
    Concurrent(CommandOracle(("sh", {str(script)!r}), n_per_call={n_per_call}), 2).evaluate(torch.ones(6, 2))
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while len(wait_for(tmp_path / "pids", 60).split()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) != 0
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2  # nor was another one started
    assert all(has_died(int(pid)) for pid in pids)


def test_ctrl_c_is_noticed_while_threads_start_programs(monkeypatch):
    monkeypatch.setattr(processes, "WAKE_S", 0.05)
    rounds = []

    def start(_):
        rounds.append(1)
        start_programs(60)
        return 0.0

    oracle = Concurrent(FunctionOracle(start), 2)
    with ctrl_c_soon() as interrupt:

        def wait():
            interrupt()
            oracle.evaluate(torch.ones(2, 1))

        assert max(seconds_to_leave(wait) for _ in range(30)) < 20
    assert len(rounds) > 30  # it came while they were at work


# ------------------------------------------------------------------- time limit
def sleeper(file):
    """Return a function that starts a program, notes it in `file`, and never ends."""

    def sleep(design):
        if design[0] == 3.0:
            child = subprocess.Popen(["sleep", "60"])
            file.write_text(str(child.pid))
            time.sleep(60)
        return design[0]

    return sleep


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_a_time_limit_stops_the_work_and_all_it_started(tmp_path, is_idempotent):
    file = tmp_path / "pid"
    inside = FunctionOracle(sleeper(file), is_idempotent=is_idempotent)
    began = time.monotonic()
    answers = call(TimeLimited(inside, 0.7), DESIGNS)
    assert time.monotonic() - began < 5
    assert values(answers) == [1.0, None if is_idempotent else Unanswered, 0.0, 2.0]
    assert "no answer within 0.7 s; the work was stopped" in (
        answers[1].error if is_idempotent else str(answers[1])
    )
    assert has_died(int(file.read_text()))


def test_a_time_limit_reaches_programs_in_groups_of_their_own_in_threads(tmp_path):
    script = tmp_path / "slow.sh"
    script.write_text(f"echo $$ >> {tmp_path / 'pids'}; sleep 60 & wait")
    inside = Concurrent(CommandOracle(("sh", str(script))), 2)
    call(TimeLimited(inside, 1.0), DESIGNS[:2])
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    assert all(has_died(int(pid)) for pid in pids)


def test_work_that_cannot_be_interrupted_is_killed(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.2)

    def deaf(design):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    began = time.monotonic()
    assert values(call(TimeLimited(FunctionOracle(deaf), 0.3), DESIGNS[:1])) == [Unanswered]
    assert time.monotonic() - began < 3


def test_a_child_that_dies_is_noticed_at_once():
    def die(design):
        os.kill(os.getpid(), signal.SIGKILL) if design[0] == 3.0 else None
        return design[0]

    began = time.monotonic()
    answers = call(TimeLimited(FunctionOracle(die, is_idempotent=True), 30.0), DESIGNS)
    assert time.monotonic() - began < 5
    assert values(answers) == [1.0, None, 0.0, 2.0]
    assert "was ended by SIGKILL before it answered" in answers[1].error


def test_where_no_process_can_be_started_nothing_was_charged(monkeypatch):
    def full():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    answers = call(TimeLimited(PLAIN, 1.0), DESIGNS)
    assert values(answers) == [NotAccepted] * 4
    assert "Resource temporarily unavailable" in str(answers[0])


def test_answers_cross_the_border_whole():
    rich = Evaluation({"a": 0.1, "b": 1e-300}, None, {"a": 0.5}, 2.5, {"note": "x", "odd": {1, 2}})
    inside = Scripted([[rich, Evaluation.failed("bad", why=[1]), NotAccepted("no"), Unanswered("?")]])
    first, *rest = call(TimeLimited(inside, 20.0), DESIGNS)
    assert (first.outcomes, first.noise_std, first.cost) == (rich.outcomes, rich.noise_std, rich.cost)
    assert first.metadata == {"note": "x", "odd": "{1, 2}"}
    assert rest[0] == Evaluation.failed("bad", why=[1])
    assert values(rest[1:]) == [NotAccepted, Unanswered]


def test_work_does_not_outlive_a_driver_that_is_killed(tmp_path):
    file = tmp_path / "pid"
    code = f"""
    import os, time, torch
    from oracles.callables import FunctionOracle
    from oracles.time_limit import TimeLimited
    def work(design):
        open({str(file)!r}, "w").write(str(os.getpid()))
        time.sleep(60)
    TimeLimited(FunctionOracle(work), 60.0).evaluate(torch.ones(1, 2))
    """
    driver = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    pid = int(wait_for(file, 30))
    driver.kill()
    driver.wait()
    assert has_died(pid)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Noisy(PLAIN, -1.0), "must be 0 or more, got -1.0"),
        (lambda: Noisy(PLAIN, float("nan")), "must be 0 or more, got nan"),
        (lambda: Noisy(PLAIN, 1.0, seed=-1), "seed must be 0 or more"),
        (lambda: Retried(PLAIN, 0), "retries must be at least 1"),
        (lambda: RateLimited(PLAIN, 0, 1.0), "a rate is at least 1 design"),
        (lambda: RateLimited(PLAIN, 1, 0.0), "a rate is at least 1 design"),
        (lambda: TimeLimited(PLAIN, 0.0), "must be above 0 s"),
        (lambda: TimeLimited(PLAIN, float("inf")), "must be above 0 s"),
        (lambda: Concurrent(PLAIN, 0), "n_workers must be at least 1"),
    ],
)
def test_settings_that_are_refused(make, said):
    with pytest.raises(OracleError) as refused:
        make()
    assert said in str(refused.value)
