"""The page of a comparison: one HTML file that needs no network, in the look of a campaign's report.

Whatever folders and ledgers say is escaped, and the page's own policy lets a browser load nothing and run no script but
the page's two.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

from bbo.report.figures import plotly_script
from bbo.report.html import card, count, fold, moment, plot, script_hash, section, table
from experiments.benchmarks.harness import circumstances
from experiments.compare.report.curves import curves
from experiments.compare.report.findings import Findings
from experiments.compare.report.panels import span
from experiments.compare.report.words import listed, method_table, overall_table
from experiments.compare.summary import TARGET, Contest

_DRAW = """
const options = {displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]]};
for (const holder of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(document.getElementById(holder.dataset.figure).textContent);
  Plotly.newPlot(holder, figure.data, figure.layout, options);
}
"""
_STYLE = """<style>
main { max-width: 1280px; }
th, td { padding-left: 12px; }
.plot { height: 510px; }
.ours td { font-weight: 650; color: var(--accent); }
</style>"""
_ROUNDING = 1e-6
"""What a value may lie above the optimum and still be it, as a share of the larger of the optimum and of what was
gained: oracles answer in single precision, too."""
_ABOUT = f"""
Curves and final values are interquartile means over seeds (the middle half of the runs) with stratified bootstrap
95 % bands, runs drawn anew within each problem (Agarwal et al. 2021, arXiv 2108.13264). A run that has found nothing
feasible yet counts as the worst. All methods pay the same first batch.

The normalised value of a problem is 0 at the mean, over seeds, of the best of the shared first batch, and 1 at the
highest of the methods' median final values. "area" is the mean of the normalised best so far over the queries after the
first batch. "to target" counts the queries after which more than half of the seeds have reached
{TARGET:.0%} of the way from 0 to 1 (Kaplan–Meier median; "> n" where they have not).

