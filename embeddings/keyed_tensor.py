"""KeyedTensor: what a pooled lookup returns, one vector per feature and sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tesserec.autograd import ops
from tesserec.autograd.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class KeyedTensor:
    """F named vectors per sample, side by side.

    keys: F names. lengths: their F widths. values: (B, ΣD) Tensor.
    """

    keys: tuple[str, ...]
    lengths: tuple[int, ...]
    values: Tensor

    def __post_init__(self) -> None:
        wanted = (len(self.values), sum(self.lengths))
        if len(self.keys) != len(self.lengths) or self.values.shape != wanted:
            raise ValueError(
                f"KeyedTensor: {len(self.keys)} keys of widths {self.lengths} with values of shape "
                f"{self.values.shape}, wanted {wanted}"
            )

    def __getitem__(self, key: str) -> Tensor:
        """(B, D) of one key. KeyError if absent."""
        return self.values[:, self._columns()[key]]

    def to_dict(self) -> dict[str, Tensor]:
        """{key: (B, D)}."""
        return {key: self.values[:, columns] for key, columns in self._columns().items()}

    def stack(self) -> Tensor:
        """(B, F, D); the keys must be of one width."""
        if len(set(self.lengths)) != 1:
            widths = dict(zip(self.keys, self.lengths, strict=True))
            raise ValueError(f"stack needs keys of one width, got {widths}: use .values, or regroup by width")
        return self.values.reshape(len(self.values), len(self.keys), self.lengths[0])

    @staticmethod
    def regroup(tensors: Sequence[KeyedTensor], groups: Sequence[Sequence[str]]) -> list[Tensor]:
        """For each group of keys, wherever they are, their vectors side by side: (B, ΣD of the group)."""
        held = {key: tensor[key] for tensor in tensors for key in tensor.keys}
        missing = [key for group in groups for key in group if key not in held]
        if missing:
            raise KeyError(f"regroup: no key {missing[0]!r}; have {list(held)}")
        return [ops.concat(*(held[key] for key in group), axis=1) for group in groups]

    def _columns(self) -> dict[str, slice]:
        ends = list(accumulate(self.lengths, initial=0))
        return {key: slice(lo, hi) for key, lo, hi in zip(self.keys, ends[:-1], ends[1:], strict=True)}

    def __repr__(self) -> str:
        widths = ", ".join(f"{key}: {width}" for key, width in zip(self.keys, self.lengths, strict=True))
        return f"KeyedTensor({len(self.values)} samples; {widths})"
