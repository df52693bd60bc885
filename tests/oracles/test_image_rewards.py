"""Rewards of images: each against a value computed by hand, its gradient, and what it refuses."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.autograd import gradcheck

from experiments.tiny_rewards import head, images, write_clip, write_image_reward
from oracles.errors import OracleError
from oracles.images.aesthetic import Aesthetic
from oracles.images.clip import MEAN, STD, Clip
from oracles.images.clip_rewards import ClipScore, HPSv2, PickScore
from oracles.images.function import FunctionReward
from oracles.images.image_reward import ImageReward
from oracles.images.jpeg import JpegCompressibility, JpegSize
from oracles.images.preprocessing import padded
from oracles.images.reward import Reward, RewardOracle, WeightedSum
from oracles.jpeg import JpegSizeOracle
from tests.contracts.oracle_contract import OracleContract
from tests.exact import in_double

PROMPTS = ["a red cat", "dog"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of toy weights: clip/, image_reward/ and a head."""
    folder = tmp_path_factory.mktemp("models")
    write_clip(folder / "clip")
    write_image_reward(folder / "image_reward")
    save_file(head(8, 5, 1), folder / "aesthetic.safetensors")
    return folder


@pytest.fixture(scope="module")
def clip(models):
    return Clip.load(models / "clip")


@pytest.fixture(scope="module")
def all_rewards(models, clip):
    return [
        JpegSize(),
        JpegCompressibility(),
        Aesthetic.load(models / "aesthetic.safetensors", models / "clip"),
        ClipScore(clip, prefix=""),
        PickScore(clip),
        HPSv2(clip),
        ImageReward.load(models / "image_reward"),
    ]


class TestEach:
    """What holds of all of them."""

    def test_it_keeps_the_protocol(self, all_rewards):
        assert all(isinstance(reward, Reward) for reward in all_rewards)
        assert len({reward.name for reward in all_rewards}) == len(all_rewards)

    def test_a_number_an_image_whatever_stands_beside_it(self, all_rewards):
        image = images(3, 3, 20, 24)
        for reward in all_rewards:
            all_three = reward(image, ["cat", "dog", "red"])
            assert all_three.shape == (3,)
            assert all_three.dtype in (torch.float32, torch.float64)
            turned = reward(image.flip(0), ["red", "dog", "cat"])
            assert torch.allclose(turned.flip(0), all_three, atol=1e-5)
            assert reward(image[:0], []).shape == (0,)

    def test_an_image_that_is_not_finite_is_nan_alone(self, all_rewards):
        image = images(2, 3, 16, 16)
        image[0, 0, 3, 3] = math.inf
        for reward in all_rewards:
            bad, good = reward(image, PROMPTS)
            assert bad.isnan()
            assert torch.isclose(good, reward(image[1:], PROMPTS[1:])[0], atol=1e-5)

    def test_gradients_pass_where_they_are_promised(self, all_rewards):
        for reward in all_rewards:
            image = images(1, 3, 16, 16).requires_grad_()
            value = reward(image, ["a photo"]).sum()
            assert value.requires_grad == reward.is_differentiable
            if reward.is_differentiable:
                value.backward()
                assert torch.isfinite(image.grad).all()

    def test_the_prompt_matters_where_it_is_read(self, all_rewards):
        image = images(1, 3, 16, 16, seed=3).expand(2, -1, -1, -1)
        for reward in all_rewards:
            one, other = reward(image, ["cat", "photo dog red"])
            assert (one != other) == reward.reads_prompt

    def test_another_range_and_another_shape_are_refused(self, all_rewards):
        for reward in all_rewards:
            with pytest.raises(OracleError, match=r"did you pass \[-1, 1\]"):
                reward(2 * images(1, 3, 16, 16) - 1, ["cat"])
            with pytest.raises(OracleError, match=r"1 or 3, height, width\), got \(1, 4, 16, 16\)"):
                reward(images(1, 4, 16, 16), ["cat"])

    def test_prompts_that_are_not_one_an_image_are_refused(self, all_rewards):
        for reward in all_rewards:
            if reward.reads_prompt:
                with pytest.raises(OracleError, match="got 1 prompts for 2 images"):
                    reward(images(2, 3, 16, 16), ["cat"])
                with pytest.raises(OracleError, match=r"got the single text 'ab'; pass \[prompt\] \* n"):
                    reward(images(2, 3, 16, 16), "ab")

    def test_moved_where_it_is_it_says_the_same(self, all_rewards):
        image = images(1, 3, 16, 16)
        for reward in all_rewards:
            if hasattr(reward, "to"):
                assert torch.equal(reward.to("cpu")(image, ["cat"]), reward(image, ["cat"]))

    def test_nothing_is_random(self, all_rewards):
        before = torch.random.get_rng_state()
        for reward in all_rewards:
            first = reward(images(1, 3, 16, 16), ["cat"])
            assert torch.equal(first, reward(images(1, 3, 16, 16), ["cat"]))
        assert torch.equal(torch.random.get_rng_state(), before)


