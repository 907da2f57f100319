"""The peer of `serve_capacity`: FastAPI and a frozen TorchScript DLRM, as a good engineer would write it.

    python -m benchmarks.peers.serve --dim 16 --port 8101

One thread, scored in the event loop: handing a request to another thread costs more than it gains on one
core. What the candidates share is looked up, and goes through the bottom MLP, once. All tables are one
matrix, so that a request is two lookups. JSON by orjson, and by numpy into arrays without a loop in Python.
"""

from __future__ import annotations

import argparse
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from torch import nn

from benchmarks.cases import KAGGLE, TABLE_SCALE, dlrm_layers, dlrm_weights, fill
from benchmarks.serve_cases import DENSE, OWN, PATH, SHARED

FIRST_ROWS = np.cumsum([0, *KAGGLE])[:-1]
Ids = npt.NDArray[np.int64]


class Ranker(nn.Module):  # type: ignore[misc, unused-ignore]
    """One context and K candidates -> (K,) probabilities."""

    def __init__(self, rows: torch.Tensor, dim: int):
        super().__init__()
        bottom, top = dlrm_layers(dim)
        self.dim, self.fields = dim, len(KAGGLE) + 1
        self.register_buffer("rows", rows)
        self.bottom = nn.Sequential(*(m for i, o in bottom for m in (nn.Linear(i, o), nn.ReLU())))
        self.top = nn.Sequential(
            *[m for i, o in top for m in (nn.Linear(i, o), nn.ReLU())][:-1], nn.Sigmoid()
        )
        first, second = torch.triu_indices(self.fields, self.fields, 1)
        self.register_buffer("pairs", first * self.fields + second)

    def forward(self, dense: torch.Tensor, shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """(1, 13) float32, (20,) and (K, 6) rows of the matrix."""
        k = own.size(0)
        z = self.bottom(dense)
        context = torch.cat([z, self.rows[shared]])
        mine = self.rows[own.view(-1)].view(k, -1, self.dim)
        fields = torch.cat([context.expand(k, -1, -1), mine], 1)
        products = torch.bmm(fields, fields.transpose(1, 2)).view(k, -1)
        x = torch.cat([z.expand(k, -1), products.index_select(1, self.pairs)], 1)
        scores: torch.Tensor = self.top(x).view(-1)
        return scores


def frozen(dim: int) -> Any:
    """The model of the benchmark's weights, as TorchScript."""
    rows = torch.empty(sum(KAGGLE), dim)
    for first, size in zip(FIRST_ROWS, KAGGLE, strict=True):
        fill(rows[first : first + size].numpy(), TABLE_SCALE)
    model = Ranker(rows, dim).eval()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for linear, (weight, bias) in zip(linears, dlrm_weights(dim), strict=True):
        linear.weight.data.copy_(torch.from_numpy(weight))
        linear.bias.data.copy_(torch.from_numpy(bias))
    return torch.jit.freeze(torch.jit.script(model))


class Inputs:
    """A body -> the arrays of a request. HTTPException 422 for an id outside its table."""

    def __init__(self) -> None:
        self.dense, self.shared, self.own = itemgetter(*DENSE), itemgetter(*SHARED), itemgetter(*OWN)
        sizes = np.array(KAGGLE)
        self.shared_sizes, self.own_sizes = sizes[: len(SHARED)], sizes[len(SHARED) :]
        self.shared_first, self.own_first = FIRST_ROWS[: len(SHARED)], FIRST_ROWS[len(SHARED) :]

    def __call__(self, body: bytes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        try:
            request = orjson.loads(body)
            context, candidates = request["context"], request["candidates"]
            dense = np.array([self.dense(context)], np.float32)
            shared = np.array(self.shared(context), np.int64)
            ids = chain.from_iterable(map(self.own, candidates))
            own = np.fromiter(ids, np.int64, len(candidates) * len(OWN)).reshape(-1, len(OWN))
        except (ValueError, KeyError, TypeError) as error:
            raise HTTPException(422, repr(error)) from error
        if _outside(shared, self.shared_sizes) or _outside(own, self.own_sizes):
            raise HTTPException(422, "an id outside its table")
        shared += self.shared_first
        own += self.own_first
        return torch.from_numpy(dense), torch.from_numpy(shared), torch.from_numpy(own)


def _outside(ids: Ids, sizes: Ids) -> bool:
    return bool((ids.view(np.uint64) >= sizes.view(np.uint64)).any())


def create_app(model: Any) -> FastAPI:
    """POST …:rank -> candidates' indices and scores, best first."""
    app, inputs = FastAPI(), Inputs()

    @app.post(PATH)
    async def rank(request: Request) -> Response:
        arrays = inputs(await request.body())
        with torch.inference_mode():
            scores = model(*arrays).numpy()
        order = np.argsort(-scores, kind="stable")
        answer = {"indices": order, "scores": scores[order]}
        content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    @app.get("/readyz")
    async def ready() -> Response:
        return Response()

    return app


def main() -> None:
    """Serve on loopback until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--port", type=int, default=8101)
    args = parser.parse_args()
    torch.set_num_threads(1)
    app = create_app(frozen(args.dim))
    uvicorn.run(app, port=args.port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
