"""Metrics against closed forms."""

import importlib.util
import math
import sys
from types import ModuleType

import pytest
import torch
from torch import Generator

from experiments import metrics
from experiments.metrics import (
    cross_reward_table,
    emd,
    lpips_diversity,
    mean_pairwise_distance,
    truncated_clip_entropy,
)
from oracles.images.jpeg import JpegCompressibility, JpegSize


def normal(n, d, seed):
    return torch.randn(n, d, generator=Generator().manual_seed(seed))


def test_a_shifted_sample_is_as_far_as_the_shift():
    """W1 between X and X + c is ‖c‖, whatever X and the order of its rows."""
    a = normal(300, 3, 0)
    shift = torch.tensor([3.0, -4.0, 12.0])
    shuffled = (a + shift)[torch.randperm(300, generator=Generator().manual_seed(1))]
    assert emd(a, shuffled) == pytest.approx(13.0, rel=1e-6)


def test_on_a_line_it_is_the_mean_distance_of_the_sorted():
    a, b = normal(200, 1, 0), 2 * normal(200, 1, 1) + 1
    sorted_distance = (a.sort(0).values - b.sort(0).values).abs().mean().item()
    assert emd(a, b) == pytest.approx(sorted_distance, rel=1e-6)


def test_it_is_euclidean_not_squared():
    """Moving both points one step costs 1 a point; moving one of them two steps costs 1 a point as well."""
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert emd(a, b) == pytest.approx(1.0)
    far = torch.tensor([[0.0, 0.0], [0.0, 10.0]])
    assert emd(far, torch.tensor([[0.0, 0.0], [3.0, 14.0]])) == pytest.approx(2.5)


def test_tiny_distances_between_distant_points_survive():
    a = normal(50, 2, 0).double() + 1e4
    assert emd(a, a) == 0
    assert emd(a, a + 1e-6) == pytest.approx(2**0.5 * 1e-6, rel=1e-3)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"got \(5, 2\) and \(6, 2\)"):
        emd(torch.zeros(5, 2), torch.zeros(6, 2))
    with pytest.raises(ValueError, match=r"n at least 1, got \(0, 2\)"):
        emd(torch.zeros(0, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"got \(5,\) and \(5,\)"):
        emd(torch.zeros(5), torch.zeros(5))
    bad = torch.zeros(5, 2)
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"row 3 of b is \[0.0, nan\]"):
        emd(torch.zeros(5, 2), bad)


class TestTruncatedClipEntropy:
    def test_of_axes_by_hand(self):
        """±a along each axis: the covariance of 2d points is diagonal, 2a²/(2d - 1)."""
        a = torch.tensor([4.0, 3.0, 2.0, 1.0])
        points = torch.cat([torch.diag(a), -torch.diag(a)])
        variances = [2 * x**2 / 7 for x in (4.0, 3.0, 2.0)]
        expected = sum(0.5 * math.log(2 * math.pi * math.e * variance) for variance in variances)
        assert truncated_clip_entropy(points + 5, 3) == pytest.approx(expected, rel=1e-6)

    def test_it_is_the_entropy_of_a_gaussian(self):
        """All d eigenvalues of many draws: the differential entropy of the normal distribution they are from."""
        std = torch.tensor([0.5, 1.0, 2.0, 4.0])
        expected = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in std.tolist())
        assert truncated_clip_entropy(normal(40_000, 4, 0) * std, 4) == pytest.approx(expected, abs=0.02)

    def test_doubling_all_distances_adds_log_2_an_eigenvalue(self):
        rows = normal(30, 50, 0)
        grown = truncated_clip_entropy(2 * rows) - truncated_clip_entropy(rows)
        assert grown == pytest.approx(20 * math.log(2), rel=1e-6)

    def test_images_that_are_alike_in_too_many_ways(self):
        assert truncated_clip_entropy(torch.ones(30, 8), 2) == -math.inf
        flat = normal(30, 1, 0) @ torch.ones(1, 8)
        assert truncated_clip_entropy(flat, 2) == -math.inf
        assert math.isfinite(truncated_clip_entropy(flat, 1))
        assert math.isfinite(truncated_clip_entropy(1e-9 * normal(30, 8, 0), 8))

    @pytest.mark.parametrize(
        ("n", "d", "k", "said"),
        [
            (20, 50, 20, "needs at least 21 images of at least 20 features, got 20 of 50"),
            (30, 10, 20, "got 30 of 10"),
            (0, 10, 2, "got 0 of 10"),
            (9, 9, 0, r"fewer eigenvalues \(1 at least\)"),
        ],
    )
    def test_too_few_images_are_refused(self, n, d, k, said):
        with pytest.raises(ValueError, match=said):
            truncated_clip_entropy(normal(n, d, 0), k)

    def test_features_that_are_no_rows_are_refused(self):
        with pytest.raises(ValueError, match=r"rows of shape \(n, d\), got \(30,\)"):
            truncated_clip_entropy(torch.zeros(30), 2)

    def test_one_more_image_than_eigenvalues_is_enough(self):
        assert math.isfinite(truncated_clip_entropy(normal(21, 50, 0), 20))

    def test_nan_is_refused(self):
        rows = normal(5, 3, 0)
        rows[2, 1] = math.nan
        with pytest.raises(
            ValueError, match="truncated_clip_entropy needs finite samples, but row 2 of features"
        ):
            truncated_clip_entropy(rows, 2)


