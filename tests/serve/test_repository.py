from __future__ import annotations

import shutil
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tesserec.serve.places import RepositoryError
from tesserec.serve.problems import Conflict, NotFound, NotReady, Problem, Unprocessable
from tesserec.serve.repository import Repository, RepositorySettings
from tesserec.serve.state import Shadow, StateError
from tests.serve.fake_versions import QUERY, FakeLoader, put, serves, serving, until

KEYS = [f"user {i}" for i in range(400)]


def states(repository: Repository, model: str = "m") -> dict[str, str]:
    return {version.number: version.state for version in repository.model(model).versions}


def ready(repository: Repository, *numbers: int) -> bool:
    """Whether these versions of m are, and no others are in memory or on their way there."""
    found = {number for number, state in states(repository).items() if state not in ("found", "unloaded")}
    wanted = {str(number) for number in numbers}
    return found == wanted and all(states(repository)[number] == "ready" for number in wanted)


def decided(repository: Repository, number: int) -> bool:
    """Whether this version of m is to be live."""
    return repository.model("m").live == str(number)


def error_of(repository: Repository, number: int, model: str = "m") -> str:
    versions = {version.number: version for version in repository.model(model).versions}
    return versions[str(number)].error


def test_at_a_first_start_the_newest_version_of_each_model_goes_live(tmp_path: Path) -> None:
    for model, number in [("a", 2), ("a", 10), ("a", 9), ("b", 1)]:
        put(tmp_path, model, number)
    loader = FakeLoader()
    loader.gate.clear()
    with serving(tmp_path, loader) as repository:
        assert set(repository.not_ready()) == {"a", "b"}
        with pytest.raises(NotReady, match=r"'a' cannot answer: .*version 10 is (found|loading)"):
            repository.pick("a", None)
        loader.gate.set()
        until(lambda: not repository.not_ready())
        assert (repository.pick("a", None).number, repository.pick("b", None).number) == ("10", "1")
        assert loader.loaded == ["a/10", "b/1"]


