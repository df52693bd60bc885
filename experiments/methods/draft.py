"""DRaFT and AlignProp, online: backpropagation through the chain into the surrogate's mean, with nothing to hold it.

    maximise over θ   E_{x0 ~ p_θ}[ mean(x0) + log P(feasible | x0) ],      gradients through the last K steps

DRaFT (Clark, Vicol, Swersky and Fleet 2023, arXiv 2309.17400) and AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739)
know a differentiable reward. A black box is none: here the surrogate stands for it, fitted anew to all outcomes before
every round, and the network goes on from round to round. K is DRaFT-K's; AlignProp draws its K anew for every update.

Departures: Adam without weight decay; all weights learn where the prior has a network of its own (the papers use LoRA,
which is `weights="lora"`), since the networks here are small; where failures are modelled, a design that fails is worth
less to the surrogate, as for all other methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bbo import seeds
from bbo.belief import Belief
from bbo.executor import Executor, LocalExecutor
from bbo.proposals import Candidates, Observations, Stage
from experiments.methods.learning import Memory
from experiments.tuning.backpropagation import Backpropagation
from experiments.tuning.drawing import as_they_are, drawn
from experiments.tuning.student import Student, check_settings
from experiments.tuning.weights import Weights
from surrogate.acquisition import Mean


@dataclass(frozen=True)
class DRaFT:
    """Tunes the prior to the surrogate's mean before every round, and proposes plain draws of the tuned chain.

    As long as fewer than two designs have an outcome, nothing is learnt: then the batch is draws of the prior.
    """

    belief: Belief = Belief(acquisition=Mean())  # noqa: RUF009
    """What says what is good."""
    weights: Weights = "auto"
    """What learns: all weights of the prior's network ("full"), low-rank corrections of its layers ("lora"), or a small
    network beside it ("adapter"). "auto" is full where the prior has a network, and adapter where it has none."""
    n_steps_back: int = 10
    """K, the steps at the end of the chain that gradients flow through; 1 is the cheapest of the paper's variants."""
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
        check_settings(self.weights, self.learning_rate, self.clip_norm)
        self._backpropagation()

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: fit → tune → draw."""
        with stage("tune"):
            return self.memory.step(self, observed, executor.here(), n, seed)

    def begin(self, here: LocalExecutor) -> Student:
        """Return a student of the whole chain: its last step, too, is one of the K."""
        return Student.of(here, self.weights, self.learning_rate, self.clip_norm, is_last_step_tuned=True)

    def step(
        self, state: Student, observed: Observations, here: LocalExecutor, n: int, seed: int
    ) -> Candidates:
        """Teach the student what is known by now, and return n draws of it."""
        if len(observed.y) < 2:
            return as_they_are(here, here.prior, n, seed)
        potential = self.belief.fit(observed, seed)
        seen = self._backpropagation()(state, potential, [], here, seeds.generator(seed, "tune"))
        return drawn(here, state.policy, n, seed, observed.designs).candidates("draft", seen, potential)

    def _backpropagation(self) -> Backpropagation:
        return Backpropagation(self.n_updates, self.batch_size, self.n_steps_back)
