"""Fitted surrogates on disk: numbers in a safetensors file, structure in a JSON file, no pickle.

    surrogate.json                     which class, its fields, and for every tensor its dtype, shape and layout
    tensors-<16 digits>.safetensors    the tensors, named by where they stand: `trained.weights.0`

Any frozen dataclass of `MODULES` can be saved whose fields are tensors, numbers, strings, None, tuples of those
or further such dataclasses. Loading makes objects of the classes of that table and of nothing else, and what it
returns equals what was saved bit for bit. The JSON file is written last and names the other by its digest, so
whatever is interrupted leaves the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from surrogate.base import Surrogate
from surrogate.errors import SurrogateError
from surrogate.feasibility import Feasibility

MODULES = {
    "FittedEnsemble": "surrogate.ensemble",
    "FittedNeuralLinear": "surrogate.neural_linear",
    "FittedGP": "surrogate.gp",
    "FittedSparseGP": "surrogate.sparse_gp",
    "FittedAveragedGP": "surrogate.averaged_gp",
    "PrincipalAxes": "surrogate.averaged_gp",
    "Matern52": "surrogate.kernels",
    "RBF": "surrogate.kernels",
    "ConstantFeasibility": "surrogate.feasibility",
    "ProbitFeasibility": "surrogate.feasibility",
    "FittedEnsembleFeasibility": "surrogate.feasibility_ensemble",
    "Network": "surrogate.network",
    "Standardize": "surrogate.features",
}
"""Every class that may stand in a file, and where it is defined; imported when it is asked for."""
FORMAT = "bbo-surrogate"
FORMAT_VERSION = 1
STRUCTURE = "surrogate.json"


def save(fitted: Surrogate | Feasibility, directory: str | Path) -> None:
    """Write `fitted` into `directory`, which is made where it is missing; replaces what was saved there.

    Raises SurrogateError for what has no place in such files, and when the directory cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    root = _told(fitted, "", tensors)
    content = bytes_of(tensors)
    digest = hashlib.sha256(content).hexdigest()
    file = f"tensors-{digest[:16]}.safetensors"
    structure = {"format": FORMAT, "version": FORMAT_VERSION, "tensors": file, "sha256": digest, "root": root}
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / file, content)
        _write(folder / STRUCTURE, (json.dumps(structure, indent=1, allow_nan=False) + "\n").encode())
        for old in folder.glob("tensors-*.safetensors"):
            if old.name != file:
                old.unlink(missing_ok=True)
    except OSError as e:
        raise SurrogateError(f"cannot write the surrogate to {folder}: {e}") from e


def load(directory: str | Path) -> Surrogate | Feasibility:
    """Return what `save` wrote into `directory`, on the CPU.

    Raises SurrogateError, with the reason, for files that are missing, torn, changed or from another program.
    """
    folder = Path(directory)
    structure = _structure(folder / STRUCTURE)
    file = folder / str(structure["tensors"])
    try:
        content = file.read_bytes()
    except OSError as e:
        raise SurrogateError(f"cannot read {file}, which {STRUCTURE} names: {e}") from e
    if hashlib.sha256(content).hexdigest() != structure["sha256"]:
        raise SurrogateError(f"{file} is torn or was changed: its sha256 is not the one in {STRUCTURE}")
    try:
        tensors = tensors_of(content)
    except (SafetensorError, ValueError, KeyError) as e:
        raise SurrogateError(f"{file} is not a safetensors file: {e}") from e
    fitted = _made(structure["root"], "", tensors)
    if tensors:
        raise SurrogateError(
            f"{file} holds tensors that {STRUCTURE} does not name: {', '.join(sorted(tensors))}"
        )
    if not isinstance(fitted, Surrogate | Feasibility):
        raise SurrogateError(f"expected a fitted surrogate in {folder}, got {type(fitted).__name__}")
    return fitted


