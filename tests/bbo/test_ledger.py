"""The ledger: what is legal, what is refused, and that nothing is lost between one process and the next."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.exc import DBAPIError

from bbo.errors import BlobError, BudgetError, CampaignBusyError, CampaignError, LedgerError
from bbo.ledger import Counts, Ledger, Proposal, Query, QueryState
from oracles.evaluation import Evaluation

ROOT = Path(__file__).resolve().parents[2]
RESERVED, SENT, DONE, FAILED, IN_DOUBT, ABANDONED, REJECTED = QueryState
POSTGRES = os.environ.get("BBO_TEST_POSTGRES_URL")
"""The same suite runs there when it is set: CONTRIBUTING.md says how to start one."""


def _create(directory: Path, budget: int = 12, database: str | None = None) -> Ledger:
    return Ledger.create(
        directory, name="test", budget=budget, config={"oracle": {"name": "fake"}}, database=database
    )


def _reserve(ledger: Ledger, n: int, number: int = 0) -> list[Query]:
    return ledger.reserve(
        number, 7, [Proposal(row=i) for i in range(n)], ledger.blobs.put_bytes(b"designs"), {}
    )


def _ids(queries: list[Query]) -> list[int]:
    return [query.id for query in queries]


@pytest.fixture(
    params=[
        None,
        pytest.param(
            POSTGRES, marks=pytest.mark.skipif(not POSTGRES, reason="BBO_TEST_POSTGRES_URL is not set")
        ),
    ],
    ids=["sqlite", "postgresql"],
)
def database(request: pytest.FixtureRequest) -> str | None:
    return request.param


@pytest.fixture
def ledger(tmp_path: Path, database: str | None) -> Iterator[Ledger]:
    with _create(tmp_path, database=database).drive() as ledger:
        yield ledger


class Prompt:
    """A person with a SQL prompt: the rules that hold here hold for everybody."""

    def __init__(self, ledger: Ledger) -> None:
        self._connection = ledger._engine.connect().execution_options(writes=True)
        self._mark = "?" if ledger._engine.dialect.name == "sqlite" else "%s"
        self.is_sqlite = self._mark == "?"

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> int:
        with self._connection.begin_nested():  # PostgreSQL refuses all that follows a refusal, else
            done = self._connection.exec_driver_sql(statement.replace("?", self._mark), values)
            return done.rowcount

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def raw(ledger: Ledger) -> Iterator[Prompt]:
    prompt = Prompt(ledger)
    yield prompt
    prompt.close()


def _bring_to(ledger: Ledger, state: QueryState) -> int:
    """Return the id of a query that was brought to `state` in the ordinary way."""
    (query,) = _reserve(ledger, 1)
    if state is REJECTED:
        ledger.reject([query.id], "ugly")
    elif state is not RESERVED:
        ledger.send([query.id])
    if state is IN_DOUBT:
        ledger.doubt_sent()
    if state is ABANDONED:
        ledger.abandon([query.id], "lost")
    if state in (DONE, FAILED):
        ledger.tell({query.id: Evaluation.of(1.0) if state is DONE else Evaluation.failed("crossed")})
    return query.id


class TestLife:
    def test_what_was_written_is_read_by_the_next_process(self, tmp_path: Path) -> None:
        times = iter(range(100, 200))
        options = {"name": "foil", "budget": 3, "config": {"a": [1, {"b": None}]}}
        with Ledger.create(
            tmp_path / "deep" / "er", **options, clock=lambda: float(next(times))
        ).drive() as ledger:
            uid = ledger.uid
            artifact = ledger.blobs.put_bytes(b"designs")
            proposals = [Proposal(5, 1.5, 0.25, {"island": 3, "path": (1, 2)}), Proposal(4)]
            reserved = ledger.reserve(2, 2**63 - 1, proposals, artifact, {"ess": [0.5]})
            ledger.send(_ids(reserved))
            answer = Evaluation(
                outcomes={"lift": 2.5, "drag": 1e-300},
                noise_std={"lift": 0.125},
                cost=3.5,
                metadata={"cl": [1.0, None]},
            )
            ledger.tell({reserved[1].id: Evaluation.failed("surfaces cross"), reserved[0].id: answer})
        with Ledger.open(tmp_path / "deep" / "er") as ledger:
            assert (ledger.name, ledger.budget, ledger.config, ledger.uid) == (*options.values(), uid)
            first, second = ledger.queries()
            (record,) = ledger.rounds()
        assert (record.number, record.seed, record.summary, record.artifact) == (
            2,
            2**63 - 1,
            {"ess": [0.5]},
            artifact,
        )
        assert (first.round, first.slot, first.row, first.artifact) == (2, 0, 5, artifact)
        assert (first.predicted_mean, first.predicted_std) == (1.5, 0.25)
        assert first.provenance == {"island": 3, "path": [1, 2]}
        assert first.evaluation == answer
        assert (second.slot, second.row, second.predicted_mean, second.predicted_std) == (1, 4, None, None)
        assert second.evaluation == Evaluation.failed("surfaces cross")
        assert (first.state, second.state, first.n_sent, second.n_sent) == (DONE, FAILED, 1, 1)
        assert first.reserved_at < first.sent_at < first.ended_at
        assert first.key != second.key
        assert all(uid in query.key for query in (first, second))

    def test_one_campaign_a_directory(self, tmp_path: Path) -> None:
        assert not Ledger.exists(tmp_path)
        with pytest.raises(CampaignError, match=r"expected a campaign in .* got no ledger there"):
            Ledger.open(tmp_path)
        assert list(tmp_path.iterdir()) == []
        _create(tmp_path).close()
        assert Ledger.exists(tmp_path)
        with pytest.raises(CampaignError, match=r"expected no campaign in .* got one"):
            _create(tmp_path)

    @pytest.mark.parametrize("budget", [0, -1])
    def test_a_budget_is_at_least_one(self, tmp_path: Path, budget: int) -> None:
        with pytest.raises(BudgetError, match=f"at least 1 query, got {budget}"):
            _create(tmp_path / "new", budget)
        assert not (tmp_path / "new").exists()

    def test_nothing_is_written_without_driving(self, ledger: Ledger, database: str | None) -> None:
        (query,) = _reserve(ledger, 1)
        writes = [
            lambda reader: _reserve(reader, 1, 1),
            lambda reader: reader.send([query.id]),
            lambda reader: reader.tell({}),
            lambda reader: reader.doubt_sent(),
            lambda reader: reader.retry([]),
            lambda reader: reader.raise_budget(99),
            lambda reader: reader.note("kind", {}),
        ]
        with Ledger.open(ledger.directory, database) as reader:
            for write in writes:
                with pytest.raises(LedgerError, match="call drive"):
                    write(reader)
        ledger.close()
        with pytest.raises(LedgerError, match="call drive"):
            ledger.send([query.id])

    def test_a_clock_that_jumps_back_disturbs_nothing(self, tmp_path: Path) -> None:
        times = iter([50.0, 40.0, 30.0, 20.0, 10.0, 0.0, -10.0, -20.0, -30.0])
        with Ledger.create(
            tmp_path, name="t", budget=2, config={}, clock=lambda: next(times)
        ).drive() as ledger:
            ids = _ids(_reserve(ledger, 2))
            ledger.send(ids)
            ledger.note("odd", {})
            ledger.tell({query: Evaluation.of(1.0) for query in ids})
            assert ledger.counts() == Counts(done=2)
            assert [event.kind for event in ledger.events()] == ["driven", "odd"]


class TestReserve:
    def test_keys_name_campaign_round_and_slot(self, ledger: Ledger) -> None:
        queries = _reserve(ledger, 2, 0) + _reserve(ledger, 2, 1)
        assert [(q.round, q.slot) for q in queries] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert len({query.key for query in queries}) == 4
        with _create(ledger.directory / "other").drive() as other:
            assert _reserve(other, 1)[0].key != queries[0].key

    def test_the_budget_bounds_queries_of_every_state(self, ledger: Ledger) -> None:
        for number, state in enumerate((SENT, DONE, FAILED, IN_DOUBT)):
            (query,) = _reserve(ledger, 1, number)
            ledger.send([query.id])
            if state is IN_DOUBT:
                ledger.tell({_ids(ledger.queries({SENT}, {0}))[0]: Evaluation.of(0.0)})
                ledger.doubt_sent()
            elif state is not SENT:
                ledger.tell({query.id: Evaluation.of(0.0) if state is DONE else Evaluation.failed("no")})
        _reserve(ledger, 7, 4)
        with pytest.raises(
            BudgetError, match=r"11 of 12 queries are taken, so 2 more do not fit; reserve at most 1"
        ):
            _reserve(ledger, 2, 5)
        assert ledger.counts() == Counts(reserved=7, done=2, failed=1, in_doubt=1)
        assert [record.number for record in ledger.rounds()] == [0, 1, 2, 3, 4]
        _reserve(ledger, 1, 5)
        assert ledger.counts().n == 12

    def test_a_raised_budget_makes_room(self, ledger: Ledger) -> None:
        _reserve(ledger, 12)
        ledger.raise_budget(13)
        _reserve(ledger, 1, 1)
        assert (ledger.budget, ledger.counts().n) == (13, 13)
        for budget in (13, 12, 0):
            with pytest.raises(BudgetError, match=f"expected a budget above 13, got {budget}"):
                ledger.raise_budget(budget)
        (event,) = (event for event in ledger.events() if event.kind == "budget_raised")
        assert event.detail == {"from": 12, "to": 13}

    def test_a_round_is_reserved_once(self, ledger: Ledger) -> None:
        _reserve(ledger, 2)
        with pytest.raises(LedgerError, match="round 0 was reserved before"):
            _reserve(ledger, 2)
        assert ledger.counts().n == 2

    def test_bad_rounds_are_refused_whole(self, ledger: Ledger) -> None:
        blob = ledger.blobs.put_bytes(b"designs")
        one = [Proposal(0)]
        for arguments, message in [
            ((0, 7, [], blob, {}), "one proposal at least"),
            ((0, 2**63, one, blob, {}), r"must be in \[0, 2⁶³\), got 9223372036854775808"),
            ((0, -1, one, blob, {}), "got -1"),
            ((0, 7, one, "0" * 64, {}), "not there; store it first"),
            ((0, 7, one, blob, {"ess": float("nan")}), "summary of round 0 must hold JSON"),
            (
                (0, 7, [Proposal(0), Proposal(1, provenance={"x": {1, 2}})], blob, {}),
                "provenance of slot 1 must",
            ),
            ((0, 7, [Proposal(0), Proposal(-1)], blob, {}), r"(?i)check constraint"),
        ]:
            with pytest.raises(LedgerError, match=message):
                ledger.reserve(*arguments)
        with pytest.raises(BlobError, match="64 hexadecimal digits"):
            ledger.reserve(0, 7, one, "designs.safetensors", {})
        assert (ledger.rounds(), ledger.queries()) == ([], [])

    @pytest.mark.parametrize("name", ["predicted_mean", "predicted_std"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_prediction_is_a_number_or_none(self, name: str, value: float) -> None:
        with pytest.raises(LedgerError, match=f"{name} of a proposal must be a finite number, got {value}"):
            Proposal(0, **{name: value})


class TestTransitions:
    LEGAL = {  # noqa: RUF012
        "send": {RESERVED: SENT},
        "tell": {SENT: DONE, IN_DOUBT: DONE, ABANDONED: DONE},
        "fail": {SENT: FAILED, IN_DOUBT: FAILED, ABANDONED: FAILED},
        "retry": {IN_DOUBT: RESERVED},
        "abandon": {SENT: ABANDONED, IN_DOUBT: ABANDONED},
        "reject": {RESERVED: REJECTED},
        "doubt": {SENT: IN_DOUBT},
    }

    @pytest.mark.parametrize("state", list(QueryState))
    @pytest.mark.parametrize("verb", list(LEGAL))
    def test_by_method(self, ledger: Ledger, verb: str, state: QueryState) -> None:
        query = _bring_to(ledger, state)
        before = ledger.queries()
        do = {
            "send": lambda: ledger.send([query]),
            "tell": lambda: ledger.tell({query: Evaluation.of(2.0)}),
            "fail": lambda: ledger.tell({query: Evaluation.failed("no")}),
            "retry": lambda: ledger.retry([query]),
            "abandon": lambda: ledger.abandon([query]),
            "reject": lambda: ledger.reject([query]),
            "doubt": ledger.doubt_sent,
        }[verb]
        if state in self.LEGAL[verb]:
            do()
            assert ledger.queries()[0].state is self.LEGAL[verb][state]
        elif verb == "doubt":
            assert do() == []
            assert ledger.queries() == before
        else:
            with pytest.raises(
                LedgerError, match=f"query {query} cannot be .*(got {state}; .|may have been paid)"
            ):
                do()
            assert ledger.queries() == before

    @pytest.mark.parametrize("old", list(QueryState))
    @pytest.mark.parametrize("new", list(QueryState))
    def test_by_raw_sql(self, ledger: Ledger, raw: Prompt, old: QueryState, new: QueryState) -> None:
        query = _bring_to(ledger, old)
        change = ("UPDATE queries SET state = ? WHERE id = ?", (new, query))
        lawful = {(RESERVED, SENT), (RESERVED, REJECTED), (SENT, IN_DOUBT), (SENT, ABANDONED)}
        if (old, new) in lawful | {(IN_DOUBT, RESERVED), (IN_DOUBT, ABANDONED)}:
            assert raw.execute(*change) == 1
        else:  # the way to an end leads past an evaluation
            with pytest.raises(DBAPIError, match=r"illegal transition|done needs an eval|never rejected"):
                raw.execute(*change)

    def test_a_group_moves_whole_or_not_at_all(self, ledger: Ledger) -> None:
        first, second = _ids(_reserve(ledger, 2))
        ledger.send([second])
        with pytest.raises(LedgerError, match=f"query {second} cannot be sent: expected reserved, got sent"):
            ledger.send([first, second])
        with pytest.raises(
            LedgerError,
            match=f"query {first} cannot be told: expected sent or in_doubt or abandoned, got reserved",
        ):
            ledger.tell({second: Evaluation.of(1.0), first: Evaluation.of(1.0)})
        with pytest.raises(LedgerError, match="query 99 cannot be sent: there is no such query"):
            ledger.send([first, 99])
        with pytest.raises(LedgerError, match="expected each query once, got 2 mentions of 1"):
            ledger.send([first, first])
        assert ledger.counts() == Counts(reserved=1, sent=1)
        assert [query.n_sent for query in ledger.queries()] == [0, 1]

    def test_an_empty_group_changes_nothing(self, ledger: Ledger) -> None:
        _reserve(ledger, 1)
        before = ledger.queries()
        ledger.send([])
        ledger.tell({})
        assert ledger.doubt_sent() == []
        assert ledger.queries() == before
        assert [event.kind for event in ledger.events()] == ["driven"]

    def test_a_retry_keeps_showing(self, ledger: Ledger) -> None:
        ids = _ids(_reserve(ledger, 3))
        ledger.send(ids[:2])
        doubted = ledger.doubt_sent()
        assert doubted == ledger.queries({IN_DOUBT})
        assert _ids(doubted) == ids[:2]
        ledger.retry(ids[:1], "gone")
        ledger.send(ids[:1])
        ledger.tell({ids[0]: Evaluation.of(1.0)})
        assert [query.n_sent for query in ledger.queries()] == [2, 1, 0]
        assert ledger.counts() == Counts(reserved=1, done=1, in_doubt=1)
        noted = [(event.kind, event.detail) for event in ledger.events()[1:]]
        assert noted == [("in_doubt", {"queries": ids[:2]}), ("retried", {"queries": ids[:1], "why": "gone"})]


class TestTell:
    def test_an_answer_is_told_once(self, ledger: Ledger) -> None:
        query = _bring_to(ledger, DONE)
        for again in (Evaluation.of(1.0), Evaluation.failed("no")):
            with pytest.raises(
                LedgerError, match=f"query {query} cannot be told: .* got done; it was told before"
            ):
                ledger.tell({query: again})
        assert ledger.queries()[0].evaluation == Evaluation.of(1.0)

    def test_a_paid_answer_is_never_lost_to_what_lies_beside_it(self, ledger: Ledger) -> None:
        ids = _ids(_reserve(ledger, 3))
        ledger.send(ids)
        odd = Evaluation(outcomes={"value": 1.0}, metadata={"file": Path("x")})
        nan = Evaluation(outcomes={"value": 2.0}, metadata={"residual": float("nan")})
        ledger.tell(dict(zip(ids, (odd, nan, Evaluation.failed("not \udcff UTF-8")), strict=True)))
        first, second, third = (query.evaluation for query in ledger.queries())
        assert (first.outcomes, first.metadata) == ({"value": 1.0}, {"repr": "{'file': PosixPath('x')}"})
        assert (second.outcomes, second.metadata) == ({"value": 2.0}, {"repr": "{'residual': nan}"})
        assert third.error == "not \\udcff UTF-8"

    @pytest.mark.parametrize(
        ("evaluation", "message"),
        [
            (
                Evaluation(outcomes={"value": 1.0}, cost=float("nan")),
                r"cost of query \d+ must be a finite number, got nan",
            ),
            (
                Evaluation(outcomes={"value": 1.0}, noise_std={"value": -0.5}),
                r"noise_std of query \d+ .*'value': -0.5",
            ),
            (Evaluation(outcomes={"value": 1.0}, noise_std={"value": float("inf")}), "'value': inf"),
            (
                Evaluation(outcomes={"value": 1.0}, noise_std={"drag": 1.0}),
                r"outcomes \['value'\]; got 'drag': 1.0",
            ),
        ],
    )
    def test_numbers_that_are_none_are_named(
        self, ledger: Ledger, evaluation: Evaluation, message: str
    ) -> None:
        first, second = _ids(_reserve(ledger, 2))
        ledger.send([first, second])
        with pytest.raises(LedgerError, match=message):
            ledger.tell({second: Evaluation.of(1.0), first: evaluation})
        assert ledger.counts() == Counts(sent=2)


class TestRawSql:
    """Exactly one of outcomes and error, and nothing taken back, for whoever writes to the file."""

    EVALUATION = (
        "INSERT INTO evaluations (query_id, state, error, cost, metadata) VALUES (?, ?, ?, 1.0, '{}')"
    )
    OUTCOME = "INSERT INTO outcomes (query_id, name, value) VALUES (?, 'value', 1.0)"
    END = "UPDATE queries SET state = ? WHERE id = ?"
    SAME = "campaign_id, round"
    REST = (
        'artifact, "row", predicted_mean, predicted_std, provenance, reserved_at, sent_at, ended_at, n_sent'
    )

    def test_the_lawful_way_is_open(self, ledger: Ledger, raw: Prompt) -> None:
        query = _bring_to(ledger, SENT)
        raw.execute(self.EVALUATION, (query, "done", None))
        raw.execute(self.OUTCOME, (query,))
        raw.execute(self.END, ("done", query))
        raw.commit()
        assert ledger.queries()[0].evaluation == Evaluation.of(1.0)

    @pytest.mark.parametrize("state", [RESERVED, SENT, IN_DOUBT])
    def test_an_evaluation_ends_its_query(self, ledger: Ledger, raw: Prompt, state: QueryState) -> None:
        query = _bring_to(ledger, state)
        raw.execute(self.EVALUATION, (query, "failed", "no"))
        with pytest.raises(DBAPIError, match=r"(?i)foreign key"):
            raw.commit()

    @pytest.mark.parametrize(("state", "error"), [("done", "no"), ("failed", None), ("sent", None)])
    def test_error_exactly_when_failed(
        self, ledger: Ledger, raw: Prompt, state: str, error: str | None
    ) -> None:
        query = _bring_to(ledger, SENT)
        with pytest.raises(DBAPIError, match=r"(?i)check"):
            raw.execute(self.EVALUATION, (query, state, error))

    def test_outcomes_exactly_when_done(self, ledger: Ledger, raw: Prompt) -> None:
        query = _bring_to(ledger, SENT)
        with pytest.raises(DBAPIError, match="outcomes come with their evaluation"):
            raw.execute(self.OUTCOME, (query,))
        raw.execute(self.EVALUATION, (query, "done", None))
        with pytest.raises(DBAPIError, match="done needs an evaluation with outcomes"):
            raw.execute(self.END, ("done", query))
        raw.rollback()
        raw.execute(self.EVALUATION, (query, "failed", "no"))
        with pytest.raises(DBAPIError, match="outcomes come with their evaluation"):
            raw.execute(self.OUTCOME, (query,))
        with pytest.raises(DBAPIError, match="done needs an evaluation with outcomes"):
            raw.execute(self.END, ("done", query))

    def test_no_outcome_comes_late(self, ledger: Ledger, raw: Prompt) -> None:
        query = _bring_to(ledger, DONE)
        with pytest.raises(DBAPIError, match="outcomes come with their evaluation"):
            raw.execute("INSERT INTO outcomes (query_id, name, value) VALUES (?, 'drag', 1.0)", (query,))

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE outcomes SET value = 9",
            "UPDATE evaluations SET cost = 9",
            'UPDATE queries SET "row" = 9',
            "UPDATE queries SET key = 'x'",
            "UPDATE queries SET predicted_mean = 9",
            "UPDATE campaigns SET budget = budget - 1",
            "UPDATE campaigns SET fence = 0",
            f"INSERT INTO queries SELECT 99, {SAME}, 99, 'k', 'sent', {REST} FROM queries",
            f"INSERT INTO queries SELECT 99, {SAME}, 99, key, 'reserved', {REST} FROM queries",
            f"INSERT INTO queries SELECT 99, {SAME}, slot, 'k', 'reserved', {REST} FROM queries",
            "INSERT INTO evaluations SELECT query_id, state, error, cost, metadata FROM evaluations",
        ],
    )
    def test_nothing_is_taken_back_or_smuggled_in(self, ledger: Ledger, raw: Prompt, statement: str) -> None:
        _bring_to(ledger, DONE)
        with pytest.raises(DBAPIError):
            raw.execute(statement)

    @pytest.mark.parametrize("table", ["outcomes", "evaluations", "queries", "rounds", "events", "campaigns"])
    def test_nothing_is_deleted(self, ledger: Ledger, raw: Prompt, table: str) -> None:
        _bring_to(ledger, DONE)
        with pytest.raises(DBAPIError, match=f"{table} are never deleted"):
            raw.execute(f"DELETE FROM {table}")


DRIVER = """
import sys
from pathlib import Path
from bbo.ledger import Ledger, Proposal
ledger = Ledger.open(Path(sys.argv[1])).drive()
(query,) = ledger.reserve(0, 7, [Proposal(0)], ledger.blobs.put_bytes(b"designs"), {})
ledger.send([query.id])
print("driving", flush=True)
sys.stdin.read()
"""


class TestTwoDrivers:
    def test_in_one_process(self, ledger: Ledger, database: str | None) -> None:
        with Ledger.open(ledger.directory, database) as second:
            with pytest.raises(
                CampaignBusyError, match=f"driven by process {os.getpid()} on {socket.gethostname()}"
            ):
                second.drive()
            with pytest.raises(LedgerError, match="call drive"):
                second.note("kind", {})
            ledger.note("still", {})
            with pytest.raises(CampaignBusyError):
                ledger.drive()
            ledger.close()
            second.drive().note("now", {})

    def test_in_two_processes_one_of_them_killed(self, tmp_path: Path) -> None:
        _create(tmp_path).close()
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert driver.stdout.readline() == "driving\n"
            with Ledger.open(tmp_path) as ledger:
                with pytest.raises(CampaignBusyError, match=f"driven by process {driver.pid} on"):
                    ledger.drive()
                assert ledger.counts() == Counts(sent=1)  # read while the other drives
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
                ledger.drive()
                assert [query.state for query in ledger.doubt_sent()] == [IN_DOUBT]
        finally:
            driver.kill()
            driver.communicate()

    def test_a_driver_that_lost_its_lease_is_fenced_off(
        self, ledger: Ledger, database: str | None, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        ids = _ids(_reserve(ledger, 2))
        where = ledger.directory
        if database is None:
            (where / "lock").unlink()
        else:  # driven from another machine, with the directory's files, and cut off from the database for a while
            where = shutil.copytree(where, tmp_path_factory.mktemp("other") / "run")
            with (
                Ledger.open(where, database) as second,
                pytest.raises(CampaignBusyError, match="another machine"),
            ):
                second.drive()
            lease = ledger._held[0]
            pid = lease._session.connection.dbapi_connection.info.backend_pid
            with ledger._engine.connect() as connection:
                connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
        with Ledger.open(where, database).drive() as second:
            second.send(ids[:1])
            for write in (
                lambda: ledger.send(ids[1:]),
                lambda: _reserve(ledger, 1, 1),
                lambda: ledger.note("k", {}),
            ):
                with pytest.raises(
                    CampaignBusyError, match=r"driver 2 has taken over .* from this one, driver 1"
                ):
                    write()
            second.send(ids[1:])
            assert second.counts() == Counts(sent=2)

    def test_one_who_fails_to_become_driver_leaves_the_place_free(self, tmp_path: Path) -> None:
        def broken() -> float:
            raise OSError("no clock")

        _create(tmp_path).close()
        with Ledger.open(tmp_path, clock=broken) as first, Ledger.open(tmp_path) as second:
            with pytest.raises(OSError, match="no clock") as caught:
                first.drive()
            second.drive()
            assert [event.detail["fence"] for event in second.events()] == [1]
            assert caught.traceback  # still holds what the failed attempt held

    def test_a_lock_without_a_name_in_it_still_locks(self, ledger: Ledger, database: str | None) -> None:
        (ledger.directory / "lock").write_text("")
        with (
            Ledger.open(ledger.directory, database) as second,
            pytest.raises(CampaignBusyError, match="has not written its name"),
        ):
            second.drive()


class TestReading:
    def test_queries_are_filtered_and_ordered(self, ledger: Ledger) -> None:
        later, sooner = _reserve(ledger, 2, 5), _reserve(ledger, 2, 1)
        ledger.send(_ids(later))
        ledger.tell(
            {later[1].id: Evaluation(outcomes={"a": 1.0, "b": 2.0}), later[0].id: Evaluation.failed("no")}
        )
        assert _ids(ledger.queries()) == _ids(sooner) + _ids(later)
        assert _ids(ledger.queries({DONE})) == [later[1].id]
        assert _ids(ledger.queries({RESERVED, FAILED})) == [*_ids(sooner), later[0].id]
        assert _ids(ledger.queries(rounds=[5])) == _ids(later)
        assert _ids(ledger.queries({FAILED}, [1])) == ledger.queries(set()) == ledger.queries(rounds=[]) == []
        assert ledger.queries({DONE})[0].evaluation.outcomes == {"a": 1.0, "b": 2.0}
        assert [record.number for record in ledger.rounds()] == [1, 5]


class LedgerMachine(RuleBasedStateMachine):
    """Any order of calls, kills included, leaves what a dictionary of states and a budget would."""

    database: str | None = None

    @initialize()
    def create(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.budget = 6
        self.ledger = _create(self.directory, self.budget, self.database).drive()
        self.states: dict[int, QueryState] = {}
        self.n_sent: dict[int, int] = {}
        self.given: set[int] = set()
        self.asked: set[int] = set()
        self.n_rounds = 0

    @property
    def n_taken(self) -> int:
        return sum(state is not REJECTED and query not in self.given for query, state in self.states.items())

    @rule(n=st.integers(1, 4))
    def reserve(self, n: int) -> None:
        if self.n_taken + n > self.budget:
            with pytest.raises(BudgetError):
                _reserve(self.ledger, n, self.n_rounds)
            return
        for query in _reserve(self.ledger, n, self.n_rounds):
            self.states[query.id], self.n_sent[query.id] = RESERVED, 0
        self.n_rounds += 1

    @rule(n=st.integers(1, 3))
    def give(self, n: int) -> None:
        proposals = [Proposal(row=i, name=f"given-{self.n_rounds}-{i}") for i in range(n)]
        blob = self.ledger.blobs.put_bytes(b"theirs")
        answers = [Evaluation.of(1.0)] * n
        for query in self.ledger.give(self.n_rounds, proposals, blob, answers, {}):
            self.states[query.id], self.n_sent[query.id] = DONE, 1
            self.given.add(query.id)
        with pytest.raises(LedgerError):  # the same names once more
            self.ledger.give(self.n_rounds + 1, proposals, blob, answers, {})
        self.n_rounds += 1

    @precondition(lambda self: self.states)
    @rule(data=st.data(), verb=st.sampled_from(["send", "ask", "tell", "fail", "retry", "abandon", "reject"]))
    def move(self, data: st.DataObject, verb: str) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.states)), min_size=1, max_size=4, unique=True))
        legal = TestTransitions.LEGAL["send" if verb == "ask" else verb]
        answer = Evaluation.of(1.0) if verb == "tell" else Evaluation.failed("no")
        do = {
            "send": self.ledger.send,
            "ask": lambda ids: self.ledger.send(ids, is_asked=True),
            "retry": self.ledger.retry,
            "abandon": self.ledger.abandon,
            "reject": self.ledger.reject,
        }.get(verb, lambda ids: self.ledger.tell(dict.fromkeys(ids, answer)))

        def allowed(query: int) -> bool:
            state = self.states[query]
            return state in legal or (verb == "reject" and state is SENT and query in self.asked)

        if not all(map(allowed, ids)):
            with pytest.raises(LedgerError):
                do(ids)
            return
        do(ids)
        for query in ids:
            self.states[query] = REJECTED if verb == "reject" else legal[self.states[query]]
            self.n_sent[query] += verb in ("send", "ask")
        if verb == "ask":
            self.asked.update(ids)
        if verb == "send":
            self.asked.difference_update(ids)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.states)))
        (query,) = self.ledger.queries(ids=[id_])
        blob = self.ledger.blobs.put_bytes(b"edited")
        act = lambda: self.ledger.edit(query, self.n_rounds, Proposal(row=0), blob, "rounded")  # noqa: E731
        if not (query.state is RESERVED or (query.state is SENT and query.is_asked)):
            with pytest.raises(LedgerError):
                act()
            return
        edited = act()
        self.n_rounds += 1
        self.states[edited.id], self.n_sent[edited.id] = query.state, int(query.state is SENT)
        if query.state is SENT:
            self.asked.add(edited.id)
        self.states[id_] = REJECTED

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = Ledger.open(self.directory, self.database).drive()
        doubted = {query for query, state in self.states.items() if state is SENT and query not in self.asked}
        assert {query.id for query in self.ledger.doubt_sent()} == doubted
        self.states.update(dict.fromkeys(doubted, IN_DOUBT))

    @rule(by=st.integers(1, 3))
    def raise_budget(self, by: int) -> None:
        self.budget += by
        self.ledger.raise_budget(self.budget)

    @invariant()
    def agrees(self) -> None:
        queries = self.ledger.queries()
        assert {query.id: query.state for query in queries} == self.states
        assert {query.id: query.n_sent for query in queries} == self.n_sent
        ours = [state for query, state in self.states.items() if query not in self.given]
        expected = Counts(**{state: ours.count(state) for state in QueryState}, given=len(self.given))
        assert self.ledger.counts() == expected
        assert expected.n == self.n_taken <= self.ledger.budget == self.budget
        for query in queries:
            ended = {DONE: Evaluation.of(1.0), FAILED: Evaluation.failed("no")}
            assert query.evaluation == ended.get(query.state)

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.directory)


class PostgresMachine(LedgerMachine):
    database = POSTGRES


TestAnyOrder = LedgerMachine.TestCase
TestAnyOrder.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrderOnPostgres = pytest.mark.skipif(not POSTGRES, reason="BBO_TEST_POSTGRES_URL is not set")(
    PostgresMachine.TestCase
)
TestAnyOrderOnPostgres.settings = TestAnyOrder.settings
