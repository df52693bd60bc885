"""Arithmetic of rows, whatever the shape of an event.

A matrix times a vector of ones sums short rows four times as fast as a reduction does on a CPU, where events are often
a few numbers long.
"""

from __future__ import annotations

from jaxtyping import Float, Int, Shaped
from torch import Tensor


def per_row(numbers: Shaped[Tensor, " n"], like: Tensor) -> Shaped[Tensor, "n *ones"]:
    """Return one number a row, shaped to be multiplied with rows of any shape."""
    return numbers.view(-1, *[1] * (like.dim() - 1))


def row_sum(rows: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """Return the sum of each row: finite only if every number in it is."""
    flat = rows.flatten(1)
    return flat @ flat.new_ones(flat.shape[1])


def row_dot(a: Float[Tensor, "n *event"], b: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """Return the scalar product of each row of a with the same row of b."""
    return row_sum(a * b)


def overwritten(
    rows: Shaped[Tensor, "n *event"], target: Int[Tensor, " m"], source: Int[Tensor, " m"]
) -> Shaped[Tensor, "n *event"]:
    """Return the rows with each row `target[k]` replaced by what row `source[k]` was; `rows` itself is left alone."""
    return rows.index_copy(0, target, rows.index_select(0, source))
