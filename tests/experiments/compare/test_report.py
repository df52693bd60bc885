"""The report of a comparison: its page, its picture, its tables."""

import base64
import hashlib
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from bbo.cli import app
from experiments.compare.measures import Measures
from experiments.compare.reading import Record, read
from experiments.compare.report import ReportError, write_report
from experiments.compare.report.findings import Findings, gather
from experiments.compare.report.page import page
from experiments.compare.report.panels import Panel, batches, progress, span
from experiments.compare.report.picture import _panel
from experiments.compare.report.styles import DASHES, FAMILIES, OTHERS, styles
from experiments.compare.report.words import listed, method_table
from experiments.compare.running import run_one
from experiments.compare.statistics import Band
from experiments.compare.suite import Job
from smc.priors.training import TrainingSettings, train_denoiser
from tests.bbo.report_page import Page
from tests.experiments.compare.small import BATCH, BUDGET, line, run
from tests.experiments.compare.synthetic import compared
from tests.experiments.compare.test_summary import RUNS, told

NAN, INF = np.nan, np.inf
PROBLEMS = {"line": replace(line(), optimum=3.0)}


def unheard(said):
    pass


def gathered(runs, root, jobs=(), ours="ours", **of) -> Findings:
    """Return the findings of a comparison that never ran."""
    found = compared(runs, **of)
    record = Record({"method": {"type": "m"}, "prior": "p", "oracle": "o", "encoder": "e"}, [{"torch": "1"}])
    found = replace(found, root=root, records=dict.fromkeys(found.records, record))
    return gather(found, {}, jobs, ours, unheard)


def shown(findings, tmp_path) -> Page:
    path = tmp_path / "page.html"
    path.write_text(page(findings), encoding="utf-8")
    return Page(path)


@pytest.fixture(scope="module")
def written(root, tmp_path_factory):
    folder = shutil.copytree(root, tmp_path_factory.mktemp("report") / "small")
    run(folder, "line", "prior", 2, rounds=1)
    return write_report(folder, problems=PROBLEMS, say=unheard)


class TestFiles:
    def test_all_of_them_lie_beside_the_ledgers(self, written):
        assert written.page.parent.parent.name == "small"
        names = {"curves.png", "curves.pdf", "queries.csv.gz", "campaigns.csv", "summary.csv", "figures.csv"}
        names.add("table.md")
        assert {path.name for path in written.files} == names
        assert all(path.stat().st_size > 100 for path in written.files)
        with Image.open(written.page.with_name("curves.png")) as picture:
            assert picture.width == 1680

    def test_tables_hold_what_was_read(self, written):
        found = read(written.page.parent.parent)
        queries = pd.read_csv(written.page.with_name("queries.csv.gz"))
        assert len(queries) == 4 * BUDGET + BATCH
        pd.testing.assert_frame_equal(queries, found.queries, rtol=1e-6, check_dtype=False)
        campaigns = pd.read_csv(written.page.with_name("campaigns.csv"))
        assert campaigns["is_finished"].tolist() == [True, True, True, True, False]
        summary = pd.read_csv(written.page.with_name("summary.csv"))
        assert summary["method"].tolist() == ["ours", "prior"]
        assert (summary["n_seeds"] == 2).all()
        assert summary["diversity"].notna().all()
        assert summary["second_opinion"].tolist() == pytest.approx([0.9, 0.9])
        figures = pd.read_csv(written.page.with_name("figures.csv")).set_index("figure")["value"]
        assert figures["line_diversity_last_64"] == pytest.approx(summary["diversity"][0], rel=1e-6)

    def test_the_same_ledgers_give_the_same_picture_and_tables(self, written, tmp_path):
        again = write_report(written.page.parent.parent, tmp_path / "again", problems=PROBLEMS, say=unheard)
        for one, other in zip(written.files, again.files, strict=True):
            assert one.read_bytes() == other.read_bytes(), one.name

    def test_it_cannot_be_written_where_a_file_is(self, written, tmp_path):
        (tmp_path / "taken").write_text("")
        with pytest.raises(ReportError, match=r"cannot write the report to .*taken.*; name another folder"):
            write_report(written.page.parent.parent, tmp_path / "taken", say=unheard)

    def test_without_a_finished_campaign_there_is_nothing_to_tell(self, tmp_path):
        run(tmp_path, "line", "prior", 0, rounds=1)
        with pytest.raises(ReportError, match=r"none of the suite's campaigns in .* is finished yet"):
            write_report(tmp_path, say=unheard)


