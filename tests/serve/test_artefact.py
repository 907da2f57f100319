"""Artefacts: what was written is what is served, and anything else is refused with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesserec.embeddings.allocation import planning
from tesserec.embeddings.collection import named_collections
from tesserec.embeddings.config import Clamp, Drop, Hash
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.quantize import quantize, row_bytes, with_pools
from tesserec.models.features import Features
from tesserec.models.registry import model_names
from tesserec.serve import mapped
from tesserec.serve.artefact import Artefact, ArtefactError, Content, ModelSpec, stored_as, write_artefact
from tesserec.serve.golden import check_scores, score_rows
from tesserec.serve.manifest import signed
from tests.serve.artefacts import content, fitted_encoder, raw_rows

TYPES: list[Any] = ["float32", "float16", "bfloat16", "int8", "int4", "int2"]


def pools(model: Any) -> list[Pool]:
    return [pool for _, collection in named_collections(model) for pool in collection.pools]


def scored(made: Content, model: Any) -> npt.NDArray[np.float32]:
    return score_rows(model, Artefact.open(made.encoder.parent / "a").encoder, made.golden)


def written(folder: Path, made: Content) -> Artefact:
    write_artefact(folder / "a", made)
    return Artefact.open(folder / "a")


@pytest.mark.parametrize("name", model_names())
def test_every_model_comes_back(name: str, tmp_path: Path) -> None:
    made = content(tmp_path, name)
    artefact = written(tmp_path, made)
    assert artefact.model_spec == made.spec and artefact.metrics == {"auc": 0.75}
    rows, scores = artefact.golden()
    assert rows.equals(made.golden)
    np.testing.assert_array_equal(scores, made.scores)
    np.testing.assert_array_equal(scored(made, artefact.model()), made.scores)
    artefact.verify_tables()


@pytest.mark.parametrize("data_type", TYPES)
def test_tables_of_every_type_come_back(data_type: Any, tmp_path: Path) -> None:
    made = content(tmp_path, "dlrm", embedding_dim=17)
    model = quantize(made.model, data_type)
    artefact = written(tmp_path, replace(made, model=model, scores=None))
    assert artefact.data_type == data_type
    assert artefact.table_bytes == sum(pool.data.nbytes for pool in pools(model))
    loaded = artefact.model()
    for got, wanted in zip(pools(loaded), pools(model), strict=True):
        np.testing.assert_array_equal(got.data, wanted.data)
        assert got.data_type == wanted.data_type and not got.requires_grad
        assert got.data.ctypes.data % 64 == 0
    np.testing.assert_array_equal(scored(made, loaded), scored(made, model))
    np.testing.assert_array_equal(artefact.golden()[1], scored(made, model))


def test_two_collections_and_widths_lie_in_files_of_their_own(tmp_path: Path) -> None:
    artefact = written(tmp_path, content(tmp_path, "deepfm"))
    files = [pool.file for pool in artefact.manifest.pools]
    assert len(files) == len(set(files)) == len(pools(artefact.model())) > 1


def test_a_row_written_to_changes_for_this_mapping_alone(tmp_path: Path) -> None:
    artefact = written(tmp_path, content(tmp_path))
    model, other = artefact.model(), artefact.model()
    before = pools(other)[0].data.copy()
    pools(model)[0].data[3] += 1
    np.testing.assert_array_equal(pools(model)[0].data[3], before[3] + 1)
    np.testing.assert_array_equal(pools(other)[0].data, before)
    artefact.verify_tables()


def test_tables_can_be_made_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "BLOCK", 1 << 10)
    made = content(tmp_path)
    asked: list[slice] = []

    class Made:
        def __init__(self, pool: Pool):
            self.shape, self.dtype = pool.shape, pool.dtype

        def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
            asked.append(rows)
            values = np.arange(self.shape[0] * self.shape[1], dtype=np.float32).reshape(self.shape)[rows]
            return np.sin(values) / 10

    with planning():
        planned = made.spec.build()
    artefact = written(tmp_path, replace(made, model=planned, rows=Made, scores=None))
    assert len(asked) > 2
    rows = pools(artefact.model())[0].data
    np.testing.assert_array_equal(rows, Made(pools(planned)[0])[slice(None)])
    assert len(artefact.manifest.pools[0].crc32) > 2
    artefact.verify_tables()


def test_codes_can_be_planned_as_well(tmp_path: Path) -> None:
    made = content(tmp_path, "dlrm", embedding_dim=16)
    with planning():
        planned = made.spec.build()
    kinds = {
        pool: stored_as(pool, "int8", np.broadcast_to(np.uint8(0), (len(pool), row_bytes(16, 8))))
        for pool in pools(planned)
    }
    codes = {p.tables: p.data for p in pools(quantize(made.model, "int8"))}
    asked = replace(made, model=with_pools(planned, kinds), rows=lambda p: codes[p.tables], scores=None)
    artefact = written(tmp_path, asked)
    wanted = scored(made, quantize(made.model, "int8"))
    assert np.abs(artefact.golden()[1] - wanted).max() < 0.05  # other dense weights would be far off


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def everything(path: Path) -> None:
    """Do all that reads the artefact."""
    artefact = Artefact.open(path)
    artefact.golden()
    artefact.model()
    artefact.verify_tables()


FILES = [
    "dense.safetensors",
    "encoder/encoder.json",
    "encoder/vocabulary/000.arrow",
    "encoder/vocabulary/002.arrow",
    "golden.arrow",
    "id_maps/000.slots",
    "id_maps/002.slots",
    "manifest.json",
    "tables/inputs.sparse.16-float32.npy",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_artefact(folder / "a", content(folder, "dlrm", embedding_dim=16))
    assert files_of(folder / "a") == FILES
    everything(folder / "a")
    return folder / "a"


@pytest.fixture
def artefact(whole: Path, tmp_path: Path) -> Path:
    """A copy of the same one, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "a"))


