"""One YAML or TOML file → one frozen, validated model.

A key that nobody reads is an error, not a silent default: the message gives the file, the path of the key,
what was found, what was wanted and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A configuration file that cannot be used; the message says where and what to write instead."""


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ModelT = TypeVar("ModelT", bound=BaseModel)


def read_config(path: str | Path, model: type[ModelT], overrides: Sequence[str] = ()) -> ModelT:
    """File (.yaml, .yml, .toml or .json) with `a.b=value` overrides applied → instance of `model`.

    The value of an override is read as YAML: `train.lr=1e-3`, `data.files=[a, b]`, `name=null`.
    Raises ConfigError.
    """
    values = load_mapping(path)
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, model, source=str(path))


def parse_config(values: Mapping[str, Any], model: type[ModelT], source: str = "config") -> ModelT:
    """Plain values → instance of `model`. Raises ConfigError naming `source` and each bad key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_describe(detail, model) for detail in error.errors()]
        raise ConfigError("\n  ".join([f"{source}: {len(problems)} problem(s)", *problems])) from None


def load_mapping(path: str | Path) -> dict[str, Any]:
    """File → nested plain values, not yet validated. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else load_yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: wanted `key: value` lines at the top level, got {type(values).__name__}")
    return values


def load_yaml(text: str) -> Any:
    """YAML text → plain values. `1e-3` is a number; a key given twice is a yaml.YAMLError."""
    return yaml.load(text, _Loader)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no name of `known` is near `name`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


class _Loader(yaml.SafeLoader):
    """Safe YAML, corrected where YAML 1.1 surprises."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("+-0123456789")
)


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {override!r}: wanted key=value, for example train.lr=0.02")
    *sections, last = dotted.split(".")
    node: Any = values
    try:
        for section in sections:
            node = node[int(section)] if isinstance(node, list) else node.setdefault(section, {})
        node[int(last) if isinstance(node, list) else last] = load_yaml(text)
    except (AttributeError, TypeError, IndexError, ValueError):
        raise ConfigError(f"override {override!r}: no section of the file holds that key") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None


def _describe(detail: Any, model: type[BaseModel]) -> str:
    """One pydantic error as `key a.b: what is wrong; what to do`."""
    path = ".".join(str(part) for part in detail["loc"]) or "(top level)"
    if detail["type"] == "extra_forbidden":
        known = _names_at(model, detail["loc"][:-1])
        near = did_you_mean(str(detail["loc"][-1]), known)
        return f"key {path}: unknown key{near} (known: {', '.join(known)})"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "value_error"):
        return f"key {path}: {message}"
    hint = ""
    if detail["type"] == "literal_error":
        hint = did_you_mean(str(detail["input"]), re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    return f"key {path}: {message}, got {detail['input']!r}{hint}"


def _names_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that may stand at `path`; list positions and union tags in it are passed over."""
    models = [model]
    for part in path:
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
    tagged = [m for m in models if path and m.__name__ == path[-1]] or models
    return sorted({name for m in tagged for name in m.model_fields})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models named anywhere inside a type such as `dict[str, A] | list[B]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
