"""A model as an ONNX file, which other runtimes score with.

Inputs: `dense` (batch, dense columns) float32, where the model has any, and for each sparse feature
`ids/NAME` (batch, n) int64, the ids of each sample's bag, filled up with -1 where a bag is shorter than n (an
empty one is all -1; n may differ between features and calls). They are what the artefact's encoder gives: ids
lie inside their tables. Output: `score` (batch,) float32, probabilities.

Tables of 1 GiB or more together lie beside the file, in FILE.data, because protobuf ends at 2 GiB. Rows of
float16 stay so and are widened as they are read; other narrow ones are written as the float32 they stand for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

try:
    import onnx
    import onnxruntime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("ONNX needs onnx and onnxruntime: pip install 'tesserec[onnx]'") from error
from onnx import TensorProto, helper

from tesserec.autograd import ops
from tesserec.autograd.compiler.capture import Capture, Record, Uncapturable, capture, opaque
from tesserec.autograd.module import Module
from tesserec.autograd.ops.elementwise import expit
from tesserec.autograd.tensor import Tensor, no_grad
from tesserec.embeddings.collection import EmbeddingBagCollection
from tesserec.embeddings.config import EmbeddingBagConfig
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.pool import Pool, PoolTable
from tesserec.embeddings.table_set import Reader
from tesserec.models.features import Features
from tesserec.serve.onnx_ops import BATCH, RULES, Graph, OnnxError, Value
from tesserec.serve.spec import ModelSpec

TOLERANCE = 1e-5  # of a probability
EXTERNAL_BYTES = 1 << 30
OPSET = 20
IR_VERSION = 10  # what onnxruntime 1.18 and later read
_SIZES = (2, 3)  # of batches whose captures are compared: what differs is the batch's size
_PIECE = 1 << 16  # rows written at a time

_PAGE = 4096

Dense = npt.NDArray[np.float32]  # (B, num_dense)
Inputs = dict[str, npt.NDArray[Any]]
Tables = Mapping[str, tuple[Pool, PoolTable]]


def export_onnx(
    model: Module,
    spec: ModelSpec,
    path: str | Path,
    dense: npt.NDArray[np.float32],
    sparse: KeyedJaggedTensor,
) -> float:
    """The greatest difference between onnxruntime's scores and the model's, for these encoded rows.

    model: in evaluation mode. Writes `path`, and beside it `path`.data where tables are large; files that
    are there are replaced. OnnxError for a model that cannot be written, or a difference above 1e-5.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        _write(_Conversion(model, spec.features), spec, written)
        difference = _check(written, model, onnx_inputs(spec.features, dense, sparse), dense, sparse)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the data first
            os.replace(file, path.with_name(file.name))
    return difference


def onnx_inputs(features: Features, dense: Dense, sparse: KeyedJaggedTensor) -> Inputs:
    """{input: array} of encoded rows, as the ONNX model takes them."""
    ids = {f"ids/{name}": _padded(sparse, name) for name in features.sparse}
    return {"dense": dense, **ids} if features.num_dense else ids


