"""Pydantic models made from constructors, and objects made from those models.

Each parameter of a constructor becomes a field of the same name, type and default; a parameter whose type is
a protocol (a surrogate, an acquisition) becomes a choice among the registered classes, told apart by `type`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    create_model,
)

from bbo.config.files import at_home
from bbo.config.plugins import Plugin
from bbo.config.registry import REGISTRY, resolve
from bbo.config.secrets import revealed
from bbo.config.user_code import load_attribute
from bbo.selection import Selection
from bbo.settings import InDoubt, Settings
from bbo.steering import SteeredPrior
from oracles.base import Oracle
from oracles.evaluation import VALUE
from oracles.images import loading as reward_loading
from oracles.images.reward import Reward
from smc.prior import Prior
from smc.priors.pipelines import loading as prior_loading
from smc.resampling import Resampling
from smc.sampler import SamplerConfig
from smc.schedule import Spacing
from smc.tempering import Tempering
from smc.twist import Twist
from surrogate.acquisition import Acquisition
from surrogate.base import SurrogateModel
from surrogate.feasibility import FeasibilityModel
from surrogate.features import Encoder, EncoderModel
from surrogate.kernels import Kernel

KINDS: dict[Any, str] = {
    SurrogateModel: "surrogate",
    Acquisition: "acquisition",
    FeasibilityModel: "feasibility",
    Kernel: "kernel",
    Selection: "selection",
    Tempering: "tempering",
    Resampling: "resampling",
    Twist: "twist",
    Spacing: "spacing",
    Prior: "prior",
    EncoderModel | Encoder: "encoder",
}
"""Which protocol stands for which kind of registered part."""
SOURCES = frozenset({prior_loading.PathOrId, reward_loading.PathOrId})
"""Types of text that is a path beside the file or, where nothing lies there, the name of a model on a hub."""


@dataclass(frozen=True)
class CampaignSection:
    """The section `campaign` of a file."""

    directory: Path
    budget: int
    batch_size: int = 16
    seed: int = 0
    objective: str = VALUE
    in_doubt: InDoubt = InDoubt.COUNT_AS_SPENT
    database: str | None = None
    """URL of a PostgreSQL database that holds the ledger's tables; None for a file in the directory."""
    max_pending: int | None = None

    def settings(self, parallel: int | None = None) -> Settings:
        """Return the settings, checked."""
        return Settings(
            self.budget,
            self.batch_size,
            self.seed,
            self.objective,
            self.in_doubt,
            self.max_pending,
            parallel,
        )


@dataclass(frozen=True)
class AlignSection:
    """The section `align` of a file."""

    directory: Path
    kl_coef: float
    images_per_prompt: int = 1
    seed: int = 0
    device: str = "cpu"


_RECURSIVE: dict[Any, str] = {Oracle: "AnOracle", Reward: "AReward"}
"""How models refer to the type of a part that may hold others of its kind: wrappers of oracles, sums of rewards."""


class _Section(BaseModel):
    """One section of a file; knows what it builds."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    _constructor: Callable[..., Any]


# ------------------------------------------------------------------- constructor → model
@cache
def campaign_file_model(plugins: tuple[Plugin, ...] = ()) -> type[BaseModel]:
    """Return the model of a whole campaign file; an oracle may also be one of these plug-ins."""
    oracle, method = _recursive("oracle", plugins), _section("method", SteeredPrior)
    return create_model(
        "CampaignFile",
        __config__=ConfigDict(extra="forbid"),
        campaign=(_section("campaign", CampaignSection), ...),
        prior=(_choice("prior"), ...),
        oracle=(oracle | None, None),  # without one, people are asked and tell
        method=(method, Field(default_factory=method)),
        encoder=(_choice("encoder"), Field(default={"type": "standardize"})),
        executor=(_choice("executor"), Field(default={"type": "local"})),
    )


@cache
def align_file_model() -> type[BaseModel]:
    """Return the model of a file for `bbo align`."""
    sampler = _section("sampler", SamplerConfig)
    return create_model(
        "AlignFile",
        __config__=ConfigDict(extra="forbid"),
        align=(_section("align", AlignSection), ...),
        prior=(_choice("prior"), ...),
        reward=(_recursive("reward"), ...),
        sampler=(sampler, Field(default_factory=sampler)),
    )


def _section(name: str, constructor: Callable[..., Any], tag: str | None = None) -> type[_Section]:
    """Return the model whose fields are the constructor's parameters; `tag` adds the field `type`."""
    hints = get_type_hints(constructor)
    fields: dict[str, Any] = {} if tag is None else {"type": (Literal[tag], ...)}
    for parameter in inspect.signature(constructor).parameters.values():
        has_default = parameter.default is not parameter.empty
        fields[parameter.name] = (_field_type(hints[parameter.name]), None if has_default else ...)
    model: type[_Section] = create_model(name, __base__=_Section, **fields)
    model._constructor = constructor
    return model


