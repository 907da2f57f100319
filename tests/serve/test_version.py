"""Versions of real artefacts: what they prove, what they score, and a repository of them."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from tesserec.serve.artefact import Artefact, ArtefactError, write_artefact
from tesserec.serve.decode import Limits
from tesserec.serve.golden import FILE, score_rows, write_golden
from tesserec.serve.manifest import FileSum, read_manifest, write_manifest
from tesserec.serve.places import Place
from tesserec.serve.publish import DeltaWriter
from tesserec.serve.query import Query
from tesserec.serve.repository import Repository, RepositorySettings
from tesserec.serve.version import Scores, Version, golden_queries
from tests.serve.artefacts import content, raw_rows
from tests.serve.fake_versions import POLL_SECONDS, serves, until


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with shop/1."""
    folder = tmp_path_factory.mktemp("made")
    write_artefact(folder / "shop" / "1", content(folder / "parts", embedding_dim=8))
    return folder / "shop" / "1"


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    target = tmp_path / "repository" / "shop" / "1"
    shutil.copytree(made, target)
    return target


def version_of(path: Path, limits: Limits | None = None) -> Version:
    place = Place("shop", path.name, path)
    return Version(place, Artefact.open(path), limits=limits or Limits(), max_rows=64)


def with_golden_scores(path: Path, scores: Scores) -> None:
    """Change what the artefact says that its golden rows should score; all checksums are right."""
    write_golden(path, Artefact.open(path).golden()[0], scores)
    manifest, data = read_manifest(path)[0], (path / FILE).read_bytes()
    files = {**manifest.files, FILE: FileSum(len(data), zlib.crc32(data))}
    write_manifest(path, replace(manifest, files=files))


def request(rows: pa.RecordBatch) -> bytes:
    return orjson.dumps({"rows": rows.drop_columns(["click"]).to_pylist()})


def start(path: Path) -> Repository:
    repository = Repository(path, RepositorySettings(poll_seconds=POLL_SECONDS))
    repository.start()
    return repository


def is_ready(repository: Repository) -> bool:
    return not repository.not_ready()


def test_requests_are_scored_as_by_the_model_itself(path: Path) -> None:
    version = version_of(path)
    version.warm_up()
    rows = raw_rows(70, seed=5)
    wanted = score_rows(version.artefact.model(), version.artefact.encoder, rows.drop_columns(["click"]))
    np.testing.assert_allclose(version.score([version.decoder.predict(request(rows))]), wanted, atol=1e-6)


def test_golden_rows_are_asked_for_in_both_ways_and_not_counted_as_traffic(path: Path) -> None:
    version = version_of(path, Limits(candidates=1, body_bytes=10))
    version.warm_up()
    rows, wanted = version.artefact.golden()
    predicted, ranked = golden_queries(version.artefact, rows.to_pylist())
    assert [query.rows.num_rows for query in predicted] == [len(wanted)]
    assert [query.rows.num_rows for query in ranked] == [1] * len(wanted)
    assert ranked[0].split != predicted[0].split
    assert not any(version.decoder.missing.values()) and not any(version.decoder.unknown.values())


def test_a_golden_row_that_is_off_is_named_with_both_scores(path: Path) -> None:
    scores = Artefact.open(path).golden()[1].copy()
    got, wanted = float(scores[7]), 0.125
    scores[7] = wanted
    with_golden_scores(path, scores)
    with pytest.raises(ArtefactError) as caught:
        version_of(path).warm_up()
    for part in ("golden row 7", f"{got:.7f}", "0.1250000", f"{abs(got - wanted):.2e}", "1 of 20 rows"):
        assert part in str(caught.value)


def test_a_wrong_way_to_rank_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = version_of(path)
    score = version.engine.score

    def wrong(queries: list[Query]) -> Scores:
        return score(queries) + np.float32(len(queries) > 1)

    monkeypatch.setattr(version.engine, "score", wrong)
    with pytest.raises(ArtefactError, match="20 of 20 rows are off"):
        version.warm_up()


def test_a_repository_refuses_an_artefact_that_scores_otherwise(path: Path) -> None:
    shutil.copytree(path, path.parent / "2")
    scores = Artefact.open(path).golden()[1].copy()
    scores[3] += 0.25
    with_golden_scores(path.parent / "2", scores)
    repository = start(path.parents[1])
    until(lambda: serves(repository, "shop", 1))
    until(lambda: repository.model("shop").versions[1].state == "failed")
    assert "golden row 3" in repository.model("shop").versions[1].error
    repository.stop()


def test_tables_that_are_damaged_fail_the_version_in_the_background(path: Path) -> None:
    target = path.parent / "2"
    shutil.copytree(path, target)
    artefact = Artefact.open(target)
    pool = artefact.manifest.pools[0]
    items = next(table for table in pool.tables if table.name.endswith("item"))
    unused = min(set(range(300)) - set(artefact.golden()[0].column("item").to_pylist()))
    with (target / pool.file).open("r+b") as file:
        file.seek(pool.offset + (items.lo + unused) * pool.row_bytes)
        file.write(b"\x01")
    repository = start(path.parents[1])
    until(lambda: repository.model("shop").versions[1].state == "failed")
    assert pool.file in repository.model("shop").versions[1].error
    until(lambda: serves(repository, "shop", 1))
    until(lambda: repository.model("shop").versions[0].verified)
    repository.stop()


def test_deltas_are_followed_and_a_restart_catches_up(path: Path) -> None:
    writer = DeltaWriter(path)
    query = version_of(path).decoder.predict(request(raw_rows(50, seed=2)))
    repository = start(path.parents[1])
    until(lambda: not repository.not_ready())
    version = repository.pick("shop", None)
    before = version.score([query])
    rows = np.arange(40)
    name = version.artefact.manifest.pools[0].tables[0].name
    for value in (0.5, 1.0):
        changed = np.full((len(rows), 8), value, np.float32)
        writer.write({name: (rows, changed)}, {}, step=1, newest=1.0)
    until(lambda: version.follower.sequence == 2)
    after = version.score([query])
    repository.stop()
    assert np.abs(after - before).max() > 1e-3
    repository = start(path.parents[1])
    until(lambda: not repository.not_ready())
    assert repository.pick("shop", None).follower.sequence == 2
    np.testing.assert_array_equal(repository.pick("shop", None).score([query]), after)
    repository.stop()


def test_a_version_that_was_unloaded_and_removed_still_answers_who_holds_it(path: Path) -> None:
    shutil.copytree(path, path.parent / "2")
    repository = start(path.parents[1])
    until(lambda: serves(repository, "shop", 2))
    repository.load("shop", "1")
    until(lambda: repository.model("shop").versions[0].state == "ready")
    held = repository.version("shop", "1")
    repository.unload("shop", "1")
    shutil.rmtree(path)
    query = held.decoder.predict(request(raw_rows(30, seed=3)))
    np.testing.assert_array_equal(held.score([query]), repository.pick("shop", None).score([query]))
    repository.stop()


def test_one_artefact_is_a_repository_that_remembers_nothing(path: Path) -> None:
    for _ in range(2):
        repository = start(path)
        until(partial(is_ready, repository))
        version = repository.pick("shop", "user")
        assert (version.model, version.number) == ("shop", "1")
        repository.set_traffic("shop", {"1": 100}, None)
        assert repository.model("shop").split == {"1": 100}
        repository.stop()
    assert not list(path.glob("state.json*")) and not list(path.parent.glob("state.json*"))
    (path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        Repository(path, RepositorySettings())
