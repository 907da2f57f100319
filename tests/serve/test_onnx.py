"""Every model scores the same in onnxruntime, whatever its tables, bags and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tesserec.autograd import Module, Tensor, no_grad, ops
from tesserec.autograd.ops.elementwise import expit
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.quantize import quantize
from tesserec.models import Features
from tesserec.models.registry import describe
from tesserec.serve import onnx as exporting
from tesserec.serve.onnx import export_onnx, onnx_inputs
from tesserec.serve.onnx_ops import RULES, OnnxError
from tesserec.serve.spec import ModelSpec
from tests.models.test_models import VARIANTS, enlarge

SIZES = {"user": 11, "item": 7, "tags": 5}

every_model = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: str(v).replace(" ", ""))


def spec_of(name: str, options: dict[str, Any], num_dense: int = 3, pooling: Any = "mean") -> ModelSpec:
    return ModelSpec(name, 0, options, Features(num_dense, SIZES, pooling=pooling))


def built(spec: ModelSpec) -> Module:
    """In evaluation mode, with weights so large that scores differ."""
    model = spec.build()
    enlarge(model)
    return model.eval()


def sample(num_dense: int, rows: int, seed: int = 0) -> tuple[Any, KeyedJaggedTensor]:
    """Rows with empty bags, and bags of up to 4 ids."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, (len(SIZES), rows))
    ids = [rng.integers(0, n, total) for n, total in zip(SIZES.values(), lengths.sum(axis=1), strict=True)]
    sparse = KeyedJaggedTensor.from_lengths(list(SIZES), np.concatenate(ids), lengths.ravel())
    return rng.random((rows, num_dense), np.float32), sparse


def served(path: Path, spec: ModelSpec, dense: Any, sparse: KeyedJaggedTensor) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, onnx_inputs(spec.features, dense, sparse))[0]


def scores(model: Module, dense: Any, sparse: KeyedJaggedTensor) -> Any:
    with no_grad():
        return expit(model(dense, sparse).numpy())


def assert_served_alike(path: Path, spec: ModelSpec, model: Module) -> None:
    """Also in batches of other sizes and bags than it was exported with."""
    for rows in (1, 2, 17):
        inputs = sample(spec.features.num_dense, rows, seed=rows)
        np.testing.assert_allclose(served(path, spec, *inputs), scores(model, *inputs), atol=1e-5)


@every_model
@pytest.mark.parametrize("num_dense", [3, 0])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_models_score_the_same(
    name: str, options: dict[str, Any], num_dense: int, pooling: str, tmp_path: Path
) -> None:
    spec = spec_of(name, options, num_dense, pooling)
    model = built(spec)
    assert export_onnx(model, spec, tmp_path / "m.onnx", *sample(num_dense, 5)) <= 1e-5
    assert_served_alike(tmp_path / "m.onnx", spec, model)


@pytest.mark.parametrize("name", ["dcn", "deepfm", "dnn", "wide_deep"])
def test_batch_norm_and_dropout_are_those_of_evaluation(name: str, tmp_path: Path) -> None:
    extra = {"dropout": 0.5, "batch_norm": True}
    assert extra.keys() <= {option.name for option in describe(name)[1]}
    spec = spec_of(name, extra)
    model = built(spec)
    rng = np.random.default_rng(0)
    for module in model.modules():
        for buffer in module.buffers:
            getattr(module, buffer)[...] = rng.uniform(0.5, 2.0, len(getattr(module, buffer)))
    export_onnx(model, spec, tmp_path / "m.onnx", *sample(3, 5))
    assert_served_alike(tmp_path / "m.onnx", spec, model)


