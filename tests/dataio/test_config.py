from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Gt
from pydantic import ConfigDict, Field

from tesserec.dataio.config import ConfigError, StrictModel, load_yaml, parse_config, read_config


class Rows(StrictModel):
    kind: Literal["sgd", "adagrad", "adam"] = "adagrad"
    lr: float = 0.1


class Config(StrictModel):
    name: str
    rows: Rows = Rows()
    many: tuple[Rows, ...] = ()
    by_name: dict[str, Rows] = Field(default_factory=dict)


def write(folder: Path, text: str, suffix: str = ".yaml") -> Path:
    path = folder / f"config{suffix}"
    path.write_text(text)
    return path


def message(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(path, Config, overrides)
    return str(caught.value)


def test_yaml_toml_and_json_read_alike(tmp_path: Path) -> None:
    want = Config(name="a", rows=Rows(lr=1e-3))
    assert read_config(write(tmp_path, "name: a\nrows: {lr: 1e-3}"), Config) == want
    assert read_config(write(tmp_path, 'name = "a"\nrows.lr = 1e-3', ".toml"), Config) == want
    assert read_config(write(tmp_path, '{"name": "a", "rows": {"lr": 0.001}}', ".json"), Config) == want


def test_overrides_reach_sections_lists_and_new_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nmany: [{lr: 1}, {lr: 2}]")
    config = read_config(path, Config, ["many.1.lr=5e-2", "rows.kind=adam", "by_name.x.lr=3", "name=b=c"])
    assert (config.many[0].lr, config.many[1].lr, config.rows.kind, config.name) == (1, 0.05, "adam", "b=c")
    assert config.by_name["x"].lr == 3


def test_an_unknown_key_names_file_path_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nrows: {lrr: 1}")
    got = message(path)
    assert str(path) in got and "rows.lrr" in got and "did you mean 'lr'" in got and "kind" in got


def test_an_unknown_key_inside_a_list_or_mapping_finds_its_nearest(tmp_path: Path) -> None:
    assert "many.1.kin: unknown key; did you mean 'kind'" in message(
        write(tmp_path, "name: a\nmany: [{lr: 1}, {kin: sgd}]")
    )
    assert "did you mean 'lr'" in message(write(tmp_path, "name: a\nby_name: {x: {rl: 1, l: 2}}"))


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    got = message(write(tmp_path, "rows: {lr: fast, kind: adagard}"))
    assert "3 problem(s)" in got
    assert "key name: Field required" in got
    assert "rows.lr" in got and "got 'fast'" in got
    assert "did you mean 'adagrad'" in got


@pytest.mark.parametrize("override", ["rows.lr", "=3", "name.x=3", "many.7.lr=1", "many.a.lr=1", "name=[1"])
def test_a_bad_override_is_named(tmp_path: Path, override: str) -> None:
    assert override in message(write(tmp_path, "name: a\nmany: []"), (override,))


@pytest.mark.parametrize("text", ["- a\n- b", "a: [1", "a: 1\na: 2", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "config.yaml" in message(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml: no such file" in message(tmp_path / "nowhere.yaml")


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config({"name": "a"}, Config).name = "b"


def test_exponents_are_numbers_in_yaml() -> None:
    assert load_yaml("[1e-3, -2E5, 1.e2, 1e]") == [1e-3, -2e5, 1e2, "1e"]


@dataclass(frozen=True)
class Inner:
    size: Annotated[float, Gt(0)] = 1.0

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Plain:
    name: str
    parts: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = field(default_factory=dict)

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("no name for a model", "name")


def plain_message(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(path, Plain, overrides)
    return str(caught.value)


def test_plain_dataclasses_are_models_too(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nparts: [{size: 2}]\nby_name: {x: {}}")
    assert read_config(path, Plain) == Plain("a", (Inner(2.0),), {"x": Inner()})


@pytest.mark.parametrize(
    ("text", "line", "wanted"),
    [
        ("name: a\nparts:\n- size: 2\n- size: -1\n", 4, "key parts.1.size: Input should be greater than 0"),
        ("name: a\nparts:\n- {sise: 2}\n", 3, "key parts.0.sise: unknown key; did you mean 'size'?"),
        ("\nparts: [{size: 2}]\nby_name: {}\n", None, "key name: Field required"),
        ("by_name: {}\n\nname: bad\n", 3, "key name: no name for a model"),
        (
            "name: a\nby_name:\n  x:\n    size: zero\n",
            4,
            "key by_name.x.size: Input should be a valid number",
        ),
        ('{\n "name": "a",\n "parts": [{"size": 0}]\n}', 3, "key parts.0.size"),
    ],
)
def test_problems_name_their_line(tmp_path: Path, text: str, line: int | None, wanted: str) -> None:
    got = plain_message(write(tmp_path, text))
    if line is None:  # there is no line for what is missing at the top
        assert "config.yaml: key name: " in got
    else:
        assert f"config.yaml, line {line}: {wanted}" in got


def test_what_an_override_set_is_not_blamed_on_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nparts: [{size: 2}]\n")
    assert "override 'parts.0.size=-2': key parts.0.size" in plain_message(path, ("parts.0.size=-2",))
    assert "line 2: key parts.0.size" in plain_message(
        write(tmp_path, "name: a\nparts: [{size: -1}]"), ("name=b",)
    )


def test_what_is_no_yaml_names_its_line(tmp_path: Path) -> None:
    assert "config.yaml, line 3: cannot be read: " in plain_message(write(tmp_path, "name: a\nparts: [\n}"))
    assert "line 2: cannot be read: key 'name' is given twice" in plain_message(
        write(tmp_path, "name: a\nname: b\n")
    )


def test_toml_has_no_lines(tmp_path: Path) -> None:
    got = plain_message(write(tmp_path, "name = 'a'\nparts = [{size = -1}]", ".toml"))
    assert "config.toml: key parts.0.size" in got and ", line" not in got


def test_problems_that_only_follow_from_others_are_left_out(tmp_path: Path) -> None:
    got = plain_message(write(tmp_path, "name: a\nparts: [{size: -1}, {size: -2}]"))
    assert got.count("key ") == 2 and "2 problem(s)" in got
