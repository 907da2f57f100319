"""Where in a YAML or JSON text a value stands."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

Path = Sequence[str | int]


def line_of(text: str, path: Path) -> int | None:
    """The line, from 1 on, of the key or list item at `path`; of the nearest above it that is there.

    Parts of the path that name no key (pydantic's names of the members of a union) are passed over.
    """
    node = yaml.compose(text, yaml.SafeLoader)
    line = None
    for part in path:
        found = _below(node, part)
        if found is not None:
            line, node = found
    return line


def _below(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """(the line of that key or item of a node, its value), or None."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None
