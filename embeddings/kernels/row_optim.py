"""Row updates: each row's gradients summed in a buffer, and the row updated from it at once, in place.

A rule is what a row optimizer knows of one step: a named tuple of real numbers. Its formula reads the row's
weights and gradient, changes the row's state, leaves a direction in place of the gradient and returns a step:
what is subtracted is step·direction. All else (sums, clipping, decay, rounding, prefetching) is done by
`update_rows`, which is compiled for each rule that is used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from tesserec.embeddings.kernels import vectors
from tesserec.embeddings.kernels.coalesce import ID, ask, gradient_of, look_ahead, run_end, sum_run
from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.embeddings.kernels.memory import LINE, int64_at, like_at, uint64_at
from tesserec.embeddings.kernels.rows import noise_key
from tesserec.embeddings.kernels.vectors import higher, itemsize, lanes, lower, sqrt

TABLE = np.dtype(
    [
        ("factor", np.float64),  # what multiplies the table's learning rate
        ("stream", np.uint64),  # the stream of the noise that rounds its rows
        ("numbers", np.int64),  # address of the int64 number, in the whole table, of each id's row; or 0:
        ("origin_row", np.int64),  # the number of the row of id 0, whom the others follow;
        ("origin_column", np.int64),  # the column of the whole table that column 0 is
    ]
)


class Common(NamedTuple):
    """What all rules have in common. Real numbers, but for step."""

    clip: Any  # elements of the summed gradient are moved into ±clip
    decay: Any  # g += decay·w, before the formula
    fade: Any  # w -= fade·w, beside the formula
    max_norm: Any  # rows longer than this are shortened to it
    step: Any  # uint64, for the noise that rounds float16 and bfloat16 rows


class Row(NamedTuple):
    """A row that is being updated."""

    number: Any  # which row of the pool it is
    width: Any
    stored: Any  # pointer to numbers like those of the pool, for their type
    w: Any  # address of the weights in the pool
    like: Any  # pointer to real numbers, for their type
    g: Any  # address of a buffer of whole vectors: the gradient, and what a formula leaves
    slots: Any  # pointer: address and bytes per row of slot 0, of slot 1, …
    noise: Any  # key of the noise that rounds it
    column: Any  # which of its table column 0 is


@kernel
def update_rows(rule, common, entries, sources, ranges, tables, span, pool, slots):
    """Update the rows of entries lo … hi-1, `span`. pool: (R, D) stored; slots: (S, 2) i8, see `Row`.

    entries, sources, ranges: see `coalesce.py`; tables: (T,) TABLE.
    """
    width, row_bytes, num_slots = pool.shape[1], pool.strides[0], slots.shape[0]
    ahead, buffer = look_ahead(row_bytes), np.empty(width + 2 * LINE, type(rule.lr))
    g = (buffer.ctypes.data + LINE - 1) & ~(LINE - 1)
    like, stored, state = like_at(buffer, 0), like_at(pool, 0), int64_at(slots.ctypes.data)
    entries, sources = uint64_at(entries.ctypes.data), sources.ctypes.data
    for r in range(ranges.shape[0]):
        at, stop = max(span[0], ranges[r].start), min(span[1], ranges[r].stop)
        first_row, table = ranges[r].first_row, tables[ranges[r].table]
        factor, column = type(rule.lr)(table.factor), table.origin_column
        stream, numbers, origin = table.stream, table.numbers, table.origin_row
        asked = at
        while at < stop:
            while asked < min(at + ahead, stop):
                ask(gradient_of(sources, entries[asked]), width * itemsize(like))
                if asked == at or entries[asked] >> ID != entries[asked - 1] >> ID:
                    number = first_row + np.int64(entries[asked] >> ID)
                    ask(pool.ctypes.data + number * row_bytes, row_bytes)
                    for k in range(num_slots):
                        ask(state[2 * k] + number * state[2 * k + 1], state[2 * k + 1])
                asked += 1
            place, end = np.int64(entries[at] >> ID), run_end(entries, at, stop)
            number, w = first_row + place, pool.ctypes.data + (first_row + place) * row_bytes
            noise = noise_key(stream, common.step, int64_at(numbers)[place] if numbers else origin + place)
            row = Row(number, width, stored, w, like, g, state, noise, column)
            sum_run(entries, sources, at, end, like, g, width)
            _prepare(common, row)
            step = change(rule, factor * rule.lr, row)
            _subtract(common, type(step)(1) - factor * common.fade, step, row)
            at = end
    buffer[0] = 0  # or it would be freed before the loop


@inlined
def _prepare(common, row):
    """The gradient as formulas want it."""
    if common.clip < np.inf or common.decay != 0:
        for c in range(0, row.width, lanes(row.like)):
            g = lower(higher(_gradient(row, c), -common.clip), common.clip)
            _leave(row, c, g + common.decay * _weights(row, c))


@inlined
def _subtract(common, keep, step, row):
    """w = keep·w - step·direction, not longer than max_norm."""
    if common.max_norm < np.inf:
        for c in range(0, row.width, lanes(row.like)):
            _leave(row, c, keep * _weights(row, c) - step * _gradient(row, c))
        keep, step = type(step)(0), -common.max_norm / max(np.sqrt(_square(row)), common.max_norm)
    for c in range(0, row.width, lanes(row.like)):
        address, w = row.w + c * itemsize(row.stored), keep * _weights(row, c) - step * _gradient(row, c)
        vectors.store_part(row.stored, address, row.width - c, w, row.noise, row.column + c)


@inlined
def _weights(row, c):
    """Vector of the weights from column `c` on."""
    return vectors.load_part(row.stored, row.w + c * itemsize(row.stored), row.width - c)


@inlined
def _gradient(row, c):
    """Vector of the gradient from column `c` on."""
    return vectors.load(row.like, row.g + c * itemsize(row.like))


@inlined
def _leave(row, c, vector):
    """Replace `_gradient(row, c)`."""
    vectors.store(row.g + c * itemsize(row.like), vector)


@inlined
def _slot(row, k):
    """Address of the row's state in slot `k`."""
    return row.slots[2 * k] + row.number * row.slots[2 * k + 1]


