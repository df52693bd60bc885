"""The figures of a report, as JSON for plotly.js. The only file that imports plotly.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; marks differ in shape as well.
Text from a ledger or an oracle is escaped here, because plotly.js reads its text as HTML.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from bbo.ledger import Query, QueryState
from bbo.objective import value_of
from bbo.report.numbers import Prediction, belief, number
from oracles.base import Reference

INK = "#1c2430"
MUTED = "#6b7684"
GRID = "#e8ebef"
ACCENT = "#0072b2"
FAILED = "#d55e00"
DOUBTED = "#cc79a7"
BAND = "rgba(0, 114, 178, 0.18)"
BAR = "rgba(0, 114, 178, 0.25)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_ORIGINS = {
    "prior": ("drawn from the prior", MUTED, "circle-open"),
    "target": ("drawn from the target", ACCENT, "circle"),
    "elsewhere": ("of another origin", "#009e73", "diamond"),
}
"""Where a design came from → its label, colour and mark."""
_HOVER_WIDTH, _HOVER_LENGTH = 60, 300


def plotly_script() -> str:
    """Return plotly.js itself."""
    script: str = get_plotlyjs()
    return script


# ------------------------------------------------------------------- every query
_UNKNOWN = (QueryState.IN_DOUBT, QueryState.ABANDONED)


def progress_figure(
    queries: Sequence[Query], objective: str, budget: int, reference: Reference | None
) -> str:
    """Return every paid query and the best value so far, against the spent budget."""
    figure = go.Figure()
    place = {query.id: number for number, query in enumerate(queries, start=1)}
    done = [q for q in queries if q.state is QueryState.DONE]
    for origin, (label, colour, symbol) in _ORIGINS.items():
        if chosen := [q for q in done if _origin(q) == origin]:
            figure.add_trace(_dots(chosen, place, objective, label, colour, symbol))
    if done:
        figure.add_trace(_best_so_far(queries, place, objective))
    floor = _floor(done, objective)
    for state, label, colour in (
        (QueryState.FAILED, "failed", FAILED),
        (QueryState.IN_DOUBT, "in doubt", DOUBTED),
        (QueryState.ABANDONED, "abandoned", DOUBTED),
    ):
        if chosen := [q for q in queries if q.state is state]:
            figure.add_trace(_ticks(chosen, place, label, colour, floor))
    right = 1.01 * budget + 1
    if reference is not None:
        figure.add_trace(_level(reference, right))
    _style(figure)
    figure.update_xaxes(title_text="queries spent", range=[0, right])
    figure.update_yaxes(title_text=_text(objective), showticklabels=bool(done))
    return _json(figure)


def _dots(
    queries: Sequence[Query],
    place: Mapping[int, int],
    objective: str,
    label: str,
    colour: str,
    symbol: str,
) -> go.Scatter:
    return go.Scatter(
        x=[place[q.id] for q in queries],
        y=[value_of(q, objective) for q in queries],
        mode="markers",
        name=label,
        marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.75},
        hovertext=[_hover(q, number(value_of(q, objective))) for q in queries],
        hoverinfo="text",
    )


def _best_so_far(queries: Sequence[Query], place: Mapping[int, int], objective: str) -> go.Scatter:
    paid = [q for q in queries if q.evaluation is not None or q.state in _UNKNOWN]
    best = np.fmax.accumulate([value_of(q, objective) for q in paid])
    return go.Scatter(
        x=[place[q.id] for q in paid],
        y=[None if np.isnan(value) else float(value) for value in best],
        mode="lines",
        name="best so far",
        line={"color": INK, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )


def _level(reference: Reference, right: float) -> go.Scatter:
    return go.Scatter(
        x=[0, right],
        y=[reference.value] * 2,
        mode="lines",
        name=f"best of the data, {number(reference.value)} ({_text(reference.label)})",
        line={"color": INK, "width": 1, "dash": "dash"},
        hoverinfo="skip",
    )


def _ticks(
    queries: Sequence[Query], place: Mapping[int, int], label: str, colour: str, floor: float
) -> go.Scatter:
    """Return queries without a value as ticks on the baseline."""
    reasons = ["never answered" if q.evaluation is None else q.evaluation.error or "" for q in queries]
    return go.Scatter(
        x=[place[q.id] for q in queries],
        y=[floor] * len(queries),
        mode="markers",
        name=label,
        marker={"color": colour, "symbol": "line-ns-open", "size": 11, "line": {"width": 2}},
        hovertext=[_hover(q, f"{label}: {reason}") for q, reason in zip(queries, reasons, strict=True)],
        hoverinfo="text",
    )


def _floor(done: Sequence[Query], objective: str) -> float:
    """Return where the baseline lies: clear below the lowest value."""
    values = [value_of(q, objective) for q in done] or [0.0]
    return min(values) - 0.08 * ((max(values) - min(values)) or 1.0)


def _origin(query: Query) -> str:
    origin = query.provenance.get("from")
    return origin if isinstance(origin, str) and origin in _ORIGINS else "elsewhere"


# ------------------------------------------------------------------- predictions
def prediction_figure(predictions: Sequence[Prediction], objective: str) -> str:
    """Return what was predicted, mean ± 2 std, against what came, and where both are equal."""
    observed = [p.observed for p in predictions]
    means = [p.mean for p in predictions]
    ends = [min(observed + means), max(observed + means)]
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": INK, "width": 1, "dash": "dash"},
            name="predicted = observed",
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=observed,
            y=means,
            error_y={"array": [2 * p.std for p in predictions], "color": BAR, "thickness": 1.2, "width": 0},
            mode="markers",
            marker={"color": ACCENT, "size": 6, "opacity": 0.75},
            name="mean ± 2 std",
            hovertext=[_hover(p.query, f"observed {number(p.observed)}") for p in predictions],
            hoverinfo="text",
        )
    )
    _style(figure)
    figure.update_xaxes(title_text=f"observed {_text(objective)}")
    figure.update_yaxes(title_text=f"predicted {_text(objective)}")
    return _json(figure)


# ------------------------------------------------------------------- sampler
def sampler_figure(
    ess_share: Float[np.ndarray, "steps islands"], lam: Float[np.ndarray, "steps islands"]
) -> str:
    """Return effective sample size and tempering at every step of a round: median and band over islands."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, (values, title) in enumerate(((ess_share, "ESS share"), (lam, "tempering λ")), start=1):
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9], axis=1).tolist()
        steps = list(range(1, len(values) + 1))
        figure.add_trace(
            go.Scatter(
                x=steps + steps[::-1], y=high + low[::-1], fill="toself", fillcolor=BAND, line={"width": 0},
                name="10 to 90 % of the islands", hoverinfo="skip", showlegend=row == 1,
            ),
            row=row, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=steps, y=median, mode="lines", line={"color": ACCENT, "width": 2}, name="median",
                showlegend=row == 1, hovertemplate=f"step %{{x}}<br>{title} %{{y:.3f}}<extra></extra>",
            ),
            row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(title_text=title, range=[-0.03, 1.05], row=row, col=1)
    _style(figure)
    figure.update_xaxes(title_text="denoising step", row=2, col=1)
    return _json(figure)


