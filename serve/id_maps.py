"""Id maps: the hash tables of an encoder's vocabularies, mapped into memory as tables are.

To make one of its keys takes a second for each five million of them, and memory in each process. A file has
all keys of the table's slots (int64), then their numbers (uint32).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tesserec.autograd.workers import parallel_map
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.vocabulary import KeyTable, Vocabulary
from tesserec.serve.manifest import FileSum, check_file
from tesserec.serve.mapped import map_file

_FOLDER = "id_maps"
_SLOT_BYTES = 12


def write_id_maps(folder: Path) -> None:
    """Write the id maps of `folder`/encoder."""
    (folder / _FOLDER).mkdir()
    for feature in Encoder.load(folder / "encoder").sparse:
        if feature.vocabulary is not None:
            with open(folder / _map_of(feature.vocabulary.file.name), "wb") as file:
                for slots in feature.vocabulary.table.slots:
                    file.write(slots.data)


def open_encoder(folder: Path, files: Mapping[str, FileSum]) -> Encoder:
    """The encoder of `folder`, for features alone, over maps that are checked. ArtefactError, EncoderError.

    The words themselves, which only people read, are not looked at.
    """
    maps = [name for name in files if name.startswith(f"{_FOLDER}/")]
    parallel_map(lambda name: check_file(folder / name, files[name]), maps)

    def vocabulary(file: str, size: int) -> Vocabulary:
        name = _map_of(Path(file).name)
        mapped = map_file(folder / name, files[name].size)
        slots = files[name].size // _SLOT_BYTES
        keys = np.frombuffer(mapped, np.int64, slots)
        numbers = np.frombuffer(mapped, np.uint32, slots, keys.nbytes)
        return Vocabulary(KeyTable.over(keys, numbers, size), folder / "encoder" / file)

    return Encoder.load_without_words(folder / "encoder", vocabulary).of_features()


def _map_of(words: str) -> str:
    return f"{_FOLDER}/{Path(words).stem}.slots"