@cache
def _choice(kind: str) -> Any:
    """Return the type of a part of this kind: one of the registered classes, or the name of a function."""
    made = {name: resolve(kind, name) for name in REGISTRY[kind]}
    if all(inspect.isfunction(part) for part in made.values()):
        return Literal[tuple(made)]
    models = [_section(f"{kind}:{name}", part, tag=name) for name, part in made.items()]
    return Annotated[Union[tuple(models)], Field(discriminator="type")]  # noqa: UP007


def choice_among(
    constructors: Mapping[str, Callable[..., Any]], plugins: tuple[Plugin, ...] = (), label: str = "part"
) -> Any:
    """Return the type of a section that is one of these, told apart by `type`.

    Any of them may hold oracles, these plug-ins among them, and every other registered part.
    """
    models = [_section(f"{label}:{name}", make, tag=name) for name, make in constructors.items()]
    choice: Any = Annotated[Union[tuple(models)], Field(discriminator="type")]  # noqa: UP007
    known = {_RECURSIVE[Oracle]: _recursive("oracle", plugins), _RECURSIVE[Reward]: _recursive("reward")}
    for model in models:
        model.model_rebuild(force=True, _types_namespace=known)
    return choice


def settings_of(constructor: Callable[..., Any]) -> type[BaseModel]:
    """Return the model of a section whose keys are the parameters of this constructor."""
    return _section(constructor.__name__, constructor)


@cache
def _recursive(kind: str, plugins: tuple[Plugin, ...] = ()) -> Any:
    """Return the type of a part that may hold others of its kind, so that its models refer to this very type, by name.

    An oracle may hold a reward as well.
    """
    made = {name: resolve(kind, name) for name in REGISTRY[kind]}
    made |= {plugin.name: plugin.make for plugin in plugins}
    models = [_section(f"{kind}:{name}", part, tag=name) for name, part in made.items()]
    choice: Any = Annotated[Union[tuple(models)], Field(discriminator="type")]  # noqa: UP007
    known = {_RECURSIVE[Oracle]: choice} if kind == "oracle" else {}
    known[_RECURSIVE[Reward]] = choice if kind == "reward" else _recursive("reward")
    for model in models:
        model.model_rebuild(force=True, _types_namespace=known)
    return choice


def _field_type(hint: Any) -> Any:
    """Return how a parameter of this type is written in a file."""
    if isinstance(hint, InitVar):
        return _field_type(hint.type)
    simple = {
        bool: StrictBool,
        int: StrictInt,
        float: Annotated[float, BeforeValidator(_number)],
        str: StrictStr,
    }
    if hint in simple:
        return simple[hint]
    if hint in _RECURSIVE:
        return ForwardRef(_RECURSIVE[hint])
    if get_origin(hint) is Sequence and get_args(hint)[0] in _RECURSIVE:
        return list[_field_type(get_args(hint)[0])]  # type: ignore[misc]
    if hint in KINDS:
        return _choice(KINDS[hint])
    if get_origin(hint) in (Union, types.UnionType):
        has_code = any(map(_is_code, get_args(hint)))
        parts = [part for part in get_args(hint) if part is not Path]  # a path is written as text
        parts = [part for part in parts if not (has_code and part is Oracle)]  # named, like a function
        return Union[tuple(map(_field_type, parts))]  # noqa: UP007
    if hint is Path or hint in SOURCES or _is_code(hint):
        return StrictStr
    if is_dataclass(hint) and isinstance(hint, type):
        return _section(hint.__name__, hint)
    return hint