class TestPage:
    def test_it_loads_nothing_and_runs_its_own_two_scripts_only(self, written):
        shown = Page(written.page)
        assert not [tag for tag, attributes in shown.tags if attributes.get("src") or tag == "link"]
        (policy,) = [a["content"] for tag, a in shown.tags if tag == "meta" and "http-equiv" in a]
        scripts = [text for attributes, text in shown.scripts if attributes.get("type") is None]
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
        assert len(hashes) == 2
        assert all(f"'sha256-{told}'" in policy for told in hashes)

    def test_what_was_compared_stands_at_its_head(self, written):
        text = Page(written.page).text
        assert "queries a campaign 24 in batches of 8" in text
        assert "campaigns finished 4 of 6 1 unfinished, 1 not begun" in text  # ours has no seed 2
        assert "Not finished, and not counted: line/prior/seed-2 (8 of 24 queries)." in text
        assert "Not begun: line/ours/seed-2." in text
        assert "Agarwal et al. 2021" in text
        assert "0 … 4" not in text

    def test_every_method_is_a_row_and_ours_stands_out(self, written):
        shown = Page(written.page)
        header, *rows = [row for row in shown.rows if row[0] in ("method", "ours", "prior")]
        assert header == ["method", "final", "area", "to target", "feasible", "diversity", "distance",
                          "second opinion", "evaluations", "CPU s", "seeds"]  # fmt: skip
        assert [row[0] for row in rows] == ["ours", "prior"]
        assert rows[0][-3:] == ["300", "1.5", "2"]
        assert ("tr", {"class": "ours"}) in shown.tags

    def test_curves_are_drawn_with_their_bands(self, written, root):
        figure = Page(written.page).figure("problem-0")
        lines = [trace for trace in figure["data"] if trace.get("name")]
        assert [trace["name"] for trace in lines] == ["ours", "prior"] * 2
        bands = [trace for trace in figure["data"] if not trace.get("name")]
        assert [trace["visible"] for trace in bands] == [True] * 4
        assert [trace["line"]["width"] for trace in lines] == [3.5, 1.6] * 2
        y = np.frombuffer(base64.b64decode(lines[1]["y"]["bdata"]), dtype=lines[1]["y"]["dtype"])
        best = [read(root).queries.query(f"method == 'prior' and seed == {s}")["best"] for s in (0, 1)]
        np.testing.assert_allclose(y, np.mean(best, axis=0), rtol=1e-6)

    def test_a_known_optimum_is_a_dotted_line(self, written):
        shown = Page(written.page)
        assert "Dotted: the optimum, 3." in shown.text
        assert "above the optimum" not in shown.text
        (drawn,) = shown.figure("problem-0")["layout"]["shapes"]
        assert (drawn["y0"], drawn["y1"], drawn["yref"]) == (3, 3, "y")

    @pytest.mark.parametrize(
        ("optimum", "top", "is_too_low"),
        [
            (11.0, 11.0, False),
            (11.0, float(np.float32(11.000001)), False),
            (0.0, 1e-12, False),  # of what was gained, 3, it is nothing
            (0.0, 1e-5, True),
            (10.5, 11.0, True),
        ],
    )
    def test_an_optimum_that_is_exceeded_is_told(self, optimum, top, is_too_low, tmp_path):
        values = {"ours": top, "seiko": top - 1}
        runs = {("hill", method, 0): [top - 4, top - 3, top - 3, end] for method, end in values.items()}
        found = gathered(runs, tmp_path)
        found = replace(found, progress=[replace(found.progress[0], optimum=optimum)])
        told = f"hill: {top:.9g} was found, which is above the optimum that its problem names, {optimum:.9g}."
        assert (told in shown(found, tmp_path).text) == is_too_low

    def test_an_optimum_that_is_far_away_is_named_and_not_drawn(self, tmp_path):
        found = gathered(RUNS, tmp_path)
        for optimum, words in ((1e6, "The optimum is 1e+06."), (11.0, "Dotted: the optimum, 11.")):
            there = replace(found, progress=[replace(found.progress[0], optimum=optimum)])
            assert words in shown(there, tmp_path).text

    def test_names_are_text(self, tmp_path):
        name = "<img src=x onerror=alert(1)>$x"
        runs = {
            (name, *key[1:]) if key[1] != "turbo" else (name, name, key[2]): run for key, run in RUNS.items()
        }
        seen = shown(gathered(runs, tmp_path / "a<b"), tmp_path)
        assert not [tag for tag, _ in seen.tags if tag == "img"]
        assert seen.text.count(name) > 3
        names = {trace.get("name") for trace in seen.figure("problem-0")["data"]} - {None}
        assert names == {"ours", "seiko", "&lt;img src=x onerror=alert(1)&gt;$x"}

    def test_what_is_not_as_it_should_be_is_said(self, tmp_path):
        runs = {key: run for key, run in RUNS.items() if key != ("hill", "seiko", 2)}
        runs |= {
            ("hill", "turbo", 1): [0, 3.1, 4, 6, 6, 8, 8, 10.5],
            ("hill", "turbo", 0): [*RUNS["hill", "turbo", 0], 9, 9],
        }
        runs |= {("flat", method, seed): [1, 1, 0, 0] for method in ("ours", "seiko") for seed in range(3)}
        jobs = [Job(seed, problem, method) for problem, method, seed in RUNS] + [Job(0, "hill", "ddpo")]
        jobs += [Job(seed, problem, method) for problem, method, seed in runs if problem == "flat"]
        text = shown(gathered(runs, tmp_path, jobs), tmp_path).text
        assert "Not begun: hill/seiko/seed-2, hill/ddpo/seed-0." in text
        assert "hill: campaigns are of different lengths, up to 10 queries; all are looked at for 8," in text
        assert "hill: the first batch did not come to the same values for all methods with 1 seed 1." in text
        assert "flat: no method's median gains on the first batch; it has no normalised value." in text
        assert "All problems" not in text  # one of the two has no scale

    def test_campaigns_that_gave_up_for_the_same_reason_are_named_together(self, tmp_path):
        found = gathered(RUNS, tmp_path)
        campaigns = found.comparison.campaigns.copy()
        campaigns.loc[campaigns["method"] == "seiko", "gave_up"] = "its network went to infinity"
        campaigns.loc[(campaigns["method"] == "turbo") & (campaigns["seed"] == 0), "gave_up"] = "no space"
        text = shown(replace(found, comparison=replace(found.comparison, campaigns=campaigns)), tmp_path).text
        names = ", ".join(f"hill/seiko/seed-{seed}" for seed in range(3))
        assert f"{names} gave up, and count with what they had found: its network went to infinity" in text
        assert "hill/turbo/seed-0 gave up, and counts with what it had found: no space" in text

    def test_what_the_suite_does_not_name_counts_nowhere(self, tmp_path):
        jobs = [Job(seed, problem, method) for problem, method, seed in RUNS if method != "seiko"]
        found = gathered(RUNS, tmp_path, jobs)
        assert set(found.summary["method"]) == {"ours", "turbo"}

    def test_all_problems_come_together(self, tmp_path):
        runs = {
            **RUNS,
            **{("plain", m, s): [0, 0, at, at] for m, at in (("ours", 1), ("seiko", 2)) for s in (0, 1)},
        }
        found = gathered(runs, tmp_path)
        page = shown(found, tmp_path)
        assert [trace["name"] for trace in page.figure("together")["data"] if trace.get("name")] == [
            "ours",
            "seiko",
        ]
        best = found.overall.table().iloc[0]
        row = f"{best['final']:.2f} [{best['final_low']:.2f}, {best['final_high']:.2f}]"
        assert ["ours", row, f"{best['area']:.2f}", "1 of 2"] in page.rows
        assert len(found.progress) == 2

    def test_the_record_says_what_ran(self, written):
        text = Page(written.page).text
        assert 'PlainPrior" }' in text
        assert f'"torch": "{version("torch")}"' in text
        assert "Versions of what ran the campaigns" in text