@inlined
def _state(row, k, c):
    """Vector of slot `k` from column `c` on."""
    return vectors.load_part(row.like, _slot(row, k) + c * itemsize(row.like), row.width - c)


@inlined
def _keep(row, k, c, vector):
    """Replace `_state(row, k, c)`."""
    address = _slot(row, k) + c * itemsize(row.like)
    vectors.store_part(row.like, address, row.width - c, vector, np.uint64(0), c)


@inlined
def _number(row, k):
    """Pointer to the one number per row in slot `k`."""
    return like_at(row.like, _slot(row, k))


@inlined
def _square(row):
    """Σ g²."""
    total = vectors.zeros(row.like)
    for c in range(0, row.width, lanes(row.like)):
        g = vectors.load_part(row.like, row.g + c * itemsize(row.like), row.width - c)
        total = total + g * g
    return vectors.total(total)


@inlined
def _square_of_weights(row):
    """Σ w²."""
    total = vectors.zeros(row.like)
    for c in range(0, row.width, lanes(row.like)):
        total = total + _weights(row, c) * _weights(row, c)
    return vectors.total(total)


class Sgd(NamedTuple):
    """w -= lr·g."""

    lr: Any


@inlined
def _sgd(o, lr, row):
    return lr


class Momentum(NamedTuple):
    """v = µ·v + g, w -= lr·v."""

    lr: Any
    mu: Any


@inlined
def _momentum(o, lr, row):
    for c in range(0, row.width, lanes(row.like)):
        v = o.mu * _state(row, 0, c) + _gradient(row, c)
        _keep(row, 0, c, v)
        _leave(row, c, v)
    return lr


class Adagrad(NamedTuple):
    """s += g², w -= lr·g / (√s + eps)."""

    lr: Any
    eps: Any


@inlined
def _adagrad(o, lr, row):
    for c in range(0, row.width, lanes(row.like)):
        g = _gradient(row, c)
        s = _state(row, 0, c) + g * g
        _keep(row, 0, c, s)
        _leave(row, c, g / (sqrt(s) + o.eps))
    return lr


class RowWiseAdagrad(NamedTuple):
    """s += mean(g²), w -= lr·g / (√s + eps); one s per row."""

    lr: Any
    eps: Any


@inlined
def _rowwise_adagrad(o, lr, row):
    s = _number(row, 0)
    s[0] += _square(row) * (type(lr)(1) / type(lr)(row.width))
    return lr / (np.sqrt(s[0]) + o.eps)


class Counter(NamedTuple):
    """Row-wise Adagrad whose step and decay depend on the row's count. See `RowWiseAdagradCounter`."""

    lr: Any
    eps: Any
    step: Any
    shrink: Any  # log 2 / half-life, 0 for a count that does not fade
    decay: Any  # times half-life / count
    tail: Any  # counts above it change the step:
    most: Any  # by (most / (count + 1))^power,
    power: Any
    low: Any  # but by low at least
    high: Any  # and high at most


@inlined
def _counter(o, lr, row):
    s, count, seen, one = _number(row, 0), _number(row, 1), _number(row, 2), type(lr)(1)
    gap = o.step - seen[0] if seen[0] > 0 else one
    seen[0] = o.step
    count[0] = one + np.exp(-gap * o.shrink) * count[0]
    s[0] += _square(row) * (type(lr)(1) / type(lr)(row.width))
    step = lr / (np.sqrt(s[0]) + o.eps)
    if count[0] > o.tail:
        step *= min(max((o.most / (count[0] + one)) ** o.power, o.low), o.high)
    for c in range(0, row.width, lanes(row.like)):
        _leave(row, c, step * _gradient(row, c) + lr * o.decay / count[0] * _weights(row, c))
    return one


