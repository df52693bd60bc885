"""A report as tests read it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """A report as a browser takes it in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.rows: list[list[str]] = []
        self._shown: list[str] = []
        self._within = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self._shown).split())
        """What is shown."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self._within != "style":
            self._shown.append(data)
        if self._within in ("td", "th"):
            self.rows[-1][-1] += data

    def figure(self, name: str) -> Any:
        """Return a figure as plotly.js gets it."""
        (data,) = [script for attributes, script in self.scripts if attributes.get("id") == name]
        return json.loads(data)

    def trace(self, figure: str, name: str) -> Any:
        """Return the trace of a figure whose name starts so."""
        (found,) = [t for t in self.figure(figure)["data"] if t["name"].startswith(name)]
        return found
