"""The peers' side of `benchmarks.check_optimizers`: prints {case: rows after the last step} as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    CounterBasedRegularizationDefinition,
    CounterWeightDecayMode,
    LearningRateMode,
    SplitTableBatchedEmbeddingBagsCodegen,
    TailIdThreshold,
    WeightDecayMode,
)

from tests.embeddings.optimizer_cases import (
    CASES,
    CLIP,
    COUNTER,
    DECAY,
    LR,
    ROWS,
    STEPS,
    WIDTH,
    first_rows,
    gradient,
    touched,
)

TORCH: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "sgd_l2": (torch.optim.SGD, {"weight_decay": DECAY}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "momentum_l2": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": DECAY}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    "adagrad_l2": (torch.optim.Adagrad, {"weight_decay": DECAY}),
    "adagrad_sparse": (torch.optim.Adagrad, {}),
    "adam": (torch.optim.Adam, {}),
    "adam_l2": (torch.optim.Adam, {"weight_decay": DECAY}),
    "adam_sparse": (torch.optim.SparseAdam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": DECAY}),
}
ROWWISE = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "eps": 1e-8}


def counter(mode: LearningRateMode) -> dict[str, Any]:
    """Options of row-wise Adagrad with counter."""
    definition = CounterBasedRegularizationDefinition(
        counter_weight_decay_mode=CounterWeightDecayMode.DECOUPLE,
        counter_halflife=int(COUNTER["half_life"]),
        adjustment_ub=COUNTER["power"],
        learning_rate_mode=mode,
        tail_id_threshold=TailIdThreshold(COUNTER["tail"]),
    )
    weight_decay = {"weight_decay": DECAY, "weight_decay_mode": WeightDecayMode.COUNTER}
    return {**ROWWISE, **weight_decay, "counter_based_regularization": definition}


FBGEMM: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": EmbOptimType.EXACT_SGD},
    "sgd_clip": {"optimizer": EmbOptimType.EXACT_SGD, "gradient_clipping": True, "max_gradient": CLIP},
    "adagrad": {"optimizer": EmbOptimType.EXACT_ADAGRAD, "eps": 1e-8},
    "rowwise_adagrad": ROWWISE,
    "counter_increase": counter(LearningRateMode.TAIL_ID_LR_INCREASE),
    "counter_decrease": counter(LearningRateMode.TAIL_ID_LR_DECREASE),
}


def by_torch(case: str, name: str) -> torch.Tensor:
    """Rows after the last step."""
    make, options = TORCH[name]
    rows = torch.nn.Parameter(torch.from_numpy(first_rows()))
    optimizer = make([rows], lr=LR, **options)
    for step in range(STEPS):
        some, grad = torch.from_numpy(touched(case, step)), torch.from_numpy(gradient(step))
        rows.grad = torch.sparse_coo_tensor(some[None], grad[some], grad.shape)
        if not case.endswith("sparse"):
            rows.grad = rows.grad.to_dense()
        optimizer.step()
    return rows.data


def by_fbgemm(case: str, name: str) -> torch.Tensor:
    """Rows after the last step."""
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)], learning_rate=LR, **FBGEMM[name]
    )
    rows = tables.split_embedding_weights()[0]
    rows.data.copy_(torch.from_numpy(first_rows()))
    if "counter" in name:
        tables.max_counter[0] = COUNTER["most"]
    for step in range(STEPS):
        some = torch.from_numpy(touched(case, step))
        tables(some, torch.arange(len(some) + 1)).backward(torch.from_numpy(gradient(step))[some])
    return rows.data


if __name__ == "__main__":
    run = {"torch": by_torch, "fbgemm": by_fbgemm}
    found = {case: run[case.split(".")[0]](case, case.split(".")[1]).tolist() for case in CASES}
    print(json.dumps(found), file=sys.stdout)
