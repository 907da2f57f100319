"""Random jagged batches and table sets."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tesserec.embeddings import EmbeddingBagConfig, JaggedTensor, KeyedJaggedTensor

WIDTHS = (1, 3, 16, 33)


@st.composite
def table_sets(draw: Any) -> list[EmbeddingBagConfig]:
    """1 to 4 tables of mixed widths, some read by two features; feature f2 may be read by several tables."""
    tables = []
    for t in range(draw(st.integers(1, 4))):
        features = [f"f{t}"] + ([f"g{t}"] if draw(st.booleans()) else [])
        if t != 2 and draw(st.booleans()):
            features.append("f2")
        tables.append(
            EmbeddingBagConfig(
                name=f"t{t}",
                num_embeddings=draw(st.sampled_from([1, 2, 7, 300, 5000])),
                embedding_dim=draw(st.sampled_from(WIDTHS)),
                feature_names=tuple(features),
                pooling=draw(st.sampled_from(["sum", "mean"])),
            )
        )
    return tables


def limits(tables: list[EmbeddingBagConfig]) -> dict[str, int]:
    """{feature: how many ids all its tables have}."""
    found: dict[str, int] = {}
    for table in tables:
        for feature in table.feature_names:
            found[feature] = min(found.get(feature, table.num_embeddings), table.num_embeddings)
    return found


@st.composite
def batches(
    draw: Any, sizes: dict[str, int], max_batch: int = 9, *, shared: bool = False
) -> KeyedJaggedTensor:
    """A batch of the features {name: number of ids}, keys in any order, and one key that nobody reads.

    shared: some keys may have bags of their own number, shared by samples; some perhaps by none.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    keys = draw(st.permutations([*sizes, "unread"]))
    batch, longest = draw(st.integers(0, max_batch)), draw(st.sampled_from([1, 2, 9]))
    single, weighted = draw(st.booleans()), draw(st.booleans())
    integer = draw(st.sampled_from([np.int32, np.int64]))
    bags, inverse = {}, {}
    for key in keys:
        count = batch
        if shared and draw(st.booleans()):
            count = int(rng.integers(1, max_batch + 1))
            inverse[key] = rng.integers(0, count, batch)
        lengths = np.ones(count, int) if single else rng.integers(0, longest + 1, count)
        ids = rng.integers(0, sizes.get(key, 10), lengths.sum(), dtype=integer)
        weights = rng.standard_normal(len(ids)).astype(np.float32) if weighted else None
        bags[key] = JaggedTensor.from_lengths(ids, lengths, weights)
    return KeyedJaggedTensor.from_dict(bags, inverse)