def _is_code(hint: Any) -> bool:
    return get_origin(hint) is Callable or hint is Callable


def _number(value: object) -> object:
    """Let YAML's text '1e6' be the number it looks like, and true be no number."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("input should be a number") from None
    return value


# ------------------------------------------------------------------- model → object
def build(section: _Section, folder: Path) -> Any:
    """Return what a checked section describes; parameters that were not written keep the constructor's default."""
    constructor = type(section)._constructor
    hints = get_type_hints(constructor)
    written = {name: getattr(section, name) for name in section.model_fields_set if name != "type"}
    return constructor(**{name: _value(value, hints[name], folder) for name, value in written.items()})


def _value(value: Any, hint: Any, folder: Path) -> Any:
    if isinstance(value, _Section):
        return build(value, folder)
    if isinstance(value, list) and any(isinstance(entry, _Section) for entry in value):
        return [build(entry, folder) for entry in value]
    if hint in (Resampling, Spacing):  # registered functions, not constructors
        return resolve(KINDS[hint], value)
    accepted = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if (
        Mapping[str, str] not in accepted
    ):  # headers and the like: an oracle looks theirs up each time it sends them
        value = _revealed(value)
    if isinstance(value, str) and any(map(_is_code, accepted)):
        return load_attribute(value, folder)
    if isinstance(value, str) and SOURCES.intersection(accepted):
        return folder / value if (folder / value).exists() else value
    if isinstance(value, str) and Path in accepted:
        # An input that a constructor reads may be text; where something is written is a Path and nothing else.
        return folder / at_home(value) if str in accepted else at_home(value)
    return value


def _revealed(value: Any) -> Any:
    """Return the value with ${env:NAME} in its texts replaced."""
    if isinstance(value, str):
        return revealed(value)
    if isinstance(value, dict):
        return {key: _revealed(entry) for key, entry in value.items()}
    return [_revealed(entry) for entry in value] if isinstance(value, list) else value


# ------------------------------------------------------------------- where a mistake is
def known_words(model: Any, location: Sequence[str | int]) -> tuple[str, list[str]]:
    """Return the path of a mistake as the user wrote it, and the words that would have been right there."""
    written: list[str] = []
    known = list(model.model_fields)
    is_chosen = False
    for step in location:
        alternatives = _alternatives(model)
        tagged = None if is_chosen else next((m for m in alternatives if _tag(m) == step), None)
        is_chosen = tagged is not None
        if tagged is not None:  # pydantic names the chosen type in the path; the user did not
            model, known = tagged, [*tagged.model_fields]
            continue
        fields = {name: f for m in alternatives for name, f in m.model_fields.items()}
        if str(step) in fields:
            written.append(str(step))
            model = fields[str(step)].annotation
            known = _words(model)
        elif not (written and str(step).startswith(("function-", "Literal", "literal", "nullable"))):
            known = list(fields) or known
            written.append(str(step))
    return ".".join(written), known


def _alternatives(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation admits."""
    if get_origin(annotation) in (Annotated, list):
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for part in get_args(annotation) for m in _alternatives(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    return None if field is None else str(get_args(field.annotation)[0])


def _words(annotation: Any) -> list[str]:
    """Return what can stand at a field: the types of a choice, the values of an enum, the keys of a section."""
    models = _alternatives(annotation)
    tags = [tag for m in models if (tag := _tag(m)) is not None]
    if tags:
        return tags
    if models:
        return [name for m in models for name in m.model_fields]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _words(part)]
    return [str(a) for a in get_args(annotation) if isinstance(a, str)]
