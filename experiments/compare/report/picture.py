"""The picture of a comparison, as PNG and PDF: a panel a problem, and one for all together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.compare.report.panels import Panel, span
from experiments.compare.report.styles import Style, by_family

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.lines import Line2D

INK, MUTED, GRID = "#1c2430", "#6b7684", "#e8ebef"
WIDTH = 10.5
"""Inches. Shown 800 pixels wide, a letter of 10 points is as high as one of 10 pixels."""
_LETTERS, _LETTERS_A_ROW = 6, 135
"""How many letters of the legend a sample of a line is as wide as, and how many are as wide as the picture."""
_DASHES: Mapping[str, Any] = {
    "solid": (0, None),
    "dash": (0, (5, 2)),
    "dot": (0, (1.2, 1.6)),
    "dashdot": (0, (6, 2, 1.2, 2)),
    "longdash": (0, (9, 2.5)),
    "longdashdot": (0, (9, 2, 1.2, 2)),
}


def draw(panels: Sequence[Panel], styles: Mapping[str, Style], ours: str, folder: Path) -> list[Path]:
    """Write curves.png and curves.pdf of at least one panel into a folder, and return their paths."""
    import matplotlib
    from matplotlib.figure import Figure

    n_columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    n_rows = math.ceil(len(panels) / n_columns)
    height = n_rows * {1: 4.4, 2: 3.4}.get(n_columns, 2.75)
    members = by_family(styles)
    legend = 0.35 + 0.19 * max(map(len, members.values()))
    look: Any = {
        "font.size": 10,
        "axes.edgecolor": "#b8c0ca",
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "pdf.fonttype": 42,
        "text.parse_math": False,  # a name is a name
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(WIDTH, height + legend), layout="constrained")
        subfigures: Any = figure.subfigures(2, 1, height_ratios=[height, legend])
        above, below = subfigures
        axes = above.subplots(n_rows, n_columns, squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place < len(panels):
                _panel(axis, panels[place], styles, ours, is_low=place + n_columns >= len(panels))
            else:
                axis.set_axis_off()
        _legend(below, styles)
        png, pdf = folder / "curves.png", folder / "curves.pdf"
        figure.savefig(png, dpi=160)
        figure.savefig(pdf, metadata={"CreationDate": None})  # the same curves are the same file
    return [png, pdf]


def _panel(axes: Axes, panel: Panel, styles: Mapping[str, Style], ours: str, *, is_low: bool) -> None:
    emphasised = panel.emphasised(ours)
    for method in (name for name in styles if name in panel.bands):
        band, style = panel.bands[method], styles[method]
        front = 5 if style.is_ours else 4 if method in emphasised else 3
        width = 2.8 if style.is_ours else 1.7 if method in emphasised else 1.0
        if method in emphasised:
            alpha = 0.2 if style.is_ours else 0.16
            axes.fill_between(
                panel.x, band.low, band.high, color=style.colour, alpha=alpha, linewidth=0, zorder=2
            )
        axes.plot(
            panel.x,
            band.middle,
            color=style.colour,
            linestyle=_DASHES[style.dash],
            linewidth=width,
            zorder=front,
        )
    if panel.optimum is not None:
        axes.axhline(panel.optimum, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=2)
    axes.set_title(panel.title.replace("_", " "), color=INK, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlim(0, panel.x[-1])
    if panel.ticks is not None:
        axes.set_xticks(panel.ticks)
    if (limits := span(panel, emphasised)) is not None:
        axes.set_ylim(*limits)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no outcome", transform=axes.transAxes, ha="center", color=MUTED)
    axes.set_ylabel(panel.y_title)
    if is_low:
        axes.set_xlabel("queries")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: SubFigure, styles: Mapping[str, Style]) -> None:
    """List the methods, a column a family, each as wide as its words."""
    members = by_family(styles)
    widths = [
        max(_LETTERS + max(map(len, methods)), 1.25 * len(family.title)) + 1
        for family, methods in members.items()
    ]
    left = 0.5
    for (family, methods), width in zip(members.items(), widths, strict=True):
        figure.legend(
            [_sample(styles[method]) for method in methods],
            methods,
            title=family.title,
            title_fontproperties={"weight": "bold", "size": 9},
            loc="upper left",
            bbox_to_anchor=(left / max(sum(widths), _LETTERS_A_ROW), 1.0),
            alignment="left",
            frameon=False,
            fontsize=9,
            handlelength=2.6,
            borderaxespad=0,
            labelspacing=0.3,
        )
        left += width


def _sample(style: Style) -> Line2D:
    from matplotlib.lines import Line2D

    width = 2.8 if style.is_ours else 1.5
    return Line2D([], [], color=style.colour, linestyle=_DASHES[style.dash], linewidth=width)
