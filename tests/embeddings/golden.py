"""What torch and FBGEMM made of the cases of `optimizer_cases.py`, and what we make of them."""

from __future__ import annotations

from pathlib import Path

from tesserec.embeddings import ROW_OPTIMIZERS, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from tests.embeddings.optimizer_cases import (
    CASES,
    LR,
    ROWS,
    STEPS,
    WIDTH,
    Array,
    first_rows,
    gradient,
    touched,
)

GOLDEN = Path(__file__).with_name("golden_optimizers.json")  # {case: rows}, by benchmarks/check_optimizers.py
TOLERANCE = 2e-6


def our_rows(case: str) -> Array:
    """(ROWS, WIDTH): rows after the last step."""
    name, options = CASES[case]
    collection = EmbeddingBagCollection([EmbeddingBagConfig("t", ROWS, WIDTH, ("f",))], seed=0)
    rows: Array = collection.pools[0].data
    rows[...] = first_rows()
    optimizer = ROW_OPTIMIZERS[name]([("rows", collection.pools[0])], lr=LR, **options)
    for step in range(STEPS):
        some = touched(case, step)
        collection(KeyedJaggedTensor.from_dense({"f": some})).values.backward(gradient(step)[some])
        optimizer.step()
        optimizer.zero_grad()
    return rows