def _padded(sparse: KeyedJaggedTensor, name: str) -> npt.NDArray[np.int64]:
    bags = sparse.expand()[name]
    lengths = np.diff(bags.offsets)
    padded = np.full((len(lengths), max(1, lengths.max(initial=0))), -1, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = bags.values
    return padded


class _Conversion:
    """The graph of a model: `graph`, its `output`, and the `tables` it reads, by name."""

    def __init__(self, model: Module, features: Features):
        self.graph, self.tables = Graph(), dict[str, tuple[Pool, PoolTable]]()
        small, large = (_captured(model, features, size) for size in _SIZES)
        did, does = ([(r.op, r.result.ndim) for r in made.records] for made in (small, large))
        if did != does:
            raise OnnxError("forward does not do the same for every number of samples")
        self._values = {small.inputs[0]: self._dense(features)}
        for record, other in zip(small.records, large.records, strict=True):
            self._values[record.result] = self._convert(record, other)
        self.output = self.graph.add("Sigmoid", self._values[small.output].name)

    def _dense(self, features: Features) -> Value:
        """The dense columns; without any, (batch, 0) of the graph's own making."""
        if features.num_dense:
            return Value("dense", (BATCH, features.num_dense))
        size = self.graph.add("Shape", f"ids/{next(iter(features.sparse))}", end=1)
        shape = self.graph.add("Concat", size, self.graph.integers(0), axis=0)
        return Value(self.graph.add("ConstantOfShape", shape), (BATCH, 0))

    def _convert(self, record: Record, other: Record) -> Value:
        pairs = zip(record.result.shape, other.result.shape, strict=True)
        shape = tuple(a if a == b else BATCH for a, b in pairs)
        if record.op is opaque:
            return Value(self._lookup(record.static["fn"]), shape)
        name = record.op.__name__.strip("_")
        if record.op not in RULES:
            raise OnnxError(f"op {name}: there is no rule for it; a model is exported in evaluation mode")
        same = record.op is ops.reshape or dict(record.static) == dict(other.static)
        plain = [[arg for arg in r.args if not isinstance(arg, Tensor | np.ndarray)] for r in (record, other)]
        if not same or plain[0] != plain[1]:
            raise OnnxError(f"op {name}: given numbers that depend on the number of samples")
        args = [self._value(arg) for arg in record.args]
        return Value(RULES[record.op](self.graph, shape, *args, **record.static), shape)

    def _value(self, arg: Any) -> Value | None:
        """An argument as a value of the graph."""
        if arg is None:
            return None
        if isinstance(arg, Tensor) and arg in self._values:
            return self._values[arg]
        array = np.asarray(arg.data if isinstance(arg, Tensor) else arg, np.float32)
        made = Value(self.graph.constant(array), array.shape)
        if isinstance(arg, Tensor):
            self._values[arg] = made
        return made

    def _lookup(self, fn: Any) -> str:
        """(batch, ΣD): the pooled rows of a collection."""
        collection = getattr(fn, "__self__", None)
        if not isinstance(collection, EmbeddingBagCollection) or collection.processor is not None:
            raise OnnxError(
                f"{fn}: the only lookups written are an EmbeddingBagCollection's, without processor"
            )
        pooled = [self._pooled(reader, collection) for reader in collection.table_set.outputs]
        return self.graph.add("Concat", *pooled, axis=1)

    def _pooled(self, reader: Reader, collection: EmbeddingBagCollection) -> str:
        """(batch, D). A row of zeros at the end of each table is what -1, no id, stands for."""
        graph, config, pool = self.graph, reader.table.config, collection.pools[reader.pool]
        name = f"table/{len(self.tables)}/{config.name}"
        self.tables[name] = pool, reader.table
        ids = graph.add("Max", f"ids/{reader.feature}", graph.constant(np.int64(-1)))
        rows = graph.add("Gather", name, ids)
        if _is_half(pool):
            rows = graph.add("Cast", rows, to=TensorProto.FLOAT)
        total = graph.add("ReduceSum", rows, graph.integers(1), keepdims=0)
        if isinstance(config, EmbeddingBagConfig) and config.pooling == "sum":
            return total
        known = graph.add(
            "Cast", graph.add("Greater", ids, graph.constant(np.int64(-1))), to=TensorProto.FLOAT
        )
        count = graph.add("ReduceSum", known, graph.integers(1), keepdims=1)
        return graph.add("Div", total, graph.add("Max", count, graph.constant(np.float32(1))))


def _captured(model: Module, features: Features, size: int) -> Capture:
    """What the model does with so many samples."""
    dense = np.zeros((size, features.num_dense), np.float32)
    offsets = np.zeros(len(features.sparse) * size + 1, np.int64)
    sparse = KeyedJaggedTensor(tuple(features.sparse), np.zeros(0, np.int64), offsets)
    try:
        return capture(model, [dense, sparse], ())
    except Uncapturable as error:
        raise OnnxError(f"the model cannot be written as a graph: {error}") from error


def _write(made: _Conversion, spec: ModelSpec, path: Path) -> None:
    features = spec.features
    ids = [
        helper.make_tensor_value_info(f"ids/{name}", TensorProto.INT64, ["batch", f"{name} length"])
        for name in features.sparse
    ]
    shape = ("batch", features.num_dense)
    dense = [helper.make_tensor_value_info("dense", TensorProto.FLOAT, shape)] if features.num_dense else []
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])
    nodes = [*made.graph.nodes, helper.make_node("Identity", [made.output], ["score"])]
    constants = [*made.graph.constants, *_tables(made.tables, path.with_name(f"{path.name}.data"))]
    graph = helper.make_graph(nodes, spec.name, [*dense, *ids], [score], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(graph, producer_name="tesserec", ir_version=IR_VERSION, opset_imports=opsets)
    helper.set_model_props(proto, {"tesserec": json.dumps(spec.to_json())})
    path.write_bytes(proto.SerializeToString())


def _tables(tables: Tables, beside: Path) -> list[TensorProto]:
    """The tables as constants, their rows in the file `beside` if they are large."""
    made = {name: _described(name, *held) for name, held in tables.items()}
    if sum(nbytes for _, nbytes in made.values()) < EXTERNAL_BYTES:
        for name, (proto, _) in made.items():
            proto.raw_data = b"".join(piece.tobytes() for piece in _pieces(*tables[name]))
    else:
        with beside.open("wb") as file:
            for name, (proto, nbytes) in made.items():
                _write_beside(proto, nbytes, _pieces(*tables[name]), file)
    return [proto for proto, _ in made.values()]


def _described(name: str, pool: Pool, table: PoolTable) -> tuple[TensorProto, int]:
    """A table's constant without its rows, and how many bytes they are."""
    if pool.compute_dtype != np.float32:
        raise OnnxError(f"table {table.config.name!r} is {pool.data_type}, wanted float32 or less")
    rows, width, half = table.config.num_embeddings + 1, table.config.embedding_dim, _is_half(pool)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    return TensorProto(name=name, dims=[rows, width], data_type=kind), rows * width * (2 if half else 4)


def _is_half(pool: Pool) -> bool:
    return pool.data_type == "float16"


def _pieces(pool: Pool, table: PoolTable) -> Iterator[npt.NDArray[Any]]:
    """The rows of a table, and one of zeros."""
    for lo in range(table.rows.start, table.rows.stop, _PIECE):
        rows = slice(lo, min(lo + _PIECE, table.rows.stop))
        yield pool.data[rows] if _is_half(pool) else pool.values(rows)
    yield np.zeros((1, table.config.embedding_dim), np.float16 if _is_half(pool) else np.float32)


def _write_beside(
    proto: TensorProto, nbytes: int, pieces: Iterable[npt.NDArray[Any]], file: BinaryIO
) -> None:
    """Write rows where a page begins, so that they can be mapped into memory, and say so in `proto`."""
    offset = file.seek(-(-file.tell() // _PAGE) * _PAGE)
    for piece in pieces:
        file.write(np.ascontiguousarray(piece).data)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", Path(file.name).name), ("offset", offset), ("length", nbytes)):
        proto.external_data.add(key=key, value=str(value))


def _check(path: Path, model: Module, inputs: Inputs, dense: Dense, sparse: KeyedJaggedTensor) -> float:
    """The greatest difference of scores. OnnxError, with the row, if it is too great."""
    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(["score"], inputs)
    with no_grad():
        logits = model(dense, sparse).numpy()
    wanted = expit(np.asarray(logits, np.float64))
    off = np.abs(got - wanted)
    if not (off <= TOLERANCE).all():
        row = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
        raise OnnxError(
            f"{path.name}: onnxruntime scores row {row} {got[row]}, the model {wanted[row]}: "
            f"{off[row]:.2g} apart, at most {TOLERANCE} is allowed; nothing was written"
        )
    return float(off.max(initial=0.0))
