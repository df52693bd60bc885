"""How methods look: a family has a colour, its members have dashes, and ours stands out.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. A method belongs to the family that has a
member of its type, whatever its name in the suite; `ours` with other settings are a family of their own. Types that no
family knows are grey.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""As plotly calls them."""


@dataclass(frozen=True)
class Family:
    """Methods of one kind."""

    title: str
    colour: str
    members: tuple[str, ...]
    """Their types, as ledgers have them: the module of each."""
    more_colours: tuple[str, ...] = ()
    """For members beyond as many as there are dashes."""


FAMILIES = (
    Family("framework", "#0072b2", ()),
    Family("variants of it", "#5b4bb5", ("steered_prior",), ("#b5477f", "#2f8a96")),
    Family("our surrogate", "#009e73", ("best_of_n", "guidance", "gaussian")),
    Family("DAS, online", "#cc79a7", ("das_online",)),
    Family("fine-tuning", "#d55e00", ("seiko", "ddpo", "draft")),
    Family("Bayesian opt.", "#56b4e9", ("turbo", "log_ei")),
    Family("evolution", "#c98f00", ("cma_es",)),
    Family("no learning", "#6b7684", ("prior",)),
)
OTHERS = Family("others", "#9aa3ad", ())


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    family: Family
    dash: str
    """One of DASHES."""
    is_ours: bool
    colour: str
    """One of its family's."""

    @property
    def band(self) -> str:
        """The same colour, so light that lines show through."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red}, {green}, {blue}, {0.2 if self.is_ours else 0.12})"


def styles(types: Mapping[str, str], ours: str) -> dict[str, Style]:
    """Return the style of each method, family by family; members of one family differ in their dashes.

    types: method → type. ours: the method that stands out, in the colour of this framework whatever its type is.
    """
    members: dict[Family, list[str]] = {family: [] for family in (*FAMILIES, OTHERS)}
    for method, kind in types.items():
        members[FAMILIES[0] if method == ours else _family(kind)].append(method)
    return {
        method: Style(family, DASHES[place % len(DASHES)], method == ours, _colour(family, place))
        for family, of_family in members.items()
        for place, method in enumerate(of_family)
    }


def by_family(found: Mapping[str, Style]) -> dict[Family, list[str]]:
    """Return the methods of each family that has one."""
    members: dict[Family, list[str]] = {}
    for method, style in found.items():
        members.setdefault(style.family, []).append(method)
    return members


def _colour(family: Family, place: int) -> str:
    colours = (family.colour, *family.more_colours)
    return colours[place // len(DASHES) % len(colours)]


def _family(kind: str) -> Family:
    return next((family for family in FAMILIES if kind in family.members), OTHERS)
