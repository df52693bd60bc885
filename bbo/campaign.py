"""A campaign: the only object that changes. Everything it knows is in its ledger; everything else is frozen.

    campaign = Campaign.open("runs/mine", prior=prior, oracle=my_function, budget=256)
    campaign.run()
    campaign.best(5)

Opening an existing directory continues what is there: reserved queries are paid first, spent ones never again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bbo import desk, loop, seeds, tables
from bbo.archive import N_ASKED, Archive
from bbo.config.describe import digest
from bbo.config.secrets import secrets_of
from bbo.desk import Asked
from bbo.errors import BboError, BudgetError, CampaignError, ConfigError
from bbo.executor import Executor
from bbo.features import with_features
from bbo.ledger import Ledger, Proposal, Query, QueryState
from bbo.opening import as_oracle, described, opened
from bbo.places import Local, Place, calling
from bbo.progress import INTERRUPTED, Board, Listener
from bbo.prompts import check_prompts
from bbo.proposals import Candidates, Method, Observations, Stage
from bbo.recovery import leave_open, settle
from bbo.settings import InDoubt, Settings, check_parts
from bbo.stages import STAGES, RecallingExecutor, forget
from bbo.steering import SteeredPrior, steering_of
from oracles import processes
from oracles.answers import as_evaluation
from oracles.base import Oracle
from oracles.callables import ByHand
from oracles.calls import Answer
from oracles.evaluation import VALUE, Evaluation
from smc.prior import Prior
from surrogate.features import Encoder, EncoderModel, Standardizer


class Campaign:
    """One optimisation, from its first query to its last. Made by `Campaign.open`; one process at a time."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        oracle: Oracle,
        method: Method,
        executor: Executor,
        listener: Listener | None,
    ) -> None:
        self.ledger = ledger
        self.oracle = oracle
        self.method = method
        self.executor = executor
        self.settings = settings
        self.caller = calling(executor, oracle, settings.parallel)
        self.archive = Archive(ledger, executor)
        self._board = Board(settings.budget, listener)
        self._n_rounds = ledger.n_rounds()
        self._secrets = list(secrets_of(oracle))
        self._sizes: dict[int, int] = {}  # queries of each round that are paid for in one go
        self._n_failed_before = 0
        self._n_unanswered = 0  # groups in a row
        self._lock = threading.RLock()  # of what threads that pay change here

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        prior: Prior,
        oracle: Oracle | Callable[[np.ndarray], object] | None = None,
        budget: int,
        batch_size: int = 16,
        seed: int = 0,
        method: Method | None = None,
        objective: str = VALUE,
        in_doubt: InDoubt | str = InDoubt.COUNT_AS_SPENT,
        encoder: EncoderModel | Encoder = Standardizer(),
        database: str | None = None,
        executor: Place = Local(),
        parallel: int | None = None,
        max_pending: int | None = None,
        listener: Listener | None = None,
    ) -> Campaign:
        """Create the campaign in `directory`, or continue the one that is there.

        oracle: an `Oracle`, or a function that takes one design as a numpy array and returns a number; None for
            a campaign that is asked and told by hand.
        method: how candidates are made; None for `SteeredPrior()`.
        encoder: design → surrogate features: a recipe, which is fitted to draws of the prior, or any frozen function.
        database: URL of a PostgreSQL database for the ledger's tables; None keeps them in the directory.
        executor: where it samples, `Local()` or `Ray()` of `bbo.places`; decides no more than rounding.
        parallel: how many calls of the oracle may run at a time as tasks on Ray; None calls it in this process.
        max_pending: how many queries may wait for their answers while the next batch is sampled; None for one batch,
            so that nothing is. Twice the batch size samples one batch while the oracle works on another, and calls it
            in a thread of its own.
        listener: is told the progress after every stage.

        Raises ConfigError for settings that make no sense, CampaignError when oracle and prior disagree about
        the shape of a design, ConfigMismatchError when the campaign there was started with other settings,
        CampaignBusyError when another process drives it.
        """
        if in_doubt not in list(InDoubt):
            raise ConfigError(f"in_doubt must be one of {', '.join(InDoubt)}, got {in_doubt!r}")
        settings = Settings(budget, batch_size, seed, objective, InDoubt(in_doubt), max_pending, parallel)
        black_box = as_oracle(oracle)
        chosen = SteeredPrior() if method is None else method
        check_parts(prior, black_box, settings)
        check_prompts(prior, black_box, chosen)
        config = described(settings, prior, black_box, chosen, encoder)
        running, ledger = executor.start(prior), None
        try:
            # Before there is a ledger, so that a bad encoder leaves none behind.
            steering = steering_of(chosen)
            max_batch = None if steering is None else steering.sampler.max_batch
            running = with_features(running, encoder, seed, max_batch)
            ledger = opened(Path(directory), settings, config, database)
            campaign = cls(
                ledger, settings, oracle=black_box, method=chosen, executor=running, listener=listener
            )
            campaign._recover()
        except BaseException:
            try:
                running.close()
            finally:
                if ledger is not None:
                    ledger.close()
            raise
        return campaign

    # ------------------------------------------------------------------- driving
    def run(self) -> None:
        """Spend the rest of the budget, round by round.

        Raises CampaignError after a round when every query so far has failed: more likely the oracle is broken than
        the designs. Running again tries one more round.
        """
        if isinstance(self.oracle, ByHand):
            raise CampaignError(
                "this campaign has no oracle to run; use ask and tell, or open it with an oracle"
            )
        settle(self.ledger, self.oracle, self.settings.in_doubt, self._tell)
        self._n_unanswered, self._n_failed_before = 0, self.ledger.counts().failed
        try:
            loop.run(self)
            forget(self.ledger.directory / STAGES)  # of a driver that was killed just after it had reserved
        except BaseException:
            with suppress(BboError):  # where the ledger itself is the trouble, the next driver does it
                self.ledger.doubt_sent()  # nobody will answer them any more
            raise

    def ask(self, n: int | None = None) -> list[Asked]:
        """Return designs for somebody else to evaluate; they count as sent. n: None for a whole batch.

        Designs that were proposed and never sent come first; what is pending already is taken into account for
        the others. Raises BudgetError when fewer than n queries are left.
        """
        if n is not None and n < 1:
            raise ConfigError(f"ask for at least 1 design, got {n}")
        n = self.settings.batch_size if n is None else n
        counts, budget = self.ledger.counts(), self.ledger.budget
        if n > (left := budget - counts.n + counts.reserved):  # before anything is sampled
            raise BudgetError(
                f"{left} of {budget} queries are left, so {n} do not fit; ask for fewer, or raise the budget"
            )
        self._board.begin_round()
        queries = loop.ask(self, n)
        self.send(queries, is_asked=True)
        return desk.as_asked(self.ledger, queries)

    def pending(self) -> list[Asked]:
        """Return the designs that were asked for and have no answer yet, those of earlier processes too."""
        return desk.as_asked(self.ledger, desk.awaited(self.ledger))

    def tell(self, query_id: int, answer: object) -> None:
        """Note the answer to a query that was asked: a number, named numbers, or an `Evaluation`.

        Anything else, NaN included, makes the query a failed one with that reason; several measurements of one
        design become one answer by `bbo.exchange.replicates`. Raises LedgerError for a query that was never sent
        or was answered before.
        """
        self._tell({query_id: as_evaluation(answer)})

    def tell_new(
        self, designs: np.ndarray, answers: Sequence[object], source: str = "told by hand"
    ) -> list[int]:
        """Note designs that somebody measured on their own, one a row, and return the numbers they are given.

        The campaign learns from them; they take no place in its budget. What was given before, with the same
        answer, is left out. Raises CampaignError for designs of another shape.
        """
        evaluations = [as_evaluation(answer) for answer in answers]
        if len(evaluations) != len(designs):
            raise CampaignError(f"expected one answer a design, got {len(evaluations)} for {len(designs)}")
        queries = desk.give(self.ledger, _as_designs(designs), evaluations, source)
        self._show_counts(best=self.ledger.best_value(self.settings.objective))
        self._n_rounds = self.ledger.n_rounds()
        return [query.id for query in queries]

    def edit(self, query_id: int, design: np.ndarray, why: str = "") -> Asked:
        """Put an edited design in the place of one that was asked for and not evaluated; return the new query."""
        query = desk.edit(self.ledger, query_id, _as_designs(design), why)
        self._n_rounds = self.ledger.n_rounds()
        return desk.as_asked(self.ledger, [query])[0]

    def reject(self, query_ids: Sequence[int], why: str = "") -> None:
        """Refuse designs that were asked for, before anything was paid: their places in the budget are free again."""
        self.ledger.reject(query_ids, why)
        self._show_counts()

    def abandon(self, query_ids: Sequence[int], why: str = "") -> None:
        """Give up waiting for answers, of queries in doubt too. They stay spent; a late answer is still welcome."""
        self.ledger.abandon(query_ids, why)
        self._show_counts()

    def retry(self, query_ids: Sequence[int], why: str = "decided by hand") -> None:
        """Send queries in doubt once more, in the next round; they may be paid twice then."""
        self.ledger.retry(query_ids, why)
        self._show_counts()

    def close(self) -> None:
        """Let another process drive the campaign, and let go of what samples."""
        try:
            self.executor.close()
        finally:
            self.ledger.close()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------- looking
    def best(self, n: int = 1) -> pd.DataFrame:
        """Return the n best designs so far, best first: value, query, round, prediction, design columns."""
        return tables.best(self.ledger, self.settings.objective, n)

    def history(self) -> pd.DataFrame:
        """Return all queries in the order in which they were proposed."""
        return tables.history(self.ledger, self.settings.objective)

    # ------------------------------------------------------------------- what the loop needs
    def reserved(self) -> list[Query]:
        """Return queries that were proposed and not sent yet, in order."""
        return self.ledger.queries({QueryState.RESERVED})

    @property
    def next_round(self) -> int:
        """Number of the next round."""
        return self._n_rounds

    @property
    def n_payers(self) -> int:
        """Threads that pay while this one samples; 0 where it pays itself."""
        return self.settings.parallel or (1 if self.settings.lag else 0)

    def next_batch(self) -> int:
        """Return how many queries the next round is to have; 0 when the budget is spent."""
        counts = self.ledger.counts()
        self._board.begin_round()
        return min(self.settings.batch_size, self.ledger.budget - counts.n)

    def check_any_outcome(self) -> None:
        """Raise CampaignError when every query so far has failed, some of them in this run."""
        counts = self.ledger.counts()
        if counts.done == 0 and counts.failed > self._n_failed_before:
            first = self.ledger.queries({QueryState.FAILED})[0].evaluation
            raise CampaignError(
                f"all {counts.failed} queries so far have failed, the first with: {first.error if first else ''}. "
                "Mend the oracle and run again to go on; failed queries stay spent"
            )

    def groups(self, queries: Sequence[Query]) -> list[list[Query]]:
        """Return the queries of one round in the groups in which they are sent and paid."""
        if not queries:
            return []
        self._sizes[queries[0].round] = len(queries)
        size = self.oracle.n_per_call or math.ceil(len(queries) / max(self.n_payers, 1))
        return [list(queries[i : i + size]) for i in range(0, len(queries), size)]

    def round_seed(self) -> int:
        """Return the seed of the next round."""
        return seeds.derive(self.settings.seed, "round", self._n_rounds)

    def observations(self, lag: int = 0) -> Observations:
        """Return everything that was answered and what is under way, all of the last `lag` rounds among that."""
        return self.archive.observations(self.settings.objective, before=self._n_rounds - lag)

    def recalling(self, observed: Observations) -> Executor:
        """Return the executor, which keeps on disk what it samples from these observations until it is reserved."""
        folder = self.ledger.directory / STAGES
        return RecallingExecutor(self.executor, folder, digest(observed), self._board.sampled)

    def reserve(self, candidates: Candidates, n_asked: int | None = None) -> list[Query]:
        """Write candidates to the ledger as the next round's queries; their tensors are on disk before.

        n_asked: how many the method was asked for; None for as many as there are.
        """
        number, seed = self._n_rounds, self.round_seed()
        tensors = {"x0": candidates.x0, "design": candidates.designs, **candidates.diagnostics}
        predicted = candidates.predicted
        proposals = [
            Proposal(
                row=row,
                predicted_mean=None if predicted is None else float(predicted.mean[row]),
                predicted_std=None if predicted is None else float(predicted.std[row]),
                provenance=told,
            )
            for row, told in enumerate(candidates.provenance)
        ]
        artifact = self.ledger.blobs.put_tensors(tensors)
        asked = {} if n_asked is None else {N_ASKED: n_asked}
        summary = {**candidates.summary, **asked, "seconds": dict(self._board.progress.seconds)}
        queries = self.ledger.reserve(number, seed, proposals, artifact, summary)
        forget(self.ledger.directory / STAGES)
        self._n_rounds += 1
        self._board.show(ess_share=candidates.summary.get("ess_share"))
        return queries

    def send(self, queries: Sequence[Query], *, is_asked: bool = False) -> None:
        """Write down that these queries are about to be paid; is_asked: people are asked, and no oracle.

        Raises CampaignError when the campaign was interrupted meanwhile.
        """
        if processes.is_over():
            raise CampaignError("the campaign was interrupted before these queries were sent")
        self.ledger.send([q.id for q in queries], is_asked=is_asked)

    def tell_group(self, queries: Sequence[Query], answers: Sequence[Answer]) -> None:
        """Write down the oracle's answers to queries that were sent together, and which of them have none.

        Raises CampaignError when the oracle did not accept some, or answered none of as many groups in a row as can be
        under way: it is out of reach.
        """
        found = {query.id: answer for query, answer in zip(queries, answers, strict=True)}
        told = {id_: answer for id_, answer in found.items() if isinstance(answer, Evaluation)}
        missing = {id_: answer for id_, answer in found.items() if not isinstance(answer, Evaluation)}
        with self._lock:
            number = queries[0].round
            self._sizes[number] = self._sizes.get(number, len(queries)) - len(missing)
            self._board.answered(self._noted(told) if told else [], number, self._sizes[number])
            self._n_unanswered = 0 if told else self._n_unanswered + 1
            if missing:
                is_out_of_reach = self._n_unanswered >= max(self.n_payers, 1)
                leave_open(self.ledger, self.oracle.name, missing, is_out_of_reach=is_out_of_reach)
                self._show_counts()

    @property
    def stage(self) -> Stage:
        """Times a named stage of the round and shows it."""
        return self._board.stage

    def show_interrupted(self) -> None:
        """Say that nothing more is begun, and that what is under way is waited for."""
        self._board.show(stage=INTERRUPTED)

    # ------------------------------------------------------------------- inside
    def _recover(self) -> None:
        """Take up what an earlier driver left: queries it sent and never saw answered are in doubt."""
        self.ledger.doubt_sent()
        number = self._n_rounds - 1
        best = self.ledger.best_value(self.settings.objective)
        self._show_counts(best=best, round=None if number < 0 else number)

    def _tell(self, evaluations: Mapping[int, Evaluation]) -> None:
        self._board.answered(self._noted(evaluations))
        self._show_counts()

    def _noted(self, evaluations: Mapping[int, Evaluation]) -> list[float | None]:
        """Write answers down, and return the objective of each."""
        told = desk.tell(self.ledger, evaluations, self._secrets)
        return [answer.outcomes.get(self.settings.objective) for answer in told.values()]

    def _show_counts(self, **changes: object) -> None:
        counts = self.ledger.counts()
        self._board.show(spent=counts.spent, in_doubt=counts.in_doubt, **changes)


def _as_designs(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