def refused(path: Path, file: str) -> str:
    with pytest.raises(ArtefactError) as caught:
        everything(path)
    assert str(path / file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("where", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_anywhere_is_found(artefact: Path, file: str, where: float) -> None:
    data = bytearray((artefact / file).read_bytes())
    place = int(where * (len(data) - 1))
    data[place] ^= 0x01
    (artefact / file).write_bytes(data)
    refused(artefact, file)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_found_when_it_is_opened(artefact: Path, file: str, left: float) -> None:
    data = (artefact / file).read_bytes()
    (artefact / file).write_bytes(data[: int(left * len(data))])
    with pytest.raises(ArtefactError):
        Artefact.open(artefact)
    refused(artefact, file)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_found_when_it_is_opened(artefact: Path, file: str) -> None:
    (artefact / file).unlink()
    with pytest.raises(ArtefactError):
        Artefact.open(artefact)
    assert "No such file" in refused(artefact, file)


def test_another_version_is_refused(artefact: Path) -> None:
    manifest = artefact / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "version": 9}))
    assert "version 9, wanted 'tesserec artefact' version 1" in refused(artefact, "manifest.json")


def test_no_artefact_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "manifest.json")
    (tmp_path / "manifest.json").write_text("[1, 2]")
    assert "not an artefact's manifest" in refused(tmp_path, "manifest.json")


def test_a_damaged_block_names_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "BLOCK", 1 << 12)
    artefact = written(tmp_path, content(tmp_path, "dlrm", embedding_dim=16))
    (pool,) = artefact.manifest.pools
    last = pool.tables[-1]
    file = artefact.path / pool.file
    data = bytearray(file.read_bytes())
    data[pool.offset + (last.hi - 1) * pool.row_bytes] ^= 4
    file.write_bytes(data)
    message = refused(artefact.path, pool.file)
    assert last.name in message and pool.tables[0].name not in message


def test_verifying_tells_how_far_it_is_and_stops_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "BLOCK", 1 << 12)
    artefact = written(tmp_path, content(tmp_path, "deepfm", embedding_dim=16))
    seen: list[int] = []
    artefact.verify_tables(seen.append)
    assert sum(seen) == sum(pool.size for pool in artefact.manifest.pools)
    few: list[int] = []
    artefact.verify_tables(few.append, lambda: len(few) >= 2)
    assert few == seen[:2]


