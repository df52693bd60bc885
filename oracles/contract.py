"""What every oracle must do, tried out on one: the same suite for the project's own and for a user's.

`examine` asks the oracle for a few designs several times: as they are, in reverse order, once more, and with a design
of NaN among them. It asks for `n_asked(n)` evaluations in all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.base import Keyed, Lookup, Oracle
from oracles.calls import Answer, Incomplete, parts
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation

N_LEAST = 2
_ROUNDING = 1e-6
_FAR = 6.0
"""Answers that differ by more than so many times their noise differ for another reason."""


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    NOTE = "note"
    """No breach; something that its owner will want to know."""
    FAULT = "fault"
    """A campaign would lose money, or learn what is not true."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    verdict: Verdict
    said: str


def n_asked(n: int) -> int:
    """Return how many evaluations the examination of n designs asks for."""
    return 3 * n + 3


def examine(oracle: object, designs: Float[Tensor, "n *design"]) -> list[Finding]:
    """Return what was found out about an oracle. A check that finds it broken is the last that is made.

    designs: at least two, different, of which the oracle should be able to evaluate most.
    """
    if len(designs) < N_LEAST:
        raise OracleError(f"an examination needs at least {N_LEAST} designs, got {len(designs)}")
    findings = [_protocol(oracle, designs)]
    if not isinstance(oracle, Oracle) or findings[0].verdict is Verdict.FAULT:
        return findings
    try:
        findings += _examined(oracle, designs)
    except _Broken as fault:
        findings.append(Finding("answers", Verdict.FAULT, str(fault)))
    return findings


class _Broken(Exception):
    """The oracle broke its contract for a whole call."""


def _examined(oracle: Oracle, designs: Float[Tensor, "n *design"]) -> list[Finding]:
    before = designs.clone()
    first = _asked(oracle, designs)
    is_same = torch.equal(before, designs)
    findings = [_answered(first), _left_alone(is_same)]
    values = _values(first)
    if findings[0].verdict is Verdict.FAULT or not is_same or not values:
        return findings
    began = time.perf_counter()  # the first call may have loaded things
    again = _values(_asked(oracle, designs))
    findings.append(_took(oracle, time.perf_counter() - began, len(designs)))
    turned = _values(_asked(oracle, designs.flip(0))[::-1])
    noise = _difference(values, again) / math.sqrt(2)
    return [
        *findings,
        _outcomes(first),
        _repeatable(oracle, first, values, again, noise),
        _in_any_order(values, turned, noise),
        _one_bad(oracle, designs, values, noise),
        _none_at_all(oracle, designs),
    ]


# ------------------------------------------------------------------- checks
def _protocol(oracle: object, designs: Float[Tensor, "n *design"]) -> Finding:
    wanted: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "design_shape": (tuple, list, type(None)),
        "n_per_call": (int, type(None)),
        "is_idempotent": (bool,),
    }
    wrong = [f"has no {name}" for name in (*wanted, "evaluate") if not hasattr(oracle, name)]
    if not wrong:
        wrong = [
            f"{name} is {getattr(oracle, name)!r}"
            for name, kinds in wanted.items()
            if not isinstance(getattr(oracle, name), kinds)
        ]
    if wrong or not isinstance(oracle, Oracle):
        return Finding("protocol", Verdict.FAULT, f"{'; '.join(wrong)} (see oracles/base.py)")
    if oracle.n_per_call is not None and oracle.n_per_call < 1:
        return Finding("protocol", Verdict.FAULT, f"n_per_call must be 1 or more, got {oracle.n_per_call}")
    shape = oracle.design_shape
    if shape is not None and tuple(shape) != tuple(designs.shape[1:]):
        said = (
            f"design_shape is {tuple(shape)}, but the designs to try it with are {tuple(designs.shape[1:])}"
        )
        return Finding("protocol", Verdict.FAULT, said)
    takes = "designs of any shape" if shape is None else f"designs of shape {tuple(shape)}"
    at_once = "any number" if oracle.n_per_call is None else str(oracle.n_per_call)
    offers = [word for kind, word in ((Keyed, "keys"), (Lookup, "lookup")) if isinstance(oracle, kind)]
    repeats = "idempotent" if oracle.is_idempotent else "not idempotent"
    said = f"{takes}, {at_once} a call, {repeats}" + (f", with {' and '.join(offers)}" if offers else "")
    return Finding("protocol", Verdict.OK, said)


