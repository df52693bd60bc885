"""The curves of a comparison's page, as JSON for plotly.js."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from bbo.report.figures import FONT, GRID, INK, MUTED
from experiments.compare.report.panels import Panel, span
from experiments.compare.report.styles import Style

if TYPE_CHECKING:
    import plotly.graph_objects as go


def curves(panels: Sequence[Panel], styles: Mapping[str, Style], ours: str) -> str:
    """Return the panels beside each other, with one legend.

    Bands are shown of ours and of the best other method; a button shows all of them. A click on a name hides the
    method, a double click leaves nothing but it.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.07)
    is_band, is_emphasised = [], []
    for column, panel in enumerate(panels, start=1):
        emphasised = panel.emphasised(ours)
        for method in (name for name in styles if name in panel.bands):
            place, style = {"row": 1, "col": column}, styles[method]
            figure.add_trace(_band(panel, method, style, method in emphasised), **place)
            figure.add_trace(_line(panel, method, style, column == 1), **place)
            is_band += [True, False]
            is_emphasised += [method in emphasised, True]
        if panel.optimum is not None:
            figure.add_hline(
                panel.optimum, row=1, col=column, line={"color": MUTED, "width": 1, "dash": "dot"}
            )
        figure.update_yaxes(title_text=panel.y_title, range=span(panel, emphasised), row=1, col=column)
        figure.update_xaxes(
            title_text="queries", range=[0, panel.x[-1]], tickvals=panel.ticks, row=1, col=column
        )
    _dress(figure)
    figure.update_layout(updatemenus=[_buttons(is_band, is_emphasised)])
    told: str = figure.to_json()
    return told


def _line(panel: Panel, method: str, style: Style, is_listed: bool) -> go.Scatter:
    import plotly.graph_objects as go

    band, name = panel.bands[method], escape(method, quote=False)  # plotly.js reads its text as HTML
    return go.Scatter(
        x=panel.x,
        y=band.middle.astype(np.float32),
        customdata=np.stack([band.low, band.high], axis=1).astype(np.float32),
        mode="lines",
        name=name,
        legendgroup=method,
        showlegend=is_listed,
        line={"color": style.colour, "dash": style.dash, "width": 3.5 if style.is_ours else 1.6},
        hovertemplate=f"{name}: %{{y:.5g}} [%{{customdata[0]:.5g}}, %{{customdata[1]:.5g}}]<extra>%{{x}}</extra>",
    )


def _band(panel: Panel, method: str, style: Style, is_visible: bool) -> go.Scatter:
    import plotly.graph_objects as go

    band = panel.bands[method]
    is_there = np.isfinite(band.low) & np.isfinite(band.high)
    x, low, high = panel.x[is_there], band.low[is_there], band.high[is_there]
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]).astype(np.float32),
        fill="toself",
        fillcolor=style.band,
        line={"width": 0},
        mode="lines",
        legendgroup=method,
        showlegend=False,
        hoverinfo="skip",
        visible=is_visible,
    )


def _buttons(is_band: Sequence[bool], is_emphasised: Sequence[bool]) -> dict[str, Any]:
    """Return the choice of bands: a click shows those of all methods, or of the emphasised ones."""
    places = [place for place, band in enumerate(is_band) if band]
    some = [is_emphasised[place] for place in places]
    choices = (
        ("bands: ours and the best other", some),
        ("all bands", [True] * len(places)),
        ("none", [False] * len(places)),
    )
    return {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "font": {"size": 12, "color": MUTED},
        "bgcolor": "white",
        "bordercolor": GRID,
        "showactive": True,
        "buttons": [
            {"label": label, "method": "restyle", "args": [{"visible": visible}, places]}
            for label, visible in choices
        ],
    }


def _dress(figure: go.Figure) -> None:
    """Dress a figure as the reports of campaigns are: white ground, thin grid."""
    figure.update_layout(
        template={},
        margin={"l": 56, "r": 16, "t": 44, "b": 52},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"bgcolor": "white", "bordercolor": GRID, "font": {"color": INK}, "align": "left"},
        legend={
            "x": 1.01,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "font": {"size": 12},
            "tracegroupgap": 0,
        },
    )
    title = {"font": {"size": 13, "color": MUTED}, "standoff": 8}
    quiet = {"gridcolor": GRID, "zeroline": False, "ticks": "", "automargin": True, "title": title}
    figure.update_xaxes(**quiet, linecolor="#b8c0ca", showline=True)
    figure.update_yaxes(**quiet)
