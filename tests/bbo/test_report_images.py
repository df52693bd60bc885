"""Reports of campaigns whose designs are images: the best beside the prior's, and the last batch."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from bbo.campaign import Campaign
from bbo.desk import edit, give
from bbo.ledger import Ledger, Proposal, Query
from bbo.ledger.blobs import BlobStore
from bbo.report import write_report
from bbo.report.images import has_image_shape, png, share_in_range
from bbo.report.numbers import number
from bbo.steering import SteeredPrior
from oracles.evaluation import Evaluation
from oracles.jpeg import JpegSizeOracle
from oracles.wrappers import Negated
from smc.prior import Prior
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from tests.bbo.report_page import Page

EVIL = "<script>alert(1)</script>\" onerror='x'"
PREFIX = "data:image/png;base64,"


# ------------------------------------------------------------------- building campaigns
@dataclass(frozen=True)
class Patches:
    """Clouds of 8 × 8 pixels: Gaussian noise, blurred and squashed into 0 … 1."""

    latents: GaussianPrior = field(default_factory=lambda: GaussianPrior(torch.zeros(64), 1.0, n_steps=8))
    design_shape: tuple[int, ...] = (1, 8, 8)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.latents, name)

    def decode(self, x0: Tensor) -> Tensor:
        blurred = avg_pool2d(x0.reshape(-1, 1, 8, 8), 3, stride=1, padding=1)
        return (6 * blurred).sigmoid().reshape(-1, *self.design_shape)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a campaign of three rounds for images of few bytes, run to its end."""
    directory = tmp_path_factory.mktemp("campaign") / "patches"
    method = SteeredPrior(sampler=SamplerConfig(n_islands=24, n_particles=2), kl_coef=0.5)
    with Campaign.open(
        directory, prior=Patches(), oracle=Negated(JpegSizeOracle()), budget=60, batch_size=20, method=method
    ) as campaign:
        campaign.run()
    return directory


def _create(directory: Path, budget: int = 64, oracle: object = None) -> Ledger:
    config = {"campaign": {"objective": "value", "budget": budget}, "oracle": oracle or {"name": "mine"}}
    config["prior"] = {"design_shape": [8, 8]}
    return Ledger.create(directory, name="pixels", budget=budget, config=config).drive()


def _round(
    ledger: Ledger, designs: Tensor, answers: Sequence[float | str | None], source: str = "prior"
) -> list[Query]:
    """Reserve a round of these designs and answer them; None leaves one waiting."""
    artifact = ledger.blobs.put_tensors({"design": designs})
    proposals = [Proposal(row, provenance={"from": source}) for row in range(len(designs))]
    queries = ledger.reserve(ledger.n_rounds(), 7, proposals, artifact, {})
    told = {
        query.id: Evaluation.failed(answer) if isinstance(answer, str) else Evaluation.of(answer)
        for query, answer in zip(queries, answers, strict=True)
        if answer is not None
    }
    ledger.send(list(told))
    ledger.tell(told)
    return queries


def _shades(*shape: int, first: float = 0.0) -> Tensor:
    """Return images of one shade each, told apart by it: first, first + 1/255, ..."""
    n = shape[0]
    return (first + torch.arange(n) / 255).reshape(n, *[1] * (len(shape) - 1)).expand(shape).clone()


# ------------------------------------------------------------------- reading reports
def _report(directory: Path, gallery: Any = None) -> Page:
    return Page(write_report(directory, directory / "report.html", gallery))


def _pictures(page: Page) -> list[np.ndarray]:
    """Return the images of a page in their order, each (h, w) or (h, w, 3)."""
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert all(source is not None and source.startswith(PREFIX) for source in sources)
    files = [base64.b64decode(str(source).removeprefix(PREFIX), validate=True) for source in sources]
    return [np.asarray(Image.open(io.BytesIO(file), formats=["PNG"])) for file in files]


def _grey(design: Tensor) -> np.ndarray:
    return np.asarray((design * 255).round().to(torch.uint8).reshape(design.shape[-2:]))


