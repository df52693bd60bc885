"""The account of a campaign: every query is written down before it is paid, and every answer once.

    reserved → sent → done | failed | in_doubt         in_doubt → reserved (retried) | done | failed (late)

A campaign directory holds `ledger.sqlite`, `blobs/` and `lock`. Anybody may read; one process drives. Each
change is one transaction that holds entirely or not at all, so the process may be killed anywhere:

    reserve   the designs and their places in the budget are fixed
    send      just before the oracle is asked: from here on the queries count as paid
    tell      the answers

What a dead driver left as sent may have been paid. The next one calls `doubt_sent` first, and nothing is sent
twice unless somebody calls `retry`.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, bindparam, select

from bbo.errors import BudgetError, CampaignBusyError, CampaignError, LedgerError
from bbo.ledger import schema
from bbo.ledger.blobs import BlobStore, make_directory
from bbo.ledger.lock import DriverLock
from bbo.ledger.records import Counts, Event, Proposal, Query, RoundRecord
from bbo.ledger.rows import (
    as_json,
    check_states,
    evaluation_row,
    outcome_rows,
    query_rows,
    read_counts,
    read_queries,
)
from bbo.ledger.schema import QueryState, transaction
from oracles.evaluation import Evaluation

DATABASE = "ledger.sqlite"
LOCK = "lock"


class Ledger:
    """One campaign's ledger, open for reading; for writing too once `drive` was called.

    Use `create` or `open`, and close it. Every method raises LedgerError when SQLite refuses, and those that
    write do so too when this ledger does not drive.
    """

    def __init__(self, directory: Path, engine: Engine, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.blobs = BlobStore(directory)
        self._engine = engine
        self._clock = clock
        self._held: tuple[DriverLock, int] | None = None  # lock and fence number, while it drives
        with transaction(engine) as connection:
            schema.check_version(connection)
            campaign = connection.execute(select(schema.campaigns)).one()
        self._id: int = campaign.id
        self.uid: str = campaign.uid
        self.name: str = campaign.name
        self.config: Mapping[str, object] = campaign.config

    # ------------------------------------------------------------ life
    @staticmethod
    def exists(directory: Path) -> bool:
        """Whether there is a campaign in `directory`. One whose creation was killed is none."""
        return (directory / DATABASE).is_file()

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        name: str,
        budget: int,
        config: Mapping[str, object],
        clock: Callable[[], float] = time.time,
    ) -> Ledger:
        """Create a campaign of `budget` queries in `directory` and return its ledger, not driven yet.

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
        lock = DriverLock(directory / LOCK)
        try:
            if cls.exists(directory):
                raise CampaignError(
                    f"expected no campaign in {directory}, got one; open it, or name another directory"
                )
            schema.create_database(directory / DATABASE, row)
        finally:
            lock.release()
        return cls.open(directory, clock=clock)

    @classmethod
    def open(cls, directory: Path, *, clock: Callable[[], float] = time.time) -> Ledger:
        """Return the ledger of the campaign in `directory`, also while another process drives it.

        Raises CampaignError when there is none, LedgerError when it is no ledger or of a newer schema.
        Nothing that lies in the directory is executed.
        """
        if not cls.exists(directory):
            raise CampaignError(
                f"expected a campaign in {directory}, got no {DATABASE} there; check the path"
            )
        engine = schema.open_engine(directory / DATABASE)
        try:
            return cls(directory, engine, clock)
        except BaseException:
            engine.dispose()
            raise

    def close(self) -> None:
        """Stop driving and close the file. What was committed stays; closing twice is harmless."""
        self._engine.dispose()
        if self._held is not None:
            lock, _ = self._held
            self._held = None
            lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def drive(self) -> Ledger:
        """Become the only writer until `close`. Raises CampaignBusyError, at once, when there is another."""
        lock = DriverLock(self.directory / LOCK)
        try:
            with transaction(self._engine, writes=True) as connection:
                campaign = schema.campaigns
                grow = campaign.update().where(campaign.c.id == self._id).values(fence=campaign.c.fence + 1)
                fence: int = connection.execute(grow.returning(campaign.c.fence)).scalar_one()
                self._record(connection, "driven", {"fence": fence, "pid": os.getpid()})
        except BaseException:
            lock.release()
            raise
        self._held = (lock, fence)
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
        they would exceed the budget: queries of every state count, those in doubt too.
        """
        self._check_round(round_number, seed, proposals, artifact)
        common = {"campaign_id": self._id, "artifact": artifact}
        summary = as_json(f"the summary of round {round_number}", summary)
        record = {**common, "number": round_number, "seed": seed, "summary": summary}
        rows = query_rows(
            proposals, self.uid, {**common, "round": round_number, "reserved_at": self._clock()}
        )
        with self._write() as connection:
            budget, n = self._budget(connection), read_counts(connection, self._id).n
            if n + len(rows) > budget:
                raise BudgetError(
                    f"{n} of {budget} queries are taken, so {len(rows)} more do not fit; "
                    f"reserve at most {budget - n}, or raise the budget"
                )
            is_this = schema.rounds.c.number == round_number
            ours = schema.rounds.c.campaign_id == self._id
            if connection.execute(select(schema.rounds.c.number).where(ours, is_this)).first() is not None:
                raise LedgerError(
                    f"round {round_number} was reserved before; continue it, or reserve the next one"
                )
            connection.execute(schema.rounds.insert(), record)
            connection.execute(schema.queries.insert(), rows)
            return self._read(connection, schema.queries.c.round == round_number)

    def send(self, ids: Sequence[int]) -> None:
        """Write down that the oracle is about to be asked: call it just before. Reserved queries only."""
        with self._write() as connection:
            check_states(connection, self._id, ids, "sent", (QueryState.RESERVED,))
            values = {
                "state": QueryState.SENT,
                "sent_at": self._clock(),
                "n_sent": schema.queries.c.n_sent + 1,
            }
            self._update(connection, ids, values)

    def tell(self, answers: Mapping[int, Evaluation]) -> None:
        """Write down answers by query id, all or none: of queries that are sent or in doubt, once each."""
        told = {query: evaluation_row(query, answer) for query, answer in answers.items()}
        measured = [row for query, answer in answers.items() for row in outcome_rows(query, answer)]
        with self._write() as connection:
            check_states(connection, self._id, list(told), "told", (QueryState.SENT, QueryState.IN_DOUBT))
            for table, rows in ((schema.evaluations, list(told.values())), (schema.outcomes, measured)):
                if rows:
                    connection.execute(table.insert(), rows)
            for state in (QueryState.DONE, QueryState.FAILED):
                ids = [query for query, row in told.items() if row["state"] == state]
                self._update(connection, ids, {"state": state, "ended_at": self._clock()})

    def doubt_sent(self) -> list[Query]:
        """Put every sent query in doubt and return those: for a new driver, as its predecessor is gone."""
        with self._write() as connection:
            sent = self._read(connection, schema.queries.c.state == QueryState.SENT)
            ids = [query.id for query in sent]
            self._update(connection, ids, {"state": QueryState.IN_DOUBT})
            if ids:
                self._record(connection, "in_doubt", {"queries": ids})
        return [replace(query, state=QueryState.IN_DOUBT) for query in sent]

    def retry(self, ids: Sequence[int]) -> None:
        """Reserve queries in doubt again. They may be paid twice then; `n_sent` keeps showing it."""
        with self._write() as connection:
            check_states(connection, self._id, ids, "retried", (QueryState.IN_DOUBT,))
            self._update(connection, ids, {"state": QueryState.RESERVED})
            self._record(connection, "retried", {"queries": list(ids)})

    # ------------------------------------------------------------ the campaign
    def raise_budget(self, budget: int) -> None:
        """Allow `budget` queries in all. Raises BudgetError unless that is more than before, and below 2³¹."""
        if budget >= 2**31:
            raise BudgetError(f"a budget must be below 2³¹ queries, got {budget}")
        with self._write() as connection:
            before = self._budget(connection)
            if budget <= before:
                raise BudgetError(
                    f"expected a budget above {before}, got {budget}; a budget is never lowered"
                )
            ours = schema.campaigns.c.id == self._id
            connection.execute(schema.campaigns.update().where(ours).values(budget=budget))
            self._record(connection, "budget_raised", {"from": before, "to": budget})

    def note(self, kind: str, detail: Mapping[str, object]) -> None:
        """Write down an event."""
        with self._write() as connection:
            self._record(connection, kind, detail)

    # ------------------------------------------------------------ reading
    @property
    def budget(self) -> int:
        """How many queries may be paid in all, as of now."""
        with transaction(self._engine) as connection:
            return self._budget(connection)

    def counts(self) -> Counts:
        """Return how many queries stand where."""
        with transaction(self._engine) as connection:
            return read_counts(connection, self._id)

    def queries(
        self, states: Collection[QueryState] | None = None, rounds: Collection[int] | None = None
    ) -> list[Query]:
        """Return the queries in these states and rounds (None: in any), ordered by round and slot."""
        query = schema.queries.c
        conditions = [] if states is None else [query.state.in_(states)]
        conditions += [] if rounds is None else [query.round.in_(rounds)]
        with transaction(self._engine) as connection:
            return self._read(connection, *conditions)

    def rounds(self) -> list[RoundRecord]:
        """Return the rounds in the order of their numbers."""
        table = schema.rounds
        statement = select(table).where(table.c.campaign_id == self._id).order_by(table.c.number)
        with transaction(self._engine) as connection:
            return [
                RoundRecord(r.number, r.seed, r.summary, r.artifact) for r in connection.execute(statement)
            ]

    def events(self) -> list[Event]:
        """Return the events in the order in which they were written down."""
        table = schema.events
        statement = select(table).where(table.c.campaign_id == self._id).order_by(table.c.id)
        with transaction(self._engine) as connection:
            return [Event(row.at, row.kind, row.detail) for row in connection.execute(statement)]

    # ------------------------------------------------------------ within a transaction
    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self._held is None:
            raise LedgerError(
                f"this ledger of {self.directory} is open for reading; call drive() before writing"
            )
        with transaction(self._engine, writes=True) as connection:
            ours = schema.campaigns.c.id == self._id
            fence = connection.execute(select(schema.campaigns.c.fence).where(ours)).scalar_one()
            # The lock alone does not do: a file can be removed, and a file system may not keep locks at all.
            if fence != self._held[1]:
                raise CampaignBusyError(
                    f"driver {fence} has taken over {self.directory} from this one, driver {self._held[1]}; "
                    "stop one of them, and keep the lock file while a driver runs"
                )
            yield connection

    def _read(self, connection: Connection, *conditions: ColumnElement[bool]) -> list[Query]:
        return read_queries(connection, schema.queries.c.campaign_id == self._id, *conditions)

    def _budget(self, connection: Connection) -> int:
        ours = schema.campaigns.c.id == self._id
        return int(connection.execute(select(schema.campaigns.c.budget).where(ours)).scalar_one())

    def _check_round(
        self, round_number: int, seed: int, proposals: Sequence[Proposal], artifact: str
    ) -> None:
        if not proposals:
            raise LedgerError(f"round {round_number} reserves no query; expected one proposal at least")
        if not 0 <= seed < 2**63:
            raise LedgerError(
                f"the seed of round {round_number} must be in [0, 2⁶³), got {seed}; derive a smaller one"
            )
        if artifact not in self.blobs:
            raise LedgerError(
                f"round {round_number} names the blob {artifact}, which is not there; store it first"
            )

    def _update(self, connection: Connection, ids: Sequence[int], values: Mapping[str, Any]) -> None:
        if ids:
            one = schema.queries.update().where(schema.queries.c.id == bindparam("query_id")).values(**values)
            connection.execute(one, [{"query_id": query} for query in ids])

    def _record(self, connection: Connection, kind: str, detail: Mapping[str, object]) -> None:
        detail = as_json(f"the detail of the event {kind!r}", detail)
        row = {"campaign_id": self._id, "at": self._clock(), "kind": kind, "detail": detail}
        connection.execute(schema.events.insert(), row)
