"""bbo: black-box online optimisation with diffusion models.

    from bbo import Campaign

Names are loaded when they are first used, so that `import bbo` and `bbo --help` cost no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bbo.campaign import Campaign as Campaign
    from bbo.report import write_report as write_report
    from bbo.steering import SteeredPrior as SteeredPrior

_HOMES = {"Campaign": "bbo.campaign", "SteeredPrior": "bbo.steering", "write_report": "bbo.report"}

__all__ = ["Campaign", "SteeredPrior", "write_report"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bbo' has no attribute {name!r}")