# ------------------------------------------------------------------- a whole campaign
class TestCampaign:
    def test_the_prior_of_these_tests_is_one(self) -> None:
        assert isinstance(Patches(), Prior)

    def test_best_prior_and_last_batch_are_shown_pixel_for_pixel(self, finished: Path) -> None:
        page = _report(finished)
        with Ledger.open(finished) as ledger:
            queries = ledger.queries()
            design = {q.id: ledger.blobs.get_tensors(q.artifact)["design"][q.row] for q in queries}
        value = {q.id: q.evaluation.outcomes["value"] for q in queries if q.evaluation is not None}
        best = sorted(value, key=lambda id_: -value[id_])[:16]
        shown = [*best, *range(1, 17), *range(41, 57)]  # of twenty a round
        for picture, id_ in zip(_pictures(page), shown, strict=True):
            assert np.array_equal(picture, _grey(design[id_]))
        captions = [f"{number(value[id_])} query {id_}" for id_ in shown]
        for first in (0, 16, 32):
            assert " ".join(captions[first : first + 16]) in page.text
        assert "Best of this campaign 16 of 60 with a value" in page.text
        assert "The prior first 16 of 20 draws" in page.text
        assert "Last batch first 16 of 20 designs of round 2" in page.text
        assert [a["alt"] for tag, a in page.tags if tag == "img"] == [
            f"design of query {id_}" for id_ in shown
        ]
        assert "Images of 8 × 8 pixels" in page.text
        assert "svg" not in [tag for tag, _ in page.tags]

    def test_small_images_stay_crisp(self, finished: Path) -> None:
        page = _report(finished)
        assert {a["class"] for tag, a in page.tags if tag == "img"} == {"crisp"}
        assert "image-rendering: pixelated" in (finished / "report.html").read_text()

    def test_the_page_may_show_images_of_its_own_and_loads_nothing(self, finished: Path) -> None:
        page = _report(finished)
        (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
        rules = dict(rule.split(maxsplit=1) for rule in str(policy).split("; "))
        # blob: is what plotly.js makes of a figure that is saved as an image
        assert (rules["default-src"], rules["img-src"]) == ("'none'", "data: blob:")
        assert set(rules) == {"default-src", "img-src", "style-src", "script-src"}


# ------------------------------------------------------------------- what is an image
class TestRule:
    @pytest.mark.parametrize("shape", [(4, 4), (1, 4, 7), (3, 9, 4), (512, 512)])
    def test_images_have_two_sides_and_one_or_three_channels(self, shape: tuple[int, ...]) -> None:
        assert has_image_shape(torch.zeros(shape))

    @pytest.mark.parametrize(
        "shape", [(), (18,), (3, 8), (8, 3), (2, 8, 8), (4, 8, 8), (8, 8, 3), (1, 3, 8), (1, 1, 8, 8), (0, 0)]
    )
    def test_nothing_else_has(self, shape: tuple[int, ...]) -> None:
        assert not has_image_shape(torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.bfloat16, torch.bool])
    def test_any_kind_of_number_leaves_a_report(self, tmp_path: Path, dtype: torch.dtype) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, torch.ones(1, 8, 8).to(dtype), [1.0])
        assert len(_pictures(_report(tmp_path))) == (0 if dtype.is_complex else 2)

    def test_the_share_in_range_is_of_finite_numbers_and_lets_a_tenth_over(self) -> None:
        one = torch.tensor([[-0.11, -0.09, 0.5, 1.09], [1.11, math.nan, math.inf, -math.inf]])
        assert share_in_range([one]) == 3 / 5
        assert share_in_range([one, torch.zeros(5, 2)]) == 13 / 15
        assert share_in_range([torch.full((2, 2), math.nan)]) == 0
        assert share_in_range([torch.tensor([[0, 1], [2, 3]])]) == 0.5

    @pytest.mark.parametrize(("n_high", "is_shown"), [(6, True), (7, False)])  # of 64, a tenth is 6.4
    def test_nine_tenths_of_the_numbers_must_be_grey_values(
        self, tmp_path: Path, n_high: int, is_shown: bool
    ) -> None:
        design = torch.full((64,), 0.5)
        design[:n_high] = 7.0
        with _create(tmp_path) as ledger:
            _round(ledger, design.reshape(1, 1, 8, 8), [1.0])
        page = _report(tmp_path)
        assert bool(_pictures(page)) is is_shown
        told = "they have the shape of images, but only 89.1% of their numbers lie in 0 … 1 or near it"
        assert (told in page.text) is not is_shown
        assert (["query", "value", *(f"x{i}" for i in range(24))] in page.rows) is not is_shown

    def test_designs_of_another_shape_are_listed_as_before_and_nothing_is_said(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, torch.rand(2, 3, 3), [1.0, 2.0])
        page = _report(tmp_path)
        assert ["query", "value", *(f"x{i}" for i in range(9))] in page.rows
        assert "image" not in page.text

    def test_one_design_that_is_no_image_makes_all_none(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), [1.0, 2.0])
            _round(ledger, _shades(2, 3, 3), [None, None], "target")
        page = _report(tmp_path)
        assert not _pictures(page)
        assert ["query", "value", *(f"x{i}" for i in range(24))] in page.rows

    def test_where_somebody_draws_outlines_they_are_drawn(self, tmp_path: Path) -> None:
        class Squares:
            def outline(self, design: Tensor) -> Tensor:
                return torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])

            def references(self, n: int) -> list[object]:
                return []

        with _create(tmp_path) as ledger:
            _round(ledger, torch.rand(2, 1, 8, 8), [1.0, 2.0])
        page = _report(tmp_path, Squares())
        assert [tag for tag, _ in page.tags if tag in ("svg", "img")] == ["svg", "svg"]


