"""Where the published code of DAS departs from what its paper means, one switch a fault.

Seen in krafton-ai/DAS at commit 2f4b223; each field names the file and the function. Left out is what changes no design
here: the estimate of log Z, traces that share memory, unseeded random numbers, the handling of rewards that are NaN
(a surrogate's never are), images that are denormalised twice (a design of ours is encoded once), and dropout, which is
off from the second epoch on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Faults:
    """Faults that are in force; none by default."""

    is_affine: bool = False
    """The "MLP" has no activations between its layers: an affine function (`aesthetic_scorer.py`, MLPDiff)."""
    forgets_newest: bool = False
    """The newest tenth of the data is never trained on (`online/dataset.py`, train_MLP and train_bootstrap)."""
    keeps_last_step: bool = False
    """The best checkpoint is a reference to weights that go on training, so the last is kept (same functions)."""
    averages_covariance: bool = False
    """UCB's bonus divides the features' scatter by n, so that it never shrinks (`online/dataset.py`, cov)."""
    drops_failures: bool = False
    """Designs without outcome are left out, and nothing is learnt of them (`online/dataset.py`, update)."""
    misplaces_twists: bool = False
    """Resampling leaves twists and gradients where they were: survivors continue with those of the particles whose
    places they took (`pipeline_using_SMC.py`)."""
    weighs_noiseless_step: bool = False
    """The step without noise is weighed by 0/0, which is made -2e6 for every particle: in float32 that rounds weights
    to 1/8 nat. Particles are resampled before it as before any other (`pipeline_using_SMC.py`). Of Stable Diffusion's
    own steps, which are offset by one, the last keeps a little noise; every chain here ends without."""
    takes_heaviest: bool = False
    """The heaviest particle is returned instead of one drawn by weight (`pipeline_using_SMC.py`)."""

    @property
    def are_in_sampler(self) -> bool:
        """Whether the sampler itself differs from the correct one."""
        return self.misplaces_twists or self.weighs_noiseless_step


PUBLISHED = Faults(**{field.name: True for field in fields(Faults)})
"""All of them, as published."""
