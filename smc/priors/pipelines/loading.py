"""Pipelines from disk or from a model hub, under one set of rules.

Weights are safetensors. A hub's model is named with the commit it is pinned to, so that a campaign samples tomorrow
what it samples today. What is in the hub's cache is taken from there. What is not is fetched only if that is allowed
and the hub answers at once: otherwise one message says how to fetch it beforehand. No code of a repository is run.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NewType

from smc.errors import PriorError
from smc.priors.pipelines.precision import Dtype

PathOrId = NewType("PathOrId", str)
"""The folder of a saved pipeline, or a hub's "owner/name"."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 5.0
PRIORS = {
    "StableDiffusionPipeline": "StableDiffusionPrior",
    "StableDiffusionXLPipeline": "StableDiffusionXLPrior",
    "StableDiffusion3Pipeline": "StableDiffusion3Prior",
    "LatentConsistencyModelPipeline": "LatentConsistencyPrior",
    "DDPMPipeline": "DDPMPrior",
    "DDIMPipeline": "DDPMPrior",
}
"""Which prior adapts which pipeline of diffusers."""


def load_pipeline(
    prior: str,
    path_or_id: str | PathOrId | Path,
    *,
    revision: str | None,
    variant: str | None,
    local_files_only: bool,
    dtype: Dtype,
    omitted: tuple[str, ...] = (),
) -> Any:
    """Return a pipeline of the class that the named prior adapts, its weights in `dtype`, on the CPU.

    omitted: components to leave out, such as a text encoder that is not needed.

    Raises PriorError for a folder that holds no pipeline, one of another class or one without all its components, and
    for a hub's model that is not pinned, not there or out of reach.
    """
    folder = _located(path_or_id, revision, variant, local_files_only)
    index = _index(folder)
    _check_class(folder, index, prior)
    import diffusers

    with _quietly():
        kind = getattr(diffusers, index["_class_name"])
    _check_index(folder, index, kind, omitted)
    _check_components(folder, index, variant, omitted)
    empty = [name for name, component in index.items() if component == [None, None]]
    left_out: dict[str, Any] = dict.fromkeys([*omitted, *empty])
    if "safety_checker" in index:  # it replaces images by black ones, which no reward should see
        left_out |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with _quietly():
            return kind.from_pretrained(
                str(folder),
                dtype=dtype.torch,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,  # the other way needs one more package
                **left_out,
            )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise PriorError(f"diffusers cannot load the pipeline in {folder}: {error}") from error
    except ImportError as error:
        raise PriorError(
            f"the pipeline in {folder} needs a package that is not installed ({error}); "
            "pip install 'bbo-diffusion[images]'"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep progress bars of a second, and advice on packages that are not needed, off the terminal."""
    from diffusers.utils import is_transformers_available, logging

    talkers = [logging]
    if is_transformers_available():
        from transformers.utils import logging as of_transformers

        talkers.append(of_transformers)
    before = [(talker, talker.get_verbosity(), talker.is_progress_bar_enabled()) for talker in talkers]
    for talker in talkers:
        talker.set_verbosity_error()
        talker.disable_progress_bar()
    try:
        yield
    finally:
        for talker, verbosity, had_bar in before:
            talker.set_verbosity(verbosity)
            if had_bar:
                talker.enable_progress_bar()


# ---------------------------------------------------------------- where it is
def _located(
    path_or_id: str | PathOrId | Path, revision: str | None, variant: str | None, local_files_only: bool
) -> Path:
    """Return the folder of a pipeline, downloaded if it has to be and may be."""
    if Path(path_or_id).is_dir():
        return Path(path_or_id)
    if isinstance(path_or_id, Path) or not _ID.fullmatch(path_or_id):
        raise PriorError(
            f"no pipeline at {path_or_id}: expected a folder that was written by save_pretrained, or a hub's owner/name"
        )
    if revision is None or not _COMMIT.fullmatch(revision):
        raise PriorError(
            f"{path_or_id} is no folder here, and a hub's model is pinned to a commit: expected a revision of 40 hex "
            f"digits, got {revision!r}; the model's page lists them under Files, History"
        )
    return _from_hub(path_or_id, revision, variant, local_files_only)


def _from_hub(model: str, revision: str, variant: str | None, local_files_only: bool) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import HfApi, constants

    wanted: dict[str, Any] = {"revision": revision, "variant": variant, "use_safetensors": True}
    try:
        return Path(DiffusionPipeline.download(model, local_files_only=True, **wanted))
    except (OSError, ValueError) as error:
        why = error
    if not local_files_only and not constants.is_offline_mode():
        try:
            HfApi().model_info(
                model, revision=revision, timeout=_TIMEOUT_S
            )  # once; downloads would try again and again
            return Path(DiffusionPipeline.download(model, **wanted))
        except Exception as error:
            why = error  # type: ignore[assignment]
    chosen = f" --include '*.{variant}.safetensors' '*.json' '*.txt'" if variant else ""
    raise PriorError(
        f"{model} at {revision[:8]} is not in the local cache"
        + (
            ", and only local files are allowed"
            if local_files_only
            else f" and cannot be fetched: {_brief(why)}"
        )
        + f"; where there is a network, run\n  hf download {model} --revision {revision}{chosen}\n"
        "and take the cache (HF_HOME) along, or name the folder that command prints"
    )


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---------------------------------------------------------------- what it is
def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PriorError(
            f"{folder} holds no pipeline: it has no model_index.json; expected a folder that a diffusers pipeline's "
            "save_pretrained wrote, not one of its components and not a single checkpoint file"
        ) from None
    except (OSError, ValueError) as error:
        raise PriorError(f"cannot read {path}: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise PriorError(f"{path} names no pipeline class (_class_name)")
    return index


def _check_class(folder: Path, index: dict[str, Any], prior: str) -> None:
    found = index["_class_name"]
    if PRIORS.get(found) == prior:
        return
    expected = " or ".join(name for name, adapter in PRIORS.items() if adapter == prior)
    hint = f"; use {PRIORS[found]} for it" if found in PRIORS else ""
    raise PriorError(f"{prior} adapts a {expected}, and {folder} holds a {found}{hint}")


def _check_index(folder: Path, index: dict[str, Any], kind: Any, omitted: tuple[str, ...]) -> None:
    """Raise PriorError unless the index names every component that the class cannot do without."""
    optional = {*kind._optional_components, "safety_checker", "requires_safety_checker", *omitted}
    taken = inspect.signature(kind.__init__).parameters.values()
    needed = [p.name for p in taken if p.name != "self" and p.default is p.empty and p.name not in optional]
    missing = [name for name in needed if name not in index]
    if missing:
        raise PriorError(
            f"{folder} lacks {', '.join(missing)}: its model_index.json does not name what a {kind.__name__} needs"
            + ("; uses_t5 = false does without" if "text_encoder_3" in missing else "")
        )


def _check_components(
    folder: Path, index: dict[str, Any], variant: str | None, omitted: tuple[str, ...]
) -> None:
    """Raise PriorError for a component that the index names and the folder lacks, or has as pickled weights only."""
    not_needed = {"safety_checker", "feature_extractor", "image_encoder", *omitted}
    for name, kind in index.items():
        if name.startswith("_") or name in not_needed or not isinstance(kind, list) or kind[0] is None:
            continue
        if not (folder / name).is_dir():
            raise PriorError(
                f"{folder} lacks the component {name} ({kind[1]}), which its model_index.json names; download it whole"
            )
        files = {path.name for path in (folder / name).iterdir()}
        is_network = "scheduler" not in name and "tokenizer" not in name
        if is_network and not any(file.endswith(".safetensors") for file in files):
            pickled = sorted(file for file in files if file.endswith((".bin", ".pt", ".ckpt")))
            raise PriorError(
                f"{folder / name} has no weights as safetensors"
                + (
                    f", only {', '.join(pickled)}, and pickled weights may run code when they are read"
                    if pickled
                    else ""
                )
                + "; take a revision with safetensors, or convert them"
            )
        if is_network and variant and not any(f".{variant}." in file for file in files):
            raise PriorError(f"{folder / name} has no variant {variant!r}; it has {', '.join(sorted(files))}")