# ------------------------------------------------------------------- common to all
def _style(figure: go.Figure) -> None:
    """Dress a figure for the report: white ground, thin grid, the legend above. The page decides its size."""
    figure.update_layout(
        template=go.layout.Template(),
        margin={"l": 64, "r": 16, "t": 44, "b": 56},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"bgcolor": "white", "bordercolor": GRID, "font": {"color": INK}, "align": "left"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        showlegend=True,
    )
    title = {"font": {"size": 13, "color": MUTED}, "standoff": 10}
    quiet = {"gridcolor": GRID, "zeroline": False, "ticks": "", "automargin": True, "title": title}
    figure.update_xaxes(**quiet, linecolor="#b8c0ca", showline=True)
    figure.update_yaxes(**quiet)


def _hover(query: Query, said: str) -> str:
    lines = [f"query {query.id}, round {query.round}", *textwrap.wrap(said[:_HOVER_LENGTH], _HOVER_WIDTH)]
    if query.predicted_mean is not None:
        lines.append(f"predicted {belief(query.predicted_mean, query.predicted_std)}")
    return "<br>".join(_text(line) for line in lines)


def _text(foreign: str) -> str:
    """Return text that plotly.js shows as it is; it knows no entity for quotes."""
    return escape(foreign, quote=False)


def _json(figure: go.Figure) -> str:
    told: str = figure.to_json()
    return told
