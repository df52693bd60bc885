"""Work in pieces that fit the memory of a device: halved until they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from bbo.errors import ExecutorError

T = TypeVar("T")


def fitting(size: int, work: Callable[[int], T]) -> tuple[T, int]:
    """Return what work comes to, and how many rows at a time it was given: `size`, or half of it, and so on.

    Raises ExecutorError when not even one row fits.
    """
    while True:
        try:
            return work(size), size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise ExecutorError(
                    f"not even one particle fits the memory of the device: {error}"
                ) from error
            size = math.ceil(size / 2)
        torch.cuda.empty_cache()  # the error is gone by now, and with it the tensors it held on to