class TestPanels:
    def test_values_are_shown_from_the_first_batch_on(self):
        (hill,), _ = told()
        panel = progress(hill)
        low, high = span(panel, panel.emphasised("ours"))
        start = min(panel.bands[method].middle[1] for method in panel.bands)
        top = panel.bands["ours"].high.max()
        margin = 0.05 * (top - start)
        assert (low, high) == pytest.approx((start - margin, top + margin))
        assert batches(hill).x.tolist() == [2, 4, 6, 8]
        assert panel.ticks == [0, 2, 4, 6, 8]

    def test_an_optimum_is_in_sight_unless_it_is_far_away(self):
        (hill,), _ = told()
        low, high = span(progress(hill), [])
        bottom, top = low + (high - low) / 22, high - (high - low) / 22  # without the margins
        near, far = 2 * top - bottom - 0.1, 2 * top - bottom + 0.1
        assert span(progress(hill, near), []) == pytest.approx(
            (bottom - 0.05 * (near - bottom), near + 0.05 * (near - bottom))
        )
        assert span(progress(hill, far), []) == (low, high)
        assert span(progress(hill, top - 1), []) == (low, high)

    def test_ours_and_the_best_other_are_emphasised(self):
        (hill,), _ = told()
        assert progress(hill).emphasised("ours") == ["ours", "turbo"]
        assert progress(hill).emphasised("seiko") == ["seiko", "ours"]
        assert progress(hill).emphasised("nobody") == ["ours"]

    def test_a_last_batch_that_is_not_full_ends_where_the_queries_end(self):
        runs = {("p", method, 0): [1, 2, 3, 4, 9] for method in ("ours", "prior")}
        (contest,), _ = told(runs)
        assert batches(contest).x.tolist() == [2, 4, 5]
        assert batches(contest).bands["ours"].middle.tolist() == [1.5, 3.5, 9]
        assert batches(contest).ticks is None

    def test_where_nothing_was_found_there_is_no_span(self):
        nothing = np.full(4, NAN)
        panel = Panel("p", "y", np.arange(1.0, 5), {"ours": Band(nothing, nothing, nothing)}, 2)
        assert span(panel, ["ours"]) is None
        assert panel.emphasised("nobody") == []
        flat = np.zeros(4)
        assert span(replace(panel, bands={"ours": Band(flat, flat, flat)}), []) == (-1, 1)


