"""The report: right numbers, nothing of a stranger's directory run or trusted, and every unfinished state."""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bbo.errors import BboError, CampaignError
from bbo.ledger import Ledger, Proposal, Query
from bbo.report import write_report
from bbo.report.figures import plotly_script
from bbo.report.gallery import built_in_gallery, common_frame
from bbo.report.html import plot
from bbo.report.numbers import belief as in_words
from bbo.report.numbers import failure_reasons
from bbo.report.numbers import number as in_digits
from oracles.base import Reference
from oracles.evaluation import Evaluation
from tests.bbo.report_page import Page

EVIL = "<script>alert(1)</script>"
AIRFOIL = {
    "type": "airfoil",
    "alpha": 3.0,
    "reynolds": 1e6,
    "model_size": "large",
    "min_confidence": 0.9,
    "name": "airfoil",
    "design_shape": [18],
    "n_per_call": None,
    "is_idempotent": True,
}


# ------------------------------------------------------------------- building campaigns
class Circles:
    """Draws a design as a circle whose radius is its first number."""

    def outline(self, design: Tensor) -> Tensor:
        angle = torch.linspace(0, 2 * torch.pi, 5)[:-1]
        return design[0] * torch.stack([angle.cos(), angle.sin()], dim=1)

    def references(self, n: int) -> Sequence[Reference]:
        known = [
            Reference(f"known {EVIL}", torch.tensor([3.0, 0.0]), 2.75),
            Reference("second", torch.ones(2), 2.5),
        ]
        return known[:n]


def _create(directory: Path, *, name: str = "foil", budget: int = 8, oracle: object = None) -> Ledger:
    config = {"campaign": {"objective": "value", "budget": budget}, "oracle": oracle or {"name": "mine"}}
    return Ledger.create(directory, name=name, budget=budget, config=config).drive()


def _reserve(
    ledger: Ledger,
    predicted: Sequence[tuple[float, float] | None],
    number: int = 0,
    traces: Mapping[str, Tensor] | None = None,
) -> list[Query]:
    """Reserve a round; its designs are [number + 1, row]."""
    n = len(predicted)
    designs = torch.stack([torch.full((n,), number + 1.0), torch.arange(n).float()], dim=1)
    artifact = ledger.blobs.put_tensors({"design": designs, **(traces or {})})
    proposals = [
        Proposal(row, *(belief or (None, None)), provenance={"from": "prior" if belief is None else "target"})
        for row, belief in enumerate(predicted)
    ]
    return ledger.reserve(number, 7, proposals, artifact, {"seconds": {"sample": 0.25}})


def _answer(ledger: Ledger, queries: Sequence[Query], answers: Sequence[float | str]) -> None:
    ids = [query.id for query in queries]
    ledger.send(ids)
    told = [Evaluation.failed(a) if isinstance(a, str) else Evaluation.of(a) for a in answers]
    ledger.tell(dict(zip(ids, told, strict=True)))


def _small_campaign(directory: Path, **options: Any) -> None:
    """Two rounds, six queries: values 1, failed, 2 and then 1.5, 3, failed with predictions."""
    with _create(directory, **options) as ledger:
        _answer(ledger, _reserve(ledger, [None] * 3), [1.0, f"crossed at 0.5 {EVIL}", 2.0])
        traces = {
            "ess_share": torch.tensor([[1.0, 0.5], [0.6, 0.2]]),
            "lam": torch.tensor([[0.0] * 2, [1.0] * 2]),
        }
        believed = [(1.0, 0.5), (1.0, 0.5), (2.0, 0.5)]
        _answer(ledger, _reserve(ledger, believed, 1, traces), [1.5, 3.0, f"crossed at 0.7 {EVIL}"])


# ------------------------------------------------------------------- reading reports
def _report(directory: Path, gallery: Any = None) -> Page:
    return Page(write_report(directory, gallery=gallery))


