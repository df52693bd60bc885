"""DDPO: reinforcement learning on the denoising chain, where every call of the reward is a paid query.

    maximise over θ   E[ Σ_t min( ratio_t·A, clip(ratio_t)·A ) ],     ratio_t = p_θ(x_s|x_t) / p_old(x_s|x_t)

DDPO_IS of Black et al. 2023 (arXiv 2305.13301, section 4.3, where the estimator has that name and no number): a
denoising step is an action, with the Gaussian density of eq. (2); the outcome of the design at the end of the chain is
the return of all its steps; the clipping is the trust region that the section ends with. No surrogate: what a round
learns from are the outcomes of its own batch, on the very chains that led to these designs, in a few clipped steps of
importance-sampled policy gradient; then the next batch is drawn. The advantage A is the outcome minus the batch's mean
over the batch's std, where the paper keeps running ones of each prompt (appendix D.3). A design that failed is taken to
have the lowest outcome known.

With `kl_coef` above 0 the objective is  E[ y ] - α·E[ Σ_t KL_t ]  with the KL to the pretrained chain: each action is
credited with its outcome minus the KL of later steps, and its own KL is differentiated. The KL is subtracted; the code
published with DAS (arXiv 2501.05803) adds it to the advantage.

Departures from the published code (github.com/kvablack/ddpo-pytorch): log-densities are summed over the numbers of a
latent, as in the paper, where the code takes their mean, so that its clip range of 1e-4 (the paper's appendix D.1) is
another number here; Adam has no weight decay; the last step of the chain, which has no noise, is no action, and the
pretrained network stays there; all weights learn where the prior has a network of its own (LoRA there,
`weights="lora"` here).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from bbo import seeds
from bbo.errors import CampaignError, ConfigError
from bbo.executor import Executor, Key, LocalExecutor, key_list
from bbo.proposals import Candidates, Observations, Stage
from experiments.methods.learning import Memory
from experiments.tuning.drawing import as_they_are, drawn
from experiments.tuning.ppo import clipped_gain, credited
from experiments.tuning.recording import Paths, Recorded
from experiments.tuning.steps import gaussian, kl, log_density
from experiments.tuning.student import Student, check_settings
from experiments.tuning.weights import Weights
from smc.prior import Prior
from smc.schedule import GaussianKernel
from surrogate.features import ROUNDING


@dataclass
class Apprentice:
    """The student, and the chains whose designs have no answer yet."""

    student: Student
    waiting: dict[Key, Paths] = field(default_factory=dict)
    """By the fingerprint of the design, one chain each."""


@dataclass(frozen=True)
class Lesson:
    """Chains and what they are worth."""

    paths: Paths
    outcome: Float[Tensor, " n"]


@dataclass(frozen=True)
class DDPO:
    """Learns from each batch by proximal policy optimisation, and proposes plain draws of the tuned chain.

    The first batch is the prior's; as long as fewer than two designs have an outcome, so are the next.
    """

    kl_coef: float = 0.0
    """α: what a nat from the pretrained chain costs, in stds of a batch's outcomes; 0, as published, holds nothing."""
    weights: Weights = "auto"
    """What learns: all weights of the prior's network ("full"), low-rank corrections of its layers ("lora"), or a small
    network beside it ("adapter"). "auto" is full where the prior has a network, and adapter where it has none."""
    n_epochs: int = 2
    """How often a round goes through its batch. The published code does so once, with batches of 256 designs."""
    n_minibatches: int = 2
    """Parts of a batch, each of which is a step of Adam."""
    clip_range: float = 0.2
    """ε: how far the density of a step may change by what one batch says."""
    learning_rate: float = 1e-3
    """Of whole networks; what stands beside a network learns faster (`tuning/weights.py`)."""
    clip_norm: float = 1.0
    """Longest gradient; longer ones are shortened to it."""
    max_advantage: float = 10.0
    """Largest advantage, as in the published code: an outcome further out counts no more."""
    memory: Memory[Apprentice] = field(default_factory=Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.kl_coef < math.inf:
            raise ConfigError(f"kl_coef must be a finite number of at least 0, got {self.kl_coef}")
        for name in ("n_epochs", "n_minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("clip_range", "max_advantage"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a finite number above 0, got {getattr(self, name)}")
        check_settings(self.weights, self.learning_rate, self.clip_norm)

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: learn from what was answered → draw."""
        with stage("tune"):
            return self.memory.step(self, observed, executor.here(), n, seed)

    def begin(self, here: LocalExecutor) -> Apprentice:
        """Return a student of the chain but for its last step, which is no action."""
        student = Student.of(here, self.weights, self.learning_rate, self.clip_norm, is_last_step_tuned=False)
        return Apprentice(student)

    def step(
        self, state: Apprentice, observed: Observations, here: LocalExecutor, n: int, seed: int
    ) -> Candidates:
        """Learn from the chains that were answered since the last step, and return n draws of the tuned one."""
        if len(observed.y) < 2:
            recorded = Recorded(here.prior)  # it has learnt nothing yet
            candidates = as_they_are(here, recorded, n, seed)
            self._await(state, candidates, recorded.paths())
            return candidates
        seen: dict[str, object] = {}
        if (lesson := _lesson(state, observed)) is not None:
            seen = self._learn(state.student, here.prior, lesson, seeds.generator(seed, "tune"))
        new = drawn(here, state.student.policy, n, seed, observed.designs)
        candidates = new.candidates("ddpo", seen)
        self._await(state, candidates, new.paths())
        return candidates

    def _await(self, state: Apprentice, candidates: Candidates, paths: Paths) -> None:
        for row, key in enumerate(key_list(candidates.designs)):
            state.waiting[key] = paths.of([row])

    def _learn(
        self, student: Student, pretrained: Prior, lesson: Lesson, generator: Generator
    ) -> dict[str, object]:
        """Teach the student and return what the last update gained, in stds of the outcomes."""
        n, gain = len(lesson.outcome), math.nan
        held = _Held.of(student.policy, pretrained, lesson.paths) if self.kl_coef > 0 else None
        advantage = self._advantage(lesson, held)
        if held is None and not advantage.any():
            return {"n_chains": n}  # Adam would go on where it went before
        for _ in range(self.n_epochs):
            for rows in torch.randperm(n, generator=generator).chunk(self.n_minibatches):
                gain = student.improve(
                    partial(self._backward, student.policy, lesson.paths, advantage, held, rows)
                )
        return {"n_chains": n, "gain": gain}

    def _advantage(self, lesson: Lesson, held: _Held | None) -> Float[Tensor, "steps n"]:
        """Return how much better than the batch's mean each action was, in stds of the batch's outcomes."""
        reward = _standardised(lesson.outcome).to(lesson.paths.x.device)
        credit = reward.expand(len(lesson.paths.x), len(reward))
        if held is not None:
            credit = credited(reward, held.nats, self.kl_coef)
        return (credit - credit.mean(1, keepdim=True)).clamp(-self.max_advantage, self.max_advantage)

    def _backward(
        self,
        policy: Prior,
        paths: Paths,
        advantage: Float[Tensor, "steps n"],
        held: _Held | None,
        rows: Int[Tensor, " m"],
    ) -> float:
        """Add the gradient of minus the mean gain of the actions of some chains, and return that gain."""
        total = 0.0
        for k, (t, s) in enumerate(policy.steps[:-1]):
            x, moved = paths.x[k, rows], paths.moved[k, rows]
            kernel = gaussian(policy, x, t, s)  # eq. (2)
            log_ratio = log_density(kernel, moved) - paths.log_density[k, rows]
            gain = clipped_gain(log_ratio, advantage[k, rows], self.clip_range).mean()  # DDPO_IS
            if held is not None:
                gain = gain - self.kl_coef * kl(kernel, GaussianKernel(held.mean[k, rows], kernel.std)).mean()
            torch.autograd.backward(-gain / len(paths.x))
            total += float(gain.detach()) / len(paths.x)
        return total


@dataclass(frozen=True)
class _Held:
    """The pretrained chain along paths of another."""

    mean: Float[Tensor, "steps n *event"]
    """Where its steps would lead on average."""
    nats: Float[Tensor, "steps n"]
    """KL of the other's steps from its."""

    @classmethod
    def of(cls, policy: Prior, pretrained: Prior, paths: Paths) -> _Held:
        means, nats = [], []
        with torch.no_grad():
            for x, (t, s) in zip(paths.x, policy.steps[:-1], strict=True):
                reference = gaussian(pretrained, x, t, s)
                means.append(reference.mean)
                nats.append(kl(gaussian(policy, x, t, s), reference))
        return cls(torch.stack(means), torch.stack(nats))


def _lesson(state: Apprentice, observed: Observations) -> Lesson | None:
    """Return the chains that have been answered by now, taken from those that wait; None where none was."""
    if observed.designs is None:
        raise CampaignError("DDPO finds its chains by their designs, and these observations have none")
    outcome = observed.y.new_full((len(observed.X),), float(observed.y.min()))
    outcome[observed.is_feasible] = observed.y
    keys = key_list(observed.designs[: len(observed.X)])
    rows = [row for row, key in enumerate(keys) if key in state.waiting]
    if not rows:
        return None
    paths = Paths.joined([state.waiting.pop(keys[row]) for row in rows])
    return Lesson(paths, outcome[rows])


def _standardised(outcome: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return outcomes of mean 0 and std 1, in float32; all 0 where they do not vary."""
    centred = outcome - outcome.mean()
    std = centred.square().mean().sqrt()
    return (centred / std if std > ROUNDING * outcome.abs().max() else torch.zeros_like(centred)).float()