class Adam(NamedTuple):
    """m = β₁·m + (1 - β₁)·g, s = β₂·s + (1 - β₂)·g², w -= lr·m / (√s + eps); lr, eps hold the corrections."""

    lr: Any
    eps: Any
    beta1: Any
    fresh1: Any  # 1 - β₁
    beta2: Any
    fresh2: Any


@inlined
def _adam(o, lr, row):
    for c in range(0, row.width, lanes(row.like)):
        g = _gradient(row, c)
        m = o.beta1 * _state(row, 0, c) + o.fresh1 * g
        s = o.beta2 * _state(row, 1, c) + o.fresh2 * (g * g)
        _keep(row, 0, c, m)
        _keep(row, 1, c, s)
        _leave(row, c, m / (sqrt(s) + o.eps))
    return lr


class PartialAdam(NamedTuple):
    """Adam with one s per row, of mean(g²)."""

    lr: Any
    eps: Any
    beta1: Any
    fresh1: Any
    beta2: Any
    fresh2: Any


@inlined
def _partial_adam(o, lr, row):
    s = _number(row, 1)
    s[0] = o.beta2 * s[0] + o.fresh2 * _square(row) * (type(lr)(1) / type(lr)(row.width))
    for c in range(0, row.width, lanes(row.like)):
        m = o.beta1 * _state(row, 0, c) + o.fresh1 * _gradient(row, c)
        _keep(row, 0, c, m)
        _leave(row, c, m)
    return lr / (np.sqrt(s[0]) + o.eps)


class Trust(NamedTuple):
    """u = what `adam` would subtract at lr 1, plus decay·w; w -= lr·‖w‖/‖u‖·u."""

    lr: Any
    decay: Any
    adam: Any  # Adam or PartialAdam; its lr is only the corrections


@inlined
def _trust(o, lr, row):
    step = change(o.adam, o.adam.lr, row)
    for c in range(0, row.width, lanes(row.like)):
        _leave(row, c, step * _gradient(row, c) + o.decay * _weights(row, c))
    return lr * _ratio(np.sqrt(_square_of_weights(row)), np.sqrt(_square(row)))


@inlined
def _ratio(x, y):
    """x / y; 1 where either is 0."""
    return x / y if x > 0 and y > 0 else type(x)(1)


class Lars(NamedTuple):
    """v = µ·v + lr·trust·‖w‖/(‖g‖ + decay·‖w‖)·(g + decay·w), w -= v."""

    lr: Any
    trust: Any
    mu: Any
    decay: Any


@inlined
def _lars(o, lr, row):
    length = np.sqrt(_square_of_weights(row))
    step = lr * o.trust * _ratio(length, np.sqrt(_square(row)) + o.decay * length)
    for c in range(0, row.width, lanes(row.like)):
        v = o.mu * _state(row, 0, c) + step * (_gradient(row, c) + o.decay * _weights(row, c))
        _keep(row, 0, c, v)
        _leave(row, c, v)
    return type(lr)(1)


class Ftrl(NamedTuple):
    """FTRL-Proximal. McMahan et al. 2013, algorithm 1, with lr as α."""

    lr: Any
    beta: Any
    l1: Any
    l2: Any


@inlined
def _ftrl(o, lr, row):
    for c in range(0, row.width, lanes(row.like)):
        g, w, before = _gradient(row, c), _weights(row, c), _state(row, 1, c)
        n = before + g * g
        z = _state(row, 0, c) + (g - (sqrt(n) - sqrt(before)) / lr * w)
        _keep(row, 0, c, z)
        _keep(row, 1, c, n)
        beyond = higher(vectors.size(z) - o.l1, type(lr)(0))
        _leave(row, c, w + vectors.sign_like(beyond, z) / ((sqrt(n) + o.beta) / lr + o.l2))
    return type(lr)(1)


FORMULAS: dict[type, Any] = {
    Sgd: _sgd,
    Momentum: _momentum,
    Adagrad: _adagrad,
    RowWiseAdagrad: _rowwise_adagrad,
    Counter: _counter,
    Adam: _adam,
    PartialAdam: _partial_adam,
    Trust: _trust,
    Lars: _lars,
    Ftrl: _ftrl,
}


def change(rule, lr, row):
    """The formula of `rule` for one row: see the top of this file. For compiled code."""
    raise NotImplementedError


@overload(change)
def _change(rule, lr, row):
    formula = FORMULAS[rule.instance_class]
    return lambda rule, lr, row: formula(rule, lr, row)
