"""A chain that may learn, all but its last step.

The last step has no noise: it is no action whose density a policy gradient could raise, and no KL could hold it. So
the pretrained network stays there, and the optimum of  E[r(x0)] - α·Σ_t KL_t  over paths is the tilted prior itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from experiments.tuning.wrapped import Wrapped
from smc.prior import Denoised, Prior


@dataclass(frozen=True, eq=False)
class Policy(Wrapped):
    """The prior inside at the last step, the tuned one before."""

    tuned: Prior

    def denoise(self, x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the clean estimate of x at noise level t, by the one whose step it is."""
        last_t, _ = self.steps[-1]
        return (self.prior if t == last_t else self.tuned).denoise(x, t)

    def fingerprint(self) -> str:
        """Return what changes with either of them."""
        return f"{self.prior.fingerprint()}-{self.tuned.fingerprint()}"