# ------------------------------------------------------------------- pixels
class TestPixels:
    def test_three_channels_are_red_green_and_blue(self, tmp_path: Path) -> None:
        design = torch.stack([torch.full((4, 5), level / 255) for level in (200, 100, 50)])
        with _create(tmp_path) as ledger:
            _round(ledger, design[None], [1.0])
        best, prior = _pictures(_report(tmp_path))
        assert best.shape == (4, 5, 3)
        assert best.reshape(-1, 3).tolist() == [[200, 100, 50]] * 20
        assert np.array_equal(best, prior)

    def test_pixels_lie_as_in_the_design(self) -> None:
        design = torch.arange(20.0).reshape(4, 5) / 255
        shown = np.asarray(Image.open(io.BytesIO(png(design))))
        assert shown.tolist() == (design * 255).round().int().tolist()

    @pytest.mark.parametrize(
        ("shape", "size"),
        [
            ((512, 512), (100, 100)),
            ((3, 256, 512), (100, 50)),
            ((1, 4, 5000), (100, 1)),
            ((64, 64), (64, 64)),
        ],
    )
    def test_large_ones_are_shrunk_in_proportion(self, shape: tuple[int, ...], size: tuple[int, int]) -> None:
        assert Image.open(io.BytesIO(png(torch.full(shape, 0.5)))).size == size

    def test_shrinking_averages(self) -> None:
        board = (torch.arange(200)[:, None] + torch.arange(200)) % 2  # black and white by turns
        shown = np.asarray(Image.open(io.BytesIO(png(board.float()))))
        assert abs(shown[5:-5, 5:-5].astype(float) - 127.5).max() <= 2

    @pytest.mark.parametrize(
        ("side", "told"), [(100, "100 × 100 pixels."), (512, "512 × 512 pixels, shrunk to 100 × 100.")]
    )
    def test_images_that_nothing_compresses_stay_below_two_megabytes(
        self, tmp_path: Path, side: int, told: str
    ) -> None:
        noise = torch.rand(16, 3, side, side, generator=torch.Generator().manual_seed(0)).half()
        with _create(tmp_path) as ledger:
            _round(ledger, noise, [float(i) for i in range(16)])
            _round(ledger, noise, [None] * 16, "target")
        page = _report(tmp_path)
        sources = [str(a["src"]) for tag, a in page.tags if tag == "img"]
        assert len(sources) == 48
        assert sum(map(len, sources)) < 2e6
        assert {a["class"] for tag, a in page.tags if tag == "img"} == {"smooth"}
        assert f"Images of {told}" in page.text

    def test_numbers_that_are_no_grey_value_are_clipped_and_counted(self, tmp_path: Path) -> None:
        design = torch.full((1, 8, 8), 0.5)
        design[0, 0, :6] = torch.tensor([-0.05, 1.05, math.nan, math.inf, -math.inf, -1e-4])
        with _create(tmp_path) as ledger:
            _round(ledger, design[None], [1.0])
            _round(ledger, torch.full((1, 1, 8, 8), 0.5), [None], "target")
        page = _report(tmp_path)
        shown = _pictures(page)[0]
        assert shown[0].tolist() == [0, 255, 0, 255, 0, 0, 128, 128]
        # each design is counted once, however often it is shown; -1e-4 is rounding
        assert (
            "5 of the 128 numbers shown are outside 0 … 1 or not finite, in 1 of 2 designs: "
            "drawn as the nearer end, NaN as black." in page.text
        )

    def test_numbers_of_any_kind_are_drawn(self) -> None:
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool):
            assert np.asarray(Image.open(io.BytesIO(png(torch.ones(4, 4).to(dtype))))).min() == 255


