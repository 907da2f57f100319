"""A small artefact, and what it is made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tesserec.dataio.config import parse_config
from tesserec.dataio.encoder import Encoder, EncoderFitter
from tesserec.dataio.schema import Schema
from tesserec.embeddings.config import Clamp
from tesserec.models.features import Features
from tesserec.serve.artefact import Content, ModelSpec
from tesserec.serve.golden import score_rows

SCHEMA: dict[str, Any] = {
    "name": "shop",
    "labels": "click",
    "group": "user",
    "dense": [{"column": "price", "fill": 0, "transform": "log1p"}],
    "sparse": [
        {"column": "user"},
        {"column": "item", "encoding": "integer", "size": 300},
        {"column": "tags", "delimiter": "|"},
    ],
}
ROWS = 200


def raw_rows(count: int = ROWS, seed: int = 0) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    tags = ["|".join(f"t{t}" for t in rng.integers(0, 9, rng.integers(0, 4))) for _ in range(count)]
    return pa.record_batch(
        {
            "click": rng.integers(0, 2, count),
            "price": pa.array(rng.random(count), mask=rng.random(count) < 0.1),
            "user": [None if u == 7 else f"u{u}" for u in rng.integers(1, 40, count)],
            "item": rng.integers(0, 300, count),
            "tags": tags,
        }
    )


def fitted_encoder(folder: Path) -> Encoder:
    """The encoder of the shop, its words in `folder`."""
    fitter = EncoderFitter(parse_config(SCHEMA, Schema), folder, 1 << 20)
    with ThreadPoolExecutor(1) as executor:
        fitter.update(raw_rows(), np.arange(ROWS), np.ones(ROWS, np.bool_), executor)
    return fitter.finish()


def content(folder: Path, model: str = "dlrm", **options: Any) -> Content:
    """What an artefact of the shop is made of; its encoder is saved in `folder`."""
    (folder / "words").mkdir(parents=True)
    encoder = fitted_encoder(folder / "words")
    encoder.save(folder / "encoder")
    sizes = {feature.spec.name: feature.num_embeddings for feature in encoder.sparse}
    spec = ModelSpec(model, 3, options, Features(1, sizes, unseen={"item": Clamp(2)}))
    built = spec.build().eval()
    rows = raw_rows(20, seed=1).drop_columns(["click"])
    return Content(
        name="shop",
        spec=spec,
        model=built,
        encoder=folder / "encoder",
        golden=rows,
        scores=score_rows(built, encoder.of_features(), rows),
        metrics={"auc": 0.75},
        candidate_id="item",
        candidate_columns=("item", "tags"),
    )
