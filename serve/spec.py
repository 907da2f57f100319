"""What a model is, in JSON: enough to build it again, but for its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tesserec.autograd.module import Module
from tesserec.embeddings.unseen import parse_unseen, unseen_text
from tesserec.models.features import Features
from tesserec.models.registry import build_model


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model by its name in the registry, or by module:Class, with the options of its constructor."""

    name: str
    seed: int
    options: dict[str, Any]
    features: Features

    def build(self) -> Module:
        """The model, with its initial weights."""
        return build_model(self.name, self.features, seed=self.seed, options=self.options)

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        features = dict(read["features"])
        features["unseen"] = {name: parse_unseen(text) for name, text in features["unseen"].items()}
        return cls(read["name"], read["seed"], dict(read["options"]), Features(**features))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        f = self.features
        features = {
            "num_dense": f.num_dense,
            "sparse": dict(f.sparse),
            "pooling": f.pooling,
            "unseen": {name: unseen_text(policy) for name, policy in f.unseen.items()},
            "data_type": f.data_type,
        }
        return {"name": self.name, "seed": self.seed, "options": self.options, "features": features}