class TestJpeg:
    def test_it_is_the_oracles_number_exactly_and_its_negation(self):
        for channels in (1, 3):
            image = images(3, channels, 24, 17)
            sizes = [e.outcomes["value"] for e in JpegSizeOracle(80).evaluate(image)]
            assert JpegSize(80)(image, []).tolist() == sizes
            assert JpegCompressibility(80)(image, []).tolist() == [-size for size in sizes]

    @pytest.mark.parametrize("kind", [JpegSize, JpegCompressibility])
    @pytest.mark.parametrize("quality", [0, 96])
    def test_a_quality_there_is_not(self, kind, quality):
        with pytest.raises(OracleError, match=f"between 1 and 95, got {quality}"):
            kind(quality)


class TestAesthetic:
    def test_by_hand(self, models, clip):
        reward = Aesthetic.load(models / "aesthetic.safetensors", models / "clip")
        parts = load_file(models / "aesthetic.safetensors")
        image = images(3, 3, 16, 16)
        x = clip.image_features(image)
        for i in (0, 2):
            x = torch.nn.functional.linear(x, parts[f"layers.{i}.weight"], parts[f"layers.{i}.bias"])
        assert torch.allclose(reward(image, []), x[:, 0], atol=1e-5)

    def test_it_shares_the_network(self, models, clip):
        assert Aesthetic.load(models / "aesthetic.safetensors", models / "clip").clip.network is clip.network

    def test_a_head_for_other_features_is_refused(self, models, tmp_path):
        save_file(head(768, 1), tmp_path / "big.safetensors")
        with pytest.raises(OracleError, match=r"a head on 8 features in .*big.safetensors, got one on 768"):
            Aesthetic.load(tmp_path / "big.safetensors", models / "clip")


