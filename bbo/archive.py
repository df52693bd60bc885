"""What the ledger holds, as the tensors that a method works with: designs, features, observations."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bbo.executor import Executor
from bbo.ledger import Ledger, Query, QueryState, RoundRecord
from bbo.proposals import Observations


class Archive:
    """Designs and features of a campaign's queries. Each is read and encoded once, with the round it came in."""

    def __init__(self, ledger: Ledger, executor: Executor) -> None:
        self._ledger, self._executor = ledger, executor
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._features: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def designs(self, queries: Sequence[Query]) -> Float[Tensor, "n *design"]:
        """Return the designs of these queries, as they were reserved."""
        return torch.stack([self._artifact(q.artifact)["design"][q.row] for q in queries])

    def latents(self, queries: Sequence[Query]) -> Float[Tensor, "n *event"] | None:
        """Return their clean latents; None where some have none, since people brought the designs."""
        artifacts = [self._artifact(q.artifact) for q in queries]
        if not all("x0" in artifact for artifact in artifacts):
            return None
        return torch.stack([tensors["x0"][q.row] for tensors, q in zip(artifacts, queries, strict=True)])

    def features(self, queries: Sequence[Query]) -> Float[Tensor, "n d"]:
        """Return their features."""
        for artifact in dict.fromkeys(q.artifact for q in queries):
            if artifact not in self._features:
                self._features[artifact] = self._executor.encode(self._artifact(artifact)["design"])
        return torch.stack([self._features[q.artifact][q.row] for q in queries])

    def observations(self, objective: str, before: int) -> Observations:
        """Return everything that was answered, as features and outcomes, and what is under way.

        before: of rounds from this one on all is taken to be under way, whatever has been answered meanwhile.
        """
        queries = self._ledger.queries(set(QueryState) - {QueryState.REJECTED, QueryState.ABANDONED})
        is_answered = [
            q.state in (QueryState.DONE, QueryState.FAILED) and (q.round < before or q.is_given)
            for q in queries
        ]
        answered = [q for q, is_known in zip(queries, is_answered, strict=True) if is_known]
        under_way = [q for q, is_known in zip(queries, is_answered, strict=True) if not is_known]
        rounds = self._ledger.rounds()
        seeds, asked = tuple(past.seed for past in rounds), tuple(map(_asked, rounds))
        if not answered:
            return replace(Observations.none(), seeds=seeds, asked=asked)
        return Observations.of(
            self.features(answered),
            answered,
            objective,
            pending=self.features(under_way) if under_way else None,
            designs=self.designs([*answered, *under_way]),
            covariance=self._executor.covariance,
            x0=self.latents(answered),
            seeds=seeds,
            asked=asked,
        )

    def _artifact(self, sha256: str) -> dict[str, Tensor]:
        with self._lock:  # threads that pay look designs up as well
            if sha256 not in self._tensors:
                self._tensors[sha256] = self._ledger.blobs.get_tensors(sha256)
            return self._tensors[sha256]


N_ASKED = "n_asked"
"""Under this name a round's summary says how many queries its method was asked for."""


def _asked(past: RoundRecord) -> int:
    n = past.summary.get(N_ASKED, 0)
    return n if isinstance(n, int) else 0
