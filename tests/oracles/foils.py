"""Airfoils to try oracles with."""

import torch
from torch import Tensor


def foils(n: int) -> Tensor:
    """n sound airfoils, from thin and flat to thick and cambered."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    upper = (0.15 + 0.12 * u) * torch.ones(8)
    lower = (-0.12 + 0.05 * u) * torch.ones(8)
    return torch.cat([upper, lower, torch.zeros(n, 1), 0.002 * torch.ones(n, 1)], dim=1)


def crossing() -> Tensor:
    """A sound nose whose upper surface dives under the lower one behind."""
    design = foils(3)[1].clone()
    design[5:8] = -0.2
    return design
