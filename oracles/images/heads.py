"""Heads on features: one layer, or a stack of layers without activations, which is one layer all the same.

W_k (… (W_1 x + b_1) …) + b_k  =  w·x + b
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from oracles.errors import OracleError
from oracles.images.loading import tensors


def linear_head(path: Path, n_features: int) -> tuple[Float[Tensor, " d"], Float[Tensor, ""]]:
    """Return (w, b) of the head on n features in a safetensors file, in float64.

    Raises OracleError when the file is missing or foreign, or holds no such head.
    """
    weight, bias = collapsed(tensors(path), path)
    if len(weight) != n_features:
        raise OracleError(f"expected a head on {n_features} features in {path}, got one on {len(weight)}")
    return weight, bias


def collapsed(found: Mapping[str, Tensor], path: Path) -> tuple[Float[Tensor, " d"], Float[Tensor, ""]]:
    """Return (w, b) of the head that some tensors are, in float64.

    found: `weight` and `bias`, or several such as `layers.0.weight` and `layers.7.bias`, applied in the order of their
        numbers.
    path: where they are from.

    Raises OracleError for tensors that are no stack of linear layers which ends in one number.
    """
    layers = _layers(found, path)
    came = [tuple(weight.shape) for weight, _ in layers]
    sizes = [came[0][-1] if came[0] else 0, *(bias.numel() for _, bias in layers)]
    expected = list(zip(sizes[1:], sizes[:-1], strict=True))
    if came != expected or sizes[-1] != 1 or any(bias.ndim != 1 for _, bias in layers):
        raise OracleError(
            f"expected a head in {path}, linear layers that end in 1 number, got layers of shape (out, in) "
            f"{', '.join(map(str, came))}"
        )
    (weight, bias), *rest = layers
    for later, offset in rest:
        weight, bias = later @ weight, later @ bias + offset
    return weight[0], bias[0]


def _layers(found: Mapping[str, Tensor], path: Path) -> list[tuple[Tensor, Tensor]]:
    """Return the layers' weights and biases in float64, first to last."""
    stems = sorted({name.removesuffix("weight").removesuffix("bias") for name in found}, key=_number)
    if not found or {f"{stem}{part}" for stem in stems for part in ("weight", "bias")} != set(found):
        raise OracleError(
            f"expected a head in {path}, the weight and the bias of each layer, got "
            f"{', '.join(sorted(found)) or 'nothing'}"
        )
    return [(found[f"{stem}weight"].double(), found[f"{stem}bias"].double()) for stem in stems]


def _number(stem: str) -> int:
    """Return the layer's place: 7 of "layers.7."."""
    place = stem.rstrip(".").rpartition(".")[2]
    return int(place) if place.isdigit() else -1
