"""Prompts as token ids."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from oracles.errors import OracleError


def check_prompts(prompts: Sequence[str], n: int) -> None:
    """Raise OracleError unless there is one prompt for each of n images."""
    if isinstance(prompts, str):
        raise OracleError(
            f"expected one prompt an image, got the single text {prompts!r:.80}; pass [prompt] * n"
        )
    if len(prompts) != n:
        raise OracleError(f"expected one prompt an image, got {len(prompts)} prompts for {n} images")


def tokenized(tokenizer: Any, prompt: str, limit: int) -> Mapping[str, Tensor]:
    """Return the ids and the mask of a prompt of at most `limit` tokens, as tensors with one row, padded to the limit.

    Warns of what is cut from a longer one.
    """
    with _ONE_AT_A_TIME:
        ids = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        read = tokenizer(
            [prompt], padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
    if len(ids) > limit:
        # The last token ends the text and stays.
        lost = tokenizer.decode(ids[limit - 1 : -1])
        warnings.warn(
            f"the prompt has {len(ids)} tokens and the network reads {limit}: not read is {lost!r:.300}",
            stacklevel=2,
        )
    return read  # type: ignore[no-any-return]


_ONE_AT_A_TIME = threading.Lock()
"""A tokenizer of transformers keeps the settings of its last call, so another thread's call would change this one."""