class TestClipRewards:
    def test_by_hand(self, tmp_path):
        """On weights for which one image is against its text and the other for it."""
        clip = Clip.load(write_clip(tmp_path, seed=2, n_tokens=32))
        image, prompts = images(2, 3, 16, 16), ["dog", "photo dog red"]
        seen = clip.image_features(image)
        for reward, prefix, formula in (
            (ClipScore(clip), "A photo depicts ", lambda c: 2.5 * max(c, 0.0)),
            (PickScore(clip), "", lambda c: math.exp(2.6592) * c),  # CLIP's initial logit_scale
            (HPSv2(clip), "", lambda c: c),
        ):
            cosines = (seen * clip.text_features([prefix + prompt for prompt in prompts])).sum(1)
            assert cosines[0] < -0.1
            assert cosines[1] > 0.1
            expected = list(map(formula, cosines.tolist()))
            assert reward(image, prompts).tolist() == pytest.approx(expected, abs=1e-5)

    def test_a_negative_cosine_scores_0_and_has_no_gradient(self, clip):
        image = images(1, 3, 16, 16).requires_grad_()
        against = clip.image_features(image.detach())[0]
        texts = ["cat", "dog", "red", "a", "b", "photo", "photo cat", "x y"]
        worst = min(texts, key=lambda text: float(clip.text_features([text])[0] @ against))
        assert float(clip.text_features([worst])[0] @ against) < 0
        score = ClipScore(clip, prefix="")(image, [worst])
        assert score.item() == 0
        score.sum().backward()
        assert (image.grad == 0).all()

    def test_hpsv2_sees_the_whole_image(self, clip):
        wide = images(1, 3, 8, 32)
        pixels = (padded(wide, 16) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        seen = clip.network.module.get_image_features(pixel_values=pixels).pooler_output[0]
        expected = (seen / seen.norm()) @ clip.text_features(["cat"])[0]
        assert HPSv2(clip)(wide, ["cat"]).item() == pytest.approx(expected.item(), abs=1e-6)
        outside = wide.clone()
        outside[..., :4] = 1 - outside[..., :4]
        assert HPSv2(clip)(outside, ["cat"]) != HPSv2(clip)(wide, ["cat"])
        assert PickScore(clip)(outside, ["cat"]) == PickScore(clip)(wide, ["cat"])  # looks at the middle

    def test_a_long_prompt_warns(self, clip):
        with pytest.warns(UserWarning, match="not read is 'dog dog'"):
            PickScore(clip)(images(1, 3, 16, 16), ["cat " * 10 + "dog dog"])

    def test_gradients_by_finite_differences(self, clip):
        exact = Clip(in_double(clip.network))
        image = (0.2 + 0.6 * images(2, 3, 6, 9)).double().requires_grad_()
        for reward in (
            PickScore(exact),
            HPSv2(exact),
            Aesthetic(exact, torch.randn(8).double(), torch.ones(())),
        ):
            assert gradcheck(lambda x, reward=reward: reward(x, PROMPTS), image)


class TestImageReward:
    def test_by_hand(self, models):
        from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

        folder, image = models / "image_reward", images(2, 3, 16, 16)
        vision = BlipVisionModel.from_pretrained(folder / "vision").eval()
        text = BlipTextModel.from_pretrained(folder / "text", add_pooling_layer=False).eval()
        parts, read = load_file(folder / "head.safetensors"), BertTokenizer.from_pretrained(folder)
        pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            seen = vision(pixels).last_hidden_state
            for i, prompt in enumerate(PROMPTS):  # each without padding
                ids = read(prompt, return_tensors="pt").input_ids
                x = text(ids, encoder_hidden_states=seen[i : i + 1]).last_hidden_state[0, 0]
                for k in (0, 2):
                    x = parts[f"layers.{k}.weight"] @ x + parts[f"layers.{k}.bias"]
                expected = (x.item() - 0.16717362830052426) / 1.0333394966054072
                got = ImageReward.load(folder)(image[i : i + 1], [prompt]).item()
                assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)

    def test_gradients_by_finite_differences(self, models):
        exact = ImageReward(in_double(ImageReward.load(models / "image_reward").network))
        image = (0.2 + 0.6 * images(2, 3, 6, 9)).double().requires_grad_()
        assert gradcheck(lambda x: exact(x, PROMPTS), image)

    def test_a_long_prompt_warns(self, models):
        reward = ImageReward.load(models / "image_reward")
        with pytest.warns(
            UserWarning, match="42 tokens and the network reads 35: not read is 'dog dog dog red red red red'"
        ):
            reward(images(1, 3, 16, 16), ["cat " * 33 + "dog " * 3 + "red " * 4])

    def test_other_folders_are_refused(self, models, tmp_path):
        with pytest.raises(OracleError, match=r"expected a model in .*vision, with its config.json"):
            ImageReward.load(models / "clip")
        folder = write_image_reward(tmp_path / "headless")
        (folder / "head.safetensors").unlink()
        with pytest.raises(OracleError, match=r"there is no file .*head.safetensors"):
            ImageReward.load(folder)
        save_file(head(13, 1), folder / "head.safetensors")
        with pytest.raises(OracleError, match=r"a head on 12 features in .*got one on 13"):
            ImageReward.load(folder)

    def test_a_text_encoder_that_sees_no_image_is_refused(self, tmp_path):
        from transformers import BlipTextConfig, BlipTextModel

        folder = write_image_reward(tmp_path / "blind")
        layers = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        blind = BlipTextConfig(**layers, hidden_size=12, vocab_size=61, is_decoder=False)
        BlipTextModel(blind, add_pooling_layer=False).save_pretrained(folder / "text")
        with pytest.raises(OracleError, match="has no cross-attention"):
            ImageReward.load(folder)