def test_a_new_version_is_swapped_in_and_the_one_before_kept_for_a_rollback(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        held = repository.pick("m", "user")
        for number in (2, 3):
            put(tmp_path, "m", number)
            until(partial(serves, repository, "m", number))
        until(lambda: ready(repository, 2, 3))
        assert held.score([QUERY]) == [1]
        assert repository.rollback("m").live == "2"
        assert repository.pick("m", "user").number == "2"
    with serving(tmp_path) as repository:
        until(lambda: serves(repository, "m", 2))
        until(lambda: ready(repository, 1, 2))
        assert repository.model("m").live == "2"


def test_no_request_fails_and_none_is_answered_by_an_older_version_while_versions_come(
    tmp_path: Path,
) -> None:
    put(tmp_path, "m", 1)
    answers: list[list[float]] = [[], []]
    failures: list[Exception] = []
    stop = threading.Event()

    def ask(repository: Repository, scores: list[float]) -> None:
        while not stop.wait(0.0005):
            try:
                version = repository.pick("m", None)
                scores.append(float(version.score([QUERY])[0]))
            except Exception as error:
                failures.append(error)

    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        threads = [threading.Thread(target=ask, args=(repository, scores)) for scores in answers]
        for thread in threads:
            thread.start()
        for number in range(2, 22):
            put(tmp_path, "m", number)
            until(partial(serves, repository, "m", number))
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert all(scores == sorted(scores) and scores for scores in answers)


def test_a_bad_version_is_reported_and_the_old_one_serves_until_it_is_mended(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        put(tmp_path, "m", 2, error="golden row 7 is off by 0.5")
        until(lambda: states(repository) == {"1": "ready", "2": "failed"})
        assert error_of(repository, 2) == "golden row 7 is off by 0.5"
        assert not repository.not_ready() and repository.pick("m", None).number == "1"
        with pytest.raises(Conflict, match="golden row 7"):
            repository.promote("m", "2")
        put(tmp_path, "m", 2)
        until(lambda: serves(repository, "m", 2))


def test_a_model_whose_every_version_failed_is_why_the_service_is_not_ready(tmp_path: Path) -> None:
    put(tmp_path, "good", 1)
    put(tmp_path, "bad", 1, error="no table 'user'")
    put(tmp_path, "bad", 2, error="no table 'item'")
    with serving(tmp_path) as repository:
        until(lambda: states(repository, "bad") == {"1": "failed", "2": "failed"})
        until(lambda: set(repository.not_ready()) == {"bad"})
        reason = repository.not_ready()["bad"]
        assert "version 1 failed: no table 'user'" in reason and "version 2 failed: no table" in reason
        with pytest.raises(NotReady, match="no table 'item'"):
            repository.pick("bad", None)


def test_a_model_that_comes_later_does_not_make_the_service_unready(tmp_path: Path) -> None:
    put(tmp_path, "first", 1)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        put(tmp_path, "second", 1, error="bad")
        until(lambda: len(repository.models()) == 2 and states(repository, "second") == {"1": "failed"})
        assert not repository.not_ready()


def test_an_empty_repository_is_ready_when_its_first_model_is(tmp_path: Path) -> None:
    with serving(tmp_path) as repository:
        assert repository.not_ready() == {str(tmp_path): "no model is there yet"}
        put(tmp_path, "m", 1)
        until(lambda: not repository.not_ready())


def test_what_was_acknowledged_is_served_after_a_restart(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        put(tmp_path, "m", number)
    with serving(tmp_path) as repository:
        until(lambda: serves(repository, "m", 4))
        for number in (1, 2, 3):
            repository.load("m", str(number))
        until(lambda: ready(repository, 1, 2, 3, 4))
        repository.promote("m", "3")
        repository.set_traffic("m", {"3": 75, "2": 25}, Shadow(version="1", percent=50))
        repository.unload("m", "4")
        before = repository.model("m")
        routed = [repository.pick("m", key).number for key in KEYS]
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        after = repository.model("m")
        assert (after.live, after.split, after.shadow) == ("3", {"3": 75, "2": 25}, before.shadow)
        assert [repository.pick("m", key).number for key in KEYS] == routed
        assert states(repository) == {"1": "ready", "2": "ready", "3": "ready", "4": "unloaded"}


def test_requests_are_split_by_key_and_the_share_of_a_missing_version_is_the_live_one_s(
    tmp_path: Path,
) -> None:
    for number in (1, 2):
        put(tmp_path, "m", number)
    with serving(tmp_path, auto_promote=False) as repository:
        with pytest.raises(NotReady, match="no version is live"):
            repository.pick("m", None)
        for number in (1, 2):
            repository.load("m", str(number))
        until(lambda: ready(repository, 1, 2))
        repository.promote("m", "1")
        status = repository.set_traffic("m", {"1": 80, "2": 20}, Shadow(version="2", percent=25))
        assert [(v.percent, v.shadow_percent) for v in status.versions] == [(80, 0), (20, 25)]
        counted = Counter(repository.pick("m", key).number for key in KEYS)
        assert 0.1 < counted["2"] / len(KEYS) < 0.3
        shadowed = [repository.shadow("m", key) for key in KEYS]
        assert 0.15 < sum(v is not None and v.number == "2" for v in shadowed) / len(KEYS) < 0.35
        assert shadowed == [repository.shadow("m", key) for key in KEYS]
    put(tmp_path, "m", 2, error="bad now")
    with serving(tmp_path, auto_promote=False) as repository:
        until(lambda: not repository.not_ready())
        assert {repository.pick("m", key).number for key in KEYS} == {"1"}
        assert {repository.shadow("m", key) for key in KEYS} == {None}


def test_new_versions_wait_while_somebody_steers_the_traffic(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        repository.set_traffic("m", {"1": 100}, None)
        put(tmp_path, "m", 2)
        until(lambda: ready(repository, 1, 2))
        assert serves(repository, "m", 1)
        repository.set_traffic("m", {}, None)
        until(lambda: serves(repository, "m", 2))


def test_wrong_tables_fail_a_live_version_for_good(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        put(tmp_path, "m", 2, damaged="tables/16.npy: block 3", verify_when=str(tmp_path / "verify"))
        until(lambda: serves(repository, "m", 2))
        (tmp_path / "verify").touch()
        until(lambda: serves(repository, "m", 1))
        assert repository.model("m").live == "1" and not repository.not_ready()
        assert "block 3" in error_of(repository, 2)
    loader = FakeLoader()
    with serving(tmp_path, loader) as repository:
        until(lambda: not repository.not_ready())
        until(lambda: "block 3" in error_of(repository, 2))
        assert loader.loaded == ["m/1"]
        put(tmp_path, "m", 2)
        repository.load("m", "2")
        until(lambda: ready(repository, 1, 2))
        until(lambda: all(version.verified for version in repository.model("m").versions))
        assert serves(repository, "m", 1)


def test_wrong_tables_of_the_only_version_leave_nothing_to_serve(tmp_path: Path) -> None:
    put(tmp_path, "m", 1, damaged="tables/16.npy: block 3")
    with serving(tmp_path) as repository:
        until(lambda: "block 3" in repository.not_ready().get("m", ""))
        with pytest.raises(NotReady, match="block 3"):
            repository.pick("m", None)


def test_versions_beyond_the_memory_are_refused_with_the_numbers(tmp_path: Path) -> None:
    put(tmp_path, "a", 1, nbytes=60 << 20)
    with serving(tmp_path, memory_bytes=100 << 20) as repository:
        until(lambda: not repository.not_ready())
        put(tmp_path, "b", 1, nbytes=50 << 20)
        until(lambda: len(repository.models()) == 2 and states(repository, "b") == {"1": "failed"})
        for part in ("b/1", "50.0 MiB", "100.0 MiB", "a/1 60.0 MiB"):
            assert part in error_of(repository, 1, "b")
        put(tmp_path, "a", 2, nbytes=30 << 20)
        until(lambda: serves(repository, "a", 2))
        assert states(repository, "b") == {"1": "failed"}
        repository.unload("a", "1")
        until(lambda: states(repository, "b") == {"1": "ready"})


def test_a_version_that_waits_for_a_rollback_makes_room_for_a_new_one(tmp_path: Path) -> None:
    put(tmp_path, "m", 1, nbytes=40)
    with serving(tmp_path, memory_bytes=100) as repository:
        for number in range(2, 6):
            until(partial(serves, repository, "m", number - 1))
            put(tmp_path, "m", number, nbytes=40)
        until(lambda: serves(repository, "m", 5))
        assert ready(repository, 4, 5)
        assert repository.rollback("m").live == "4"


def test_several_workers_converge_to_what_one_of_them_acknowledged(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path, "m", number)
    with serving(tmp_path) as one, serving(tmp_path) as other:
        until(lambda: not one.not_ready() and not other.not_ready())
        one.load("m", "1")
        until(lambda: ready(one, 1, 2) and ready(other, 1, 2))
        other.promote("m", "1")
        until(lambda: serves(one, "m", 1))
        one.set_traffic("m", {"1": 50, "2": 50}, None)
        until(lambda: other.model("m").split == {"1": 50, "2": 50})
        assert [one.pick("m", key).number for key in KEYS] == [other.pick("m", key).number for key in KEYS]
        one.set_traffic("m", {}, None)
        put(tmp_path, "m", 3)
        until(lambda: serves(one, "m", 3) and serves(other, "m", 3))
        assert one.model("m").history == other.model("m").history == ("2", "1")


def test_a_worker_serves_what_it_had_until_it_has_what_another_one_promoted(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    slow = FakeLoader()
    with serving(tmp_path) as quick, serving(tmp_path, slow) as late:
        until(lambda: not quick.not_ready() and not late.not_ready())
        slow.gate.clear()
        for number in (2, 3, 4):
            put(tmp_path, "m", number)
            until(partial(serves, quick, "m", number))
            until(partial(decided, late, number))
            assert late.pick("m", None).number == "1" and not late.not_ready()
        slow.gate.set()
        until(lambda: serves(late, "m", 4))


def test_a_damaged_state_stops_a_start_and_nothing_that_runs(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        good = (tmp_path / "state.json").read_bytes()
        (tmp_path / "state.json").write_bytes(b"{")
        with pytest.raises(StateError, match=r"state\.json"):
            repository.load("m", "1")
        with pytest.raises(StateError, match=r"state\.json"):
            Repository(tmp_path, RepositorySettings(), FakeLoader())
        assert repository.pick("m", None).number == "1" and not repository.not_ready()
        (tmp_path / "state.json").write_bytes(good)
        put(tmp_path, "m", 2)
        until(lambda: serves(repository, "m", 2))


def test_folders_that_are_no_versions_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    for name in ("m/latest", "m/007", "m/-1", "m/2", "m/.3.tmp", "own models/1", ".git"):
        (tmp_path / name).mkdir(parents=True)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        assert states(repository) == {"1": "ready"}
        refused = " ".join(repository.model("m").refused)
        for name in ("m/latest", "m/007", "m/-1", "m/2: no manifest.json"):
            assert name in refused
        assert ".3.tmp" not in refused


def test_a_repository_without_a_version_says_what_it_has_instead(tmp_path: Path) -> None:
    (tmp_path / "m" / "latest").mkdir(parents=True)
    with serving(tmp_path) as repository:
        assert "m/latest: versions are folders" in repository.not_ready()[str(tmp_path)]


def test_the_folder_of_one_model_is_no_repository(tmp_path: Path) -> None:
    path = put(tmp_path, "m", 1)
    with pytest.raises(RepositoryError, match=f"serve the folder of all models, {tmp_path}"):
        Repository(path.parent, RepositorySettings(), FakeLoader())
    with pytest.raises(RepositoryError, match="no such folder"):
        Repository(tmp_path / "nowhere", RepositorySettings(), FakeLoader())


def test_a_live_version_that_has_gone_is_why_a_service_is_not_ready(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    put(tmp_path, "n", 1)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        shutil.rmtree(tmp_path / "m")
        assert repository.pick("m", None).score([QUERY]) == [1]
    with serving(tmp_path) as repository:
        until(lambda: set(repository.not_ready()) == {"m"})
        assert "version 1 is live but not there" in repository.not_ready()["m"]
        assert [status.name for status in repository.models()] == ["n"]
        with pytest.raises(NotFound):
            repository.pick("m", None)


@pytest.fixture
def two(tmp_path: Path) -> Any:
    """A repository with m/1 found and m/2 live."""
    for number in (1, 2):
        put(tmp_path, "m", number)
    with serving(tmp_path) as repository:
        until(lambda: not repository.not_ready())
        yield repository


@pytest.mark.parametrize(
    ("call", "wanted", "told"),
    [
        (lambda r: r.pick("mm", None), NotFound, "did you mean 'm'"),
        (lambda r: r.version("m", "3"), NotFound, "no version '3'; it has 1, 2"),
        (lambda r: r.version("m", "1"), NotReady, "version 1 of 'm' is found"),
        (lambda r: r.load("m", "3"), NotFound, "no version '3'"),
        (lambda r: r.promote("m", "1"), Conflict, "is found; wanted one that is ready"),
        (lambda r: r.promote("m", "3"), NotFound, "no version '3'"),
        (lambda r: r.promote("n", "1"), NotFound, "no model 'n'"),
        (lambda r: r.rollback("m"), Conflict, "nothing was live of 'm' before version 2"),
        (lambda r: r.unload("m", "2"), Conflict, "promote another one"),
        (lambda r: r.set_traffic("m", {"1": 100}, None), Conflict, "version 1 of 'm' is found"),
        (lambda r: r.set_traffic("m", {}, Shadow(version="1", percent=5)), Conflict, "is found"),
        (lambda r: r.set_traffic("m", {"2": 99}, None), Unprocessable, "make 99 percent"),
        (lambda r: r.set_traffic("m", {"2": 0, "1": 100}, None), Unprocessable, "0 percent"),
        (lambda r: r.set_traffic("m", {"2": float("nan")}, None), Unprocessable, "nan percent"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    two: Repository, call: Any, wanted: type[Problem], told: str
) -> None:
    before = two.model("m")
    with pytest.raises(wanted, match=told):
        call(two)
    assert two.model("m").history == before.history and two.model("m").live == before.live
