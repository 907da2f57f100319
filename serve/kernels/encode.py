"""Raw values of n rows → the ids and numbers of a model, all features in one call.

Values lie feature after feature in arrays by kind: integers, numbers, and texts as spans (begin, end) of
bytes. A source is one column's values, its cells: n of them, or those of n lists. Sources of one kind follow
each other. A missing integer is MISSING, a missing number NaN, a missing text empty, a missing list of length
-1. What a feature does with a cell is what its fitted encoder does (tesserec.dataio.sparse, dense).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numba.np.numpy_support import carray

from tesserec.dataio.kernels.hashing import hash_bytes, hash_integers
from tesserec.dataio.kernels.table import find
from tesserec.embeddings.kernels.memory import float64_at, int64_at, uint32_at

MISSING = np.iinfo(np.int64).min
INTEGERS, NUMBERS, TEXTS = 0, 1, 2  # kinds of sources
VOCABULARY, HASH, INTEGER, BUCKETS = 0, 1, 2, 3  # encodings

SOURCE = np.dtype([("kind", np.int64), ("list", np.int64)])  # list: its row of `lengths`, or -1
FEATURE = np.dtype(
    [
        ("source", np.int64),
        ("encoding", np.int64),
        ("size", np.int64),  # ids
        ("seed", np.uint64),
        ("refuses_missing", np.int64),
        ("fills_missing", np.int64),  # a missing list becomes one of a missing id
        ("max_length", np.int64),
        ("slot_keys", np.int64),  # address of a vocabulary's keys, or of a bucketizer's boundaries
        ("slot_values", np.int64),  # address
        ("slots", np.int64),  # how many keys or boundaries
    ]
)
DENSE = np.dtype(
    [("source", np.int64), ("fill", np.float64), ("shift", np.float64), ("scale", np.float64)]
)  # fill NaN: missing numbers are refused

kernel = njit(nogil=True, cache=True, error_model="numpy")


@kernel
def encode_numbers(features, num_rows, numbers, seen, out):
    """out[i, j] = the number of dense feature j in row i → the first feature with a bad one, or -1.

    numbers: sources of n. seen: (features, 3); column 1 counts the missing ones. out: (n, D) float32.
    """
    for j in range(len(features)):
        feature = features[j]
        cells = numbers[feature.source * num_rows :][:num_rows]
        for i in range(num_rows):
            value = cells[i]
            if math.isnan(value):
                seen[j, 1] += 1
                value = feature.fill
            out[i, j] = np.float32((value - feature.shift) * feature.scale)
            if not math.isfinite(out[i, j]):
                return j
    return -1


@kernel
def encode_ids(sources, features, num_rows, integers, numbers, texts, spans, lengths, values, offsets, seen):
    """Bags of every feature → the first feature with a bad value, or -1.

    lengths: (lists, n). values: room for all cells of all features and a fill in every list; offsets:
    (F·n + 1,); together the bags of a KeyedJaggedTensor. seen: (F, 3): how many values a vocabulary does not
    know, how many are missing, and the place of the first unknown one among the feature's ids.
    """
    begins = _begins(sources, num_rows, lengths)
    place, offsets[0] = 0, 0
    for f in range(len(features)):
        feature = features[f]
        source = sources[feature.source]
        begin, end = begins[feature.source]
        bags = offsets[f * num_rows :][: num_rows + 1]
        if source.kind == NUMBERS:
            good = _buckets(feature, numbers[begin:end], values[place:], seen[f])
            _one_each(bags)
        else:
            keys = integers[begin:end]
            if source.kind == TEXTS:
                keys = _hashed(feature, texts, spans[begin:end])
            if source.list >= 0:
                keys, good = _cut(feature, keys, lengths[source.list], bags, seen[f])
            else:
                good = _singles(feature, keys, bags, seen[f])
            good = good and _encode(feature, source.kind, keys, values[place:], seen[f])
        if not good:
            return f
        place = bags[num_rows]
    return -1


@kernel
def _begins(sources, num_rows, lengths):
    """(sources, 2): where the cells of each begin and end among those of its kind."""
    begins = np.empty((len(sources), 2), np.int64)
    ends = np.zeros(3, np.int64)
    for s in range(len(sources)):
        kind, row = sources[s].kind, sources[s].list
        count = num_rows
        if row >= 0:
            count = 0
            for length in lengths[row]:
                count += max(length, 0)
        begins[s, 0] = ends[kind]
        ends[kind] += count
        begins[s, 1] = ends[kind]
    return begins


@kernel
def _one_each(bags):
    for i in range(1, len(bags)):
        bags[i] = bags[0] + i


@kernel
def _hashed(feature, texts, spans):
    """The keys of texts. Empty: MISSING."""
    keys = np.empty(len(spans), np.int64)
    seed = feature.seed if feature.encoding == HASH else np.uint64(0)
    for i in range(len(spans)):
        begin, end = spans[i, 0], spans[i, 1]
        keys[i] = np.int64(hash_bytes(texts, begin, end, seed)) if end > begin else MISSING
    return keys


@kernel
def _singles(feature, keys, bags, seen):
    for key in keys:
        seen[1] += key == MISSING
    _one_each(bags)
    return seen[1] == 0 or feature.refuses_missing == 0


@kernel
def _cut(feature, cells, lengths, bags, seen):
    """The keys of lists, without missing elements and what is past `max_length`; whether none is refused."""
    keys = np.empty(len(cells) + len(lengths), np.int64)
    count = begin = 0
    for i in range(len(lengths)):
        first = count
        for key in cells[begin : begin + max(lengths[i], 0)]:
            if key != MISSING and count - first < feature.max_length:
                keys[count] = key
                count += 1
        begin += max(lengths[i], 0)
        if lengths[i] < 0:
            seen[1] += 1
            if feature.fills_missing != 0:
                keys[count] = MISSING
                count += 1
        bags[i + 1] = bags[0] + count
    return keys[:count], seen[1] == 0 or feature.refuses_missing == 0


@kernel
def _encode(feature, kind, keys, out, seen):
    """out = the ids of keys; whether all are good."""
    ids = out[: len(keys)]
    if feature.encoding == VOCABULARY:
        slot_keys = carray(int64_at(feature.slot_keys), (feature.slots,))
        find(keys, slot_keys, carray(uint32_at(feature.slot_values), (feature.slots,)), ids)
        for i in range(len(ids)):
            if ids[i] == 0 and keys[i] != MISSING:
                if seen[0] == 0:
                    seen[2] = i
                seen[0] += 1
        return True
    if feature.encoding == HASH:
        return _hash(feature, kind, keys, ids)
    good = True
    for i in range(len(keys)):
        good = good and bool(np.uint64(keys[i]) < np.uint64(feature.size))  # a negative id is a huge one
        ids[i] = keys[i]
    return good


@kernel
def _hash(feature, kind, keys, ids):
    """ids = hashed keys mod size; texts are hashed already, but for missing ones."""
    hashed = np.empty(len(keys), np.uint64)
    hash_integers(keys, feature.seed, hashed)
    for i in range(len(keys)):
        whole = hashed[i] if kind == INTEGERS or keys[i] == MISSING else np.uint64(keys[i])
        ids[i] = np.int64(whole % np.uint64(feature.size))
    return True


@kernel
def _buckets(feature, cells, ids, seen):
    """ids = 1 + how many boundaries are at most the number, 0 for a missing one; whether none is refused."""
    boundaries = carray(float64_at(feature.slot_keys), (feature.slots,))
    for i in range(len(cells)):
        if math.isnan(cells[i]):
            seen[1] += 1
            ids[i] = 0
        else:
            ids[i] = 1 + np.searchsorted(boundaries, cells[i], side="right")
    return seen[1] == 0 or feature.refuses_missing == 0


@kernel
def find_texts(written, spans):
    """spans[i] = (begin, end) of element i of a JSON list: of texts, integers, and nulls, which are empty.

    written: u1, as msgspec writes it: no spaces; and no escapes.
    """
    at = 1
    for i in range(len(spans)):
        if written[at] == ord("n"):
            spans[i, 0] = spans[i, 1] = at
            at += 5
            continue
        quoted = written[at] == ord('"')
        at += quoted
        spans[i, 0] = at
        while written[at] != ord('"') if quoted else written[at] != ord(",") and written[at] != ord("]"):
            at += 1
        spans[i, 1] = at
        at += 1 + quoted


@kernel
def count_objects(body):
    """How many objects a JSON text opens, outside its texts. body: u1."""
    count, inside, escaped = 0, False, False
    for byte in body:
        if escaped:
            escaped = False
        elif byte == ord("\\"):
            escaped = True
        elif byte == ord('"'):
            inside = not inside
        elif byte == ord("{") and not inside:
            count += 1
    return count


@kernel
def count_seen(seen, places, totals):
    """totals[places[i], :2] += seen[i, :2]."""
    for i in range(len(places)):
        totals[places[i], 0] += seen[i, 0]
        totals[places[i], 1] += seen[i, 1]