def _answered(answers: Sequence[Answer]) -> Finding:
    lost = [a for a in answers if not isinstance(a, Evaluation)]
    failed = [a.error for a in answers if isinstance(a, Evaluation) and a.error is not None]
    if lost:
        said = f"{len(lost)} of {len(answers)} designs got no answer; the first: {lost[0]}"
        return Finding("answers", Verdict.FAULT, said)
    if len(failed) == len(answers):
        return Finding("answers", Verdict.FAULT, f"all {len(answers)} designs failed; the first: {failed[0]}")
    if failed:
        return Finding(
            "answers", Verdict.NOTE, f"{len(failed)} of {len(answers)} failed; the first: {failed[0]}"
        )
    return Finding("answers", Verdict.OK, f"{len(answers)} designs, {len(answers)} evaluations")


def _left_alone(is_same: bool) -> Finding:
    if is_same:
        return Finding("designs", Verdict.OK, "left as they were")
    return Finding(
        "designs", Verdict.FAULT, "changed in place: the ledger would record others than were paid"
    )


def _took(oracle: Oracle, seconds: float, n: int) -> Finding:
    n_calls = 1 if oracle.n_per_call is None else math.ceil(n / oracle.n_per_call)
    each = f"{_time(seconds / n_calls)} a call" if n_calls > 1 else f"{_time(seconds)} for the call"
    return Finding("time", Verdict.OK, f"{each}, {_time(seconds / n)} a design")


def _outcomes(answers: Sequence[Answer]) -> Finding:
    given = [a for a in answers if isinstance(a, Evaluation) and a.error is None]
    named = {tuple(sorted(a.outcomes)) for a in given}
    if len(named) > 1:
        said = (
            f"names differ from design to design: {' | '.join(', '.join(names) for names in sorted(named))}"
        )
        return Finding("outcomes", Verdict.FAULT, said)
    ranges = []
    for name in sorted(given[0].outcomes):
        values = [a.outcomes[name] for a in given]
        ranges.append(f"{name} {min(values):.5g} … {max(values):.5g}")
    said = f"finite: {', '.join(ranges)}"
    if any(not _is_json(a.metadata) for a in given):
        return Finding("outcomes", Verdict.NOTE, f"{said}; metadata are no JSON and are kept as text")
    if len(given) > 1 and all(a.outcomes == given[0].outcomes for a in given):
        return Finding("outcomes", Verdict.NOTE, f"{said}: the same for every design")
    return Finding("outcomes", Verdict.OK, said)


def _repeatable(
    oracle: Oracle, first: Sequence[Answer], values: _Values, again: _Values, noise: float
) -> Finding:
    check = "repeatable"
    if values.keys() != again.keys():
        said = "a design that failed the first time did not the second, or the other way round"
        verdict = Verdict.FAULT if oracle.is_idempotent else Verdict.NOTE
        return Finding(check, verdict, said)
    if noise <= _ROUNDING * _scale(values):
        return Finding(check, Verdict.OK, "the same designs get the same answers")
    said = f"asked twice, answers differ: noise of std {noise:.2g}"
    if oracle.is_idempotent:
        return Finding(check, Verdict.FAULT, f"{said}, but is_idempotent promises the same")
    told = [std for a in first if isinstance(a, Evaluation) for std in a.noise_std.values()]
    if told:
        return Finding(check, Verdict.OK, f"{said}; it declares {min(told):.2g} … {max(told):.2g}")
    return Finding(check, Verdict.NOTE, f"{said}; an Evaluation can say so with noise_std")


def _in_any_order(values: _Values, turned: _Values, noise: float) -> Finding:
    apart = _difference(values, turned) / math.sqrt(2)
    if values.keys() != turned.keys() and noise <= _ROUNDING * _scale(values):
        return Finding("order", Verdict.FAULT, "in reverse order other designs fail")
    if apart > max(_FAR * noise, _ROUNDING * _scale(values)):
        said = f"in reverse order answers differ by {apart * math.sqrt(2):.2g}: they are given to the wrong designs"
        return Finding("order", Verdict.FAULT, said)
    return Finding("order", Verdict.OK, "answers do not depend on the order of the designs")


