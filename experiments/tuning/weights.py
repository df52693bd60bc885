"""Which weights learn, of any prior.

full      all weights of the prior's network
lora      low-rank corrections of its linear and convolutional layers (Hu et al. 2021, arXiv 2106.09685), by peft
adapter   a small network beside the prior (`adapter.py`): for priors without a network, too
auto      full where the prior has a network, adapter where it has none

All of them start as the pretrained chain, to the bit. What is drawn for the start is the same in every campaign: what
tells campaigns apart is their noise and their data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Generator, nn

from bbo.errors import ConfigError
from experiments.tuning.adapter import Adapted
from smc.prior import Prior, Prompted, Trainable

Weights = Literal["auto", "full", "lora", "adapter"]
RANK = 4
"""Of the low-rank corrections, as in the code published with SEIKO, which took the default of diffusers."""
_START = 0
"""Seed of what is drawn for the start."""


def check_weights(weights: str) -> None:
    """Raise ConfigError for a word that names no weights."""
    if weights not in get_args(Weights):
        raise ConfigError(f"weights must be one of {', '.join(get_args(Weights))}, got {weights!r}")


def learning(prior: Prior, weights: Weights, device: str = "cpu") -> tuple[Prior, nn.Module]:
    """Return a prior that says what `prior` says, and the module behind it that may learn.

    Of the module's parameters those learn that require a gradient; `prior` itself is left as it is. Raises ConfigError
    for weights that the prior has not, and for a prior of several prompts, which have no reward in common.
    """
    if isinstance(prior, Prompted) and len(prior.prompts) > 1:
        raise ConfigError(
            f"fine-tuning follows one prompt, and this prior has {len(prior.prompts)}: give it one, or use a method "
            "that leaves the prior as it is"
        )
    return _MAKERS[weights](prior, device)


def learnable(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def frozen(prior: Prior) -> Prior:
    """Return the prior as it is now: whatever learns later changes nothing of it. `prior` is one of `learning`."""
    kept, network = _with_network(prior, "a copy of what was learnt")
    network.requires_grad_(False)
    return kept


def _with_network(prior: Prior, wanted: str) -> tuple[Prior, nn.Module]:
    if not isinstance(prior, Trainable):
        raise ConfigError(
            f"{wanted} needs a prior with a network, and {type(prior).__name__} has none: use weights adapter, or auto"
        )
    return prior.trainable()


def _full(prior: Prior, device: str) -> tuple[Prior, nn.Module]:  # noqa: ARG001
    return _with_network(prior, "weights full")


def _adapter(prior: Prior, device: str) -> tuple[Prior, nn.Module]:
    adapted = Adapted.of(prior, Generator().manual_seed(_START), device)
    return adapted, adapted.network


def _auto(prior: Prior, device: str) -> tuple[Prior, nn.Module]:
    return (_full if isinstance(prior, Trainable) else _adapter)(prior, device)


def _lora(prior: Prior, device: str) -> tuple[Prior, nn.Module]:  # noqa: ARG001
    from peft import LoraConfig, inject_adapter_in_model

    tuned, network = _with_network(prior, "weights lora")
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ConfigError(
            f"weights lora needs linear or convolutional layers, and {type(network).__name__} has none: use full"
        )
    network.requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator, on the CPU
        torch.default_generator.manual_seed(_START)
        inject_adapter_in_model(config, network)
    return tuned, network.eval()


_MAKERS: Mapping[str, Callable[[Prior, str], tuple[Prior, nn.Module]]] = {
    "auto": _auto,
    "full": _full,
    "lora": _lora,
    "adapter": _adapter,
}
