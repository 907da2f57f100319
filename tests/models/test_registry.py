"""A config's model section becomes a model, or a message that says what was meant."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models import DCNv2, Features, ModelError, build_model, describe, model_names

FEATURES = Features(1, {"user": 5, "item": 4})
OWN = """
from tesserec.autograd.module import Module
from tesserec.models.interactions import FirstOrder

class Scaled(Module):
    def __init__(self, features, *, seed, factor: float):
        self.inputs = FirstOrder(features, seed=seed)
        self.factor = factor

    def forward(self, dense, sparse):
        return self.inputs(dense, sparse) * self.factor

class NotAModel:
    pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return "my_models"


def test_every_name_builds_and_describes() -> None:
    assert len(model_names()) == 9
    for name in model_names():
        build_model(name, FEATURES, seed=0)
        text, options = describe(name)
        assert text and all(option.default is not inspect.Parameter.empty for option in options)


def test_options_of_a_config_are_converted() -> None:
    model = build_model(
        "dcnv2", FEATURES, seed=0, options={"hidden": [4], "low_rank": {"rank": 2, "experts": 3}}
    )
    assert isinstance(model, DCNv2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deepmf", {}, "no model 'deepmf'; did you mean 'deepfm'?"),
        ("deepfm", {"dropuot": 0.1}, "model 'deepfm' has no option 'dropuot'; did you mean 'dropout'?"),
        ("deepfm", {"seed": 1}, "has no option 'seed'"),
        ("deepfm", {"hidden": [4, "x"]}, "option hidden.1: got 'x'"),
        ("dcnv2", {"structure": "sideways"}, "option structure: got 'sideways'"),
        ("dcnv2", {"low_rank": {"rnk": 2}}, "option low_rank"),
        ("dlrm", {"embedding_dim": 0}, "embedding_dim"),
        ("no_such_module:Model", {}, "No module named 'no_such_module'"),
        ("json:Decoder", {}, "no 'Decoder' in"),
        ("json:dumps", {}, "not a subclass"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        build_model(name, FEATURES, seed=0, options=options)
    assert message in str(error.value)


def test_a_class_of_the_users_own(own_module: str) -> None:
    model = build_model(f"{own_module}:Scaled", FEATURES, seed=0, options={"factor": 2})
    sparse = KeyedJaggedTensor.from_dense({"user": np.array([1, 2]), "item": np.array([0, 3])})
    assert model(np.zeros((2, 1), np.float32), sparse).shape == (2,)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("Scaled", {}, "needs option 'factor'"),
        ("Scaled", {"facto": 1}, "did you mean 'factor'?"),
        ("Scalde", {}, "did you mean 'Scaled'?"),
        ("NotAModel", {}, "not a subclass of"),
    ],
)
def test_mistakes_about_it_are_named(
    own_module: str, path: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError) as error:
        build_model(f"{own_module}:{path}", FEATURES, seed=0, options=options)
    assert message in str(error.value)
