"""A campaign's report: one HTML file that needs no network, shows what was reached and hides nothing.

It reads the ledger and executes nothing that lies in the campaign's directory, so it can be written for one
that somebody sent, and while the campaign runs. Whatever a ledger, a config or an oracle says is escaped, and
the page's own policy lets a browser load nothing and run no script but the page's two.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template

from bbo.errors import BboError
from bbo.ledger import Ledger, Query, QueryState, RoundRecord
from bbo.report.figures import plotly_script, prediction_figure, progress_figure, sampler_figure
from bbo.report.gallery import Exhibits, collect, common_frame, drawings
from bbo.report.html import captioned, card, count, fold, moment, plot, script_hash, section, table
from bbo.report.numbers import Account, Calibration, belief, failure_reasons, number
from bbo.report.wings import Hanging, hang, images_section
from oracles.base import Gallery

N_TOP = 16
N_DESIGNS = 8
N_REFERENCES = 4
N_COLUMNS = 24
"""Most numbers of a design that a table shows."""
N_REASONS = 20
PACKAGES = (
    "bbo-diffusion",
    "torch",
    "numpy",
    "botorch",
    "gpytorch",
    "diffusers",
    "aerosandbox",
    "neuralfoil",
)

_NONE = "–"
_DRAW = """
const options = {displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]]};
const holders = [...document.querySelectorAll("[data-figure]")];
for (const holder of holders) {
  const figure = JSON.parse(document.getElementById(holder.dataset.figure).textContent);
  Plotly.newPlot(holder, figure.data, figure.layout, options);
}
// Paper is not as wide as the window, and a browser tells no plot to resize for it. Sizes as in the style sheet.
addEventListener("beforeprint", () => {
  for (const holder of holders) {
    const size = holder.closest(".pair") ? {width: 326, height: 330} : {width: 680, height: 430};
    Plotly.relayout(holder, size);
    Plotly.relayout(holder, size);  // the first one still leaves room for the legend of the old width
  }
});
addEventListener("afterprint", () => {
  for (const holder of holders) Plotly.relayout(holder, {width: null, height: null, autosize: true});
});
"""


class ReportError(BboError):
    """The report cannot be written."""


def write_report(
    directory: str | Path,
    out: str | Path | None = None,
    gallery: Gallery | None = None,
    database: str | None = None,
) -> Path:
    """Write the report of the campaign in `directory` and return its path: `out`, or DIRECTORY/report.html.

    database: URL of the PostgreSQL database that holds its ledger; None for a file in the directory.
    gallery: how designs look; None for the built-in oracle that the config names, if it can draw. Where nobody
        draws them, designs that are images are shown as such (`bbo.report.images`), and others as numbers.

    Raises CampaignError when there is no campaign, LedgerError when its ledger cannot be read, ReportError
    when the file cannot be written.
    """
    with Ledger.open(Path(directory), database) as ledger:
        page = _page(ledger, gallery)
    path = Path(directory) / "report.html" if out is None else Path(out)
    try:
        # JSON may hold half a surrogate pair, which no file can.
        path.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise ReportError(f"cannot write the report {path}: {error.strerror}; name another place") from error
    return path


def _page(ledger: Ledger, gallery: Gallery | None) -> str:
    account = Account.of(ledger)
    exhibits = collect(ledger, account.best(N_DESIGNS), N_REFERENCES, gallery)
    hanging = Hanging.nothing() if exhibits.are_drawn else hang(ledger, account)
    sections = [
        _header(account),
        _progress(account, exhibits),
        f'<div class="pair">{_predictions(account)}{_sampler(ledger, account)}</div>',
        images_section(account, hanging) if hanging.wings else _gallery(account, exhibits, hanging.notes),
        f'<div class="pair">{_top(account)}{_failures(account)}</div>',
        _doubts(account),
        _record(account),
    ]
    plotly = plotly_script()
    template = resources.files("bbo.report").joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        script_hashes=" ".join(map(script_hash, (plotly, _DRAW))),
        title=escape(f"{account.name}: campaign report"),
        body="\n".join(sections),
        plotly=plotly,
        draw=_DRAW,
    )


# ------------------------------------------------------------------- the campaign in a few numbers
def _header(account: Account) -> str:
    values = [account.value(q) for q in account.best(N_TOP)]
    n_done, n_answered = account.n(QueryState.DONE), account.n(QueryState.DONE, QueryState.FAILED)
    cards = [
        card("best", number(values[0]) if values else _NONE, account.objective),
        card(
            f"mean of the top {len(values) or N_TOP}",
            number(sum(values) / len(values)) if values else _NONE,
            account.objective,
        ),
        card(
            "feasible share",
            f"{n_done / n_answered:.1%}" if n_answered else _NONE,
            f"{n_done} of {count(n_answered, 'answer')}",
        ),
        card(
            "queries spent",
            f"{account.n_paid} of {account.budget}",
            f"{n_answered} answered, {account.n(QueryState.IN_DOUBT)} in doubt",
        ),
    ]
    state = " · ".join((_spent(account), count(len(account.rounds), "round"), _reached(account)))
    return (
        f'<header><p class="kicker">Campaign report</p><h1>{escape(account.name)}</h1>'
        f'<p class="lead">{escape(state)}</p><div class="cards">{"".join(cards)}</div></header>'
    )


def _spent(account: Account) -> str:
    if not account.queries:
        return f"Not started: none of {account.budget} queries spent"
    n_failed, n_doubt = account.n(QueryState.FAILED), account.n(QueryState.IN_DOUBT)
    n_open = account.n(QueryState.RESERVED, QueryState.SENT)
    word = "Finished" if account.n_paid >= account.budget else "Unfinished"
    return (
        f"{word}: {account.n_paid} of {account.budget} queries spent, {n_failed} failed, {n_doubt} in doubt"
        + (f", {n_abandoned} abandoned" if (n_abandoned := account.n(QueryState.ABANDONED)) else "")
        + (f", {n_open} waiting for an answer" if n_open else "")
        + (f"; {len(account.given)} measured elsewhere" if account.given else "")
    )


def _reached(account: Account) -> str:
    if not (best := account.best(1)):
        return "no value yet"
    (query,) = best
    value, since = number(account.value(query)), moment(query.ended_at)
    return f"best {value} since query {query.id} of round {query.round}, {since}"


# ------------------------------------------------------------------- figures
def _progress(account: Account, exhibits: Exhibits) -> str:
    title = "Every query and the best so far"
    if account.n_paid == 0:
        return section(title, "No query was paid yet.")
    reference = next(iter(exhibits.references), None)
    figure = progress_figure(account.queries, account.objective, account.budget, reference)
    about = "Every mark is a query that was paid. Those without a value are ticks on the baseline."
    return section(title, about, plot("progress", figure))


def _predictions(account: Account) -> str:
    title = "Predicted and observed"
    predictions = account.predictions()
    if not predictions:
        return section(title, "No query with a prediction has an outcome yet; the first round predicts none.")
    calibration = Calibration.of(predictions)
    about = (
        "Predicted before the oracle answered. "
        f"{calibration.covered:.1%} of the outcomes lie within their 90 % interval; "
        f"RMSE {number(calibration.rmse, 3)}; n = {calibration.n}."
    )
    return section(title, about, plot("predictions", prediction_figure(predictions, account.objective)))


def _sampler(ledger: Ledger, account: Account) -> str:
    title = "Sampler of the last round"
    last = account.rounds[-1] if account.rounds else None
    if last is None or last.artifact is None:
        return section(title, "Nothing was sampled yet.")
    try:
        tensors = ledger.blobs.get_tensors(last.artifact)
    except BboError as error:
        return section(title, f"The traces of round {last.number} cannot be read: {error}.")
    ess_share, lam = tensors.get("ess_share"), tensors.get("lam")
    if ess_share is None or lam is None or ess_share.dim() != 2 or ess_share.shape != lam.shape:
        return section(title, f"Round {last.number} left no trace of its steps: nothing steered it.")
    about = (
        f"Round {last.number}, {count(ess_share.shape[1], 'island')}. ESS share: effective sample size over "
        "the number of particles, before resampling."
    )
    return section(title, about, plot("sampler", sampler_figure(ess_share.numpy(), lam.numpy())))


# ------------------------------------------------------------------- designs
def _gallery(account: Account, exhibits: Exhibits, more_notes: Sequence[str]) -> str:
    best = account.best(N_DESIGNS)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in (*exhibits.notes, *more_notes))
    outlines = [*exhibits.outlines, *exhibits.reference_outlines]
    if not outlines:
        about = "" if best else "No design has a value yet."
        return section("Best designs", about, notes + _design_table(account, exhibits))
    frame = common_frame(outlines)
    behind = next(iter(exhibits.reference_outlines), None)
    labels = [(number(account.value(q)), f"query {q.id}") for q in best]
    known = [(number(r.value), r.label) for r in exhibits.references]
    shapes = drawings(exhibits.outlines, "design", behind, frame)
    references = drawings(exhibits.reference_outlines, "reference", None, frame)
    about = "All to one scale."
    if known and shapes:
        about += f" Dashed: {known[0][1]}, the best of the data."
    columns = _shapes("This campaign", "designs", shapes, labels)
    columns += _shapes("Best of the data", "references", references, known)
    return section("Best designs", about, f'{notes}<div class="gallery">{columns}</div>')


def _shapes(title: str, kind: str, images: Sequence[str], labels: Sequence[tuple[str, str]]) -> str:
    """Return a column of drawings; nothing where there are none."""
    if not images:
        return ""
    figures = [captioned(image, *label) for image, label in zip(images, labels, strict=True)]
    return f'<div><h3>{title}</h3><div class="shapes {kind}">{"".join(figures)}</div></div>'


def _design_table(account: Account, exhibits: Exhibits) -> str:
    if not exhibits.designs:
        return ""
    numbers = [design.reshape(-1).tolist() for design in exhibits.designs]
    header = ["query", account.objective, *(f"x{i}" for i in range(len(numbers[0])))]
    rows = [
        [str(q.id), number(account.value(q)), *(f"{value:.4g}" for value in row[:N_COLUMNS])]
        for q, row in zip(account.best(N_DESIGNS), numbers, strict=True)
    ]
    n_more = len(numbers[0]) - N_COLUMNS
    more = f'<p class="about">and {n_more} numbers more of each design</p>' if n_more > 0 else ""
    return table(header[: 2 + N_COLUMNS], rows, "numbers") + more


# ------------------------------------------------------------------- tables
def _top(account: Account) -> str:
    rows = [
        [str(rank), number(account.value(q)), _predicted(q), str(q.id), str(q.round)]
        for rank, q in enumerate(account.best(N_TOP), start=1)
    ]
    if not rows:
        return section("Top", "No design has a value yet.")
    header = ["rank", account.objective, "predicted before", "query", "round"]
    return section(f"Top {len(rows)}", "", table(header, rows, "numbers"))


def _failures(account: Account) -> str:
    failed = account.of_state(QueryState.FAILED)
    if not failed:
        return section("Failures", "No query failed.")
    reasons = failure_reasons([q.evaluation.error or "" for q in failed if q.evaluation is not None])
    rows = [[reason, str(n)] for reason, n in reasons[:N_REASONS]]
    if rest := reasons[N_REASONS:]:
        rows.append([count(len(rest), "other reason"), str(sum(n for _, n in rest))])
    about = f"{count(len(failed), 'query', 'queries')} failed."
    return section("Failures", about, table(["reason", "queries"], rows, "words"))


def _doubts(account: Account) -> str:
    doubted = account.of_state(QueryState.IN_DOUBT)
    if not doubted:
        return section("Queries in doubt", "None.")
    about = (
        "These were sent, and the process that sent them ended before it noted an answer. They may have been "
        "paid, so they count as spent, and nothing sends them again by itself."
    )
    how = (
        "<p><code>bbo resolve CAMPAIGN QUERY</code> decides: <code>--value</code> or <code>--failed</code> with the "
        "answer in hand, <code>--spent</code> when none will come, <code>--retry</code> to ask again, and perhaps "
        "pay twice.</p>"
    )
    rows = [[q.key, str(q.id), str(q.round), moment(q.sent_at), str(q.n_sent)] for q in doubted]
    header = ["key", "query", "round", "last sent", "times sent"]
    return section("Queries in doubt", about, how + table(header, rows, "words"))


# ------------------------------------------------------------------- record
def _record(account: Account) -> str:
    config = json.dumps(account.config, indent=2, ensure_ascii=False)
    versions = [["Python", platform.python_version()], *([name, _version(name)] for name in PACKAGES)]
    folds = (
        fold("Config as recorded", f"<pre>{escape(config)}</pre>"),
        fold("Rounds and their seconds", _round_table(account)),
        fold("Versions where this report was written", table(["package", "version"], versions, "words")),
    )
    written = f"Written {moment(time.time())}; shows the ledger as it was then."
    return f"{section('Record', '', ''.join(folds))}<footer>{escape(written)}</footer>"


def _round_table(account: Account) -> str:
    seconds = {r.number: _seconds(r) for r in account.rounds}
    stages = list(dict.fromkeys(stage for of_round in seconds.values() for stage in of_round))
    rows = [
        [
            str(number),
            str(sum(q.round == number for q in account.queries)),
            *(f"{of_round[stage]:.2f}" if stage in of_round else _NONE for stage in stages),
        ]
        for number, of_round in seconds.items()
    ]
    if not rows:
        return "<p>No round yet.</p>"
    about = '<p class="about">Seconds each round took until its queries were reserved.</p>'
    return about + table(["round", "queries", *(f"{stage} [s]" for stage in stages)], rows, "numbers")


def _seconds(record: RoundRecord) -> dict[str, float]:
    recorded = record.summary.get("seconds")
    return {str(k): float(v) for k, v in recorded.items()} if isinstance(recorded, Mapping) else {}


def _predicted(query: Query) -> str:
    return _NONE if query.predicted_mean is None else belief(query.predicted_mean, query.predicted_std)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