def test_rows_that_score_otherwise_refuse_the_artefact(tmp_path: Path) -> None:
    made = content(tmp_path)
    assert made.scores is not None
    wrong = made.scores.copy()
    wrong[5] += 0.01
    with pytest.raises(ArtefactError, match=r"golden row 5 .* off by 1\.00e-02.* 1 of 20 rows"):
        write_artefact(tmp_path / "a", replace(made, scores=wrong))
    assert not (tmp_path / "a").exists() and not list(tmp_path.glob(".a.*"))
    wrong[7] = np.nan
    with pytest.raises(ArtefactError, match="golden row 7"):
        check_scores(tmp_path, wrong, made.scores)


def test_a_version_is_never_written_over(artefact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="exists; versions never change"):
        write_artefact(artefact, content(tmp_path / "again"))
    everything(artefact)


def resign(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and give it the checksum it should then have."""
    values = json.loads((path / "manifest.json").read_text())
    values.pop("checksum")
    change(values)
    (path / "manifest.json").write_text(signed(values))


def test_the_encoder_of_another_model_is_refused(artefact: Path) -> None:
    resign(artefact, lambda values: values["model"]["features"]["sparse"].update(item=299))
    assert "it is not the encoder of this model" in refused(artefact, "encoder")


def test_a_model_whose_code_has_changed_is_refused(artefact: Path) -> None:
    resign(artefact, lambda values: values["pools"][0]["tables"][0].update(name="inputs.sparse.person"))
    assert "no file has the tables inputs.sparse.user" in refused(artefact, "")


def test_a_model_that_is_not_known_here_is_refused(artefact: Path) -> None:
    resign(artefact, lambda values: values["model"].update(name="their_models:Better"))
    assert "their_models" in refused(artefact, "")


def test_dense_weights_that_do_not_fit_are_refused(artefact: Path) -> None:
    resign(artefact, lambda values: values["model"]["options"].update(top=[8]))
    assert "the state does not fit" in refused(artefact, "dense.safetensors")


def test_a_field_of_another_kind_is_named(artefact: Path) -> None:
    resign(artefact, lambda values: values["pools"][0].update(size="much"))
    assert "damaged at pools.0.size" in refused(artefact, "manifest.json")


def test_rows_of_another_shape_are_not_written(tmp_path: Path) -> None:
    made = content(tmp_path)
    with pytest.raises(ArtefactError, match="its rows are"):
        write_artefact(tmp_path / "a", replace(made, rows=lambda pool: pool.data[1:]))


def test_the_example_parts_what_candidates_share(artefact: Path) -> None:
    example = Artefact.open(artefact).input_example()
    assert list(example["context"]) == ["price", "user"]
    assert [list(candidate) for candidate in example["candidates"]] == [["item", "tags"]] * 3
    assert json.loads(json.dumps(example)) == example


def test_rows_to_score_need_no_group(artefact: Path, tmp_path: Path) -> None:
    opened = Artefact.open(artefact)
    rows = raw_rows(ROWS := 50)
    assert rows.column("user").null_count
    assert len(score_rows(opened.model(), opened.encoder, rows)) == ROWS
    (tmp_path / "w").mkdir()
    whole = fitted_encoder(tmp_path / "w")
    with pytest.raises(ValueError, match="wanted a group"):
        whole.encode(rows)


def test_bytes_are_those_of_tables_and_id_maps(artefact: Path) -> None:
    opened = Artefact.open(artefact)
    maps = [f.vocabulary.table.nbytes for f in opened.encoder.sparse if f.vocabulary]
    assert len(maps) == 2 and opened.nbytes == opened.table_bytes + sum(maps)


POLICIES = st.sampled_from(["error", Hash(), Drop(), Clamp(0), Clamp(17)])


@given(st.dictionaries(st.sampled_from("abc"), POLICIES), st.sampled_from(["mean", "sum"]))
def test_a_spec_survives_json(unseen: Any, pooling: Any) -> None:
    features = Features(2, {"a": 20, "b": 30, "c": 40}, pooling, unseen, "float16")
    spec = ModelSpec("dcnv2", 7, {"hidden": [8, 4], "dropout": 0.5}, features)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
