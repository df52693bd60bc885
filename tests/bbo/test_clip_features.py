"""CLIP's features as the encoder of a campaign."""

import copy

import pytest
import torch
from torch.autograd import gradcheck

from bbo.campaign import Campaign
from bbo.clip_features import ClipFeatures
from bbo.config.describe import describe
from bbo.devices import moved
from bbo.executor import LocalExecutor
from bbo.features import with_features
from experiments.tiny_rewards import images, write_clip
from oracles.errors import OracleError
from oracles.images.clip import Clip
from oracles.images.clip_rewards import PickScore
from oracles.images.reward import RewardOracle
from smc.priors.gaussian import GaussianPrior
from surrogate.features import Encoder, EncoderModel, Flatten
from tests.exact import in_double


class Pictures(GaussianPrior):
    """A prior of grey pictures of 4 × 4 pixels."""

    @property
    def design_shape(self):
        return (1, 4, 4)

    def decode(self, x0):
        return torch.sigmoid(x0).view(-1, 1, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def encoder(folder):
    return ClipFeatures.load(folder)


def test_features_are_unit_vectors_shared_with_the_rewards(folder, encoder):
    image = images(4, 3, 20, 20)
    X = encoder(image)
    assert isinstance(encoder, Encoder)
    assert torch.equal(X, PickScore(Clip.load(folder)).clip.image_features(image))
    assert torch.allclose(X.norm(dim=1), torch.ones(4), atol=1e-6)
    assert encoder.clip.network is Clip.load(folder).network


def test_one_channel_is_repeated_and_the_type_of_the_designs_kept(encoder):
    digits = images(3, 1, 8, 8)
    assert torch.equal(encoder(digits), encoder(digits.repeat(1, 3, 1, 1)))
    assert encoder(digits.double()).dtype == torch.float64


def test_gradients_by_finite_differences(encoder):
    exact = ClipFeatures(Clip(in_double(encoder.clip.network)))
    assert gradcheck(exact, (0.2 + 0.6 * images(2, 1, 8, 8)).double().requires_grad_())


def test_other_designs_are_refused(encoder):
    with pytest.raises(OracleError, match=r"did you pass \[-1, 1\]"):
        encoder(2 * images(2, 1, 8, 8) - 1)


def test_nothing_is_drawn_for_it(encoder):
    """It has no `fit`, so no prior is asked for a thousand images."""

    class Unasked(Pictures):
        def init(self, n, generator):
            raise AssertionError("draws were made")

    assert not isinstance(encoder, EncoderModel)
    executor = with_features(LocalExecutor(Unasked(torch.zeros(16)), Flatten()), encoder, 0)
    assert (executor.encoder, executor.covariance) == (encoder, None)


def test_a_worker_moves_it_and_another_process_loads_it(encoder):
    assert moved(encoder, "cpu") is encoder
    assert encoder.to("cpu") == encoder
    assert copy.deepcopy(encoder).clip.network is encoder.clip.network


def test_its_record_tells_weights_apart_wherever_they_lie(folder, encoder, tmp_path):
    other = ClipFeatures.load(write_clip(tmp_path / "other", seed=1))
    same = ClipFeatures.load(write_clip(tmp_path / "same"))
    assert describe(other) != describe(encoder) == describe(same)


def test_a_campaign_sees_images_through_it(folder, encoder, tmp_path):
    prior = Pictures(torch.zeros(16), n_steps=4)
    oracle = RewardOracle(PickScore(Clip.load(folder)), "a red cat")
    settings = {"prior": prior, "oracle": oracle, "encoder": encoder, "budget": 6, "batch_size": 3}
    with Campaign.open(tmp_path / "run", **settings) as campaign:
        campaign.run()
        assert len(campaign.ledger.queries()) == 6
    with Campaign.open(tmp_path / "run", **settings) as campaign:  # the same encoder is the same campaign
        assert len(campaign.ledger.queries()) == 6