# ------------------------------------------------------------------- numbers
class TestNumbers:
    def test_the_header_says_where_the_campaign_stands(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        text = _report(tmp_path).text
        assert "foil Unfinished: 6 of 8 queries spent, 2 failed, 0 in doubt · 2 rounds" in text
        assert "best 3.0000 since query 5 of round 1, 20" in text
        assert "best 3.0000 value" in text
        assert "mean of the top 4 1.8750 value" in text  # (1 + 2 + 1.5 + 3) / 4
        assert "feasible share 66.7% 4 of 6 answers" in text
        assert "queries spent 6 of 8 6 answered, 0 in doubt" in text

    def test_every_query_and_the_best_so_far_are_drawn(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        page = _report(tmp_path, Circles())
        prior, target = (page.trace("progress", f"drawn from the {name}") for name in ("prior", "target"))
        assert (prior["x"], prior["y"]) == ([1, 3], [1.0, 2.0])
        assert (target["x"], target["y"]) == ([4, 5], [1.5, 3.0])
        best = page.trace("progress", "best so far")
        assert (best["x"], best["y"]) == ([1, 2, 3, 4, 5, 6], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
        failed = page.trace("progress", "failed")
        assert failed["x"] == [2, 6]
        assert failed["y"] == [pytest.approx(1 - 0.08 * 2)] * 2  # below the lowest value by 8 % of the range
        level = page.trace("progress", "best of the data, 2.7500 (known")
        assert level["y"] == [2.75, 2.75]

    def test_calibration_is_of_predictions_that_have_an_outcome(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        page = _report(tmp_path)
        # errors 0.5 and 2 at a std of 0.5: one within 1.645 std; RMSE sqrt((0.25 + 4) / 2)
        assert "50.0% of the outcomes lie within their 90 % interval; RMSE 1.46; n = 2." in page.text
        drawn = page.trace("predictions", "mean ± 2 std")
        assert (drawn["x"], drawn["y"], drawn["error_y"]["array"]) == ([1.5, 3.0], [1.0, 1.0], [1.0, 1.0])
        assert page.trace("predictions", "predicted = observed")["x"] == [1.0, 3.0]

    @pytest.mark.parametrize(("error", "covered"), [(1.64, "100.0%"), (1.65, "0.0%"), (-1.65, "0.0%")])
    def test_the_interval_is_the_central_90_percent(self, tmp_path: Path, error: float, covered: str) -> None:
        with _create(tmp_path) as ledger:
            _answer(ledger, _reserve(ledger, [(10.0, 2.0)]), [10 + 2 * error])
        assert f"{covered} of the outcomes" in _report(tmp_path).text

    def test_the_sampler_is_shown_as_median_and_band_over_islands(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        page = _report(tmp_path)
        assert "Round 1, 2 islands" in page.text
        ess, lam = [t for t in page.figure("sampler")["data"] if t["name"] == "median"]
        assert ess["y"] == pytest.approx([0.75, 0.4])
        assert lam["y"] == [0.0, 1.0]
        band = page.figure("sampler")["data"][0]
        assert band["y"] == pytest.approx([0.95, 0.56, 0.24, 0.55])  # 90 % forth, 10 % back
        assert band["x"] == [1, 2, 2, 1]

    def test_the_best_are_listed_with_what_was_predicted(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        rows = _report(tmp_path).rows
        assert rows[rows.index(["rank", "value", "predicted before", "query", "round"]) :][1:5] == [
            ["1", "3.0000", "1.00 ± 0.50", "5", "1"],
            ["2", "2.0000", "–", "3", "0"],
            ["3", "1.5000", "1.00 ± 0.50", "4", "1"],
            ["4", "1.0000", "–", "1", "0"],
        ]

    def test_config_rounds_and_versions_are_on_record(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path, oracle={"type": "mine:Oracle", "alpha": 12.5})
        page = _report(tmp_path)
        assert '"alpha": 12.5' in page.text
        assert page.rows[-1][0] == "neuralfoil"
        assert ["round", "queries", "sample [s]"] in page.rows
        assert ["1", "3", "0.25"] in page.rows

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (209.538494, "209.54"),
            (-0.0123456, "-0.012346"),
            (0.0, "0"),
            (123456.7, "123457"),
            (4.2e-9, "4.2000e-09"),
        ],
    )
    def test_numbers_have_five_digits(self, value: float, text: str) -> None:
        assert in_digits(value) == text

    @pytest.mark.parametrize(
        ("mean", "std", "text"),
        [
            (176.258, 14.824, "176 ± 15"),
            (176.258, 9.46, "176.3 ± 9.5"),
            (0.01234, 0.00456, "0.0123 ± 0.0046"),
            (1234.5, 321.0, "1234 ± 321"),
            (3.0, 0.0, "3.0000"),
            (1e9, 1e8, "1e+09 ± 1e+08"),
        ],
    )
    def test_beliefs_are_as_precise_as_their_std(self, mean: float, std: float, text: str) -> None:
        assert in_words(mean, std) == text

    def test_reasons_that_differ_in_numbers_only_are_counted_together(self) -> None:
        reasons = ["took 9 of 20", "crossed", "took 10 of 20", "took 9.5 of 20", "crossed at 1"]
        assert failure_reasons(reasons) == [
            ("took 9 … 10 of 20", 3),
            ("crossed", 1),
            ("crossed at 1", 1),
        ]

    def test_long_reasons_are_cut(self) -> None:
        assert failure_reasons(["x" * 300, "y" * 301]) == [("x" * 300, 1), ("y" * 300 + "…", 1)]

    def test_many_reasons_are_summed_up(self, tmp_path: Path) -> None:
        with _create(tmp_path, budget=30) as ledger:
            words = [chr(ord("a") + i // 5) * (1 + i % 5) for i in range(25)]
            _answer(ledger, _reserve(ledger, [None] * 25), words)
        page = _report(tmp_path)
        assert "25 queries failed." in page.text
        assert ["5 other reasons", "5"] in page.rows


# ------------------------------------------------------------------- states
class TestStates:
    def test_nothing_asked_yet(self, tmp_path: Path) -> None:
        _create(tmp_path).close()
        text = _report(tmp_path, Circles()).text
        assert "Not started: none of 8 queries spent · 0 rounds · no value yet" in text
        assert "feasible share – 0 of 0 answers" in text
        assert "Nothing was sampled yet." in text
        assert "No query was paid yet." in text
        assert "No query failed." in text

    def test_asked_and_not_answered(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            queries = _reserve(ledger, [None] * 3)
            ledger.send([queries[0].id])
            text = _report(tmp_path).text  # while the driver is still there
        assert "Unfinished: 0 of 8 queries spent, 0 failed, 0 in doubt, 3 waiting for an answer" in text
        assert "No query with a prediction has an outcome yet" in text
        assert "Round 0 left no trace of its steps" in text

    def test_everything_failed(self, tmp_path: Path) -> None:
        with _create(tmp_path, budget=2) as ledger:
            _answer(ledger, _reserve(ledger, [(1.0, 1.0)] * 2), ["crossed", "crossed"])
        page = _report(tmp_path, Circles())
        assert "Finished: 2 of 2 queries spent, 2 failed, 0 in doubt · 1 round · no value yet" in page.text
        assert "feasible share 0.0% 0 of 2 answers" in page.text
        assert ["crossed", "2"] in page.rows
        assert page.trace("progress", "failed")["x"] == [1, 2]

    def test_every_query_in_doubt_is_shown_and_counts_as_spent(self, tmp_path: Path) -> None:
        with _create(tmp_path, budget=40) as ledger:
            queries = _reserve(ledger, [None] * 30)
            ledger.send([q.id for q in queries])
        with Ledger.open(tmp_path).drive() as ledger:
            doubted = ledger.doubt_sent()
            _answer(ledger, _reserve(ledger, [None], 1), [1.0])
        page = _report(tmp_path)
        assert "Unfinished: 31 of 40 queries spent, 0 failed, 30 in doubt" in page.text
        listed = {row[0]: row[1] for row in page.rows}
        assert all(listed[q.key] == str(q.id) for q in doubted)
        assert "bbo resolve CAMPAIGN QUERY" in page.text
        assert page.trace("progress", "in doubt")["x"] == [q.id for q in doubted]
        assert page.trace("progress", "best so far")["y"] == [None] * 30 + [1.0]

    def test_lost_tensors_cost_their_parts_only(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        for blob in (tmp_path / "blobs").iterdir():
            blob.unlink()
        text = _report(tmp_path, Circles()).text
        assert "best 3.0000 since query 5" in text
        assert "The best designs cannot be read: BlobError" in text
        assert "The traces of round 1 cannot be read: cannot read the blob" in text
        assert "2.7500" in text  # the references still are there

    def test_no_campaign_and_no_place_are_refused_in_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(CampaignError, match="expected a campaign in"):
            write_report(tmp_path / "nowhere")
        _create(tmp_path).close()
        with pytest.raises(BboError, match=r"cannot write the report .*missing.*; name another place"):
            write_report(tmp_path, tmp_path / "missing" / "report.html")

    def test_it_is_written_where_it_is_wanted(self, tmp_path: Path) -> None:
        _create(tmp_path / "run").close()
        assert write_report(str(tmp_path / "run")) == tmp_path / "run" / "report.html"
        assert write_report(tmp_path / "run", tmp_path / "it.html") == tmp_path / "it.html"
        assert (tmp_path / "it.html").is_file()


# ------------------------------------------------------------------- gallery
class TestGallery:
    def test_the_best_designs_stand_beside_the_best_known(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        page = _report(tmp_path, Circles())
        assert [a["viewbox"] for tag, a in page.tags if tag == "svg"] == ["-3.18 -3.18 6.36 6.36"] * 6
        drawn = [a["d"] for tag, a in page.tags if tag == "path" and a["class"] == "design"]
        # radius is the round plus one; the best design is of round 1
        assert drawn[0] is not None
        assert [float(n) for n in re.findall(r"-?[\d.e-]+", drawn[0])] == pytest.approx(
            [2, 0, 0, -2, -2, 0, 0, 2], abs=1e-6
        )
        assert "3.0000 query 5 2.0000 query 3 1.5000 query 4 1.0000 query 1 Best of the data" in page.text
        assert "2.5000 second" in page.text

    def test_a_frame_holds_all_outlines_to_one_scale(self) -> None:
        flat = torch.tensor([[0.0, -0.1], [1.0, 0.3]]).numpy()
        tall = torch.tensor([[0.5, 0.0], [0.5, 2.0]]).numpy()
        x, y, width, height = map(float, common_frame([flat, tall]).split())
        margin = 0.03 * 2.1
        assert (x, y) == pytest.approx((-margin, -2 - margin))  # SVG counts y downwards
        assert (width, height) == pytest.approx((1 + 2 * margin, 2.1 + 2 * margin), rel=1e-4)

    def test_without_a_gallery_the_numbers_are_listed(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        page = _report(tmp_path)
        assert ["query", "value", "x0", "x1"] in page.rows
        assert ["5", "3.0000", "2", "1"] in page.rows
        assert "svg" not in [tag for tag, _ in page.tags]

    def test_large_designs_are_cut(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            artifact = ledger.blobs.put_tensors({"design": torch.full((1, 3, 32, 32), 255.0)})
            _answer(ledger, ledger.reserve(0, 7, [Proposal(0)], artifact, {}), [1.0])
        page = _report(tmp_path)
        assert ["query", "value", *(f"x{i}" for i in range(24))] in page.rows
        assert "and 3048 numbers more of each design" in page.text

    @pytest.mark.parametrize("broken", ["outline", "references"])
    def test_a_gallery_that_breaks_is_one_line(
        self, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError(f"no\nway {EVIL}")

        monkeypatch.setattr(Circles, broken, fail)
        _small_campaign(tmp_path)
        page = _report(tmp_path, Circles())
        assert f"The gallery is incomplete: RuntimeError: no way {EVIL}" in page.text
        has_table = ["query", "value", "x0", "x1"] in page.rows
        assert has_table is (broken == "outline")

    def test_an_outline_that_is_not_finite_is_not_drawn(self, tmp_path: Path) -> None:
        class Nowhere(Circles):
            def outline(self, design: Tensor) -> Tensor:
                return torch.full((4, 2), torch.nan)

        _small_campaign(tmp_path)
        assert "an outline has points that are not finite" in _report(tmp_path, Nowhere()).text


# ------------------------------------------------------------------- a stranger's directory
class TestStrangers:
    def test_the_page_loads_nothing(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        page = _report(tmp_path, Circles())
        loading = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
        assert not [(tag, a) for tag, a in page.tags if loading & a.keys()]
        assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
        (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy is not None
        assert "default-src 'none'" in policy

    def test_only_its_own_two_scripts_may_run(self, tmp_path: Path) -> None:
        _small_campaign(tmp_path)
        page = _report(tmp_path)
        (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy is not None
        allowed = re.findall(r"'sha256-[^']+'", policy.split("script-src")[1])
        executed = [script for attributes, script in page.scripts if "type" not in attributes]
        assert executed[0] == plotly_script()
        hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in executed]
        assert allowed == [f"'sha256-{digest}'" for digest in hashes]
        assert "unsafe" not in policy.split("script-src")[1]

    def test_foreign_text_is_shown_and_never_markup(self, tmp_path: Path) -> None:
        oracle = {"name": EVIL, "half": "\ud800", EVIL: "</pre>"}
        _small_campaign(tmp_path, name=EVIL, oracle=oracle)
        path = write_report(tmp_path, gallery=Circles())
        page = Page(path)
        assert f"{EVIL} Unfinished" in page.text  # the campaign's name
        assert f"crossed at 0.5 … 0.7 {EVIL}" in page.text  # the errors
        assert f"known {EVIL}" in page.text  # a reference's label
        assert f'"name": "{EVIL}"' in page.text  # the config
        assert [a.get("id", "runs") for a, _ in page.scripts] == [
            "progress", "predictions", "sampler", "runs", "runs",
        ]  # fmt: skip
        # plotly.js reads text as HTML of its own, so there it is escaped once more
        (hover, _) = page.trace("progress", "failed")["hovertext"]
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hover
        assert "<script" not in hover
        assert "<script" not in page.trace("progress", "best of the data")["name"]

    def test_text_in_a_figure_cannot_end_its_script(self) -> None:
        told = {"label": f"</script>{EVIL}"}
        html = plot("x", json.dumps(told))
        assert html.count("</script>") == 1
        assert json.loads(html.split('id="x">')[1].removesuffix("</script>")) == told

    def test_an_objective_is_foreign_text_too(self, tmp_path: Path) -> None:
        config = {"campaign": {"objective": EVIL}, "oracle": None}
        with Ledger.create(tmp_path, name="x", budget=1, config=config).drive() as ledger:
            (query,) = _reserve(ledger, [(1.0, 1.0)])
            ledger.send([query.id])
            ledger.tell({query.id: Evaluation(outcomes={EVIL: 4.0})})
        page = _report(tmp_path)
        assert f"best 4.0000 {EVIL}" in page.text
        for figure in ("progress", "predictions"):
            assert "<script" not in json.dumps(page.figure(figure)["layout"])

    @pytest.mark.parametrize(
        "oracle",
        [
            {"type": "function", "function": "trap:spring", "name": "spring"},
            {"type": "batch_function", "function": "trap:spring", "name": "spring"},
            {"type": "trap:Oracle", "name": "trap"},
            {"type": "os:system", "command": "touch sprung"},
            {"type": ["airfoil"]},
            {"name": "no type"},
            "airfoil",
            None,
        ],
    )
    def test_no_code_that_a_config_names_is_run(
        self, tmp_path: Path, oracle: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "trap.py").write_text(
            "open('sprung', 'w')\nclass Oracle: pass\ndef spring(x): return 1.0\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        assert built_in_gallery({"oracle": oracle}) is None
        with _create(tmp_path, oracle=oracle) as ledger:
            _answer(ledger, _reserve(ledger, [None]), [1.0])
        assert "best 1.0000" in _report(tmp_path).text
        assert not (tmp_path / "sprung").exists()
        assert "trap" not in sys.modules

    def test_the_built_in_oracle_is_rebuilt_with_its_own_settings(self) -> None:
        oracle: Any = built_in_gallery({"oracle": AIRFOIL})
        assert (type(oracle).__name__, oracle.alpha) == ("AirfoilOracle", 3.0)
        wrapped = {"type": "noisy", "std": 0.1, "oracle": {"type": "cached", "oracle": AIRFOIL}}
        assert built_in_gallery({"oracle": wrapped}) == oracle
        assert built_in_gallery({"oracle": {"type": "negated", "oracle": wrapped}}) is None

    @pytest.mark.parametrize("changes", [{"alpha": 1000}, {"alpha": "steep"}, {"unheard_of": 1}])
    def test_settings_that_are_none_cost_the_gallery_only(
        self, tmp_path: Path, changes: dict[str, object]
    ) -> None:
        _small_campaign(tmp_path, oracle=AIRFOIL | changes)
        page = _report(tmp_path)
        assert "The gallery is incomplete: " in page.text
        assert ["5", "3.0000", "2", "1"] in page.rows
