"""Several prompts in one campaign: which designs are whose, and what would pay for nonsense."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from bbo.campaign import Campaign
from bbo.errors import ConfigError
from bbo.explain import explain
from bbo.prompts import check_prompts
from bbo.steering import SteeredPrior
from oracles.callables import ByHand
from oracles.images.function import FunctionReward
from oracles.images.jpeg import JpegSize
from oracles.images.reward import RewardOracle, WeightedSum
from oracles.wrappers import Cached, Negated
from smc.prior import Denoised
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig

PLACES = {"west": (-10.0, 0.0), "north": (0.0, 10.0), "east": (10.0, 0.0), "south": (0.0, -10.0)}
SAMPLER = SamplerConfig(n_islands=3, n_particles=4)
METHOD = SteeredPrior(kl_coef=50.0, sampler=SAMPLER, n_shards=2)


@dataclass(frozen=True)
class Worded(GaussianPrior):
    """Designs near the place that an island's prompt names."""

    prompts: tuple[str, ...] = tuple(PLACES)
    island: torch.Tensor | None = None

    @property
    def settings(self):
        return {"prompts": list(self.prompts)}

    def of_islands(self, island):
        return replace(self, island=island)

    def denoise(self, x, t):
        place = torch.tensor(list(PLACES.values()))[self.island % len(PLACES)]
        bar = self.alpha_bar(t)
        x0 = super().denoise(x - math.sqrt(bar) * place, t).x0 + place
        return Denoised.of(x, x0, bar)


PRIOR = Worded(torch.zeros(2), std=0.5, n_steps=10)


def matching(prompt="a cat"):
    return RewardOracle(
        FunctionReward(lambda images, prompts: images.mean((1, 2, 3)), reads_prompt=True, name="mine"), prompt
    )


def test_a_design_is_told_to_be_of_the_prompt_that_it_was_sampled_for(tmp_path):
    """Designs lie where their prompts say, so the story of each can be held against the design itself."""
    settings = {"prior": PRIOR, "method": METHOD, "budget": 24, "batch_size": 12}
    with Campaign.open(tmp_path / "run", oracle=lambda design: float(design.sum()), **settings) as campaign:
        campaign.run()
        queries = campaign.ledger.queries()
        told = [dict(explain(campaign.ledger, query.id))["prompt"] for query in queries]
        designs = campaign.archive.designs(queries)
    nearest = torch.cdist(designs, torch.tensor(list(PLACES.values()))).argmin(1).tolist()
    assert told == [list(PLACES)[place] for place in nearest]
    of_second_shard = [
        prompt for prompt, query in zip(told, queries, strict=True) if query.provenance["shard"] == 1
    ]
    assert len(set(of_second_shard)) > 1


@pytest.mark.parametrize(
    "oracle",
    [
        matching(),
        Negated(Cached(matching())),
        Cached(RewardOracle(WeightedSum([JpegSize(), matching().reward], [1.0, 1.0]), "a cat")),
    ],
)
def test_images_of_several_prompts_are_not_scored_by_one(tmp_path, oracle):
    said = r"4 prompts, and the reward '.*mine' would score .* one prompt; run one campaign a prompt, or take a rew"
    with pytest.raises(ConfigError, match=said):
        Campaign.open(tmp_path / "run", prior=PRIOR, oracle=oracle, method=METHOD, budget=4)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("prompts", "oracle"),
    [
        (("west",), matching()),
        (("west", "west"), matching()),
        (tuple(PLACES), RewardOracle(JpegSize())),
        (tuple(PLACES), ByHand()),
    ],
)
def test_what_one_oracle_can_score_is_accepted(prompts, oracle):
    check_prompts(replace(PRIOR, prompts=prompts), oracle, METHOD)
    check_prompts(GaussianPrior(torch.zeros(2)), oracle, METHOD)


def test_a_prompt_that_would_never_be_sampled_is_refused(tmp_path):
    """Two shards of three islands take six prompts, as many as there are islands."""
    check_prompts(replace(PRIOR, prompts=tuple("abcdef")), ByHand(), METHOD)
    with pytest.raises(
        ConfigError,
        match=r"7 prompts, one an island, .* 6 islands \(sampler.n_islands 3 × n_shards 2\), so 'g' would never be "
        "sampled; give it 7 islands, or fewer prompts",
    ):
        Campaign.open(tmp_path, prior=replace(PRIOR, prompts=tuple("abcdefg")), method=METHOD, budget=4)