class TestPicture:
    @pytest.mark.parametrize("optimum", [None, 11.0])
    def test_a_known_optimum_is_a_dotted_line(self, optimum):
        (hill,), _ = told()
        axes = Figure().add_subplot()
        methods = {name: name for name in hill.methods}
        _panel(axes, progress(hill, optimum), styles(methods, "ours"), "ours", is_low=True)
        level = [line for line in axes.lines if set(line.get_ydata()) == {11.0}]
        assert len(level) == (optimum is not None)


class TestStyles:
    def test_families_have_colours_and_members_dashes(self):
        types = {
            "prior": "prior", "a": "seiko", "b": "seiko", "mine": "lab", "ours": "steered_prior", "c": "ddpo",
            "greedy": "steered_prior",
        }  # fmt: skip
        found = styles(types, "ours")
        assert list(found) == ["ours", "greedy", "a", "b", "c", "prior", "mine"]
        assert found["a"].colour == found["c"].colour != found["ours"].colour
        assert [found[name].dash for name in ("a", "b", "c")] == list(DASHES[:3])
        assert found["greedy"].family is FAMILIES[1]
        assert found["mine"].family is OTHERS
        assert found["ours"].is_ours
        assert found["ours"].band == "rgba(0, 114, 178, 0.2)"

    def test_many_variants_of_ours_have_more_colours(self):
        found = styles({f"v{i}": "steered_prior" for i in range(15)} | {"ours": "steered_prior"}, "ours")
        assert len({(style.colour, style.dash) for style in found.values()}) == 16

    def test_whatever_stands_out_has_the_colour_of_the_framework(self):
        found = styles({"turbo": "turbo", "ours": "steered_prior"}, "turbo")
        assert found["turbo"].family is FAMILIES[0]
        assert found["turbo"].is_ours
        assert not found["ours"].is_ours

    def test_families_are_told_apart(self):
        colours = [family.colour for family in (*FAMILIES, OTHERS)]
        assert len(set(colours)) == len(colours)


