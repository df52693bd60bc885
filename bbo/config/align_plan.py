"""Files for `bbo align`: YAML, checked against the real constructors like campaign files.

align:   {directory: runs/cats, kl_coef: 0.01, images_per_prompt: 4}
prior:   {type: stable_diffusion, path_or_id: models/sd15, prompts: [a cat, a dog]}
reward:  {type: aesthetic, clip: models/clip, head: models/aesthetic.safetensors}
sampler: {n_particles: 4}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bbo.align import Alignment
from bbo.config.files import apply, read_file
from bbo.config.models import align_file_model
from bbo.config.parts import built
from bbo.devices import check_present, moved
from bbo.errors import BboError, ConfigError
from oracles.images.reward import on_device


@dataclass(frozen=True)
class AlignPlan:
    """A file for `bbo align`, checked, with every part built and on its device. Nothing is written yet."""

    directory: Path
    alignment: Alignment


def load_align_plan(path: Path, overrides: Sequence[str] = ()) -> AlignPlan:
    """Return the plan of a file, with `key.path=value` overrides applied.

    Raises ConfigError with every mistake found, one a line, each with its path in the file.
    """
    raw = read_file(path)
    for override in overrides:
        apply(raw, override)
    parts, mistakes = built(align_file_model(), raw, path.parent)
    sampler = raw.get("sampler")
    if isinstance(sampler, dict) and "n_islands" in sampler:
        mistakes.append(
            "  sampler.n_islands: there is one island an image; set align.images_per_prompt instead"
        )
    if mistakes:
        raise ConfigError("\n".join([f"{path}:", *mistakes]))
    section = parts["align"]
    try:
        check_present(section.device)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n  align.device: {error}") from error
    try:
        alignment = Alignment(
            moved(parts["prior"], section.device),
            on_device(parts["reward"], section.device),
            section.kl_coef,
            section.images_per_prompt,
            section.seed,
            parts["sampler"],
        )
    except BboError as error:
        raise ConfigError(f"{path}:\n  align: {error}") from error
    return AlignPlan(section.directory, alignment)
