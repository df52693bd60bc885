"""Pipelines from disk or from a model hub, under one set of rules.

Weights are safetensors. A hub's model is named with the commit it is pinned to, so that a campaign samples tomorrow
what it samples today. What is in the hub's cache is taken from there. What is not is fetched only if that is allowed
and the hub answers at once: otherwise one message says how to fetch it beforehand. No code of a repository is run.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NewType

from safetensors import SafetensorError

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
    if (fault := _fault(folder, index, variant, omitted)) is not None:
        raise PriorError(fault)
    # Safety checkers replace images by black ones, which no reward should see; nothing else needs the other two.
    unused = {"safety_checker", "feature_extractor", "image_encoder"}.intersection(index)
    absent = [name for name, component in index.items() if component == [None, None]]
    left_out: dict[str, Any] = dict.fromkeys([*omitted, *unused, *absent])
    if "safety_checker" in index:
        left_out["requires_safety_checker"] = False
    try:
        with _quietly():
            networks = _networks(folder, index, variant, dtype, left_out)
            return kind.from_pretrained(str(folder), local_files_only=True, **networks, **left_out)
    except ImportError as error:
        raise PriorError(
            f"the pipeline in {folder} needs a package that is not installed ({error}); "
            "pip install 'bbo-diffusion[images]'"
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise PriorError(f"diffusers cannot load the pipeline in {folder}: {error}") from error


def _networks(
    folder: Path, index: dict[str, Any], variant: str | None, dtype: Dtype, left_out: Container[str]
) -> dict[str, Any]:
    """Return the networks of a pipeline, each whole: diffusers fills gaps in a file with random numbers, and says so in
    a log that nobody reads. Raises PriorError where there are gaps."""
    import diffusers

    loaded: dict[str, Any] = {}
    for name, component in index.items():
        if (
            name.startswith("_")
            or name in left_out
            or not _is_network(name)
            or not isinstance(component, list)
        ):
            continue
        library = diffusers if component[0] == "diffusers" else import_module("transformers")
        settings: dict[str, Any] = {"dtype": dtype.torch, "variant": variant, "use_safetensors": True}
        if library is diffusers:
            settings["low_cpu_mem_usage"] = False  # the other way needs one more package
        loaded[name], told = getattr(library, component[1]).from_pretrained(
            str(folder / name), local_files_only=True, output_loading_info=True, **settings
        )
        if missing := sorted(told["missing_keys"]):
            raise PriorError(
                f"the weights in {folder / name} lack {len(missing)} tensors of a {component[1]}, such as "
                f"{missing[0]}; they would be random numbers"
            )
    return loaded


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
    if (folder := Path(path_or_id).expanduser()).is_dir():
        return folder
    if isinstance(path_or_id, Path) or not _ID.fullmatch(path_or_id):
        raise PriorError(
            f"no pipeline at {path_or_id}: expected a folder that was written by save_pretrained, or a hub's owner/name"
        )
    if revision is None or not _COMMIT.fullmatch(revision):
        raise PriorError(
            f"there is no folder {path_or_id}. If that is the name of a model on a hub, it has to be pinned to a "
            f"commit: expected a revision of 40 hex digits, got {revision!r}; the model's page lists them under Files, "
            "History"
        )
    return _from_hub(path_or_id, revision, variant, local_files_only)


def _from_hub(model: str, revision: str, variant: str | None, local_files_only: bool) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import HfApi, constants

    wanted: dict[str, Any] = {"revision": revision, "variant": variant, "use_safetensors": True}
    try:
        folder = Path(DiffusionPipeline.download(model, local_files_only=True, **wanted))
        why = _fault(
            folder, _index(folder), variant, ()
        )  # a download that was broken off leaves a part of it
        if why is None:
            return folder
    except (OSError, ValueError, PriorError) as error:
        why = _brief(error)
    if not local_files_only and not constants.is_offline_mode():
        try:
            HfApi().model_info(
                model, revision=revision, timeout=_TIMEOUT_S
            )  # once; downloads would try again and again
            return Path(DiffusionPipeline.download(model, **wanted))
        except Exception as error:
            why = f"cannot be fetched: {_brief(error)}"
    raise PriorError(
        f"{model} at {revision[:8]} is not whole in the local cache"
        + (", and only local files are allowed" if local_files_only else f" and {why}")
        + f"; where there is a network, run\n  hf download {model} --revision {revision} "
        + " ".join(f"--include '{pattern}'" for pattern in ("*.json", "*.txt", "*.model", "*.safetensors"))
        + "\n"
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


def _is_network(name: str) -> bool:
    return "scheduler" not in name and "tokenizer" not in name


def _fault(folder: Path, index: dict[str, Any], variant: str | None, omitted: tuple[str, ...]) -> str | None:
    """Return what is wrong with the files of a pipeline; None where each component has its own, as safetensors."""
    not_needed = {"safety_checker", "feature_extractor", "image_encoder", *omitted}
    for name, kind in index.items():
        if name.startswith("_") or name in not_needed or not isinstance(kind, list) or kind[0] is None:
            continue
        if not (folder / name).is_dir():
            return f"{folder} lacks the component {name} ({kind[1]}), which model_index.json names; download it whole"
        files = {path.name for path in (folder / name).iterdir()}
        if not _is_network(name):
            continue
        if not any(file.endswith(".safetensors") for file in files):
            pickled = sorted(file for file in files if file.endswith((".bin", ".pt", ".ckpt")))
            return (
                f"{folder / name} has no weights as safetensors"
                + (
                    f", only {', '.join(pickled)}, and pickled weights may run code when they are read"
                    if pickled
                    else ""
                )
                + "; take a revision with safetensors, or convert them"
            )
        if variant and not any(f".{variant}." in file for file in files):
            return f"{folder / name} has no variant {variant!r}; it has {', '.join(sorted(files))}"
    return None