class TestWeightedSum:
    def test_it_is_the_sum_and_reports_each(self, clip):
        both = WeightedSum([PickScore(clip), JpegSize(), HPSv2(clip)], [2.0, -0.5, 1.0])
        image = images(2, 3, 16, 16)
        values = both.values(image, PROMPTS)
        assert list(values) == ["pick score", "jpeg size", "hpsv2"]
        expected = 2 * values["pick score"] - 0.5 * values["jpeg size"] + values["hpsv2"]
        assert torch.allclose(both(image, PROMPTS), expected)
        assert torch.equal(values["jpeg size"], JpegSize()(image, PROMPTS))
        assert both.name == "2 pick score - 0.5 jpeg size + 1 hpsv2"

    def test_it_is_differentiable_if_all_are_and_reads_the_prompt_if_one_does(self, clip):
        smooth = WeightedSum([PickScore(clip), HPSv2(clip)], [1.0, 3.0])
        assert smooth.is_differentiable
        assert not WeightedSum([PickScore(clip), JpegSize()], [1.0, 1.0]).is_differentiable
        assert smooth.reads_prompt
        assert WeightedSum([PickScore(clip), JpegSize()], [1.0, 1.0]).reads_prompt
        assert not WeightedSum([JpegCompressibility(), JpegSize()], [1.0, 1.0]).reads_prompt
        image = images(1, 3, 16, 16).requires_grad_()
        (whole,) = torch.autograd.grad(smooth(image, ["cat"]).sum(), image)
        (pick,) = torch.autograd.grad(PickScore(clip)(image, ["cat"]).sum(), image)
        (hps,) = torch.autograd.grad(HPSv2(clip)(image, ["cat"]).sum(), image)
        assert torch.allclose(whole, pick + 3 * hps, atol=1e-5)

    def test_a_sum_is_a_reward_of_its_own(self, clip):
        inner = WeightedSum([JpegSize()], [2.0])
        outer = WeightedSum([inner, JpegSize()], [1.0, 1.0])
        image = images(1, 3, 8, 8)
        assert outer(image, [""]).item() == pytest.approx(3 * JpegSize()(image, [""]).item())

    @pytest.mark.parametrize(
        ("n", "weights", "said"),
        [
            (1, [1.0, 2.0], "one weight a reward, .* got 1 rewards and 2 weights"),
            (0, [], "got 0 rewards"),
            (1, [math.nan], r"finite, got \[nan\]"),
            (2, [1.0, 1.0], "two rewards are called 'jpeg size'"),
        ],
    )
    def test_what_is_no_sum_is_refused(self, n, weights, said):
        with pytest.raises(OracleError, match=said):
            WeightedSum([JpegSize()] * n, weights)


class TestOracleOfJpeg(OracleContract):
    @pytest.fixture
    def oracle(self):
        return RewardOracle(JpegSize(), design_shape=(3, 16, 16))

    @pytest.fixture
    def designs(self):
        return images(4, 3, 16, 16)


class TestOracleOfNetworks(OracleContract):
    @pytest.fixture
    def oracle(self, clip):
        return RewardOracle(WeightedSum([PickScore(clip), JpegSize()], [1.0, 0.1]), prompt="a red cat")

    @pytest.fixture
    def designs(self):
        return images(4, 3, 20, 20)

    def test_outcomes_are_the_sum_and_each(self, oracle, clip, designs):
        (answer, *_) = oracle.evaluate(designs)
        pick = PickScore(clip)(designs[:1], ["a red cat"]).item()
        size = JpegSize()(designs[:1], [""]).item()
        assert answer.outcomes == {
            "value": pytest.approx(pick + 0.1 * size),
            "pick score": pick,
            "jpeg size": size,
        }

    def test_its_record_tells_weights_apart(self, models, clip, tmp_path):
        from bbo.config.describe import describe_oracle

        other = Clip.load(write_clip(tmp_path / "other", seed=1))
        told = [
            describe_oracle(RewardOracle(PickScore(c), "cat"))
            for c in (clip, other, Clip.load(models / "clip"))
        ]
        assert told[0] == told[2] != told[1]


