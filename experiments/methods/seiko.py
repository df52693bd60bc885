"""SEIKO: an optimistic surrogate, and a chain tuned to it that stays near the pretrained one and near its last self.

    p_k = argmax over p   E_{x0 ~ p}[ r_k(x0) + g_k(x0) ]  -  α·KL( p ‖ p_pretrained )  -  β·KL( p ‖ p_{k-1} )

with r_k the surrogate fitted to everything that was queried before round k, and g_k its bonus for what is not known.
Uehara et al. 2024, arXiv 2402.16359. Both KL are those of paths, sums over the steps of the chain, and the argmax is
direct backpropagation through its end, from p_{k-1} on. A round queries plain draws of p_k.

Two ways to be optimistic: UCB, mean + beta·std (`SEIKO()`), and Bootstrap, the highest of some networks that were
fitted to resampled data (`seiko_bootstrap()`).

Departures from the published code (github.com/zhaoyl18/SEIKO): it weighs the KL to p_{k-1} alone, here α and β are
both there, as in the paper; it runs 4 rounds of 1,024 … 8,192 queries, here a round is a batch of the campaign; Adam
goes on from round to round, without weight decay; K is fixed, not drawn anew; at the last step, which has no noise and
no KL, the pretrained network stays; all weights learn where the prior has a network of its own (LoRA there,
`weights="lora"` here), since the networks here are small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bbo import seeds
from bbo.belief import Belief
from bbo.errors import ConfigError
from bbo.executor import Executor, LocalExecutor
from bbo.proposals import Candidates, Observations, Stage
from experiments.methods.learning import Memory
from experiments.tuning.backpropagation import Backpropagation, Held
from experiments.tuning.drawing import as_they_are, drawn
from experiments.tuning.student import Student, check_settings
from experiments.tuning.weights import Weights
from surrogate.acquisition import UCB, Optimistic
from surrogate.ensemble import DeepEnsemble


@dataclass(frozen=True)
class SEIKO:
    """Tunes the prior to an optimistic surrogate before every round, and proposes plain draws of the tuned chain.

    As long as fewer than two designs have an outcome, nothing is learnt: then the batch is draws of the prior.
    """

    belief: Belief = Belief(acquisition=UCB())  # noqa: RUF009
    """What says what is good, its acquisition with optimism."""
    kl_pretrained: float = 0.01
    """α: what a nat from the pretrained chain costs, in stds of the outcomes."""
    kl_previous: float = 0.01
    """β: what a nat from the chain of the round before costs."""
    weights: Weights = "auto"
    """What learns: all weights of the prior's network ("full"), low-rank corrections of its layers ("lora"), or a small
    network beside it ("adapter"). "auto" is full where the prior has a network, and adapter where it has none."""
    n_steps_back: int = 10
    """K, the steps at the end of the chain that gradients flow through, and whose KL counts."""
    n_updates: int = 10
    """Steps of Adam before each round."""
    batch_size: int = 32
    """Walks of each update. A campaign of 256 queries walks 5,000; with big networks 16 are almost as good."""
    learning_rate: float = 3e-4
    """Of whole networks; what stands beside a network learns faster (`tuning/weights.py`)."""
    clip_norm: float = 1.0
    """Longest gradient; longer ones are shortened to it."""
    memory: Memory[Student] = field(default_factory=Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("kl_pretrained", "kl_previous"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        check_settings(self.weights, self.learning_rate, self.clip_norm)
        self._backpropagation()

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: fit → tune → draw."""
        with stage("tune"):
            return self.memory.step(self, observed, executor.here(), n, seed)

    def begin(self, here: LocalExecutor) -> Student:
        """Return a student of the chain but for its last step, where no KL could hold it."""
        return Student.of(here, self.weights, self.learning_rate, self.clip_norm, is_last_step_tuned=False)

    def step(
        self, state: Student, observed: Observations, here: LocalExecutor, n: int, seed: int
    ) -> Candidates:
        """Teach the student what is known by now, and return n draws of it."""
        if len(observed.y) < 2:
            return as_they_are(here, here.prior, n, seed)
        potential = self.belief.fit(observed, seed)
        chains = ((here.prior, self.kl_pretrained), (state.as_it_is(), self.kl_previous))
        held = [Held(chain, weight) for chain, weight in chains if weight > 0]
        seen = self._backpropagation()(state, potential, held, here, seeds.generator(seed, "tune"))
        return drawn(here, state.policy, n, seed, observed.designs).candidates("seiko", seen, potential)

    def _backpropagation(self) -> Backpropagation:
        return Backpropagation(self.n_updates, self.batch_size, self.n_steps_back)


def seiko_bootstrap(
    n_members: int = 4,
    kl_pretrained: float = SEIKO.kl_pretrained,
    kl_previous: float = SEIKO.kl_previous,
    weights: Weights = SEIKO.weights,
) -> SEIKO:
    """Return SEIKO with the other optimism: what the highest of n_members bootstrapped networks says.

    n_members: 4 in the published code, whose heads' maximum lies 1.03 stds above their mean on average.
    """
    belief = Belief(surrogate=DeepEnsemble(n_members), acquisition=Optimistic())
    return SEIKO(belief, kl_pretrained, kl_previous, weights)