def _one_bad(oracle: Oracle, designs: Float[Tensor, "n *design"], values: _Values, noise: float) -> Finding:
    """Try a design of NaN between two others, in one call where calls take several."""
    check = "one bad design"
    if not designs.is_floating_point():
        return Finding(check, Verdict.OK, "not tried: these designs cannot be NaN")
    trio = torch.cat([designs[:1], torch.full_like(designs[:1], math.nan), designs[1:2]])
    try:
        answers = _asked(oracle, trio)
    except _Broken as fault:
        return Finding(check, Verdict.FAULT, f"a design of NaN loses the rest of the batch: {fault}")
    lost = [a for a in answers if not isinstance(a, Evaluation)]
    if lost:
        return Finding(check, Verdict.FAULT, f"a design of NaN leaves designs without an answer: {lost[0]}")
    rest = _values([answers[0], answers[2]])
    expected = {(min(i, 1), name): y for (i, name), y in values.items() if i in (0, 1)}
    apart = _difference(expected, rest)
    if expected.keys() != rest.keys() or apart > max(2 * _FAR * noise, _ROUNDING * _scale(values)):
        return Finding(check, Verdict.FAULT, "a design of NaN changes the answers of the others")
    bad = answers[1]
    if isinstance(bad, Evaluation) and bad.error is None:
        said = (
            f"a design of NaN is answered with {dict(bad.outcomes)}; failing it with a reason would be better"
        )
        return Finding(check, Verdict.NOTE, said)
    reason = bad.error if isinstance(bad, Evaluation) else str(bad)
    return Finding(check, Verdict.OK, f"fails alone: {reason}")


def _none_at_all(oracle: Oracle, designs: Float[Tensor, "n *design"]) -> Finding:
    try:
        answers = list(oracle.evaluate(designs[:0]))
    except Exception as error:
        return Finding(
            "no designs", Verdict.NOTE, f"raises {type(error).__name__}: {error}; [] would be better"
        )
    if answers:
        return Finding("no designs", Verdict.FAULT, f"{len(answers)} evaluations for no design")
    return Finding("no designs", Verdict.OK, "no evaluations")


# ------------------------------------------------------------------- asking and comparing
_Values = Mapping[tuple[int, str], float]
"""(position of the design, name of the outcome) → outcome; failed designs have none."""


def _asked(oracle: Oracle, designs: Float[Tensor, "n *design"]) -> list[Answer]:
    """Return one answer per design, or raise _Broken where a campaign would have to make one up."""
    answers: list[Answer] = []
    for part, _ in parts(designs, None, oracle.n_per_call):
        try:
            given: object = oracle.evaluate(part)
        except Incomplete as incomplete:
            given = incomplete.answers
        except (NotAccepted, Unanswered) as error:
            given = [error] * len(part)
        except Exception as error:
            raise _Broken(f"evaluate raised {type(error).__name__}: {error}") from error
        if not isinstance(given, Sequence) or len(given) != len(part):
            said = f"{len(given)}" if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise _Broken(
                f"expected a sequence of {len(part)} evaluations for {len(part)} designs, got {said}"
            )
        for answer in given:
            if not isinstance(answer, Evaluation | NotAccepted | Unanswered):
                raise _Broken(f"expected evaluations, got a {type(answer).__name__} among the answers")
            answers.append(answer)
    return answers


def _values(answers: Sequence[Answer]) -> _Values:
    return {
        (i, name): y
        for i, answer in enumerate(answers)
        if isinstance(answer, Evaluation)
        for name, y in answer.outcomes.items()
    }


def _difference(a: _Values, b: _Values) -> float:
    """Return the root mean square difference of the outcomes that both have."""
    both = a.keys() & b.keys()
    return math.sqrt(sum((a[key] - b[key]) ** 2 for key in both) / len(both)) if both else 0.0


def _scale(values: _Values) -> float:
    return max(map(abs, values.values()))


def _is_json(metadata: Mapping[str, object]) -> bool:
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
