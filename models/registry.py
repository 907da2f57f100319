"""From a name in a config to a model: ours by name, a user's own by `module:Class`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from tesserec.autograd.module import Module
from tesserec.models.dcn import DCN
from tesserec.models.dcnv2 import DCNv2
from tesserec.models.deepfm import DeepFM
from tesserec.models.dlrm import DLRM
from tesserec.models.dlrm_dcnv2 import DLRMDCNv2
from tesserec.models.dnn import DNN
from tesserec.models.features import Features, ModelError
from tesserec.models.fm import FM
from tesserec.models.lr import LR
from tesserec.models.wide_deep import WideDeep

MODELS: dict[str, Callable[..., Module]] = {
    "lr": LR,
    "fm": FM,
    "dnn": DNN,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "dlrm": DLRM,
    "dlrm_dcnv2": DLRMDCNv2,
}


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a model's constructor; `default` is `inspect.Parameter.empty` where one is needed."""

    name: str
    type: Any
    default: Any


def model_names() -> list[str]:
    """The names of the models that come with Tesserec."""
    return list(MODELS)


def build_model(
    name: str, features: Features, *, seed: int, options: Mapping[str, Any] | None = None
) -> Module:
    """The model `name` for `features`, with initial weights that are a function of `seed` and the options.

    name: one of `model_names()`, or "module:Class" for a class of the user's own whose constructor takes
    (features, *, seed, …options). ModelError names the wrong name, option or value and what was likely meant.
    """
    cls = model_class(name)
    return cls(features, seed=seed, **_checked(name, cls, options or {}))


def describe(name: str) -> tuple[str, list[Option]]:
    """(what the model is, its options with type and default)."""
    cls = model_class(name)
    module = import_module(cls.__module__)
    return inspect.getdoc(module) or inspect.getdoc(cls) or "", _options(cls)


def model_class(name: str) -> Callable[..., Module]:
    """The class behind a registered name or "module:Class"."""
    if ":" in name:
        return _import_class(name)
    if name not in MODELS:
        raise ModelError(
            f"no model {name!r}{_nearest(name, MODELS)}; for a class of your own: 'module:Class'"
        )
    return MODELS[name]


def _import_class(path: str) -> Callable[..., Module]:
    module_name, _, class_name = path.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(f"model {path!r}: {error}; is its folder on PYTHONPATH?") from error
    found = vars(module).get(class_name)
    if isinstance(found, type) and issubclass(found, Module):
        return found
    if found is not None:
        raise ModelError(f"model {path!r}: {class_name} is not a subclass of tesserec.autograd.Module")
    classes = [key for key, value in vars(module).items() if isinstance(value, type)]
    raise ModelError(f"model {path!r}: no {class_name!r} in {module_name}{_nearest(class_name, classes)}")


def _options(cls: Callable[..., Module]) -> list[Option]:
    hints = get_type_hints(cls.__init__)
    keywords = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return [Option(p.name, hints.get(p.name, Any), p.default) for p in keywords if p.name != "seed"]


def _checked(name: str, cls: Callable[..., Module], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` in the types of the constructor's annotations."""
    options = {option.name: option for option in _options(cls)}
    for key in given:
        if key not in options:
            raise ModelError(f"model {name!r} has no option {key!r}{_nearest(key, options)}")
    for option in options.values():
        if option.default is inspect.Parameter.empty and option.name not in given:
            raise ModelError(f"model {name!r} needs option {option.name!r}: {option.type}")
    return {key: _converted(name, options[key], value) for key, value in given.items()}


def _converted(name: str, option: Option, value: Any) -> Any:
    try:
        return TypeAdapter(option.type).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (option.name, *first["loc"]))
        raise ModelError(f"model {name!r}, option {where}: got {first['input']!r}; {first['msg']}") from error


def _nearest(got: str, names: Iterable[str]) -> str:
    names = list(names)
    near = get_close_matches(got, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(names) or 'none'}"
