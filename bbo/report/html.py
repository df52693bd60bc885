"""The pieces of a report's page. Text goes in, HTML comes out: whatever is passed as text is escaped here."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from html import escape


def section(title: str, about: str, content: str = "") -> str:
    """Return a section; `content` is HTML, the others are text."""
    told = f'<p class="about">{escape(about)}</p>' if about else ""
    return f"<section><h2>{escape(title)}</h2>{told}{content}</section>"


def card(label: str, figure: str, detail: str) -> str:
    """Return a key number with what it is."""
    return (
        f'<div class="card"><div class="label">{escape(label)}</div>'
        f'<div class="figure">{escape(figure)}</div><div class="detail">{escape(detail)}</div></div>'
    )


def plot(name: str, figure: str) -> str:
    """Return the place of a plotly figure, and its JSON as data that no text in it can end."""
    data = figure.replace("<", "\\u003c")
    return (
        f'<div class="plot" data-figure="{name}"></div>'
        f'<script type="application/json" id="{name}">{data}</script>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Return a table of text, of class `style`; nothing without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{style}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def captioned(image: str, value: str, label: str, style: str = "") -> str:
    """Return an image, which is HTML, over its value and label.

    A `style` may cut a long value for want of room: whoever points at the image reads all of it.
    """
    caption = f"<figcaption><b>{escape(value)}</b><span>{escape(label)}</span></figcaption>"
    opening = f'<figure class="{style}" title="{escape(value)}">' if style else "<figure>"
    return f"{opening}{image}{caption}</figure>"


def fold(title: str, content: str) -> str:
    """Return HTML that is folded away under its title."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def script_hash(script: str) -> str:
    """Return how a content security policy names this very script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def moment(seconds: float | None) -> str:
    """Return seconds since 1970 as a date in local time."""
    if seconds is None:
        return "–"
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")