class TestOracle:
    def test_an_image_out_of_range_fails_alone(self):
        image = images(3, 1, 8, 8)
        image[1] = 2 * image[1] - 1
        good, bad, fine = RewardOracle(JpegSize()).evaluate(image)
        assert (good.error, fine.error) == (None, None)
        assert "did you pass [-1, 1]" in bad.error
        assert RewardOracle(JpegSize()).name == "jpeg size"

    def test_what_is_no_image_is_refused(self):
        with pytest.raises(OracleError, match=r"got \(2, 8, 8\)"):
            RewardOracle(JpegSize()).evaluate(images(2, 8, 8))

    def test_a_reward_that_would_hide_the_sum_is_refused(self):
        class Value(JpegSize):
            name = "value"

        with pytest.raises(OracleError, match="'value' cannot be told from the sum"):
            RewardOracle(WeightedSum([Value()], [1.0]))

    @pytest.mark.parametrize("prompt", ["", " \n"])
    def test_a_prompt_that_was_forgotten_is_asked_for(self, clip, prompt):
        for reward in (PickScore(clip), WeightedSum([JpegSize(), PickScore(clip)], [1.0, 1.0])):
            with pytest.raises(
                OracleError, match=r"reads the prompt, and its oracle has none; say what .* show"
            ):
                RewardOracle(reward, prompt)
        assert RewardOracle(FunctionReward(brightness), prompt).prompt == prompt
        with pytest.raises(OracleError, match="the reward mine reads the prompt"):
            RewardOracle(FunctionReward(brightness, reads_prompt=True, name="mine"), prompt)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


class TestOracleOnADevice:
    """The device "meta" is on every machine; it computes nothing, but shows where things are."""

    def test_the_reward_is_moved_and_gets_its_images_there(self, clip):
        seen = []

        def seeing(images, prompts):
            seen.append(images.device.type)
            return torch.zeros(len(images))

        oracle = RewardOracle(FunctionReward(seeing), device="meta")
        assert [e.outcomes["value"] for e in oracle.evaluate(images(2, 3, 8, 8))] == [0.0, 0.0]
        assert seen == ["meta", "meta"]
        assert RewardOracle(PickScore(clip), "cat", device="meta").reward.clip.network.device.type == "meta"

    def test_without_one_nothing_is_moved(self, clip):
        moved = PickScore(clip).to("meta")
        assert RewardOracle(moved, "cat").reward is moved

    def test_it_is_no_part_of_the_record(self, clip):
        from bbo.config.describe import describe_oracle

        here, there = (RewardOracle(PickScore(clip), "cat", device=device) for device in (None, "cpu"))
        assert here == there
        assert describe_oracle(here) == describe_oracle(there)
        assert "device" not in describe_oracle(there)

    def test_another_process_puts_it_on_the_same_device(self, clip):
        oracle = RewardOracle(PickScore(clip), "cat", (3, 8, 8), 2, False, device="meta")
        arrived = copy.deepcopy(oracle)
        assert arrived.reward.clip.network is oracle.reward.clip.network
        assert arrived == oracle
        assert (arrived.design_shape, arrived.n_per_call, arrived.is_idempotent) == ((3, 8, 8), 2, False)
        assert replace(oracle, prompt="dog").reward.clip.network.device.type == "meta"

    @pytest.mark.parametrize("reward", [JpegSize(), FunctionReward(brightness)])
    def test_a_device_there_is_not(self, reward):
        with pytest.raises(OracleError, match="there is no device 'nonsense' here"):
            RewardOracle(reward, device="nonsense")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_a_gpu_it_says_the_same(self, clip):
        both = WeightedSum([PickScore(clip), JpegSize()], [1.0, 0.1])
        here, there = (RewardOracle(both, "cat", device=device) for device in (None, "cuda"))
        assert there.reward.rewards[0].clip.network.device.type == "cuda"
        for one, other in zip(
            here.evaluate(images(3, 3, 16, 16)), there.evaluate(images(3, 3, 16, 16)), strict=True
        ):
            assert other.outcomes == pytest.approx(one.outcomes, abs=1e-3)


def test_a_sum_takes_its_networks_to_a_device(tmp_path):
    """What holds no network stays as it is."""
    score, size = ClipScore.load(write_clip(tmp_path)), JpegSize()
    moved = WeightedSum([score, size], [1.0, 2.0]).to("meta")
    assert moved.rewards[0].clip.network.device.type == "meta"
    assert moved.rewards[1] is size
    assert moved.weights == [1.0, 2.0]
