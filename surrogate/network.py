"""Batched multilayer perceptrons: s networks of one shape, evaluated and trained together.

One `baddbmm` a layer for all members is several times quicker than s small products, and the members never
interact: row i of every tensor belongs to member i alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import silu


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron for each of s members, SiLU between layers, evaluated together."""

    weights: tuple[Float[Tensor, "s _ _"], ...]
    """Of each layer: members, inputs, outputs."""
    biases: tuple[Float[Tensor, "s 1 _"], ...]

    @property
    def n_members(self) -> int:
        """How many networks these are."""
        return len(self.biases[0])

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors themselves, not copies: weights, then biases."""
        return (*self.weights, *self.biases)

    def __call__(self, Z: Float[Tensor, "n d"]) -> Float[Tensor, "s n o"]:
        """Return the outputs of every member at every row of Z, in the dtype of Z."""
        h = Z.expand(self.n_members, *Z.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias.to(Z), silu(h) if layer else h, weight.to(Z))
        return h

    def hidden(self, Z: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Return the activations of all hidden layers of all members, side by side, in the dtype of Z."""
        h, layers = Z.expand(self.n_members, *Z.shape), []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = silu(torch.baddbmm(bias.to(Z), h, weight.to(Z)))
            layers.append(h)
        return torch.cat(layers, dim=2).transpose(0, 1).flatten(1)

    def copy(self) -> Network:
        """Return a network with tensors of its own."""
        return Network(
            tuple(w.detach().clone() for w in self.weights), tuple(b.detach().clone() for b in self.biases)
        )


def random_network(
    n_members: int, sizes: Sequence[int], output_gain: float, generator: Generator, device: torch.device
) -> Network:
    """Return untrained members with layers of these sizes; their outputs have a std near `output_gain`."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(n_members, *shape, generator=generator, device=device)

    pairs = list(pairwise(sizes))
    gains = [1.0] + [math.sqrt(2)] * (len(pairs) - 2) + [output_gain]  # SiLU about halves the second moment
    return Network(
        tuple(gain / math.sqrt(a) * normal(a, b) for gain, (a, b) in zip(gains, pairs, strict=True)),
        (*(normal(1, b) for _, b in pairs[:-1]), torch.zeros(n_members, 1, sizes[-1], device=device)),
    )
