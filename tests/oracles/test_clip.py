"""CLIP's unit vectors: against transformers by hand, shared, sent to other processes, differentiable."""

import copy
import gc
import multiprocessing
import shutil
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.autograd import gradcheck

from experiments.tiny_rewards import images, write_clip
from oracles.errors import OracleError
from oracles.images import network
from oracles.images.clip import MEAN, STD, Clip
from oracles.images.texts import tokenized
from tests.exact import in_double


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def clip(folder):
    return Clip.load(folder)


def by_hand(folder, image):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    return seen / seen.norm(dim=1, keepdim=True)


def test_image_features_are_the_models_own_at_its_own_size(folder, clip):
    image = images(3, 3, 16, 16)
    features = clip.image_features(image)
    assert features.shape == (3, 8)
    assert torch.allclose(features, by_hand(folder, image), atol=1e-6)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-6)


def test_text_features_are_the_models_own(folder, clip):
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    texts = ["a red cat", "dog", ""]
    with torch.no_grad():
        out = model.text_model(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    own = model.text_projection(out)
    assert torch.allclose(clip.text_features(texts), own / own.norm(dim=1, keepdim=True), atol=1e-6)
    assert clip.text_features([]).shape == (0, 8)


def test_rows_do_not_depend_on_each_other(clip):
    image = images(4, 3, 20, 30)
    spoilt = image.clone()
    spoilt[2, 0, 0, 0] = float("nan")
    features, others = clip.image_features(image), clip.image_features(spoilt)
    assert others[2].isnan().all()
    for i in (0, 1, 3):
        assert torch.allclose(others[i], features[i], atol=1e-6)
    assert torch.allclose(clip.image_features(image.flip(0)), features.flip(0), atol=1e-6)
    assert clip.image_features(image[:0]).shape == (0, 8)


def test_grey_images_are_grey_in_all_channels(clip):
    grey = images(2, 1, 9, 9)
    assert torch.equal(clip.image_features(grey), clip.image_features(grey.repeat(1, 3, 1, 1)))


def test_gradients_by_finite_differences(clip):
    exact = Clip(in_double(clip.network))
    image = (0.2 + 0.6 * images(2, 3, 7, 5)).double().requires_grad_()
    assert gradcheck(exact.image_features, image)
    assert exact.image_features(image).dtype == torch.float64


def test_gradients_of_an_image_that_is_not_finite_spoil_no_other(clip):
    image = images(2, 3, 16, 16)
    image[0, 0, 0, 0] = float("nan")
    image.requires_grad_()
    clip.image_features(image)[1].sum().backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad[1].abs().max() > 0


def test_weights_and_images_in_half_precision_are_computed_in_single_precision(folder, clip, tmp_path):
    from transformers import CLIPModel

    shutil.copytree(folder, tmp_path / "half")
    CLIPModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    half = Clip.load(tmp_path / "half")
    assert half != clip
    features = half.image_features(images(3, 3, 16, 16))
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(features, clip.image_features(images(3, 3, 16, 16)), atol=0.05)
    assert clip.image_features(images(1, 3, 16, 16).to(torch.bfloat16)).dtype == torch.float32


def test_nothing_in_it_learns(clip):
    assert not any(p.requires_grad for p in clip.network.module.parameters())
    assert not clip.network.module.training
    assert not clip.text_features(["cat"]).requires_grad


class TestSharing:
    def test_whoever_asks_gets_the_same_copy(self, folder, clip, tmp_path):
        elsewhere = shutil.copytree(folder, tmp_path / "same")
        assert Clip.load(folder).network is clip.network
        assert Clip.load(elsewhere).network is clip.network
        assert Clip.load(str(folder), local_files_only=True) == clip

    def test_other_weights_are_another_copy(self, clip, tmp_path):
        other = Clip.load(write_clip(tmp_path / "other", seed=1))
        assert other != clip
        assert other.fingerprint != clip.fingerprint

    def test_two_threads_load_it_once(self, tmp_path):
        folder = write_clip(tmp_path / "threads", seed=2)
        found = []
        threads = [threading.Thread(target=lambda: found.append(Clip.load(folder))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(clip.network) for clip in found}) == 1

    def test_it_leaves_memory_with_its_last_holder(self, tmp_path):
        held = len(network._HELD)
        clip = Clip.load(write_clip(tmp_path / "brief", seed=3))
        assert len(network._HELD) == held + 1
        del clip
        gc.collect()
        assert len(network._HELD) == held

    def test_moving_it_where_it_is_changes_nothing(self, clip):
        assert clip.to("cpu").network is clip.network

    def test_images_on_another_accelerator_are_refused(self, clip):
        with pytest.raises(
            OracleError, match=r'on meta and the network is on cpu; move it with to\("meta"\)'
        ):
            clip.image_features(images(1, 3, 16, 16).to("meta"))

    def test_a_device_there_is_not(self, clip):
        with pytest.raises(OracleError, match="there is no device 'nonsense' here"):
            clip.to("nonsense")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_moved_to_a_gpu(self, clip):
        moved = clip.to("cuda")
        image = images(2, 3, 16, 16)
        assert moved == moved.to("cuda:0")
        assert torch.allclose(moved.image_features(image.cuda()).cpu(), clip.image_features(image), atol=1e-4)
        assert moved.image_features(image).device.type == "cpu"
        with pytest.raises(
            OracleError, match=r'on cuda:0 and the network is on cpu; move it with to\("cuda:0"\)'
        ):
            clip.image_features(image.cuda())


class TestOtherProcesses:
    def test_a_pickled_one_is_small_and_comes_to_the_same_copy(self, clip):
        assert len(ForkingPickler.dumps(clip)) < 1000
        assert copy.deepcopy(clip).network is clip.network

    def test_another_process_loads_it_there(self, clip):
        image = images(2, 3, 16, 16)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = pool.apply(features_of, (clip, image.numpy()))
        assert torch.equal(torch.from_numpy(there), clip.image_features(image))

    def test_other_weights_at_the_same_place_are_refused(self, tmp_path):
        folder = write_clip(tmp_path / "changed", seed=4)
        clip = Clip.load(folder)
        write_clip(folder, seed=5)
        with pytest.raises(
            OracleError, match=r"changed holds other weights here .* let both read the same files"
        ):
            copy.deepcopy(clip)


def features_of(clip, image):
    return clip.image_features(torch.from_numpy(image)).numpy()


class TestTexts:
    def test_a_long_text_warns_of_what_is_cut_once(self, clip):
        text = (
            "photo " * 10 + "cat dog red"
        )  # 12 tokens, the first and the last mark among them, fit 10 words
        with pytest.warns(UserWarning, match="15 tokens and the network reads 12: not read is 'cat dog red'"):
            cut = clip.text_features([text])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(clip.text_features([text]), cut)
            assert torch.allclose(clip.text_features(["photo " * 10]), cut, atol=1e-6)

    def test_what_is_kept_in_inference_mode_serves_gradients_later(self, folder):
        clip = Clip.load(folder)
        image = images(1, 3, 16, 16).requires_grad_()
        with torch.inference_mode():
            clip.text_features(["a cat in mode"])
        clip.cosines(image, ["a cat in mode"]).sum().backward()
        assert image.grad.abs().max() > 0

    @pytest.mark.filterwarnings("ignore:the prompt has")
    def test_threads_read_different_texts_at_once(self, clip):
        """A tokenizer of transformers keeps the settings of its last call: another thread's would cut nothing."""
        texts = [f"{words} {i}" for i in range(300) for words in ("cat", "dog photo " * 30)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(8) as pool:
                read = list(pool.map(lambda text: tokenized(clip.network.tokenizer, text, 12), texts))
        finally:
            sys.setswitchinterval(interval)
        assert {tuple(ids["input_ids"].shape) for ids in read} == {(1, 12)}

    def test_a_very_long_text_is_not_shown_in_full(self, clip):
        with pytest.warns(UserWarning, match="10002 tokens") as caught:
            clip.text_features(["cat " * 10_000])
        assert len(str(caught[0].message)) < 400

    def test_memory_is_bounded(self, clip, monkeypatch):
        monkeypatch.setattr(network, "MAX_TEXTS", 3)
        for i in range(10):
            clip.text_features([f"cat {i}"])
        assert len(clip.network._texts) <= 3
