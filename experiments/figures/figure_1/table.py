"""The table behind figure 1, as Markdown, with the paper's own numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from experiments.figures.figure_1.measure import TARGET, Outcome, Outcomes, Scale

LABELS = {
    "pretrained": "pretrained",
    TARGET: "exact target",
    "rl": "RL with KL",
    "backpropagation": "backpropagation with KL",
    "guidance_unscaled": "guidance, as published",
    "guidance_unscaled_data": "the same, in the units of the data",
    "guidance_scaled": "guidance, scaled by variance",
    "ours": "ours: SMC",
}
PROBLEM_LABELS = {"mixture_1": "Mixture 1", "mixture_2": "Mixture 2", "swiss_roll": "Swiss roll"}
PAPER = {
    "mixture_1": {
        "pretrained": -10.40,
        TARGET: -0.29,
        "rl": -0.07,
        "backpropagation": -0.96,
        "guidance_unscaled": -338.0,
        "ours": -0.21,
    },
    "mixture_2": {
        "pretrained": -9.15,
        TARGET: -1.34,
        "rl": -1.04,
        "backpropagation": -2.43,
        "guidance_unscaled": -407.0,
        "ours": -1.44,
    },
    "swiss_roll": {
        "pretrained": -3.26,
        TARGET: -0.72,
        "rl": -2.59,
        "backpropagation": -2.49,
        "guidance_unscaled": -927.0,
        "ours": -0.50,
    },
}
"""Mean rewards in figure 1 of DAS: its own networks, its own code."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def markdown(outcomes: Outcomes, scale: Scale) -> str:
    """Return the whole table, one section a problem."""
    return "\n".join(_lines(outcomes, scale)) + "\n"


def _lines(outcomes: Outcomes, scale: Scale) -> Iterator[str]:
    yield "# Figure 1 of DAS (arXiv 2501.05803), reproduced\n"
    yield "Written by `python -m experiments.figures.figure_1`; `README.md` says how to read it.\n"
    yield (
        f"n = {scale.n} points a method, {scale.n_repeats} repeats, {scale.n_steps} steps, {scale.n_particles} "
        f"particles, α = 1; {scale.n_tuning} rounds or iterations of fine-tuning, once; ± is the standard error over "
        "the repeats. Seconds are of one CPU thread. The paper's numbers are of its own networks and code."
    )
    for problem, of_method in outcomes.items():
        yield f"\n## {PROBLEM_LABELS[problem]}\n"
        yield "| method | mean reward | paper's | EMD to the target | times the floor | to learn | to draw |"
        yield "|---|---|---|---|---|---|---|"
        floor = of_method[TARGET].emd
        for name, outcome in of_method.items():
            paper = PAPER[problem].get(name)
            yield (
                f"| {LABELS[name]} | {number(outcome.reward)} | {'' if paper is None else number(paper)} | "
                f"{distance(outcome)} | {number(outcome.emd / floor)} | "
                f"{outcome.fit_seconds:.0f} s | {outcome.draw_seconds:.1f} s |"
            )
    yield "\n## Swiss roll: the reward's distribution\n"
    yield "| quantile | " + " | ".join(f"{q:.0%}" for q in QUANTILES) + " |"
    yield "|---|" + "---|" * len(QUANTILES)
    for name, outcome in outcomes["swiss_roll"].items():
        yield f"| {LABELS[name]} | " + " | ".join(number(q) for q in quantiles(outcome)) + " |"


def quantiles(outcome: Outcome) -> list[float]:
    """Return the quantiles of the reward over all points of all repeats."""
    found: list[float] = torch.quantile(
        outcome.rewards.double().flatten(), torch.tensor(QUANTILES).double()
    ).tolist()
    return found


def number(value: float) -> str:
    """Return a number as short as it can be read: two decimals, none above a hundred."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def distance(outcome: Outcome) -> str:
    """Return the distance to the target with its standard error."""
    if outcome.emd >= 100:
        return f"{outcome.emd:.0f} ± {outcome.emd_error:.0f}"
    return f"{outcome.emd:.3f} ± {outcome.emd_error:.3f}"


def flat(outcomes: Outcomes) -> dict[str, float]:
    """Return every figure under a name of its own."""
    figures: dict[str, float] = {}
    for problem, of_method in outcomes.items():
        floor = of_method[TARGET].emd
        for name, outcome in of_method.items():
            figures[f"{problem}_{name}_reward"] = outcome.reward
            figures[f"{problem}_{name}_emd"] = outcome.emd
            figures[f"{problem}_{name}_emd_error"] = outcome.emd_error
            figures[f"{problem}_{name}_emd_ratio"] = outcome.emd / floor
            figures[f"{problem}_{name}_reward_median"] = float(outcome.rewards.median())
    return figures
