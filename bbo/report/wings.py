"""The gallery of a campaign whose designs are images: its best, draws of the prior, and the last batch.

The best alone would show winners. Beside them hang as many draws of the prior, none of them chosen, and what the
sampler proposes now: so one sees what a plausible design looks like, and whether the batch still does and differs.

Which designs are the prior's, the ledger tells: a query says so (`from: prior` in its provenance) when it was drawn
while fewer than two outcomes were known, as in every first round but that of a campaign that was given outcomes
before. Where no query says so, none is shown as the prior's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from bbo.ledger import Ledger, Query, QueryState
from bbo.report.html import captioned, section
from bbo.report.images import MIN_SHARE, drawn, has_image_shape, n_clipped, share_in_range, size
from bbo.report.numbers import Account, number, shortened

N_IMAGES = 16
"""Most images of a wing."""
_WITHOUT_VALUE = {
    QueryState.RESERVED: "waiting",
    QueryState.SENT: "waiting",
    QueryState.IN_DOUBT: "in doubt",
    QueryState.ABANDONED: "abandoned",
}


@dataclass(frozen=True)
class Wing:
    """Some queries under one title."""

    name: str
    """Its class in the style sheet."""
    title: str
    about: str
    """Which of how many they are; where there are none, why."""
    queries: Sequence[Query]


@dataclass(frozen=True)
class Hanging:
    """What there is to show, and what could not be shown."""

    wings: Sequence[Wing]
    """Empty where the designs are no images."""
    designs: dict[int, Tensor]
    """The design of each query that is shown and can be read."""
    notes: Sequence[str]
    """Why something is missing, one line each."""

    @classmethod
    def nothing(cls, *notes: str) -> Hanging:
        """Return what there is to show of designs that are no images."""
        return cls([], {}, notes)


def hang(ledger: Ledger, account: Account) -> Hanging:
    """Return the images of a campaign; none where its designs are none (`bbo.report.images` has the rule)."""
    wings = [_best(account), _prior(account), _last(account)]
    designs, notes = _read(ledger, list({q.id: q for wing in wings for q in wing.queries}.values()))
    shown = list(designs.values())
    if not shown or not all(map(has_image_shape, shown)):
        return Hanging.nothing()  # the table of their numbers says what cannot be read
    if (share := share_in_range(shown)) < MIN_SHARE:
        note = (
            "The designs are listed as numbers: they have the shape of images, but only "
            f"{share:.1%} of their numbers lie in 0 … 1 or near it."
        )
        return Hanging.nothing(note)
    return Hanging(wings, designs, [*notes, *_clipped(shown)])


# ------------------------------------------------------------------- which designs
def _best(account: Account) -> Wing:
    ranked = account.best(len(account.queries) + len(account.given))
    best = ranked[:N_IMAGES]
    about = f"{len(best)} of {len(ranked)} with a value" if ranked else "No design has a value yet."
    return Wing("best", "Best of this campaign", about, best)


def _prior(account: Account) -> Wing:
    draws = [q for q in account.queries if _origin(q) == "prior"]
    about = f"{_first(len(draws))} {'draw' if len(draws) == 1 else 'draws'}"
    if not draws:
        about = "No query of this campaign says that it was drawn from the prior itself, so none is shown."
    return Wing("prior", "The prior", about, draws[:N_IMAGES])


def _last(account: Account) -> Wing:
    """Return what the sampler proposed last; what people edited is theirs."""
    proposed = [q for q in account.queries if _origin(q) != "edited"]
    batch = [q for q in proposed if q.round == proposed[-1].round]
    if not batch:
        return Wing("last", "Last batch", "Nothing was proposed yet.", [])
    if all(_origin(q) == "prior" for q in batch):
        about = "Drawn from the prior too: nothing steers the sampler yet."
        return Wing("last", "Last batch", about, [])
    about = f"{_first(len(batch))} {'design' if len(batch) == 1 else 'designs'} of round {batch[0].round}"
    return Wing("last", "Last batch", about, batch[:N_IMAGES])


def _first(n: int) -> str:
    return str(n) if n <= N_IMAGES else f"first {N_IMAGES} of {n}"


def _origin(query: Query) -> object:
    return query.provenance.get("from")


def _read(ledger: Ledger, queries: Sequence[Query]) -> tuple[dict[int, Tensor], list[str]]:
    """Return the designs of these queries, each blob read once, and a note about those that cannot be read."""
    by_blob: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_blob[query.artifact].append(query)
    designs: dict[int, Tensor] = {}
    reason = ""
    for artifact, members in by_blob.items():
        # The data may be a stranger's: a blob that cannot be read costs the report its own images, and is said.
        try:
            rows = ledger.blobs.get_tensors(artifact)["design"]
            designs |= {q.id: _as_numbers(rows[q.row]) for q in members}
        except Exception as error:
            reason = reason or shortened(f"{type(error).__name__}: {' '.join(str(error).split())}")
    n_lost = len(queries) - len(designs)
    return designs, [f"{n_lost} of {len(queries)} designs cannot be read: {reason}"] if n_lost else []


def _as_numbers(design: Tensor) -> Tensor:
    """Return a copy, so that the rest of its blob can go, in a kind of number that everything can be asked of."""
    return design.clone() if design.is_complex() else design.to(torch.float32, copy=True)


def _clipped(designs: Sequence[Tensor]) -> list[str]:
    """Return a note about what is drawn otherwise than it is."""
    counts = [n_clipped(design) for design in designs]
    if not any(counts):
        return []
    n_designs = sum(n > 0 for n in counts)
    return [
        f"{sum(counts):,} of the {sum(design.numel() for design in designs):,} numbers shown are outside 0 … 1 or not "
        f"finite, in {n_designs} of {len(designs)} designs: drawn as the nearer end, NaN as black."
    ]


# ------------------------------------------------------------------- drawing
def images_section(account: Account, hanging: Hanging) -> str:
    """Return the section of the report, as HTML."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in hanging.notes)
    wings = "".join(_drawn(account, wing, hanging) for wing in hanging.wings)
    sizes = "; ".join(dict.fromkeys(size(design) for design in hanging.designs.values()))
    return section("Designs", f"Images of {sizes}.", f'{notes}<div class="wings">{wings}</div>')


def _drawn(account: Account, wing: Wing, hanging: Hanging) -> str:
    figures = [
        _figure(account, query, hanging.designs[query.id])
        for query in wing.queries
        if query.id in hanging.designs
    ]
    images = f'<div class="images">{"".join(figures)}</div>' if figures else ""
    return (
        f'<div class="wing {wing.name}"><h3>{escape(wing.title)}</h3>'
        f'<p class="about">{escape(wing.about)}</p>{images}</div>'
    )


def _figure(account: Account, query: Query, design: Tensor) -> str:
    label = f"query {query.id}"
    image = drawn(design, f"design of {label}")
    if query.evaluation is None:
        return captioned(image, _WITHOUT_VALUE[query.state], label, "open")
    if query.evaluation.error is None:
        return captioned(image, number(account.value(query)), label)
    return captioned(image, shortened(" ".join(query.evaluation.error.split())), label, "failed")
