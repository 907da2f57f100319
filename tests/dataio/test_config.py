from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

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