@pytest.mark.parametrize("data_type", ["float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("external", [False, True])
def test_quantized_tables_score_as_they_do_here(
    data_type: Any, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "EXTERNAL_BYTES", 0 if external else 1 << 30)
    spec = spec_of("dlrm", {"embedding_dim": 16})
    model = quantize(built(spec), data_type)
    export_onnx(model, spec, tmp_path / "m.onnx", *sample(3, 5))
    assert (tmp_path / "m.onnx.data").exists() == external
    assert_served_alike(tmp_path / "m.onnx", spec, model)


def test_large_tables_lie_beside_the_file_and_are_replaced_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "EXTERNAL_BYTES", 0)
    path = tmp_path / "m.onnx"
    for name in ("deepfm", "dcnv2"):
        spec = spec_of(name, {})
        model = built(spec)
        export_onnx(model, spec, path, *sample(3, 5))
        assert_served_alike(path, spec, model)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    spec = spec_of("dlrm", {})
    export_onnx(built(spec), spec, tmp_path / "m.onnx", *sample(3, 5))
    proto = onnx.load(tmp_path / "m.onnx")
    assert [value.name for value in proto.graph.input] == ["dense", "ids/user", "ids/item", "ids/tags"]
    assert [value.name for value in proto.graph.output] == ["score"]
    assert proto.metadata_props[0].key == "tesserec" and '"dlrm"' in proto.metadata_props[0].value


class Ops(Module):
    """Anything made of ops, on dense columns."""

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        self.fn = fn
        self.scale = Tensor(np.linspace(0.5, 1.5, 4, dtype=np.float32), requires_grad=True)

    def forward(self, dense: Any, sparse: KeyedJaggedTensor) -> Tensor:
        return self.fn(ops.multiply(dense, self.scale))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda x: ((x - 0.25) / (x + 1) - (-x) * 2).sum(axis=1),
    "powers": lambda x: (ops.exp(x) + ops.log(x + 1) + ops.sqrt(x) + x**3.0).mean(axis=1),
    "bounds": lambda x: ops.max(ops.clip(ops.maximum(x, 0.2) + ops.minimum(x, 0.7), low=0.5), axis=1),
    "upper bound": lambda x: ops.clip(x, high=0.5).sum(axis=1),
    "activations": lambda x: (ops.gelu(x) + ops.tanh(x) * ops.sigmoid(x) + ops.softplus(x)).sum(axis=1),
    "absolute": lambda x: ops.absolute(x - 0.5).sum(axis=1, keepdims=True).reshape(-1),
    "fused": lambda x: ops.multiply_add(x, x, x).sum(axis=1),
    "softmax": lambda x: (ops.softmax(x) * ops.log_softmax(x)).sum(axis=1) + ops.logsumexp(x, axis=1),
    "stack": lambda x: ops.stack(x[:, 0], x[:, -1], axis=1).sum(axis=1),
    "slices": lambda x: (
        x[:, 1:3].sum(axis=1) + x[..., 3] + x[:, ::-2][:, 0] * x[:, 2:, None].sum(axis=(1, 2))
    ),
    "transpose": lambda x: (x.T.transpose(1, 0) + 0.0).sum(axis=1),
    "products": lambda x: ops.matmul(x.reshape(-1, 2, 2), x.reshape(-1, 2, 2)).reshape(-1, 4).sum(axis=1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ops_of_models_of_ones_own(name: str, tmp_path: Path) -> None:
    spec = spec_of("mine:Ops", {}, num_dense=4)
    model = Ops(FUNCTIONS[name]).eval()
    export_onnx(model, spec, tmp_path / "m.onnx", *sample(4, 5))
    assert_served_alike(tmp_path / "m.onnx", spec, model)


def refused(fn: Callable[[Tensor], Tensor], tmp_path: Path, match: str) -> None:
    spec = spec_of("mine:Ops", {}, num_dense=4)
    with pytest.raises(OnnxError, match=match):
        export_onnx(Ops(fn).eval(), spec, tmp_path / "m.onnx", *sample(4, 5))
    assert not list(tmp_path.iterdir())


def test_what_has_no_rule_is_named(tmp_path: Path) -> None:
    refused(lambda x: ops.broadcast_to(x, shape=x.shape).sum(axis=1), tmp_path, "op broadcast_to")
    refused(lambda x: x[[0, 1]].sum(axis=1), tmp_path, "getitem|slices")


def test_what_depends_on_the_number_of_samples_is_refused(tmp_path: Path) -> None:
    refused(lambda x: (x / len(x)).sum(axis=1), tmp_path, "op divide.*number of samples")
    refused(lambda x: x[: len(x)].sum(axis=1), tmp_path, "op getitem.*number of samples")
    refused(lambda x: (x if len(x) > 2 else x + 1).sum(axis=1), tmp_path, "every number of samples")
    refused(lambda x: ops.matmul(x, x.T).reshape(len(x), 1, len(x)).sum(axis=(1, 2)), tmp_path, "two axes")


def test_a_model_in_training_is_refused(tmp_path: Path) -> None:
    spec = spec_of("dcn", {"batch_norm": True})
    with pytest.raises(OnnxError, match=r"batch_norm.*evaluation mode"):
        export_onnx(spec.build(), spec, tmp_path / "m.onnx", *sample(3, 5))


def test_other_scores_are_refused_with_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("dlrm", {})
    monkeypatch.setitem(RULES, ops.linear, RULES[ops.linear_relu])
    with pytest.raises(OnnxError, match=r"row \d.*apart"):
        export_onnx(built(spec), spec, tmp_path / "m.onnx", *sample(3, 5))
    assert not list(tmp_path.iterdir())
