"""A mistake in a configuration is named, with its path and what was probably meant, before work begins."""

from __future__ import annotations

from typing import Any

import pytest

from tesserec.dataio.config import ConfigError
from tesserec.dataio.dataset import DataError
from tesserec.embeddings import ROW_OPTIMIZERS, TableError
from tesserec.models import ModelError
from tesserec.train.config import differences
from tesserec.train.loop import Trainer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train__epoch": 2}, r"key train\.epoch: unknown key; did you mean 'epochs'\?"),
        ({"optimiser": {}}, r"key optimiser: unknown key; did you mean 'optimizer'\?"),
        ({"train__epochs": 0}, r"key train\.epochs: .* greater than 0"),
        ({"train__monitor": "auk"}, r"key train\.monitor: .* did you mean 'auc'\?"),
        ({"data__valid": None}, "early_stopping and plateau need a validation split"),
        ({"optimizer__dense__nam": "adam"}, r"key optimizer\.dense\.nam: unknown key"),
        ({"optimizer__dense__name": "adamm"}, r"key optimizer\.dense\.name: no 'adamm'; did you mean 'adam"),
        (
            {"optimizer__dense__beta": [0.9, 0.99]},
            r"key optimizer\.dense\.beta: unknown key; did you mean 'betas'\?",
        ),
        ({"optimizer__dense__eps": "small"}, r"key optimizer\.dense\.eps: .* valid number.*, got 'small'"),
        (
            {"optimizer__rows__name": "row_adagrad"},
            r"key optimizer\.rows\.name: .* did you mean 'rowwise_adagrad'\?",
        ),
        ({"optimizer__rows__table_lr": {"genre": 0.5}}, r"key optimizer\.rows: table_lr: no table 'genre'"),
        ({"schedule__name": "cosinus"}, r"key schedule\.name: no 'cosinus'; did you mean 'cosine'\?"),
        ({"schedule__flor": 0.1}, r"key schedule\.flor: unknown key; did you mean 'floor'\?"),
        ({"data__label": "lable"}, r"key data\.label: no 'lable'; did you mean 'label'\?"),
        ({"data__batch_size": 4096}, r"key data\.batch_size: is 4096, but split 'train' has only 640 rows"),
        ({"model__dropuot": 0.5}, "no option 'dropuot'; did you mean 'dropout'"),
        ({"model__name": "dlmr"}, "no model 'dlmr'; did you mean 'dlrm'"),
        ({"data__unseen": "ignore"}, r"key data\.unseen\.\*: String should match .*error\|hash\|drop\|clamp"),
        ({"data__unseen": {"genre": "drop"}}, r"key data\.unseen: no 'genre'; did you mean 'genres'\?"),
        ({"data__unseen": "clamp:7"}, r"table 'genres': unseen is Clamp\(row=7\), wanted a row from 0 to 6"),
        ({"data__valid": "vaild"}, "no split 'vaild'; did you mean 'valid'"),
    ],
)
def test_mistakes_are_named(configure: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ModelError, DataError, TableError), match=message):
        Trainer(configure(**change))


def test_monitor_gauc_needs_groups(configure: Any, train: Any) -> None:
    assert "gauc" in train(train__monitor="gauc", train__max_steps=2).state.best


def test_only_what_does_not_change_a_step_may_change(configure: Any) -> None:
    assert (
        differences(configure(), configure(train__epochs=9, train__threads=1, train__checkpoint_every=3))
        == []
    )
    assert differences(configure(), configure(train__seed=1, model__top=[4])) == [
        "model.top: [16] → [4]",
        "train.seed: 0 → 1",
    ]


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_every_row_optimizer_runs(train: Any, name: str) -> None:
    rows = {"name": name, "lr": 0.01, "clip": 1.0, "max_norm": 2.0, "table_lr": {"genres": 0.5}}
    assert train(train__max_steps=3, optimizer__rows=rows).state.step == 3


def test_every_schedule_and_optimizer_runs(train: Any) -> None:
    short: dict[str, Any] = {"train__max_steps": 3, "train__clip_norm": None, "data__valid": None}
    short |= {"plateau": None, "train__early_stopping": None}
    names = [("sgd", "sgd"), ("adagrad", "adagrad"), ("adamw", "adam"), ("rmsprop", "rowwise_adagrad")]
    schedules = [{"name": "constant"}, {"name": "poly", "total": 9}, {"name": "step_decay", "every": 2}]
    schedules += [{"name": "cosine", "floor": 0.1}]
    for i, ((dense, rows), schedule) in enumerate(zip(names, schedules, strict=True)):
        optimizer = {"dense": {"name": dense, "lr": 0.01}, "rows": {"name": rows, "lr": 0.01}}
        assert train(f"run{i}", optimizer=optimizer, schedule=schedule, **short).state.step == 3
