"""One step of a chain as fine-tuning sees it: a Gaussian, whose density and divergence have closed forms.

    log p(x_s|x_t) = -‖x_s - mean‖² / (2·std²) + what depends on the chain alone
    KL( p_θ(x_s|x_t) ‖ p(x_s|x_t) ) = ‖mean_θ - mean‖² / (2·std²)        two networks, one chain: the same std

A step without noise, as the last one of every chain is, has neither.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bbo.errors import ConfigError
from smc.prior import Prior
from smc.rows import row_sum
from smc.schedule import GaussianKernel


def gaussian(prior: Prior, x: Float[Tensor, "n *event"], t: int, s: int) -> GaussianKernel:
    """Return p(x_s | x_t) of every row, differentiable in x and in the weights behind it.

    Raises ConfigError for a prior whose steps are no Gaussians.
    """
    return checked(prior.kernel(x, prior.denoise(x, t), t, s))


def checked(kernel: object) -> GaussianKernel:
    """Return a kernel that is Gaussian. Raises ConfigError for any other."""
    if not isinstance(kernel, GaussianKernel):
        raise ConfigError(
            f"fine-tuning needs the density of each step, and knows it for a GaussianKernel; got a "
            f"{type(kernel).__name__}. Use a prior with Gaussian steps, or a method that leaves the prior as it is"
        )
    return kernel


def log_density(kernel: GaussianKernel, moved: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """Return log N(moved; mean, std²·I) of each row without the constant; the std must be above 0."""
    return -row_sum((moved - kernel.mean).square()) / (2 * kernel.std**2)


def kl(kernel: GaussianKernel, reference: GaussianKernel) -> Float[Tensor, " n"]:
    """Return KL(kernel ‖ reference) of each row in nats; both have the same std, which must be above 0."""
    return row_sum((kernel.mean - reference.mean).square()) / (2 * kernel.std**2)