# ------------------------------------------------------------------- object → structure
def _told(value: object, path: str, tensors: dict[str, Tensor]) -> object:
    """Return `value` as JSON can hold it, its tensors put into `tensors` under their paths."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case Tensor():
            order = sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])
            tensors[path] = value.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
            return {"tensor": path, **_described(tensors[path]), "order": order}
        case tuple():
            return {"tuple": [_told(item, _at(path, i), tensors) for i, item in enumerate(value)]}
    name = type(value).__name__
    if not is_dataclass(value) or MODULES.get(name) != type(value).__module__:
        where = f"the field {path} holds" if path else "this is"
        raise SurrogateError(
            f"{where} a {name}, which cannot be saved: expected tensors, numbers, strings, None, tuples of "
            f"those, or one of {', '.join(MODULES)}"
        )
    inside = {f.name: _told(getattr(value, f.name), _at(path, f.name), tensors) for f in fields(value)}
    return {"class": name, "fields": inside}


def _described(tensor: Tensor) -> dict[str, object]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _at(path: str, step: object) -> str:
    return f"{path}.{step}" if path else str(step)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and onto the disk before it gets its name."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


# ------------------------------------------------------------------- structure → object
def _structure(path: Path) -> dict[str, Any]:
    """Return the JSON file's content, its outermost keys checked."""
    if not path.is_file():
        raise SurrogateError(
            f"no surrogate at {path.parent}: expected {path.name}, written by surrogate.state.save"
        )
    try:
        structure = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise SurrogateError(f"cannot read {path}: torn, or not JSON ({e})") from e
    if not isinstance(structure, dict) or structure.get("format") != FORMAT:
        raise SurrogateError(f"{path} is JSON, but not written by surrogate.state.save")
    if structure.get("version") != FORMAT_VERSION:
        raise SurrogateError(
            f"{path} has format version {structure.get('version')}; this program reads version {FORMAT_VERSION}"
        )
    expected = {"format", "version", "tensors", "sha256", "root"}
    if structure.keys() != expected:
        raise SurrogateError(
            f"{path} is damaged: expected the keys {_listed(expected)}, got {_listed(structure)}"
        )
    file = structure["tensors"]
    if not isinstance(file, str) or Path(file).name != file:
        raise SurrogateError(
            f"{path} is damaged: expected the name of a file beside it as tensors, got {file!r}"
        )
    return structure


def _made(told: object, path: str, tensors: dict[str, Tensor]) -> object:
    """Return the object that `_told` described; its tensors are taken out of `tensors`."""
    match told:
        case None | bool() | int() | str() | float():
            return told
        case {"float": str(digits), **rest} if not rest and digits in ("inf", "-inf", "nan"):
            return float(digits)
        case {"tensor": str(name), "dtype": dtype, "shape": shape, "order": list(order), **rest} if not rest:
            return _tensor(name, {"dtype": dtype, "shape": shape}, order, tensors)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_made(item, _at(path, i), tensors) for i, item in enumerate(items))
        case {"class": str(name), "fields": dict(inside), **rest} if not rest:
            return _object(name, inside, path, tensors)
    raise SurrogateError(
        f"{STRUCTURE} is damaged at {path or 'its root'}: cannot make anything of {_short(told)}"
    )


def _tensor(
    name: str, expected: Mapping[str, object], order: list[Any], tensors: dict[str, Tensor]
) -> Tensor:
    """Return a tensor as it lay in memory: products of the same numbers in another order round otherwise."""
    if name not in tensors:
        raise SurrogateError(
            f"the tensor {name} is missing from the safetensors file, or named twice in {STRUCTURE}"
        )
    tensor = tensors.pop(name)
    got = _described(tensor)
    if expected != got:
        raise SurrogateError(
            f"expected the tensor {name} to be {expected['dtype']} of shape {expected['shape']} as {STRUCTURE} says, "
            f"got {got['dtype']} of shape {got['shape']}"
        )
    if order not in (list(p) for p in permutations(range(tensor.ndim))):
        raise SurrogateError(
            f"{STRUCTURE} is damaged: expected the {tensor.ndim} axes of {name} in some order, got {order}"
        )
    return tensor.permute([order.index(axis) for axis in range(tensor.ndim)])


def _object(name: str, inside: Mapping[str, object], path: str, tensors: dict[str, Tensor]) -> object:
    if name not in MODULES:
        raise SurrogateError(f"unknown class {name!r} in {STRUCTURE}: expected one of {', '.join(MODULES)}")
    made = getattr(import_module(MODULES[name]), name)
    expected = {f.name for f in fields(made)}
    if expected != inside.keys():
        raise SurrogateError(
            f"{name} in {STRUCTURE} was saved by another version: expected the fields {_listed(expected)}, "
            f"got {_listed(inside)}"
        )
    values = {key: _made(value, _at(path, key), tensors) for key, value in inside.items()}
    hints = get_type_hints(made)
    for key, value in values.items():
        if not _is_a(value, hints[key]):
            raise SurrogateError(
                f"expected {_at(path, key)} of {name} to be {_spoken(hints[key])}, got {_short(value)}"
            )
    return made(**values)


def _is_a(value: object, hint: Any) -> bool:
    """Return whether a value has the type of a field; tensors with their dtype and number of axes."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, option) for option in inside)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(item, inside[0]) for item in value)
    return isinstance(value, hint)


def _spoken(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        described = _described(value)
        return f"a tensor of {described['dtype']} and shape {described['shape']}"
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}…"


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
