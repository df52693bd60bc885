"""Which device a prior and an encoder compute on: whether it is there, and how they get to it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from bbo.errors import ConfigError, ExecutorError

_REASON_LENGTH = 100


def check_name(device: str) -> None:
    """Raise ConfigError for what is no name of a device, whether it is there or not."""
    try:
        is_one = str(torch.device(device)) == device  # an index above 127 would come round to another GPU
    except RuntimeError:
        is_one = False
    if not is_one:
        raise ConfigError(
            f'device must be a device of torch such as "cpu", "cuda" or "cuda:1", got {device!r}'
        )


def check_present(device: str) -> None:
    """Raise ConfigError for what names no device, or one that is not there or computes nothing."""
    check_name(device)
    # What torch raises for a device that it was not built for differs from kind to kind.
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split())[:_REASON_LENGTH]
        raise ConfigError(
            f"the device {device!r} is not there: {reason}; this machine has {', '.join(_present())}"
        ) from error


def moved(part: Any, device: str) -> Any:
    """Return a prior or an encoder on a device; "cpu" returns it as it is.

    A module is copied before it is moved. A prior decides that itself: one of gigabytes moves and is not copied, so it
    is gone from where it was. Raises ExecutorError for what cannot be moved.
    """
    if device == "cpu":
        return part
    if not hasattr(part, "to"):
        raise ExecutorError(
            f"{type(part).__name__} has no method to(device), so it cannot run on {device}; sample on the CPU "
            "(executor.device: cpu, or for Ray gpus_per_worker: 0)"
        )
    if isinstance(part, torch.nn.Module):  # it would move in place, and its owner did not ask for that
        part = copy.deepcopy(part)
    return part.to(device)


def _present() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    kind = "" if accelerator is None else accelerator.type
    return ["cpu", *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]
