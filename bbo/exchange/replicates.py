"""Several measurements of one design, as one answer with its noise.

known noise s_i of every measurement:   mean weighted by 1/s_i²,  noise_std = 1/√(Σ 1/s_i²)
otherwise, n ≥ 2:                        plain mean,               noise_std = s/√n,  s the sample's std (n - 1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from oracles.answers import as_evaluation
from oracles.errors import OracleError
from oracles.evaluation import Evaluation


def replicates(answers: Sequence[object]) -> Evaluation:
    """Return one evaluation for several answers about the same design; costs add up.

    Failures count only where nothing but failures came. Each answer is kept in the metadata. Where all measurements
    agree to the last digit their noise stays unknown: it was below what the instrument shows, not zero.
    """
    told = [as_evaluation(answer) for answer in answers]
    if not told:
        raise OracleError("expected at least one answer to combine, got none")
    if len(told) == 1:
        return told[0]
    cost = math.fsum(evaluation.cost for evaluation in told)
    metadata: dict[str, object] = {"replicates": [_described(evaluation) for evaluation in told]}
    measured = [evaluation for evaluation in told if evaluation.error is None]
    if not measured:
        reasons = dict.fromkeys(str(evaluation.error) for evaluation in told)
        return Evaluation(error="; ".join(reasons), cost=cost, metadata=metadata)
    names = [name for name in measured[0].outcomes if all(name in e.outcomes for e in measured)]
    if not names:
        return Evaluation(error="the replicates have no outcome in common", cost=cost, metadata=metadata)
    outcomes: dict[str, float] = {}
    noise_std: dict[str, float] = {}
    for name in names:
        outcomes[name], std = _combined(
            [e.outcomes[name] for e in measured], [e.noise_std.get(name) for e in measured]
        )
        if std is not None:
            noise_std[name] = std
    return Evaluation(outcomes, noise_std=noise_std, cost=cost, metadata=metadata)


def _combined(values: Sequence[float], stds: Sequence[float | None]) -> tuple[float, float | None]:
    """Return the mean of some measurements and the std of its noise, None where that is unknown."""
    known = [std for std in stds if std]
    if len(known) == len(values):
        weights = [std**-2 for std in known]
        mean = math.fsum(w * value for w, value in zip(weights, values, strict=True)) / math.fsum(weights)
        return mean, math.fsum(weights) ** -0.5
    spread = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else stds[0] or 0.0
    return fmean(values), spread or None


def _described(evaluation: Evaluation) -> dict[str, object]:
    if evaluation.error is not None:
        return {"error": evaluation.error, "cost": evaluation.cost}
    noise = {"noise_std": dict(evaluation.noise_std)} if evaluation.noise_std else {}
    return {"outcomes": dict(evaluation.outcomes), **noise, "cost": evaluation.cost}
