"""One YAML or TOML file → one frozen, validated model.

A key that nobody reads is an error, not a silent default: the message gives the file and the line, the path
of the key, what was found, what was wanted and the nearest name that exists. A model is a pydantic model, or
a plain dataclass whose fields may be annotated with constraints.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tesserec.dataio.lines import line_of


class ConfigError(ValueError):
    """A configuration file that cannot be used; the message says where and what to write instead."""


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ModelT = TypeVar("ModelT")
Where = Callable[[Sequence[str | int]], str]  # the path of a key -> where that stands


def read_config(path: str | Path | None, model: type[ModelT], overrides: Sequence[str] = ()) -> ModelT:
    """File (.yaml, .yml, .toml or .json) with `a.b=value` overrides applied → instance of `model`.

    Without a file, the overrides alone. The value of an override is read as YAML: `train.lr=1e-3`,
    `data.files=[a, b]`, `name=null`. Raises ConfigError.
    """
    values = {} if path is None else load_mapping(path)
    for override in overrides:
        _apply_override(values, override)

    def where(key: Sequence[str | int]) -> str:
        dotted = _dotted(key)
        for override in reversed(overrides):
            name = override.partition("=")[0]
            if f"{dotted}.".startswith(f"{name}."):
                return f"override {override!r}"
        return "settings" if path is None else place_of(path, key)

    return _validated(values, model, where, "settings" if path is None else str(path))


def parse_config(values: Mapping[str, Any], model: type[ModelT], source: str = "config") -> ModelT:
    """Plain values → instance of `model`. Raises ConfigError naming `source` and each bad key.

    A ValueError that `model` raises may have the path of the key that is wrong as further arguments.
    """
    return _validated(values, model, lambda _: source, source)


def place_of(path: str | Path, key: Sequence[str | int]) -> str:
    """`file.yaml, line 12`: where the key stands; only the file where that has no lines to speak of (TOML).

    For errors that are found later than a file is read.
    """
    path = Path(path)
    line = None if path.suffix == ".toml" else line_of(path.read_text(encoding="utf-8"), key)
    return str(path) if line is None else f"{path}, line {line}"


def _validated(values: Mapping[str, Any], model: type[ModelT], where: Where, source: str) -> ModelT:
    try:
        return TypeAdapter(model).validate_python(values)
    except ValidationError as error:
        problems = [_describe(detail, model, where) for detail in _roots(error.errors())]
        if len(problems) > 1:
            problems.insert(0, f"{source}: {len(problems)} problem(s)")
        raise ConfigError("\n  ".join(problems)) from None


def load_mapping(path: str | Path) -> dict[str, Any]:
    """File → nested plain values, not yet validated. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else load_yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}{_syntax(error)}") from None
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


def _roots(details: Sequence[Any]) -> list[Any]:
    """Without those that only follow from others, as a list that is too short because its items are wrong."""
    keys = [detail["loc"] for detail in details]
    return [
        detail
        for detail in details
        if not any(
            len(key) > len(detail["loc"]) and key[: len(detail["loc"])] == detail["loc"] for key in keys
        )
    ]


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """`, line 3: cannot be read: …`."""
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    told = " ".join(part for part in (error.context, error.problem) if part)
    return f"{line}: cannot be read: {told}"


def _dotted(key: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in key)


def _describe(detail: Any, model: Any, where: Where) -> str:
    """One pydantic error as `file, line 3: key a.b: what is wrong; what to do`."""
    key = tuple(detail["loc"])
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, ValueError):
        key += error.args[1:]
    path = _dotted(key) or "(top level)"
    return f"{where(key)}: key {path}: {_problem(detail, model)}"


def _problem(detail: Any, model: Any) -> str:
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _names_at(model, detail["loc"][:-1])
        near = did_you_mean(str(detail["loc"][-1]), known)
        return f"unknown key{near} (known: {', '.join(known)})"
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, ValueError) and error.args:
        return str(error.args[0])
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] in ("missing", "missing_argument", "value_error"):
        return message
    hint = ""
    if detail["type"] == "literal_error":
        hint = did_you_mean(str(detail["input"]), re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    return f"{message}, got {detail['input']!r}{hint}"


def _names_at(model: Any, path: Sequence[str | int]) -> list[str]:
    """The keys that may stand at `path`; list positions and union tags in it are passed over."""
    models = [model]
    for part in path:
        fields = [_fields(m)[part] for m in models if isinstance(part, str) and part in _fields(m)]
        if fields:
            models = [found for field in fields for found in _models_in(field)]
    tagged = [m for m in models if path and m.__name__ == path[-1]] or models
    return sorted({name for m in tagged for name in _fields(m)})


def _fields(model: Any) -> dict[str, Any]:
    """{field: its type}."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    hints = get_type_hints(model)
    return {field.name: hints[field.name] for field in dataclasses.fields(model)}


def _models_in(annotation: Any) -> Iterator[Any]:
    """The models named anywhere inside a type such as `dict[str, A] | list[B]`."""
    if isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    ):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
