"""Cases in which our row optimizers must do what torch's and FBGEMM's do; needs neither.

Every case takes the same steps from the same rows. In all but "sparse" ones every row has a gradient at every
step, because there lazy updates and torch's dense ones are the same. Not here: row-wise Adagrad with weight
decay, which FBGEMM 1.8 leaves out on a CPU, and what it has for GPUs only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ROWS, WIDTH, STEPS, LR, DECAY, CLIP = 3, 4, 4, 0.1, 0.05, 0.4
COUNTER = {"half_life": 3, "tail": 1.5, "most": 5.0, "power": 0.7}

Array = npt.NDArray[np.float32]

# {case: (row optimizer, its options beside lr)}; a name begins with whose result it is compared with
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "torch.sgd": ("sgd", {}),
    "torch.sgd_l2": ("sgd", {"weight_decay": DECAY}),
    "torch.momentum": ("sgd", {"momentum": 0.9}),
    "torch.momentum_l2": ("sgd", {"momentum": 0.9, "weight_decay": DECAY}),
    "torch.adagrad": ("adagrad", {"initial": 0.1}),
    "torch.adagrad_l2": ("adagrad", {"weight_decay": DECAY}),
    "torch.adagrad_sparse": ("adagrad", {}),
    "torch.adam": ("adam", {}),
    "torch.adam_l2": ("adam", {"weight_decay": DECAY}),
    "torch.adam_sparse": ("adam", {}),
    "torch.adamw": ("adamw", {"weight_decay": DECAY}),
    "fbgemm.sgd": ("sgd", {}),
    "fbgemm.sgd_clip": ("sgd", {"clip": CLIP}),
    "fbgemm.adagrad": ("adagrad", {"eps": 1e-8}),
    "fbgemm.rowwise_adagrad": ("rowwise_adagrad", {"eps": 1e-8}),
    "fbgemm.counter_increase": (
        "rowwise_adagrad_counter",
        {"eps": 1e-8, "weight_decay": DECAY, **COUNTER, "bounds": (1.0, 10.0)},
    ),
    "fbgemm.counter_decrease": (
        "rowwise_adagrad_counter",
        {"eps": 1e-8, "weight_decay": DECAY, **COUNTER, "power": -0.7, "bounds": (0.1, 1.0)},
    ),
}


def first_rows() -> Array:
    """(ROWS, WIDTH): the table before the first step."""
    rows: Array = np.sin(np.arange(ROWS * WIDTH)).astype(np.float32).reshape(ROWS, WIDTH)
    return rows


def gradient(step: int) -> Array:
    """(ROWS, WIDTH): the gradient at `step`."""
    slopes: Array = np.cos(np.arange(ROWS * WIDTH) * (step + 2.0)).astype(np.float32).reshape(ROWS, WIDTH)
    return slopes


def touched(case: str, step: int) -> npt.NDArray[np.int64]:
    """The rows that have a gradient at `step`."""
    return np.arange(step % 2, ROWS) if case.endswith("sparse") else np.arange(ROWS)
