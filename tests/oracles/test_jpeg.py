"""The size of images as JPEG files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from oracles.errors import OracleError
from oracles.jpeg import JpegSizeOracle
from oracles.wrappers import Negated
from tests.contracts.oracle_contract import OracleContract


def images(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


class TestContract(OracleContract):
    @pytest.fixture
    def oracle(self):
        return JpegSizeOracle(design_shape=(3, 16, 16))

    @pytest.fixture
    def designs(self):
        return images(4, 3, 16, 16)


class TestEnlargedContract(OracleContract):
    @pytest.fixture
    def oracle(self):
        return Negated(JpegSizeOracle(scale=8, design_shape=(1, 8, 8)))

    @pytest.fixture
    def designs(self):
        return images(4, 1, 8, 8)


def size(design, quality=95):
    (answer,) = JpegSizeOracle(quality).evaluate(design[None])
    return answer.outcomes["value"]


def test_it_is_the_size_of_the_file_that_pillow_writes():
    design = images(1, 3, 24, 32)[0]
    pixels = np.rint(design.permute(1, 2, 0).numpy().astype(np.float64) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(file, "JPEG", quality=95)
    assert size(design) == len(file.getvalue()) / 1000


def test_detail_and_quality_cost_bytes():
    noise, flat = images(1, 3, 64, 64)[0], torch.full((3, 64, 64), 0.5)
    assert size(noise) > 5 * size(flat)
    assert size(noise) > 2 * size(noise, quality=30)
    (answer,) = Negated(JpegSizeOracle()).evaluate(flat[None])
    assert answer.outcomes["value"] == -size(flat)


def test_at_a_scale_it_is_the_size_of_the_image_that_pillow_enlarges():
    design = images(1, 3, 8, 5)[0]
    pixels = np.rint(design.permute(1, 2, 0).numpy().astype(np.float64) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGB").resize((5 * 6, 8 * 6), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=80
    )
    (answer,) = JpegSizeOracle(quality=80, scale=6).evaluate(design[None])
    assert answer.outcomes["value"] == len(file.getvalue()) / 1000


def test_at_a_scale_small_images_are_told_apart():
    """A grey 8×8 file is 0.34 kB of header and one block of coefficients; at scale 8 there are 64 blocks."""
    smooth = torch.linspace(0, 1, 8).expand(1, 8, 8)
    checkered = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None]
    plain, enlarged = (
        [a.outcomes["value"] for a in JpegSizeOracle(scale=scale).evaluate(torch.stack([smooth, checkered]))]
        for scale in (1, 8)
    )
    assert enlarged[1] - enlarged[0] > 10 * abs(plain[1] - plain[0])


def test_an_image_that_is_too_large_at_its_scale_is_refused():
    with pytest.raises(OracleError, match=r"up to 8 a side at scale 8000, got \(1, 9, 8\)"):
        JpegSizeOracle(scale=8000).evaluate(torch.zeros(1, 9, 8))


def test_grey_images_and_axes():
    grey = images(1, 40, 24)[0]
    assert size(grey) == size(grey[None])
    assert size(grey) < size(torch.stack([grey] * 3))


def test_values_outside_are_clipped_and_nan_fails():
    design = images(1, 3, 8, 8)[0]
    wild = torch.where(design > 0.5, 7.0, -3.0)
    assert size(wild) == size(wild.clamp(0, 1))
    good, bad = JpegSizeOracle().evaluate(torch.stack([design, design * float("nan")]))
    assert good.error is None
    assert bad.error == "number 1 of the design is nan"


@pytest.mark.parametrize("shape", [(2, 5), (2, 2, 8, 8), (2, 3, 0, 8), (2, 1, 3, 8, 8)])
def test_designs_that_are_no_images_are_refused(shape):
    with pytest.raises(OracleError, match="expected images of shape"):
        JpegSizeOracle().evaluate(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings",
    [{"quality": 0}, {"quality": 96}, {"scale": 0}, {"design_shape": (4, 8, 8)}, {"design_shape": (8,)}],
)
def test_settings_that_are_refused(settings):
    with pytest.raises(OracleError, match="jpeg oracle: "):
        JpegSizeOracle(**settings)
