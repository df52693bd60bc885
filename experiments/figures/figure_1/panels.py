"""The picture: a row a problem, a column a method, the exact target in grey behind every panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from experiments.figures.figure_1.measure import TARGET, Outcome, Outcomes
from experiments.figures.figure_1.table import distance, number

COLUMNS = {
    "pretrained": "Pretrained",
    TARGET: "Exact target",
    "rl": "RL with KL",
    "backpropagation": "Backpropagation\nwith KL",
    "guidance_unscaled": "Guidance\nas published",
    "guidance_scaled": "Guidance scaled\nby variance",
    "ours": "Ours (SMC)",
}
BASELINE, OURS, TRUTH = "#0072B2", "#D55E00", "#4D4D4D"
"""Okabe and Ito's blue and vermillion, which the colour-blind tell apart."""
SHADES = ("#F0F0F0", "#DCDCDC", "#C2C2C2")
MASSES = (0.95, 0.75, 0.4)
"""Shares of the target inside the three grey regions."""
CAPTION = (
    "Grey: the exact target, regions of 95, 75 and 40 % of its mass.   EMD: earth mover's distance to it, mean ± "
    "standard error over repeats;\nthe target's own, drawn anew, is the floor.   "
    "Lowest row: the reward, the target's in grey."
)
_N_SHOWN = 1000
_RASTER_DPI = 200


@dataclass(frozen=True)
class View:
    """One row: two coordinates of a problem's points."""

    problem: str
    title: str
    across: int
    up: int
    limits: tuple[tuple[float, float], tuple[float, float]]


VIEWS = (
    View("mixture_1", "Mixture 1", 0, 1, ((-6.5, 6.5), (-6.5, 6.5))),
    View("mixture_2", "Mixture 2", 0, 1, ((-6.5, 6.5), (-6.5, 6.5))),
    View("swiss_roll", "Swiss roll\nfrom above", 0, 1, ((-7.8, 7.8), (-7.8, 7.8))),
    View("swiss_roll", "Swiss roll\nfrom the side", 0, 2, ((-7.8, 7.8), (-4.5, 4.5))),
)


def save(outcomes: Outcomes, folder: Path) -> None:
    """Write figure_1.png and figure_1.pdf into `folder`."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "pdf.fonttype": 42}):
        figure = draw(outcomes)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # found once: it costs more than both pictures
        figure.savefig(folder / "figure_1.png", dpi=120, bbox_inches="tight")
        figure.savefig(folder / "figure_1.pdf", dpi=_RASTER_DPI, bbox_inches="tight")
    with Image.open(
        folder / "figure_1.png"
    ) as picture:  # a palette: a third of the bytes, and no eye sees it
        picture.convert("RGB").quantize(96).save(folder / "figure_1.png", optimize=True)


def draw(outcomes: Outcomes) -> Figure:
    """Return the whole figure."""
    figure = Figure(figsize=(13.2, 10.4), layout="compressed")
    heights = [1.0, 1.0, 1.0, 0.58, 0.5]
    axes = figure.subplots(len(VIEWS) + 1, len(COLUMNS), height_ratios=heights, squeeze=False)
    for row, view in zip(axes, VIEWS, strict=False):
        _draw_row(row, view, outcomes[view.problem])
    _draw_rewards(axes[-1], outcomes["swiss_roll"])
    figure.supxlabel(CAPTION, fontsize=9, color="#4D4D4D")
    for ax, (name, title) in zip(axes[0], COLUMNS.items(), strict=True):
        weight = "bold" if name == "ours" else "normal"
        ax.set_title(title, fontsize=11, fontweight=weight, color=OURS if name == "ours" else "black")
    return figure


def _draw_row(row: Sequence[Axes], view: View, of_method: dict[str, Outcome]) -> None:
    """Fill the panels of one view."""
    truth = of_method[TARGET].points.flatten(0, 1).double().numpy()[:, [view.across, view.up]]
    for ax, name in zip(row, COLUMNS, strict=True):
        outcome = of_method[name]
        points = outcome.points[0].double().numpy()[:, [view.across, view.up]]
        _draw_truth(ax, truth, view)
        shown = points[:_N_SHOWN]
        ax.scatter(
            shown[:, 0], shown[:, 1], s=3.5, lw=0, alpha=0.55, color=_colour(name), rasterized=True, zorder=2
        )
        (left, right), (low, high) = view.limits
        ax.set(xlim=(left, right), ylim=(low, high), aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_color("#B0B0B0")
        is_outside = (np.abs(points) > np.array([right, high])).any(1)
        if is_outside.mean() > 0.02:
            ax.text(
                0.5, 0.955, f"{is_outside.mean():.0%} outside", transform=ax.transAxes, ha="center", va="top",
                fontsize=8.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}, zorder=3,
            )  # fmt: skip
        if view.up == 1:
            ax.set_xlabel(_said(name, outcome), fontsize=9, linespacing=1.35)
    row[0].set_ylabel(view.title, fontsize=11)


def _draw_truth(ax: Axes, truth: NDArray[np.float64], view: View) -> None:
    """Shade the smallest regions that hold given shares of the target."""
    (left, right), (low, high) = view.limits
    edges = np.linspace(left, right, 120), np.linspace(low, high, 120)
    counts, _, _ = np.histogram2d(truth[:, 0], truth[:, 1], bins=edges)
    density = gaussian_filter(counts, 2.2)
    ordered = np.sort(density.ravel())[::-1]
    inside = np.cumsum(ordered) / ordered.sum()
    levels = [float(ordered[np.searchsorted(inside, mass)]) for mass in MASSES]
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    ax.contourf(*middles, density.T, levels=[*levels, float(density.max()) * 1.01], colors=SHADES, zorder=1)


def _draw_rewards(row: Sequence[Axes], of_method: dict[str, Outcome]) -> None:
    """Draw the distribution of the reward under each method over that under the target."""
    bins = np.linspace(-9, 0, 46).tolist()
    truth = of_method[TARGET].rewards.flatten().numpy()
    top = np.histogram(truth, bins, density=True)[0].max() * 1.35
    for ax, name in zip(row, COLUMNS, strict=True):
        rewards = of_method[name].rewards.flatten().numpy()
        ax.hist(truth, bins, density=True, color=SHADES[2], zorder=1)
        weights = np.full(len(rewards), 1 / (len(rewards) * (bins[1] - bins[0])))
        ax.hist(rewards, bins, weights=weights, histtype="step", color=_colour(name), lw=1.4, zorder=2)
        ax.set(xlim=(-9, 0), ylim=(0, top), yticks=[], xticks=[-8, -4, 0])
        ax.tick_params(labelsize=8, color="#B0B0B0")
        ax.spines[["top", "left", "right"]].set_visible(False)
        ax.set_xlabel(_typeset(f"median {number(float(np.median(rewards)))}"), fontsize=9)
    row[0].set_ylabel("Swiss roll\nreward", fontsize=11)


def _said(name: str, outcome: Outcome) -> str:
    floor = " (floor)" if name == TARGET else ""
    return _typeset(f"reward {number(outcome.reward)}\nEMD {distance(outcome)}{floor}")


def _typeset(text: str) -> str:
    """Return the text with true minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def _colour(name: str) -> str:
    return {"ours": OURS, TARGET: TRUTH}.get(name, BASELINE)
