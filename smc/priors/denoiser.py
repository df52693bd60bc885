"""A small trained prior for vectors: a residual MLP that predicts v, in standardised coordinates.

    x_t = √ᾱ_t · x0 + √(1-ᾱ_t) · eps                what the network sees
    v   = √ᾱ_t · eps - √(1-ᾱ_t) · x0                what it predicts
    x0  = √ᾱ_t · x_t - √(1-ᾱ_t) · v                 so these follow, exactly and at every noise level
    eps = √(1-ᾱ_t) · x_t + √ᾱ_t · v

v-prediction is due to Salimans and Ho 2022 (arXiv 2202.00512). Unlike eps it says something at the noisiest
level, where the chain starts from pure noise; unlike x0 it does so at the cleanest.

Notation (code → paper):  alpha_bar → ᾱ_t, their α_t²;  v → v̂(x_t);  t → noise level, 0 … 999.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from smc.errors import PriorError
from smc.noise import normal
from smc.prior import Denoised, with_copy
from smc.schedule import (
    GaussianKernel,
    Spacing,
    Steps,
    alpha_bar,
    check_eta,
    cosine_alpha_bars,
    ddim_kernel,
    trailing_steps,
)

N_TRAIN = 1000
"""Noise levels of the table the network is trained on."""
ALPHA_BARS = cosine_alpha_bars(N_TRAIN)
FORMAT = "bbo-denoiser"
FORMAT_VERSION = 1
_N_FREQUENCIES = 32


# ---------------------------------------------------------------- network
class ResidualMLP(nn.Module):
    """Residual MLP on vectors of d numbers; the noise level scales and shifts what enters every block.

    At d = 18, width 128 and 4 blocks have 0.28 M parameters, width 192 and 4 blocks 0.61 M.
    """

    def __init__(self, d: int, width: int, n_blocks: int) -> None:
        super().__init__()
        self.d, self.width, self.n_blocks = d, width, n_blocks
        self.embed = nn.Linear(2 * _N_FREQUENCIES, width)
        self.enter = nn.Linear(d, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, d)

    @classmethod
    def seeded(cls, d: int, width: int, n_blocks: int, generator: Generator) -> ResidualMLP:
        """Return a network with weights from `generator`: every block is the identity, the answer is 0.

        The global random state is neither read nor written.
        """
        network = cls.unfilled(d, width, n_blocks).to_empty(device="cpu")
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for module in network.modules():
            if isinstance(module, _Block):
                nn.init.zeros_(module.second.weight)
        nn.init.zeros_(network.leave.weight)
        return network

    @classmethod
    def unfilled(cls, d: int, width: int, n_blocks: int) -> ResidualMLP:
        """Return a network that has shapes but no weights yet (on torch's meta device)."""
        with torch.device("meta"):  # elsewhere nn.Linear would draw its weights from the global generator
            return cls(d, width, n_blocks)

    def forward(self, x: Float[Tensor, "n d"], t: Float[Tensor, " #n"]) -> Float[Tensor, "n d"]:
        """Return v̂(x_t) of every row, in the dtype of the weights; t holds noise levels, one a row or one for all."""
        dtype = self.leave.weight.dtype
        time = F.silu(
            self.embed(_waves(t).to(dtype))
        )  # half precision cannot tell one noise level from the next
        h = self.enter(x.to(dtype))
        for block in self.blocks:
            h = block(h, time)
        v: Tensor = self.leave(F.silu(self.norm(h)))
        return v


class _Block(nn.Module):
    """h + W2·silu(W1·(norm(h)·(1 + scale(t)) + shift(t)))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.time = nn.Linear(width, 2 * width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "n w"], time: Float[Tensor, "#n w"]) -> Float[Tensor, "n w"]:
        scale, shift = self.time(time).chunk(2, dim=1)
        out: Tensor = h + self.second(F.silu(self.first(self.norm(h) * (1 + scale) + shift)))
        return out


def _waves(t: Float[Tensor, " n"]) -> Float[Tensor, "n f"]:
    """Return sines and cosines of t with periods from 2π to almost 2π·10⁴, spread geometrically."""
    exponents = torch.arange(_N_FREQUENCIES, dtype=t.dtype, device=t.device) / _N_FREQUENCIES
    angles = t[:, None] * torch.exp(-math.log(1e4) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# ---------------------------------------------------------------- prior
@dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained prior of vectors, run as a DDIM chain (`smc.schedule`) in standardised coordinates.

    Latents have mean 0 and std 1 per coordinate over the training data; designs are in that data's units.
    Network, mean and std are copied and frozen, so nothing that trains on can change a prior.
    """

    network: ResidualMLP = field(repr=False)
    mean: Float[Tensor, " d"]
    """Mean of the training data."""
    std: Float[Tensor, " d"]
    """Standard deviation of the training data, above 0."""
    n_steps: int = 50
    """Steps of the chain, 1 … 1000."""
    eta: float = 1.0
    """Noise of the chain: 1 is ancestral sampling; 0 is deterministic and leaves a tilt nothing to act on."""
    spacing: Spacing = trailing_steps
    """How the chain's steps are spread over the 1000 noise levels."""

    def __post_init__(self) -> None:
        d = self.network.d
        if self.mean.shape != (d,) or self.std.shape != (d,):
            raise PriorError(
                f"a network of {d} inputs needs mean and std of shape ({d},), "
                f"got {tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            )
        if not (self.std > 0).all():
            raise PriorError(f"std must be above 0, got {self.std.tolist()}")
        check_eta(self.eta)
        self.spacing(N_TRAIN, self.n_steps)  # refuses an n_steps outside 1 … 1000
        object.__setattr__(self, "network", copy.deepcopy(self.network).eval().requires_grad_(False))
        object.__setattr__(self, "mean", self.mean.detach().clone())
        object.__setattr__(self, "std", self.std.detach().clone())

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.network.d,)

    @property
    def design_shape(self) -> tuple[int, ...]:
        return (self.network.d,)

    @property
    def steps(self) -> Steps:
        return self.spacing(N_TRAIN, self.n_steps)

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """Draw n latents of pure noise: ᾱ at the first t is below 1e-8."""
        return normal((n, *self.event_shape), self.mean, generator)

    def denoise(self, x: Float[Tensor, "n d"], t: int) -> Denoised:
        """Return the estimates of x0 and eps that v̂(x_t) implies, differentiable in x."""
        level = torch.full((1,), float(t), device=x.device)
        v = self.network(x, level).to(x.dtype)
        signal, noise = math.sqrt(ALPHA_BARS[t]), math.sqrt(1 - ALPHA_BARS[t])
        return Denoised(signal * x - noise * v, noise * x + signal * v, signal, noise)

    def kernel(self, x: Float[Tensor, "n d"], denoised: Denoised, t: int, s: int) -> GaussianKernel:  # noqa: ARG002
        """Return p(x_s | x_t) of DDIM (eqs. 12 and 16); the last step, to clean data, has std 0."""
        return ddim_kernel(ALPHA_BARS, denoised, t, s, self.eta)

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ_t, the share of the variance of x_t that is signal; 1 for clean data."""
        return alpha_bar(ALPHA_BARS, t)

    def decode(self, x0: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return designs in the units of the training data: mean + std·x0."""
        return self.mean + self.std * x0

    def encode(self, designs: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the clean latents of designs, the inverse of `decode`."""
        return (designs - self.mean) / self.std

    def trainable(self) -> tuple[Denoiser, nn.Module]:
        """Return a prior that is the same but for a copy of the network, and that copy, which may learn."""
        return with_copy(self, "network")

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the weights, the scale, the chain and eta."""
        digest = hashlib.sha256(json.dumps([FORMAT_VERSION, self.steps, self.eta]).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str, *, dtype: torch.dtype | None = None) -> Denoiser:
        """Return the prior on another device, its network's weights in `dtype` (None keeps theirs).

        Latents stay float32: with a network in bfloat16 or float16 only what the network computes is coarser.
        """
        network = copy.deepcopy(self.network).to(device=device, dtype=dtype)
        return replace(self, network=network, mean=self.mean.to(device), std=self.std.to(device))

    # ------------------------------------------------------------ files
    def save(self, path: str | Path) -> None:
        """Write weights, scale and the network's shape as one safetensors file, whole or not at all.

        The chain (n_steps, eta) is no part of the file: it is chosen when the prior is loaded.
        """
        network = self.network
        config = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "network": {"d": network.d, "width": network.width, "n_blocks": network.n_blocks},
        }
        unfinished = Path(f"{path}.unfinished")
        try:
            save_file(self._tensors(), unfinished, metadata={"config": json.dumps(config)})
            os.replace(unfinished, path)
        except (OSError, SafetensorError) as e:
            raise PriorError(f"cannot write the prior to {path}: {e}") from e

    @classmethod
    def load(
        cls, path: str | Path, *, n_steps: int = 50, eta: float = 1.0, spacing: Spacing = trailing_steps
    ) -> Denoiser:
        """Read what `save` wrote. Raises PriorError for a missing, torn or foreign file."""
        shape, tensors = _read(Path(path))
        try:
            network = ResidualMLP.unfilled(**shape)
            mean, std = tensors.pop("mean"), tensors.pop("std")
            weights = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
            network.load_state_dict(weights, assign=True)
        except (KeyError, RuntimeError) as e:
            raise PriorError(f"{path} does not hold the tensors of the network it announces: {e}") from e
        return cls(network, mean, std, n_steps, eta, spacing)

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return {"mean": self.mean, "std": self.std, **weights}


def _read(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return the network's shape and all tensors of a file, or say what is wrong with it."""
    if not path.is_file():
        raise PriorError(f"no prior at {path}: expected a .safetensors file written by Denoiser.save")
    try:
        with safe_open(path, framework="pt") as f:
            config = json.loads((f.metadata() or {}).get("config", "{}"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise PriorError(f"cannot read {path}: torn, or not a safetensors file ({e})") from e
    except json.JSONDecodeError as e:
        raise PriorError(f"cannot read {path}: its config is not JSON ({e})") from e
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise PriorError(f"{path} is a safetensors file, but not one written by Denoiser.save")
    if config.get("version") != FORMAT_VERSION:
        raise PriorError(
            f"{path} has format version {config.get('version')}; this program reads version {FORMAT_VERSION}"
        )
    shape = config.get("network")
    if not isinstance(shape, dict) or not _is_shape(shape):
        raise PriorError(f"{path} announces no network: expected d, width and n_blocks above 0, got {shape}")
    return shape, tensors


def _is_shape(shape: dict[str, object]) -> bool:
    has_counts = all(isinstance(count, int) and count >= 1 for count in shape.values())
    return shape.keys() == {"d", "width", "n_blocks"} and has_counts
