"""Images brought to size, held against Pillow, and what is no image."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck

from experiments.tiny_rewards import images
from oracles.errors import OracleError
from oracles.images.clip import MEAN, STD
from oracles.images.preprocessing import as_rgb, check_shape, cropped, normalized, padded

LEVEL = 1 / 255


def pillow_of_transformers(pixels, size):
    """Return what CLIP's own image processor makes of an array of bytes."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    process = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=MEAN,
        image_std=STD,
    )
    return torch.as_tensor(process(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0])


def ours(pixels, size):
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    return normalized(cropped(image, size), MEAN, STD)[0]


@pytest.mark.parametrize(
    "shape", [(64, 64), (63, 97), (20, 33), (32, 32), (50, 131), (33, 32), (8, 8), (512, 512)]
)
def test_noise_is_what_pillow_makes_of_it_to_one_level(shape):
    """White noise overshoots everywhere, the worst there is. Pillow rounds to bytes on its way and at the end."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    apart = (ours(pixels, 32) - pillow_of_transformers(pixels, 32)).abs().amax((1, 2))
    assert (apart <= 1.05 * LEVEL / torch.tensor(STD)).all()


@pytest.mark.parametrize("shape", [(200, 33), (40, 33), (301, 77)])
def test_smooth_images_of_any_shape_are_what_pillow_makes_of_them(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(rows / 9 + k) * np.cos(columns / 7 - k) for k in range(3)]
    pixels = np.rint(127 * (1 + np.stack(waves, -1))).astype(np.uint8)
    apart = (ours(pixels, 32) - pillow_of_transformers(pixels, 32)).abs().amax((1, 2))
    assert (apart <= 1.6 * LEVEL / torch.tensor(STD)).all()


@pytest.mark.parametrize(
    "shape",
    [(64, 64), (63, 97), (20, 33), (33, 32), (50, 131), (131, 50), (77, 9), (8, 8), (3, 1000), (32, 31)],
)
def test_padded_is_what_pillow_makes_of_numbers_on_black(shape):
    """Of numbers, not of bytes: Pillow cuts off nothing of them either. Black and white noise overshoots most."""
    pixels = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
    tall, wide = (max(round(side * 32 / max(shape)), 1) for side in shape)
    top, left = (32 - tall) // 2, (32 - wide) // 2
    expected = np.zeros((32, 32), np.float32)
    expected[top : top + tall, left : left + wide] = Image.fromarray(pixels).resize(
        (wide, tall), Image.Resampling.BICUBIC
    )
    framed = padded(torch.from_numpy(pixels).expand(1, 3, -1, -1), 32)
    assert torch.allclose(framed, torch.from_numpy(expected).expand(1, 3, -1, -1), atol=5e-6)


def test_gradients_pass():
    image = (0.2 + 0.6 * images(2, 3, 6, 9)).double().requires_grad_()
    assert gradcheck(lambda x: normalized(cropped(as_rgb(x), 4), MEAN, STD), image)
    assert gradcheck(lambda x: padded(as_rgb(x), 5), image)
    grey = images(1, 1, 5, 5).double().requires_grad_()
    assert gradcheck(as_rgb, grey)


def test_padded_shows_the_whole_image_on_black():
    tall = torch.ones(1, 3, 20, 10)
    framed = padded(tall, 8)
    assert framed.shape == (1, 3, 8, 8)
    assert torch.allclose(framed[..., 2:6], torch.ones(()), atol=1e-5)
    assert (framed[..., :2] == 0).all()
    assert (framed[..., 6:] == 0).all()
    square = images(1, 3, 8, 8)
    assert torch.equal(padded(square, 8), square)
    assert padded(torch.ones(1, 3, 1, 400), 8).shape == (1, 3, 8, 8)


def test_one_channel_is_repeated():
    grey = images(2, 1, 4, 4)
    assert torch.equal(as_rgb(grey), grey.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_image_that_is_not_finite_is_nan_all_over_and_alone(bad):
    two = images(2, 3, 4, 4)
    spoilt = two.clone()
    spoilt[0, 1, 2, 3] = bad
    seen = as_rgb(spoilt)
    assert seen[0].isnan().all()
    assert torch.equal(seen[1], two[1])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda x: 2 * x - 1, r"between 0 \(black\) and 1 \(white\), got -0.9.* did you pass \[-1, 1\]"),
        (lambda x: 255 * x, r"got .* to 25.*did you pass \[0, 255\]\? Divide by 255"),
        (lambda x: 1.01 * x / x.max(), r"to 1.01; clamp them first"),
    ],
)
def test_other_ranges_are_refused(values, said):
    with pytest.raises(OracleError, match=said):
        as_rgb(values(images(2, 3, 8, 8)))


def test_roundings_are_none_of_its_business():
    image = torch.tensor([-0.0019, 0.5, 1.0019]).view(1, 3, 1, 1)
    assert torch.equal(as_rgb(image), image)
    with pytest.raises(OracleError, match="clamp"):
        as_rgb(torch.full((1, 3, 1, 1), 1.0021))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8), (2, 3, 0, 8), (2, 3)])
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(OracleError, match=r"expected images of shape \(n, 1 or 3, height, width\), got \("):
        check_shape(torch.zeros(shape))


def test_bytes_are_refused():
    with pytest.raises(OracleError, match=r"in floating point, .* got torch.uint8"):
        check_shape(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