# ------------------------------------------------------------------- which designs
class TestWings:
    def test_what_failed_or_waits_says_so_instead_of_a_value(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(3, 1, 8, 8), [1.0, f"too dark {EVIL}", 2.0])
            waiting = _round(ledger, _shades(3, 1, 8, 8, first=128 / 255), [None] * 3, "target")
            ledger.send([waiting[1].id, waiting[2].id])
            ledger.doubt_sent()
            ledger.abandon([waiting[2].id], "nobody knows")
        page = _report(tmp_path)
        assert f"The prior 3 draws 1.0000 query 1 too dark {EVIL} query 2 2.0000 query 3" in page.text
        assert (
            "Last batch 3 designs of round 1 waiting query 4 in doubt query 5 abandoned query 6" in page.text
        )
        assert [p[0, 0] for p in _pictures(page)] == [2, 0, 0, 1, 2, 128, 129, 130]
        titles = [a["title"] for tag, a in page.tags if tag == "figure" and a.get("class") == "failed"]
        assert titles == [f"too dark {EVIL}"]
        assert not [a for _, a in page.tags if "onerror" in a]

    def test_long_reasons_are_cut(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 1, 8, 8), ["no " * 5000, 1.0])
        (title,) = [a["title"] for _, a in _report(tmp_path).tags if "title" in a]
        assert title == "no " * 100 + "…"

    def test_the_priors_are_those_that_say_so_in_any_round(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), ["no", "no"])
            _round(ledger, _shades(2, 8, 8, first=51 / 255), [1.0, 2.0])
            _round(ledger, _shades(2, 8, 8, first=102 / 255), [3.0, None], "target")
        page = _report(tmp_path)
        assert [p[0, 0] for p in _pictures(page)] == [102, 52, 51, 0, 1, 51, 52, 102, 103]
        assert "The prior 4 draws" in page.text

    def test_where_no_query_says_that_it_is_the_priors_none_is_shown_as_one(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), [1.0, 2.0], "elsewhere")
        page = _report(tmp_path)
        assert [p[0, 0] for p in _pictures(page)] == [1, 0, 0, 1]
        assert (
            "The prior No query of this campaign says that it was drawn from the prior itself, so none is shown"
            in page.text
        )

    def test_before_anything_is_steered_the_last_batch_is_the_priors(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), [1.0, None])
        page = _report(tmp_path)
        assert [p[0, 0] for p in _pictures(page)] == [0, 0, 1]
        assert "Last batch Drawn from the prior too: nothing steers the sampler yet." in page.text

    def test_a_batch_that_is_the_priors_in_part_is_shown_whole(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            artifact = ledger.blobs.put_tensors({"design": _shades(2, 8, 8)})
            proposals = [
                Proposal(row, provenance={"from": source}) for row, source in enumerate(("prior", "target"))
            ]
            ledger.reserve(0, 7, proposals, artifact, {})
        page = _report(tmp_path)
        assert [p[0, 0] for p in _pictures(page)] == [0, 0, 1]
        assert "The prior 1 draw waiting query 1 Last batch 2 designs of round 0 waiting" in page.text

    def test_where_everything_was_given_there_is_no_batch(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            give(ledger, _shades(2, 8, 8), [Evaluation.of(1.0), Evaluation.of(2.0)], "last year")
        page = _report(tmp_path)
        assert [p[0, 0] for p in _pictures(page)] == [1, 0]
        assert "Last batch Nothing was proposed yet." in page.text

    def test_where_all_failed_the_prior_is_shown_all_the_same(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), ["no", "no"])
        page = _report(tmp_path)
        assert len(_pictures(page)) == 2
        assert "Best of this campaign No design has a value yet." in page.text

    def test_what_people_edited_or_gave_is_no_batch_of_the_sampler(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), [1.0, 2.0])
            reserved = _round(ledger, _shades(3, 8, 8, first=102 / 255), [None] * 3, "target")
            ledger.send([q.id for q in reserved], is_asked=True)
            edit(ledger, reserved[0].id, torch.full((8, 8), 0.8), "rounder")
            give(ledger, torch.full((1, 8, 8), 0.6), [Evaluation.of(9.0)], "last year")
        page = _report(tmp_path)
        # best: the given one first; last batch: what is left of it
        assert [p[0, 0] for p in _pictures(page)] == [153, 1, 0, 0, 1, 103, 104]

    def test_lost_tensors_cost_their_images_only(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), [1.0, 2.0])
            (lost, *_) = _round(ledger, _shades(2, 8, 8, first=102 / 255), [3.0, None], "target")
        (tmp_path / "blobs" / lost.artifact).unlink()
        page = _report(tmp_path)
        assert [p[0, 0] for p in _pictures(page)] == [1, 0, 0, 1]
        assert "2 of 4 designs cannot be read: BlobError: cannot read the blob" in page.text

    @pytest.mark.parametrize("tensors", [{"x0": torch.zeros(2, 8, 8)}, {"design": torch.zeros(1, 8, 8)}])
    def test_blobs_without_their_designs_cost_no_report(
        self, tmp_path: Path, tensors: dict[str, Tensor]
    ) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(2, 8, 8), [1.0, 2.0])
            artifact = ledger.blobs.put_tensors(tensors)
            ledger.reserve(1, 7, [Proposal(0), Proposal(5)], artifact, {})
        page = _report(tmp_path)
        assert "designs cannot be read" in page.text
        assert [p[0, 0] for p in _pictures(page)][:4] == [1, 0, 0, 1]

    def test_images_of_several_sizes_are_each_told(self, tmp_path: Path) -> None:
        with _create(tmp_path) as ledger:
            _round(ledger, _shades(1, 8, 8), [1.0])
            _round(ledger, _shades(1, 1, 8, 200), [2.0], "target")
        page = _report(tmp_path)
        assert "Images of 8 × 200 pixels, shrunk to 4 × 100; 8 × 8 pixels." in page.text

    def test_no_blob_is_read_for_each_of_its_designs(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = []
        get = BlobStore.get_bytes
        monkeypatch.setattr(BlobStore, "get_bytes", lambda self, sha: read.append(sha) or get(self, sha))
        _report(finished)
        # for the wings, for the numbers of the best, and the last one for the sampler's traces
        assert max(read.count(sha) for sha in read) <= 3
