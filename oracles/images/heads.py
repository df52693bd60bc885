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
    """Return (w, b) of a head on n features, in float64.

    path: a safetensors file with `weight` and `bias`, or with several, such as `layers.0.weight` and
        `layers.7.bias`, applied in the order of their numbers.

    Raises OracleError when the file is missing or foreign, or holds no head from n features to one number.
    """
    layers = _layers(tensors(path), path)
    sizes = [n_features, *(bias.numel() for _, bias in layers)]
    expected = list(zip(sizes[1:], sizes[:-1], strict=True))
    came = [tuple(weight.shape) for weight, _ in layers]
    if came != expected or sizes[-1] != 1 or any(bias.ndim != 1 for _, bias in layers):
        raise OracleError(
            f"expected a head from {n_features} features to 1 number in {path}, got layers of shape (out, in) "
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