class TestWords:
    def test_numbers_read_well(self):
        _, table = told(diversity={"ours": 0.7}, opinions={"ours": [(1, 0.9), (1, NAN)], "turbo": [(1, NAN)]})
        header, rows = method_table(table, 8)
        assert header[-1] == "seeds"
        assert rows[0] == ["ours", "11.67 [11.00, 13.00]", "0.70", "7", "88%", "0.70", "1.40", "0.900 (1/2)",
                           "40", "4.0", "3"]  # fmt: skip
        assert rows[1][3] == "> 8"
        assert rows[1][5:8] == ["–", "–", "none (0/1)"]
        assert rows[2][7] == "–"

    def test_columns_that_nobody_measured_are_left_out(self):
        _, table = told()
        header, _ = method_table(table, 8)
        assert header == ["method", "final", "area", "to target", "feasible", "evaluations", "CPU s", "seeds"]

    @pytest.mark.parametrize(
        ("value", "text"), [(950, "950"), (51_200, "51.2 k"), (1.234e7, "12.3 M"), (5e9, "5 G")]
    )
    def test_large_counts_are_short(self, value, text):
        _, table = told()
        rows = method_table(table.assign(network_evaluations=value), 8)[1]
        assert rows[0][5] == text

    def test_a_rounding_error_has_no_sign(self):
        _, table = told()
        assert method_table(table.assign(area=-1e-16), 8)[1][0][2] == "0.00"

    def test_a_long_list_is_cut(self):
        assert listed(["a", "b"]) == "a, b"
        assert listed(list("abcd"), 2) == "a, b and 2 more"


class TestCommand:
    def test_a_folder_is_shown_with_what_was_measured_before(self, root, tmp_path):
        folder = shutil.copytree(root, tmp_path / "runs")
        done = CliRunner().invoke(app, ["compare", "report", str(folder), "--out", str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
        assert done.output.split()[0] == str(tmp_path / "out" / "report.html")
        assert Measures.kept(read(folder)).designs.empty
        refused = CliRunner().invoke(app, ["compare", "report", str(folder), "suite.budget=3"])
        assert "in which there is nothing to override; name a suite file" in str(refused.exception)

    def test_a_suite_is_measured_and_its_missing_campaigns_are_named(self, tmp_path):
        points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        tiny = TrainingSettings(n_iterations=10, batch_size=64, width=8, n_blocks=1)
        train_denoiser(points, settings=tiny, seed=0).save(tmp_path / "prior.safetensors")
        (tmp_path / "lab.py").write_text("def value(design):\n    return float(design[0])\n")
        problem = {
            "prior": {"type": "denoiser", "path": "prior.safetensors"},
            "oracle": {"type": "function", "function": "lab.py:value"},
        }
        suite = {
            "suite": {"directory": str(tmp_path / "runs"), "budget": 8, "batch_size": 4, "n_seeds": 1},
            "problems": {"mine": problem},
            "methods": {"prior": {"type": "prior"}},
        }
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(suite))
        assert run_one(path, [], Job(0, "mine", "prior")).refusal is None
        done = CliRunner().invoke(app, ["compare", "report", str(path), "suite.n_seeds=2"])
        assert done.exit_code == 0, done.output
        assert "Not begun: mine/prior/seed-1." in Page(tmp_path / "runs" / "report" / "report.html").text
        assert len(Measures.kept(read(tmp_path / "runs")).designs) == 1
