"""The account of a campaign: every query is written down before it is paid, and every answer once.

    reserved → sent → done | failed | in_doubt         in_doubt → reserved (retried) | done | failed (late)
    sent | in_doubt → abandoned (spent, no answer)     reserved | asked → rejected (nothing paid, place free again)

A campaign directory holds `ledger.sqlite` (or names its campaign in a PostgreSQL database), `blobs/` and `lock`.
Anybody may read; one process drives. Each change is one transaction that holds entirely or not at all, so the
process may be killed anywhere:

    reserve   the designs and their places in the budget are fixed
    send      just before the oracle is asked: from here on the queries count as paid
    tell      the answers

What a dead driver left as sent may have been paid. The next one calls `doubt_sent` first, and nothing is sent
twice unless somebody calls `retry`.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from bbo.errors import BudgetError, CampaignBusyError, CampaignError, LedgerError
from bbo.ledger import reading, tables, transitions
from bbo.ledger.blobs import BlobStore
from bbo.ledger.database import Database, Lease, transaction
from bbo.ledger.durable import make_directory
from bbo.ledger.lock import DriverLock
from bbo.ledger.place import located
from bbo.ledger.records import Artifact, Counts, Event, Proposal, Query, RoundRecord
from bbo.ledger.rows import as_json, query_rows
from bbo.ledger.tables import QueryState
from bbo.ledger.transitions import Moment
from oracles.evaluation import Evaluation


class Ledger:
    """One campaign's ledger, open for reading; for writing too once `drive` was called.

    Use `create` or `open`, and close it. Every method raises LedgerError when the database refuses, and those
    that write do so too when this ledger does not drive.
    """

    def __init__(self, directory: Path, database: Database, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.blobs = BlobStore(directory)
        self._database = database
        self._clock = clock
        self._held: tuple[Lease, int] | None = None  # lease and fence number, while it drives
        self._engine = database.connect()
        try:
            campaign = self._campaign()
        except BaseException:
            self._engine.dispose()
            raise
        self._id: int = campaign["id"]
        self.uid: str = campaign["uid"]
        self.name: str = campaign["name"]
        self.config: Mapping[str, object] = campaign["config"]

    # ------------------------------------------------------------ life
    @staticmethod
    def exists(directory: Path, database: str | None = None) -> bool:
        """Whether there is a campaign in `directory`. One whose creation was killed is none."""
        return located(directory, database).exists()

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        name: str,
        budget: int,
        config: Mapping[str, object],
        database: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Ledger:
        """Create a campaign of `budget` queries in `directory` and return its ledger, not driven yet.

        database: URL of the PostgreSQL database that is to hold its tables; None for a file in the directory.
        Raises CampaignError when there is one already, BudgetError when the budget is below 1.
        """
        if budget < 1:
            raise BudgetError(
                f"a budget is at least 1 query, got {budget}; name how many queries may be paid"
            )
        row = {
            "uid": uuid.uuid4().hex,
            "name": name,
            "created_at": clock(),
            "budget": budget,
            "config": as_json("the config", config),
            "fence": 0,
        }
        make_directory(directory)
        lock = DriverLock(directory)
        try:
            place = located(directory, database)
            if place.exists():
                raise CampaignError(
                    f"expected no campaign in {directory}, got one; open it, or name another directory"
                )
            place.create(row)
        finally:
            lock.release()
        return cls(directory, place, clock)

    @classmethod
    def open(
        cls, directory: Path, database: str | None = None, *, clock: Callable[[], float] = time.time
    ) -> Ledger:
        """Return the ledger of the campaign in `directory`, also while another process drives it.

        Raises CampaignError when there is none, LedgerError when it is no ledger or of a newer schema.
        Nothing that lies in the directory is executed.
        """
        place = located(directory, database)
        if not place.exists():
            raise CampaignError(f"expected a campaign in {directory}, got no ledger there; check the path")
        return cls(directory, place, clock)

    def close(self) -> None:
        """Stop driving and close the database. What was committed stays; closing twice is harmless."""
        self._engine.dispose()
        if self._held is not None:
            lease, _ = self._held
            self._held = None
            lease.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def drive(self, about: Mapping[str, object] | None = None) -> Ledger:
        """Become the only writer until `close`. Raises CampaignBusyError, at once, when there is another.

        about: what is worth keeping of this driver, such as the versions of its packages; JSON values.
        """
        lease = self._database.lease()
        try:
            with transaction(self._engine, writes=True) as connection:
                campaign = tables.campaigns
                grow = campaign.update().where(campaign.c.id == self._id).values(fence=campaign.c.fence + 1)
                fence, budget = connection.execute(grow.returning(campaign.c.fence, campaign.c.budget)).one()
                who = {"fence": fence, "pid": os.getpid(), "host": socket.gethostname()}
                moment = Moment(connection, self._id, fence, budget, self._clock())
                moment.record("driven", {**who, **(about or {})})
        except BaseException:
            lease.release()
            raise
        self._held = (lease, fence)
        return self

    # ------------------------------------------------------------ the way of a query
    def reserve(
        self,
        round_number: int,
        seed: int,
        proposals: Sequence[Proposal],
        artifact: str,
        summary: Mapping[str, object],
    ) -> list[Query]:
        """Write down a round and its queries, all or none, and return them in the order of the proposals.

        `artifact` names the blob, stored before, with the designs of the proposals. Raises BudgetError when
        they would exceed the budget: every query has a place in it, except given and rejected ones.
        """
        record = self._round(round_number, seed, proposals, artifact, summary)
        rows = query_rows(proposals, self.uid, round_number)
        with self._write() as moment:
            return transitions.reserve(moment, record, rows, "round", self._n_bytes(artifact))

    def give(
        self,
        round_number: int,
        proposals: Sequence[Proposal],
        artifact: str,
        evaluations: Sequence[Evaluation],
        summary: Mapping[str, object],
    ) -> list[Query]:
        """Write down designs that somebody measured on their own, answers included, all or none.

        They take no place in the budget. Raises LedgerError when one of their names was given before.
        """
        record = self._round(round_number, 0, proposals, artifact, summary)
        rows = [{**row, "is_given": True} for row in query_rows(proposals, self.uid, round_number)]
        with self._write() as moment:
            queries = transitions.reserve(moment, record, rows, "given", self._n_bytes(artifact))
            ids = [query.id for query in queries]
            transitions.send(moment, ids, is_asked=True)
            transitions.tell(moment, dict(zip(ids, evaluations, strict=True)))
            moment.record("given", {"queries": ids})
        return queries

    def edit(self, query: Query, round_number: int, proposal: Proposal, artifact: str, why: str) -> Query:
        """Reject a query and reserve the edited design in its place, asked for where the old one was."""
        record = self._round(round_number, 0, [proposal], artifact, {"edited": query.id})
        rows = query_rows([proposal], self.uid, round_number)
        with self._write() as moment:
            transitions.reject(moment, [query.id], why)
            (edited,) = transitions.reserve(moment, record, rows, "edited", self._n_bytes(artifact))
            if query.state is QueryState.SENT:
                transitions.send(moment, [edited.id], is_asked=True)
            moment.record("edited", {"queries": [query.id, edited.id]})
        return edited

    def send(self, ids: Sequence[int], *, is_asked: bool = False) -> None:
        """Write down that the oracle is about to be asked: call it just before. Reserved queries only.

        is_asked: people are asked instead, so that the death of this driver puts no doubt on the queries.
        """
        with self._write() as moment:
            transitions.send(moment, ids, is_asked=is_asked)

    def tell(self, answers: Mapping[int, Evaluation]) -> None:
        """Write down answers by query id, all or none: of queries that were sent, once each."""
        with self._write() as moment:
            transitions.tell(moment, answers)

    def doubt_sent(self, ids: Collection[int] | None = None) -> list[Query]:
        """Put in doubt what an oracle was sent of these queries, and return that.

        None: of all, for a new driver, as its predecessor is gone.
        """
        with self._write() as moment:
            return transitions.doubt_sent(moment, ids)

    def retry(self, ids: Sequence[int], why: str = "") -> None:
        """Reserve queries in doubt again. They may be paid twice then; `n_sent` keeps showing it."""
        with self._write() as moment:
            transitions.retry(moment, ids, why)

    def abandon(self, ids: Sequence[int], why: str = "") -> None:
        """Give up waiting for the answers to queries that were sent. They stay spent; late answers are welcome."""
        with self._write() as moment:
            transitions.abandon(moment, ids, why)

    def reject(self, ids: Sequence[int], why: str = "") -> None:
        """Refuse designs for which nothing was paid: not sent yet, or asked of people only."""
        with self._write() as moment:
            transitions.reject(moment, ids, why)

    # ------------------------------------------------------------ the campaign
    def raise_budget(self, budget: int) -> None:
        """Allow `budget` queries in all. Raises BudgetError unless that is more than before, and below 2³¹."""
        if budget >= 2**31:
            raise BudgetError(f"a budget must be below 2³¹ queries, got {budget}")
        with self._write() as moment:
            before = moment.budget
            if budget <= before:
                raise BudgetError(
                    f"expected a budget above {before}, got {budget}; a budget is never lowered"
                )
            ours = tables.campaigns.c.id == self._id
            moment.connection.execute(tables.campaigns.update().where(ours).values(budget=budget))
            moment.record("budget_raised", {"from": before, "to": budget})

    def note(self, kind: str, detail: Mapping[str, object]) -> None:
        """Write down an event."""
        with self._write() as moment:
            moment.record(kind, detail)

    # ------------------------------------------------------------ reading
    @property
    def budget(self) -> int:
        """How many queries may be paid in all, as of now."""
        return int(self._campaign()["budget"])

    def counts(self) -> Counts:
        """Return how many queries stand where."""
        with self._read() as connection:
            return reading.read_counts(connection, self._id)

    def queries(
        self,
        states: Collection[QueryState] | None = None,
        rounds: Collection[int] | None = None,
        ids: Collection[int] | None = None,
    ) -> list[Query]:
        """Return the queries in these states and rounds, with these ids (None: any), by round and slot."""
        query = tables.queries.c
        conditions = [query.campaign_id == self._id]
        for column, wanted in ((query.state, states), (query.round, rounds), (query.id, ids)):
            conditions += [] if wanted is None else [column.in_(wanted)]
        with self._read() as connection:
            return reading.read_queries(connection, *conditions)

    def keys(self, names: Sequence[str]) -> set[str]:
        """Return those of the names that are taken by a query's key."""
        with self._read() as connection:
            taken = reading.read_keys(connection, [f"{self.uid}-{name}" for name in names])
        return {key.removeprefix(f"{self.uid}-") for key in taken}

    def best_value(self, outcome: str) -> float | None:
        """Return the largest value of an outcome so far; None before the first."""
        with self._read() as connection:
            return reading.read_best(connection, self._id, outcome)

    def n_rounds(self) -> int:
        """Return how many rounds there are: the number of the next one."""
        with self._read() as connection:
            return reading.read_n_rounds(connection, self._id)

    def rounds(self) -> list[RoundRecord]:
        """Return the rounds in the order of their numbers."""
        with self._read() as connection:
            return reading.read_rounds(connection, self._id)

    def artifacts(self) -> list[Artifact]:
        """Return what the campaign's blobs are, oldest first."""
        with self._read() as connection:
            return reading.read_artifacts(connection, self._id)

    def events(self) -> list[Event]:
        """Return the events in the order in which they were written down."""
        with self._read() as connection:
            return reading.read_events(connection, self._id)

    def check(self, look: Callable[[Connection], list[str]]) -> list[str]:
        """Return what `look` finds in the database (`bbo.ledger.audit`)."""
        with self._read() as connection:
            return look(connection)

    # ------------------------------------------------------------ within a transaction
    @contextmanager
    def _write(self) -> Iterator[Moment]:
        if self._held is None:
            raise LedgerError(
                f"this ledger of {self.directory} is open for reading; call drive() before writing"
            )
        with transaction(self._engine, writes=True) as connection:
            ours = tables.campaigns.c.id == self._id
            # PostgreSQL lets one writer of a campaign through at a time; SQLite has locked the file already.
            columns = (tables.campaigns.c.fence, tables.campaigns.c.budget)
            fence, budget = connection.execute(select(*columns).where(ours).with_for_update()).one()
            # The lease alone does not do: a file can be removed, a session cut off, and a file system may not
            # keep locks at all.
            if fence != self._held[1]:
                raise CampaignBusyError(
                    f"driver {fence} has taken over {self.directory} from this one, driver {self._held[1]}; "
                    "stop one of them, and keep the lock file while a driver runs"
                )
            yield Moment(connection, self._id, fence, budget, self._clock())

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with transaction(self._engine) as connection:
            yield connection

    def _campaign(self) -> Mapping[str, Any]:
        uid = self._database.campaign_uid()
        ours = [] if uid is None else [tables.campaigns.c.uid == uid]
        with self._read() as connection:
            return dict(connection.execute(select(tables.campaigns).where(*ours)).mappings().one())

    def _n_bytes(self, artifact: str) -> int:
        return self.blobs.path(artifact).stat().st_size

    def _round(
        self,
        number: int,
        seed: int,
        proposals: Sequence[Proposal],
        artifact: str,
        summary: Mapping[str, object],
    ) -> RoundRecord:
        """Return the record of a round that can be written. Raises LedgerError for one that cannot."""
        if not proposals:
            raise LedgerError(f"round {number} reserves no query; expected one proposal at least")
        if not 0 <= seed < 2**63:
            raise LedgerError(
                f"the seed of round {number} must be in [0, 2⁶³), got {seed}; derive a smaller one"
            )
        if artifact not in self.blobs:
            raise LedgerError(f"round {number} names the blob {artifact}, which is not there; store it first")
        return RoundRecord(number, seed, as_json(f"the summary of round {number}", summary), artifact, None)
