"""A topology as the YAML text that people read and edit, and that reads back as the same topology."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.units import scaled

UNITS = {"bytes": "B", "reserve_bytes": "B", "process_bytes": "B", "bandwidth": "B/s", "flops": "FLOP/s"}
EXACT = 15  # digits


def to_yaml(topology: Topology, comment: str = "") -> str:
    """What differs from defaults; comment: lines to begin with, each after a #."""
    begin = "".join(f"# {line}\n" for line in comment.splitlines())
    return begin + yaml.safe_dump(_plain(topology), default_flow_style=None, sort_keys=False, width=110)


def _plain(value: Any) -> Any:
    """Mappings, lists, numbers and text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: _named(f.name, v) for f, v in fields if not _is_default(f, v)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _named(name: str, value: Any) -> Any:
    return scaled(value, UNITS[name], EXACT) if name in UNITS and value else _plain(value)


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return bool(value == field.default)
