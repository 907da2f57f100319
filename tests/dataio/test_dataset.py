from __future__ import annotations

import json
from pathlib import Path

import pytest

from tesserec.dataio.dataset import (
    INFO_FILE,
    DataError,
    Dataset,
    DatasetInfo,
    SparseFeature,
    Split,
    write_dataset_info,
)

INFO = DatasetInfo(
    name="clicks",
    labels=("click",),
    weight="weight",
    dense=("age", "price"),
    sparse=(SparseFeature("user", 10), SparseFeature("tags", 7, is_list=True)),
    keep=("p_true",),
    splits={"train": Split(("train.parquet",), 5), "test": Split(("a.parquet", "b.parquet"), 3)},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_dataset_info(tmp_path, INFO)
    dataset = Dataset.open(tmp_path)
    assert dataset == Dataset(tmp_path, INFO)
    assert dataset.files("test") == (tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert dataset.encoder_path == tmp_path / "encoder"
    assert INFO.columns == ("click", "weight", "age", "price", "user", "tags")


def test_unknown_split_names_the_nearest_and_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'tets'; did you mean 'test'\? \(splits: train, test\)"):
        Dataset(tmp_path, INFO).split("tets")


def test_folder_without_description_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tesserec data prepare"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99; this release reads 1"),
        ({"name": None}, "damaged at name"),
        ({"sparse": [{"name": "u", "num_embeddings": 0}]}, "feature 'u': wanted num_embeddings ≥ 1, got 0"),
        ({"dense": ["click"]}, "column 'click' has two roles"),
    ],
)
def test_bad_description_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_dataset_info(tmp_path, INFO)
    file = tmp_path / INFO_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=message):
        Dataset.open(tmp_path)


def test_truncated_description_is_refused(tmp_path: Path) -> None:
    write_dataset_info(tmp_path, INFO)
    file = tmp_path / INFO_FILE
    file.write_text(file.read_text()[:40])
    with pytest.raises(DataError, match="damaged"):
        Dataset.open(tmp_path)