"feasible" is the share among the last 64 queries. "diversity" is the mean distance between two of the last 64 designs,
over that of draws of the prior; "distance" their mean distance to the nearest of 1024 draws of the prior, over that of
fresh draws; both in the features that surrogates see. "second opinion" is what another oracle, which no method asked,
says of the 16 best designs of every seed, over what the first one said: the median over those that returned, and how
many did. "evaluations" are rows through the prior's network in a campaign, a backward pass counted as two; "CPU s"
is what it took to propose the designs, the oracle's own work left out. Where nothing else is said, a number is the
median over the seeds.
"""


def page(found: Findings) -> str:
    """Return the page as HTML."""
    sections = [
        _STYLE,
        _header(found),
        _notes(found),
        _together(found),
        *(_problem(found, place) for place in range(len(found.contests))),
        _figures(found),
        _record(found),
    ]
    plotly = plotly_script()
    template = resources.files("bbo.report").joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        script_hashes=" ".join(map(script_hash, (plotly, _DRAW))),
        title=escape(f"{found.comparison.root.name}: comparison"),
        body="\n".join(sections),
        plotly=plotly,
        draw=_DRAW,
    )


def _header(found: Findings) -> str:
    campaigns = found.comparison.campaigns
    finished = campaigns[campaigns["is_finished"]]
    budgets = sorted(set(finished["budget"]))
    sizes = sorted(set(finished["batch_size"]))
    n_expected = len(campaigns) + len(found.missing)
    cards = [
        card("methods", str(len(found.styles)), f"on {count(len(found.contests), 'problem')}"),
        card("queries a campaign", _either(budgets), f"in batches of {_either(sizes)}"),
        card("seeds", str(finished["seed"].nunique()), _numbers(sorted(set(finished["seed"])))),
        card(
            "campaigns finished",
            f"{len(finished)} of {n_expected}",
            f"{count(len(found.unfinished), 'unfinished', 'unfinished')}, {len(found.missing)} not begun",
        ),
    ]
    lead = f"{listed([contest.problem for contest in found.contests])}: {listed(list(found.styles), 24)}"
    return (
        f'<header><p class="kicker">Comparison</p><h1>{escape(found.comparison.root.name)}</h1>'
        f'<p class="lead">{escape(lead)}</p><div class="cards">{"".join(cards)}</div></header>'
    )


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _numbers(seeds: Sequence[int]) -> str:
    is_row = list(seeds) == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
    return f"{seeds[0]} … {seeds[-1]}" if is_row else ", ".join(map(str, seeds))


def _notes(found: Findings) -> str:
    """Say plainly what is missing, and what is not as it should be."""
    notes = []
    if found.unfinished:
        notes.append(f"Not finished, and not counted: {listed(found.unfinished, 24)}.")
    gave_up = found.comparison.campaigns[found.comparison.campaigns["gave_up"] != ""]
    for reason, rows in gave_up.groupby("gave_up", sort=False):
        names = [f"{row['problem']}/{row['method']}/seed-{row['seed']}" for row in rows.to_dict("records")]
        counts = "counts with what it" if len(names) == 1 else "count with what they"
        notes.append(f"{listed(names, 24)} gave up, and {counts} had found: {reason}")
    doubts = found.comparison.campaigns[found.comparison.campaigns["n_in_doubt"] > 0]
    for row in doubts.to_dict("records"):
        notes.append(
            f"{row['problem']}/{row['method']}/seed-{row['seed']} was interrupted: {count(row['n_in_doubt'], 'query')} "
            "may have been paid and never came back, and counts as spent without an outcome."
        )
    if found.missing:
        notes.append(f"Not begun: {listed([str(job) for job in found.missing], 24)}.")
    finished = found.comparison.campaigns[found.comparison.campaigns["is_finished"]]
    for contest, panel in zip(found.contests, found.progress, strict=True):
        longest = int(finished.loc[finished["problem"] == contest.problem, "n_queries"].max())
        if longest > contest.n_queries:
            notes.append(
                f"{contest.problem}: campaigns are of different lengths, up to {longest} queries; all are looked at "
                f"for {contest.n_queries}, which is the shortest."
            )
        if contest.uneven_seeds:
            notes.append(
                f"{contest.problem}: the first batch did not come to the same values for all methods with "
                f"{count(len(contest.uneven_seeds), 'seed')} {_numbers(contest.uneven_seeds)}."
            )
        if contest.scale is None:
            notes.append(
                f"{contest.problem}: no method's median gains on the first batch; it has no normalised value."
            )
        if panel.optimum is not None and _is_exceeded(panel.optimum, contest):
            notes.append(
                f"{contest.problem}: {contest.highest:.9g} was found, which is above the optimum that its problem "
                f"names, {panel.optimum:.9g}. The optimum is wrong, or the oracle is noisy."
            )
    told = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    about = "".join(f"<p>{escape(part)}</p>" for part in _ABOUT.strip().split("\n\n"))
    return section("What is compared", "", told + fold("How to read the numbers", about))


def _is_exceeded(optimum: float, contest: Contest) -> bool:
    gained = 0.0 if contest.scale is None else contest.scale[1] - contest.scale[0]
    return contest.highest - optimum > _ROUNDING * max(abs(optimum), gained)


def _together(found: Findings) -> str:
    if found.overall is None or found.together is None:
        return ""
    about = (
        f"The normalised best so far over {len(found.overall.contests)} problems; the band is stratified by problem. "
        "Methods that were not finished on every one of them are left out."
    )
    header, rows = overall_table(found.overall.table(), len(found.overall.contests))
    return section(
        "All problems",
        about,
        plot("together", curves([found.together], found.styles, found.ours))
        + _methods(header, rows, found.ours),
    )


def _problem(found: Findings, place: int) -> str:
    contest = found.contests[place]
    panels = [found.progress[place], found.batches[place]]
    rows = found.summary[found.summary["problem"] == contest.problem]
    about = "Left: the best so far. Right: the mean of each batch, over its feasible designs."
    if contest.scale is not None:
        zero, one = contest.scale
        about += f" Normalised 0 is {zero:.4g}, 1 is {one:.4g}; the target is {contest.target:.4g}."
    if (optimum := panels[0].optimum) is not None:
        limits = span(panels[0], panels[0].emphasised(found.ours))
        is_in_sight = limits is not None and limits[0] <= optimum <= limits[1]
        about += f" Dotted: the optimum, {optimum:.4g}." if is_in_sight else f" The optimum is {optimum:.4g}."
    header, cells = method_table(rows, contest.n_queries)
    content = plot(f"problem-{place}", curves(panels, found.styles, found.ours))
    return section(contest.problem, about, content + _methods(header, cells, found.ours))


def _methods(header: Sequence[str], rows: Sequence[Sequence[str]], ours: str) -> str:
    """Return a table of methods in which ours stands out."""
    name = f"<td>{escape(ours)}</td>"
    return table(header, rows, "numbers words").replace(f"<tr>{name}", f'<tr class="ours">{name}')


def _figures(found: Findings) -> str:
    if not found.figures:
        return ""
    rows = [
        [name, str(value).lower() if isinstance(value, bool) else f"{value:.4g}"]
        for name, value in found.figures.items()
    ]
    about = f"Of {found.ours} against the others; inf: not within the budget, nan: not measured."
    return section("Figures", about, fold("Every figure", table(["figure", "value"], rows, "words")))


# ---------------------------------------------------------------- record
def _record(found: Findings) -> str:
    parts = ("prior", "oracle", "encoder")
    records = found.comparison.records
    problems = {
        job.problem: {part: record.config.get(part) for part in parts} for job, record in records.items()
    }
    methods = {job.method: record.config.get("method") for job, record in records.items()}
    versions = {
        json.dumps(dict(told), sort_keys=True): dict(told)
        for record in records.values()
        for told in record.versions
    }
    folds = (
        fold("Methods as recorded", f"<pre>{_json(methods)}</pre>"),
        fold("Problems as recorded", f"<pre>{_json(problems)}</pre>"),
        fold("Versions of what ran the campaigns", f"<pre>{_json(list(versions.values()))}</pre>"),
    )
    commit = circumstances()["commit"]
    of = "" if commit == "unknown" else f" by commit {commit}"
    python = platform.python_version()
    written = f"Written {moment(time.time())}{of} with Python {python}; shows the ledgers as they were then."
    return f"{section('Record', '', ''.join(folds))}<footer>{escape(written)}</footer>"


def _json(told: object) -> str:
    return escape(json.dumps(told, indent=2, ensure_ascii=False))
