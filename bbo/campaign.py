"""A campaign: the only object that changes. Everything it knows is in its ledger; everything else is frozen.

    campaign = Campaign.open("runs/mine", prior=prior, oracle=my_function, budget=256)
    campaign.run()
    campaign.best(5)

Opening an existing directory continues what is there: reserved queries are paid first, spent ones never again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bbo import desk, seeds, tables
from bbo.config.describe import (
    describe,
    describe_oracle,
    describe_prior,
    digest,
)
from bbo.config.secrets import secrets_of
from bbo.desk import Asked
from bbo.errors import BboError, BudgetError, CampaignError, ConfigError
from bbo.executor import Executor, LocalExecutor
from bbo.features import with_features
from bbo.ledger import Ledger, Proposal, Query, QueryState
from bbo.loop import ask, run_round
from bbo.opening import as_oracle, opened
from bbo.progress import Listener, Progress
from bbo.proposals import Candidates, Method, Observations
from bbo.recovery import leave_open, settle
from bbo.settings import InDoubt, Settings, check_parts, describe_settings
from bbo.stages import STAGES, RecallingExecutor, forget
from bbo.steering import SteeredPrior
from oracles.answers import as_evaluation
from oracles.base import Oracle
from oracles.callables import ByHand
from oracles.calls import Answer
from oracles.evaluation import VALUE, Evaluation
from smc.prior import Prior
from surrogate.features import Encoder, EncoderModel, Flatten, Standardizer


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
        self._listener = listener
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._n_rounds = ledger.n_rounds()
        self._secrets = list(secrets_of(oracle))
        self._progress = Progress(settings.budget)

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
        listener: Listener | None = None,
    ) -> Campaign:
        """Create the campaign in `directory`, or continue the one that is there.

        oracle: an `Oracle`, or a function that takes one design as a numpy array and returns a number; None for
            a campaign that is asked and told by hand.
        method: how candidates are made; None for `SteeredPrior()`.
        encoder: design → surrogate features: a recipe, which is fitted to draws of the prior, or any frozen function.
        database: URL of a PostgreSQL database for the ledger's tables; None keeps them in the directory.
        listener: is told the progress after every stage.

        Raises ConfigError for settings that make no sense, CampaignError when oracle and prior disagree about
        the shape of a design, ConfigMismatchError when the campaign there was started with other settings,
        CampaignBusyError when another process drives it.
        """
        if in_doubt not in list(InDoubt):
            raise ConfigError(f"in_doubt must be one of {', '.join(InDoubt)}, got {in_doubt!r}")
        settings = Settings(budget, batch_size, seed, objective, InDoubt(in_doubt))
        black_box = as_oracle(oracle)
        chosen = SteeredPrior() if method is None else method
        check_parts(prior, black_box, settings)
        config = {
            "campaign": describe_settings(settings),
            "prior": describe_prior(prior),
            "oracle": describe_oracle(black_box),
            "method": describe(chosen),
            "encoder": describe(encoder),
        }
        # what is wrong with an encoder shows before a ledger
        place = with_features(LocalExecutor(prior, Flatten()), encoder, seed)
        ledger = opened(Path(directory), settings, config, database)
        try:
            campaign = cls(
                ledger,
                settings,
                oracle=black_box,
                method=chosen,
                executor=place,
                listener=listener,
            )
            campaign._recover()
        except BaseException:
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
        try:
            while (n := self._next_batch()) > 0:
                self._show(seconds={}, last=(), n_in_round=n)
                run_round(self, n)
                self._check_any_outcome()
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
        self._show(seconds={}, last=())
        queries = ask(self, n)
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
        """Let another process drive the campaign."""
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

    def round_seed(self) -> int:
        """Return the seed of the next round."""
        return seeds.derive(self.settings.seed, "round", self._n_rounds)

    def designs(self, queries: Sequence[Query]) -> Float[Tensor, "n *design"]:
        """Return the designs of these queries, as they were reserved."""
        return torch.stack([self._artifact(q.artifact)["design"][q.row] for q in queries])

    def observations(self) -> Observations:
        """Return everything that was answered, as features and outcomes, and what is under way."""
        answered = self.ledger.queries({QueryState.DONE, QueryState.FAILED})
        if not answered:
            return Observations.none()
        under_way = self.ledger.queries({QueryState.RESERVED, QueryState.SENT, QueryState.IN_DOUBT})
        pending = self.executor.encode(self.designs(under_way)) if under_way else None
        X = self.executor.encode(self.designs(answered))
        return Observations.of(
            X,
            answered,
            self.settings.objective,
            pending=pending,
            designs=self.designs([*answered, *under_way]),
            covariance=self.executor.covariance,
        )

    def recalling(self, observed: Observations) -> Executor:
        """Return the executor, which keeps on disk what it samples from these observations until it is reserved."""
        return RecallingExecutor(self.executor, self.ledger.directory / STAGES, digest(observed))

    def reserve(self, candidates: Candidates) -> list[Query]:
        """Write candidates to the ledger as the next round's queries; their tensors are on disk before."""
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
        summary = {**candidates.summary, "seconds": dict(self._progress.seconds)}
        queries = self.ledger.reserve(number, seed, proposals, artifact, summary)
        forget(self.ledger.directory / STAGES)
        self._n_rounds += 1
        self._show(round=number, ess_share=candidates.summary.get("ess_share"))
        return queries

    def send(self, queries: Sequence[Query], *, is_asked: bool = False) -> None:
        """Write down that these queries are about to be paid; is_asked: people are asked, and no oracle."""
        self.ledger.send([q.id for q in queries], is_asked=is_asked)

    def tell_group(self, queries: Sequence[Query], answers: Sequence[Answer]) -> None:
        """Write down the oracle's answers to queries that were sent together, and which of them have none.

        Raises CampaignError when the oracle did not accept some, or answered none: it is out of reach.
        """
        found = {query.id: answer for query, answer in zip(queries, answers, strict=True)}
        told = {id_: answer for id_, answer in found.items() if isinstance(answer, Evaluation)}
        missing = {id_: answer for id_, answer in found.items() if not isinstance(answer, Evaluation)}
        noted = self._noted(told) if told else {}
        if not missing:  # nothing to be counted anew
            self._show(spent=self._progress.spent + len(told), **noted)
            return
        self._show_counts(**noted)
        leave_open(self.ledger, self.oracle.name, missing, n_told=len(told))
        self._show_counts()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside as the stage `name` of this round, and show it."""
        self._show(stage=name)
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began + self._progress.seconds.get(name, 0.0)
            self._show(stage=None, seconds={**self._progress.seconds, name: spent})

    # ------------------------------------------------------------------- inside
    def _recover(self) -> None:
        """Take up what an earlier driver left: queries it sent and never saw answered are in doubt."""
        self.ledger.doubt_sent()
        number = self._n_rounds - 1
        best = self.ledger.best_value(self.settings.objective)
        self._show_counts(best=best, round=None if number < 0 else number)

    def _check_any_outcome(self) -> None:
        counts = self.ledger.counts()
        if counts.done == 0 and counts.failed > 0:
            first = self.ledger.queries({QueryState.FAILED})[0].evaluation
            raise CampaignError(
                f"all {counts.failed} queries so far have failed, the first with: {first.error if first else ''}. "
                "Mend the oracle and run again to go on; failed queries stay spent"
            )

    def _next_batch(self) -> int:
        counts = self.ledger.counts()
        return min(self.settings.batch_size, counts.reserved or self.ledger.budget - counts.n)

    def _artifact(self, sha256: str) -> dict[str, Tensor]:
        if sha256 not in self._tensors:
            self._tensors[sha256] = self.ledger.blobs.get_tensors(sha256)
        return self._tensors[sha256]

    def _tell(self, evaluations: Mapping[int, Evaluation]) -> None:
        self._show_counts(**self._noted(evaluations))

    def _noted(self, evaluations: Mapping[int, Evaluation]) -> dict[str, object]:
        """Write answers down, and return what of the progress they change."""
        told = desk.tell(self.ledger, evaluations, self._secrets)
        values = [e.outcomes.get(self.settings.objective) for e in told.values()]
        known = [value for value in (self._progress.best, *values) if value is not None]
        return {"last": (*self._progress.last, *values), "best": max(known, default=None)}

    def _show_counts(self, **changes: object) -> None:
        counts = self.ledger.counts()
        self._show(spent=counts.spent, in_doubt=counts.in_doubt, **changes)

    def _show(self, **changes: object) -> None:
        self._progress = replace(self._progress, **changes)  # type: ignore[arg-type]
        if self._listener is not None:
            self._listener(self._progress)


def _as_designs(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