class TestMeanPairwiseDistance:
    def test_by_hand(self):
        triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        assert mean_pairwise_distance(triangle) == pytest.approx(4.0)
        assert mean_pairwise_distance(torch.ones(5, 2)) == 0

    def test_of_a_gaussian(self):
        """‖x - y‖ of two draws of N(0, I) in 3 d: √2 times a Maxwell variable, mean 4/√π."""
        assert mean_pairwise_distance(normal(2000, 3, 0)) == pytest.approx(4 / math.sqrt(math.pi), rel=0.02)

    @pytest.mark.parametrize("rows", [torch.zeros(1, 3), torch.zeros(0, 3), torch.zeros(3)])
    def test_fewer_than_two_are_refused(self, rows):
        with pytest.raises(ValueError, match="needs at least 2 rows"):
            mean_pairwise_distance(rows)

    def test_nan_is_refused(self):
        with pytest.raises(ValueError, match="row 1 of features"):
            mean_pairwise_distance(torch.tensor([[0.0], [math.inf]]))


def picture(value, n=1):
    return torch.full((n, 1, 4, 4), value)


class TestLpipsDiversity:
    @pytest.fixture
    def squares(self, monkeypatch):
        """A stand-in for the package: mean square differences of images between -1 and 1, and how many at a time."""
        calls = []

        class LPIPS(torch.nn.Module):
            def __init__(self, net, verbose):
                super().__init__()
                calls.append(net)

            def forward(self, a, b, normalize):
                assert normalize
                assert a.shape[1:] == (3, 4, 4)
                calls.append(len(a))
                return (2 * a - 2 * b).square().mean((1, 2, 3), keepdim=True)

        package = ModuleType("lpips")
        package.LPIPS = LPIPS
        monkeypatch.setitem(sys.modules, "lpips", package)
        return calls

    def test_the_mean_over_all_pairs(self, squares):
        three = torch.cat([picture(0.0), picture(0.5), picture(1.0)])  # distances 1, 4 and 1
        assert lpips_diversity(three, "vgg") == pytest.approx(2.0)
        assert squares == ["vgg", 3]

    def test_many_pairs_in_parts(self, squares, monkeypatch):
        monkeypatch.setattr(metrics, "AT_ONCE", 4)
        assert lpips_diversity(torch.cat([picture(0.0, 3), picture(1.0, 2)])) == pytest.approx(4 * 6 / 10)
        assert squares == ["alex", 4, 4, 2]

    def test_one_image_is_refused(self):
        with pytest.raises(
            ValueError, match=r"at least 2 images, of shape \(n, c, h, w\), got \(1, 1, 4, 4\)"
        ):
            lpips_diversity(picture(0.0))

    @pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="lpips is installed")
    def test_without_the_package_it_says_what_to_install(self):
        with pytest.raises(ImportError, match="pip install lpips torchvision"):
            lpips_diversity(picture(0.0, 2))


class Brightness:
    """A reward by hand: the mean of an image; as many times as its prompt says."""

    name = "brightness"
    is_differentiable = True

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3)) * torch.tensor([float(prompt) for prompt in prompts])


class TestCrossRewardTable:
    def test_means_and_standard_errors_by_hand(self):
        four = torch.cat([picture(x) for x in (0.0, 0.25, 0.5, 1.0)])
        sets = {"grey": (four, ["1"] * 4), "twice": (four[1:3], ["2"] * 2)}
        table = cross_reward_table(sets, [Brightness(), JpegSize()])
        assert list(table.index) == ["grey", "twice"]
        assert list(table.columns) == [
            ("brightness", "mean"),
            ("brightness", "error"),
            ("jpeg size", "mean"),
            ("jpeg size", "error"),
        ]
        # deviations from 0.4375: 0.4375, 0.1875, 0.0625, 0.5625, squares sum to 0.546875
        assert table.loc["grey", ("brightness", "mean")] == pytest.approx(0.4375)
        assert table.loc["grey", ("brightness", "error")] == pytest.approx(math.sqrt(0.546875 / 3 / 4))
        assert table.loc["twice", ("brightness", "mean")] == pytest.approx(0.75)
        assert table.loc["twice", ("brightness", "error")] == pytest.approx(0.25)
        assert table.loc["grey", ("jpeg size", "mean")] == pytest.approx(JpegSize()(four, []).mean().item())

    def test_large_sets_in_parts(self, monkeypatch):
        monkeypatch.setattr(metrics, "AT_ONCE", 3)
        many = torch.cat([picture(i / 10) for i in range(8)])
        table = cross_reward_table({"many": (many, [str(i) for i in range(8)])}, [Brightness()])
        assert table.loc["many", ("brightness", "mean")] == pytest.approx(
            sum(i * i / 10 for i in range(8)) / 8
        )

    def test_one_image_has_no_standard_error(self):
        table = cross_reward_table({"one": (picture(0.5), ["1"])}, [JpegCompressibility()])
        assert math.isnan(table.loc["one", ("jpeg compressibility", "error")])

    def test_what_has_no_mean_is_refused(self):
        with pytest.raises(ValueError, match="the set 'none' has no images"):
            cross_reward_table({"none": (picture(0.0)[:0], [])}, [JpegSize()])
        with pytest.raises(ValueError, match="jpeg size is not finite for 1 of 2 images of 'bad'"):
            cross_reward_table(
                {"bad": (torch.cat([picture(0.0), picture(math.nan)]), ["", ""])}, [JpegSize()]
            )
