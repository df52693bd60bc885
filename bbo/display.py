"""What the terminal shows: a live panel while a campaign runs, plain lines where there is no terminal, tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bbo.ledger import Ledger, Query, QueryState
from bbo.objective import objective_of
from bbo.progress import INTERRUPTED, Listener, Progress
from bbo.workload import Sampling

if TYPE_CHECKING:
    import pandas as pd  # takes half a second, which `bbo status` does not have

    from bbo.align import Aligned, Lost

N_IN_DOUBT_SHOWN = 20


@contextmanager
def shown(batch_size: int) -> Iterator[Listener]:
    """Give a listener that shows progress: live in a terminal, one line a batch elsewhere."""
    console = Console(markup=False)
    if not console.is_terminal:
        yield _plain_listener(console)
        return
    with Live(console=console, refresh_per_second=8) as live:
        yield lambda progress: live.update(_panel(progress, batch_size))


def _plain_listener(console: Console) -> Listener:
    told: set[int] = set()
    warned: set[str] = set()

    def listen(progress: Progress) -> None:
        if progress.stage == INTERRUPTED and INTERRUPTED not in warned:
            warned.add(INTERRUPTED)
            console.print(INTERRUPTED, highlight=False)
        if progress.idle is not None and progress.idle.stage not in warned:
            warned.add(progress.idle.stage)
            console.print(f"warning: {progress.idle}", highlight=False)
        is_over = len(progress.last) == progress.n_in_round > 0
        if is_over and progress.spent not in told:
            told.add(progress.spent)
            values = [value for value in progress.last if value is not None]
            failed = len(progress.last) - len(values)
            console.print(
                f"round {progress.round:3d}  {progress.spent + progress.in_doubt:5d} of {progress.budget} queries"
                f"  best {_number(progress.best)}  batch {_number(max(values, default=None))}"
                f"  failed {failed}  ESS {_share(progress.ess_share)}",
                highlight=False,
            )
            if workers := _workers(progress.sampling):
                console.print(f"           {workers}", highlight=False)

    return listen


def _panel(progress: Progress, batch_size: int) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", justify="right")
    facts.add_column()
    values = [value for value in progress.last if value is not None]
    failed = len(progress.last) - len(values)
    facts.add_row("round", "-" if progress.round is None else f"{progress.round}, batches of {batch_size}")
    facts.add_row("best", Text(_number(progress.best), style="bold green"))
    facts.add_row("last batch", f"best {_number(max(values, default=None))}, {failed} failed")
    facts.add_row("ESS", f"{_share(progress.ess_share)} of the particles")
    facts.add_row("seconds", _seconds(progress.seconds))
    if progress.sampling is not None and progress.sampling.n_workers:
        facts.add_row("sampling", _workers(progress.sampling))
    facts.add_row("now", progress.stage or "-")
    if progress.idle is not None:
        facts.add_row("warning", Text(str(progress.idle), style="yellow"))
    if progress.in_doubt:
        facts.add_row("in doubt", Text(f"{progress.in_doubt} queries, counted as spent", style="yellow"))
    taken = progress.spent + progress.in_doubt
    bar = Table.grid(padding=(0, 2))
    bar.add_row(f"{taken} of {progress.budget} queries", ProgressBar(progress.budget, taken, width=40))
    return Panel(Group(bar, facts), title="bbo", title_align="left", width=78)


def print_status(ledger: Ledger) -> None:
    """Print how far a campaign is, and every query in doubt."""
    console = Console(highlight=False, markup=False)
    counts, objective = ledger.counts(), objective_of(ledger)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", justify="right")
    facts.add_row("campaign", str(ledger.directory))
    facts.add_row("queries", f"{counts.n - counts.reserved} spent of {ledger.budget}")
    facts.add_row("", f"{counts.done} with outcomes, {counts.failed} failed")
    facts.add_row(
        "", f"{counts.sent} sent and awaited, {counts.in_doubt} in doubt, {counts.reserved} yet to send"
    )
    if counts.abandoned or counts.rejected:
        facts.add_row("", f"{counts.abandoned} abandoned, {counts.rejected} rejected (not spent)")
    if counts.given:
        facts.add_row("given", f"{counts.given} measured elsewhere, not from this budget")
    facts.add_row("rounds", str(ledger.n_rounds()))
    facts.add_row("best", _number(ledger.best_value(objective)))
    console.print(facts)
    doubted = ledger.queries({QueryState.IN_DOUBT})
    for query in doubted[:N_IN_DOUBT_SHOWN]:
        sent = _moment(query.sent_at)
        console.print(f"in doubt: query {query.id} of round {query.round}, sent {sent}, key {query.key}")
    if len(doubted) > N_IN_DOUBT_SHOWN:
        console.print(f"and {len(doubted) - N_IN_DOUBT_SHOWN} more in doubt")


def print_awaited(queries: Sequence[Query]) -> None:
    """Print the queries that have no answer yet."""
    console = Console(highlight=False, markup=False)
    if not queries:
        console.print("no answer is awaited")
    for query in queries:
        what = "in doubt" if query.state is QueryState.IN_DOUBT else "awaited"
        console.print(f"{what}: query {query.id} of round {query.round}, sent {_moment(query.sent_at)}")


def print_story(lines: Sequence[tuple[str, str]]) -> None:
    """Print what there is to say of one query."""
    console = Console(highlight=False, markup=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right")
    grid.add_column(overflow="fold")
    for what, said in lines:
        grid.add_row(Text(what), Text(said))
    console.print(grid)


def print_best(table: pd.DataFrame) -> None:
    """Print the best designs, without their numbers."""
    console = Console(highlight=False, markup=False)
    if table.empty:
        console.print("no design has an outcome yet")
        return
    shown_table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "value", "predicted before", "query", "round"):
        shown_table.add_column(name, justify="right")
    for rank, row in enumerate(table.to_dict("records"), start=1):
        shown_table.add_row(
            str(rank),
            _number(row["value"]),
            _belief(row["predicted_mean"] or math.nan, row["predicted_std"]),
            str(row["query"]),
            str(row["round"]),
        )
    console.print(shown_table)


def print_aligned(outcome: Aligned | Lost, n_images: int) -> None:
    """Print what came of one image of an alignment."""
    from bbo.align import TOTAL, Lost

    place = f"image {outcome.island + 1:3d} of {n_images}"
    if isinstance(outcome, Lost):
        line = f"{place}  lost: {outcome.reason}"
    else:
        values = outcome.values[TOTAL]
        ess = float(outcome.result.trace.ess[-1, 0]) / len(values)
        drawn, least, most = (float(value) for value in (values[outcome.drawn], values.min(), values.max()))
        line = f"{place}  reward {drawn:.5g} ({least:.4g} … {most:.4g})  ESS {ess:.0%}  {outcome.prompt}"
    console = Console(highlight=False, markup=False)
    console.print(line.rstrip(), no_wrap=not isinstance(outcome, Lost), overflow="ellipsis")


def _workers(sampling: Sampling | None) -> str:
    """Return how the workers are doing; nothing where there are none."""
    if sampling is None or sampling.n_workers == 0:
        return ""
    each = sampling.seconds_per_shard
    took = "" if each is None else f", {each:.2g} s each"
    return f"workers {sampling.n_workers}, shards {sampling.n_done} of {sampling.n_shards}{took}"


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _belief(mean: float, std: float) -> str:
    return "-" if math.isnan(mean) else f"{_number(mean)} ± {_number(std)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _seconds(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items()) or "-"
