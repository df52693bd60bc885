"""In what precision networks compute, what they keep in memory, and what to say when float16 is too small.

Latents, importance weights and everything the sampler does stay float32, whatever the networks use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smc.errors import PriorError


class Dtype(Enum):
    """A floating point format."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def torch(self) -> torch.dtype:
        """Return it as torch's."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.value]


@dataclass(frozen=True)
class Precision:
    """How the networks of a prior compute."""

    weights: Dtype = Dtype.FLOAT32
    """What weights are kept in."""
    autocast: Dtype | None = None
    """What matrix products and convolutions compute in, if not in that: bfloat16 over float32 weights, say."""
    checkpointing: bool = True
    """Whether activations are computed again for the backward pass instead of being kept: a third more time, for a
    fraction of the memory."""
    slicing: bool = False
    """Whether images are decoded one at a time, so that many need no more memory than one."""
    tiling: bool = False
    """Whether images are decoded tile by tile, for big ones; seams are blended, so results differ a little."""
    compile: str | None = None
    """Backend of torch.compile for the denoising network, such as "inductor"; None runs it as it is."""

    def __post_init__(self) -> None:
        if self.autocast is Dtype.FLOAT32:
            raise PriorError("autocast must be bfloat16, float16 or null; float32 is what null means")
        if self.compile is not None and self.compile not in (known := torch.compiler.list_backends(())):
            raise PriorError(
                f"compile must name a backend of torch.compile ({', '.join(known)}), got {self.compile!r}"
            )

    @property
    def told(self) -> Mapping[str, object]:
        """What of it changes results, if only by their last digits, by name."""
        autocast = None if self.autocast is None else self.autocast.value
        return {"weights": self.weights.value, "autocast": autocast, "tiling": self.tiling}

    def prepared(self, network: nn.Module) -> nn.Module:
        """Return the denoising network, frozen and set up; it is changed in place."""
        network.eval().requires_grad_(False)
        _set_checkpointing(network, self.checkpointing)
        self.compile_again(network)
        return network

    def compile_again(self, network: nn.Module) -> None:
        """Compile a network that came from another process, if it is to be compiled at all."""
        if self.compile is not None:
            network.compile(backend=self.compile)

    def prepared_vae(self, vae: Any) -> nn.Module:
        """Return the autoencoder, frozen and set up; it is changed in place."""
        vae.eval().requires_grad_(False)
        _set_checkpointing(vae, self.checkpointing)
        vae.enable_slicing() if self.slicing else vae.disable_slicing()
        vae.enable_tiling() if self.tiling else vae.disable_tiling()
        return vae  # type: ignore[no-any-return]

    def run(
        self, name: str, module: nn.Module, call: Callable[[Tensor], Tensor], x: Float[Tensor, "n *event"]
    ) -> Float[Tensor, "n *out"]:
        """Return what `call`, which runs `module` on x, answers, in the precision of x.

        Raises PriorError where float16 overflows, with the name of the layer in which it does.
        """
        dtype = next(module.parameters()).dtype
        if torch.float16 not in (dtype, None if self.autocast is None else self.autocast.torch):
            return self._cast(call, x, dtype).to(x.dtype)
        output = scaled_back(lambda rows: self._cast(call, rows, dtype), x)
        if not torch.isfinite(output).all() and torch.isfinite(x).all():
            with torch.no_grad():
                where = _first_overflow(module, lambda: self._cast(call, x, dtype))
            raise PriorError(
                f"{name}{where} overflows float16, whose largest number is 65,504; use bfloat16 or float32 weights"
                + (", or an autoencoder that was made for float16" if name == "vae" else "")
            )
        return output

    def _cast(self, call: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
        cast = None if self.autocast is None else torch.autocast(x.device.type, self.autocast.torch)
        with cast or nullcontext():
            return call(x.to(dtype))


# ---------------------------------------------------------------- gradients in float16
def scaled_back(call: Callable[[Tensor], Tensor], x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *out"]:
    """Return what a network in float16 answers, in the type of x, with gradients that do not underflow.

    Gradients of a reward in a pixel may be far below float16's smallest number, 6e-8. So on its way in each row's
    gradient is multiplied by a power of two that brings its largest entry near 1, and on its way out divided by it.
    """
    factors: list[Tensor] = []
    entered: Tensor = _ScaleDown.apply(x, factors)  # type: ignore[no-untyped-call]
    output: Tensor = _ScaleUp.apply(call(entered).to(x.dtype), factors)  # type: ignore[no-untyped-call]
    return output


class _ScaleUp(torch.autograd.Function):
    """The identity, whose gradient's rows are scaled so that their largest entries lie between 1/2 and 1."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, factors: list[Tensor]) -> Tensor:
        ctx.factors = factors
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        largest = grad.flatten(1).abs().amax(1)
        exponent = torch.where(largest > 0, -torch.frexp(largest).exponent, 0).clamp(
            -126, 126
        )  # of normal numbers
        factor = torch.ldexp(torch.ones_like(largest), exponent).view(-1, *[1] * (grad.ndim - 1))
        ctx.factors[:] = [factor]
        return grad * factor, None


class _ScaleDown(torch.autograd.Function):
    """The identity, whose gradient is divided by what `_ScaleUp` multiplied it with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: list[Tensor]) -> Tensor:
        ctx.factors = factors
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.factors
        return grad / factor.view(-1, *[1] * (grad.ndim - 1)), None


# ---------------------------------------------------------------- overflow in float16
def _set_checkpointing(module: Any, is_on: bool) -> None:
    module.enable_gradient_checkpointing() if is_on else module.disable_gradient_checkpointing()


def _first_overflow(module: nn.Module, run: Callable[[], object]) -> str:
    """Return the path of the first layer that answers a finite input with something that is not, as ".path"."""
    found: list[str] = []

    def watch(path: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Any, named: Any, output: Any) -> None:  # noqa: ARG001
            if (
                not found
                and not _is_finite(output)
                and _is_finite(inputs)
                and _is_finite(list(named.values()))
            ):
                found.append(path)

        return hook

    layers = [(path, layer) for path, layer in module.named_modules() if path]
    hooks = [layer.register_forward_hook(watch(path), with_kwargs=True) for path, layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return f".{found[0]}" if found else ""


def _is_finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(torch.isfinite(values).all())
    return all(_is_finite(value) for value in values) if isinstance(values, tuple | list) else True
