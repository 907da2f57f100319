"""Module: a model is a plain object, and its parameters are the Tensors that can be reached from it.

Subclass it and write `forward`. Attributes may be Tensors, Modules, and lists, tuples or dicts of them;
their dotted paths in definition order are the names of the state.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from tesserec.autograd.tensor import Array, Tensor


class StateError(ValueError):
    """A state does not fit the object it is loaded into; the message lists every difference."""


class Module:
    """Anything with parameters. `module(…)` is `module.forward(…)`; no `super().__init__()` is needed.

    buffers: names of attributes that hold an ndarray which belongs to the state but is not trained.
    couples_samples: whether the output of one sample depends on the others of the batch while training.
    """

    buffers: ClassVar[tuple[str, ...]] = ()
    couples_samples: ClassVar[bool] = False
    training: bool = True
    forward: Callable[..., Any]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.forward(*inputs, **named)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Itself under "", then every module below it, parents first, each once."""
        return _modules(self, "", set())

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every Tensor below that requires a gradient, each once, under the first path that leads to it."""
        seen: set[Tensor] = set()
        for path, module in self.named_modules():
            for name, tensor in own_tensors(module):
                if tensor.requires_grad and tensor not in seen:
                    seen.add(tensor)
                    yield _join(path, name), tensor

    def parameters(self) -> Iterator[Tensor]:
        return (tensor for _, tensor in self.named_parameters())

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for tensor in self.parameters():
            tensor.grad = None

    @property
    def needs_whole_batch(self) -> bool:
        """Whether a batch must not be cut into slices while training: some layer couples its samples."""
        return any(module.couples_samples for module in self.modules())

    def train(self, mode: bool = True) -> Self:
        """Itself, in training mode: dropout drops, batch norm uses the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Itself, in evaluation mode: the output is a function of the input alone."""
        return self.train(False)

    def local_state(self) -> dict[str, Array]:
        """{name: array} of its own Tensors and buffers, not those of modules below; views, not copies.

        A module that wants other names for its state overrides this.
        """
        state = {name: tensor.data for name, tensor in own_tensors(self)}
        return state | {name: getattr(self, name) for name in self.buffers}

    def state_dict(self) -> dict[str, Array]:
        """{dotted path: array} of the whole state; views, not copies."""
        return {
            _join(path, name): array
            for path, module in self.named_modules()
            for name, array in module.local_state().items()
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy `state` into parameters and buffers. StateError, before any change, where it does not fit."""
        copy_state(state, self.state_dict(), type(self).__name__)


class ModuleList(Module):
    """Modules in a list; a plain list attribute does as well."""

    def __init__(self, modules: Iterable[Module]):
        self.items = list(modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Module:
        return self.items[index]


class Sequential(Module):
    """x -> last(… second(first(x))). A layer is a Module or any function of one Tensor."""

    def __init__(self, *layers: Callable[[Any], Any]):
        self.layers = layers

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def copy_state(got: Mapping[str, Array], wanted: Mapping[str, Array], what: str) -> None:
    """Copy each array of `got` into the one of that name in `wanted`, if all names and shapes agree."""
    problems = list(_differences(got, wanted))
    if problems:
        raise StateError(f"the state does not fit {what}:\n  " + "\n  ".join(problems))
    for name, array in wanted.items():
        np.copyto(array, got[name], casting="same_kind")


def _differences(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> Iterator[str]:
    for name in wanted.keys() - got.keys():
        yield f"missing {name!r}, shape {np.shape(wanted[name])}"
    for name in got.keys() - wanted.keys():
        near = difflib.get_close_matches(name, wanted, n=1)
        yield f"unexpected {name!r}" + (f", did you mean {near[0]!r}?" if near else "")
    for name in got.keys() & wanted.keys():
        if np.shape(got[name]) != np.shape(wanted[name]):
            yield f"{name!r} has shape {np.shape(got[name])}, wanted {np.shape(wanted[name])}"
        elif not np.can_cast(np.asarray(got[name]).dtype, wanted[name].dtype, "same_kind"):
            yield f"{name!r} has type {np.asarray(got[name]).dtype}, wanted {wanted[name].dtype}"


def _modules(module: Module, path: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
    if id(module) not in seen:
        seen.add(id(module))
        yield path, module
        for name, child in _members(module):
            if isinstance(child, Module):
                yield from _modules(child, _join(path, name), seen)


def own_tensors(module: Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own Tensors that are no result of an op: parameters, frozen ones included."""
    for name, child in _members(module):
        if isinstance(child, Tensor) and child.node is None:
            yield name, child


def _members(module: Module) -> Iterator[tuple[str, Any]]:
    """The Tensors and Modules among its attributes and in nested containers, with their paths."""
    for name, value in vars(module).items():
        if isinstance(value, _MEMBERS):
            yield name, value
        elif isinstance(value, _CONTAINERS):
            yield from _contents(value, name)


def _contents(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        if isinstance(child, _MEMBERS):
            yield f"{name}.{key}", child
        elif isinstance(child, _CONTAINERS):
            yield from _contents(child, f"{name}.{key}")


_MEMBERS, _CONTAINERS = (Tensor, Module), (list, tuple, dict)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
