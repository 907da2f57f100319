"""The HTTP surface, over real artefacts: answers, errors, changes, metrics, the page."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from socket import create_connection
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tesserec.serve.access import new_token
from tesserec.serve.artefact import Artefact
from tesserec.serve.golden import score_rows
from tesserec.serve.version import Version
from tests.serve.apps import ASKED, asking, make_versions, serving_app
from tests.serve.artefacts import raw_rows
from tests.serve.fake_versions import until

RANK = "/v1/models/shop:rank"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_versions(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def client(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service of shop/1, which tests do not change."""
    limits = {"candidates": 200, "body_bytes": 100_000}
    with asking(made, tmp_path_factory.mktemp("shared"), "1", limits=limits) as client:
        yield client


def problem(response: Any) -> str:
    """Which kind it is, for an answer that is a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == response.status_code and told["detail"]
    return str(told["type"]).removeprefix("urn:tesserec:problem:")


def metrics(client: httpx.Client) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """{sample: {its labels: value}}."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def load_first(client: httpx.Client) -> None:
    """Have shop/1 beside shop/2, which is live."""
    client.post("/v1/models/shop/versions/1:load")
    until(lambda: {v["state"] for v in client.get("/v1/models/shop").json()["versions"]} == {"ready"})


def test_rank_gives_the_candidates_the_trainer_s_scores_best_first(client: httpx.Client, made: Path) -> None:
    artefact = Artefact.open(made / "shop" / "1")
    rows = raw_rows(50, seed=5).drop_columns(["click"])
    wanted = score_rows(artefact.model(), artefact.encoder, rows)
    predicted = client.post("/v1/models/shop:predict", json={"rows": rows.to_pylist()}).json()
    assert predicted["scores"] == pytest.approx(wanted.tolist(), abs=1e-6)
    same = [
        {"user": "u3", "price": 0.5, "item": row["item"], "tags": row["tags"]} for row in rows.to_pylist()
    ]
    scores = client.post("/v1/models/shop:predict", json={"rows": same}).json()["scores"]
    asked = {
        "context": ASKED["context"],
        "candidates": [{"item": r["item"], "tags": r["tags"]} for r in same],
    }
    ranked = client.post(RANK, json=asked).json()
    assert (ranked["model"], ranked["version"]) == ("shop", "1")
    results = ranked["results"]
    assert [r["score"] for r in results] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    for result in results:
        assert result["id"] == same[result["index"]]["item"]
        assert result["score"] == pytest.approx(scores[result["index"]], abs=1e-6)
    assert client.post(RANK, json={**asked, "top_k": 3}).json()["results"] == results[:3]


def test_large_requests_are_cut_and_give_the_same(made: Path, tmp_path: Path) -> None:
    asked = {"context": {"user": "u3"}, "candidates": [{"item": i} for i in range(100)]}
    sliced = {"max_batch_rows": 16, "slice_rows": 7}
    with asking(made, tmp_path / "a", "1") as whole, asking(made, tmp_path / "b", "1", queue=sliced) as cut:
        one, other = (client.post(RANK, json=asked).json()["results"] for client in (whole, cut))
    assert [r["score"] for r in one] == pytest.approx([r["score"] for r in other], abs=1e-6)


def test_a_version_can_be_asked_for(made: Path, tmp_path: Path) -> None:
    with asking(made, tmp_path, "1", "2", auto_promote=True) as client:
        load_first(client)
        given = [client.post(f"/v1/models/shop/versions/{v}:rank", json=ASKED).json() for v in "12"]
        assert [answer["version"] for answer in given] == ["1", "2"]
        assert given[0]["results"] != given[1]["results"]
        assert client.post(RANK, json=ASKED).json() == given[1]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "bad-body"),
        (b"{", "bad-body"),
        (b"\xff{}", "bad-body"),
        (b"[" * 90_000, "invalid-request"),
        (b'{"candidates": [{"tags": ' + b"[" * 90_000, "bad-body"),
        (b'{"x": ' + b"[" * 90_000, "bad-body"),
        (b"[]", "invalid-request"),
        (b"{}", "invalid-request"),
        (b'{"candidates": []}', "invalid-request"),
        (b'{"candidates": [{"item": "seven"}]}', "invalid-request"),
        (b'{"candidates": [{"item": 1e999}]}', None),
        (b'{"candidates": [{"item": NaN}]}', "bad-body"),
        (b'{"candidates": [{"price": true}]}', "invalid-request"),
        (b'{"candidates": [{"colour": 1}]}', "invalid-request"),
        (b'{"candidates": [{"item": 1}], "top_k": 0}', "invalid-request"),
        (json.dumps({"candidates": [{}] * 201}).encode(), "too-large"),
        (b" " * 100_001, "too-large"),
    ],
    ids=lambda value: None if isinstance(value, str | None) else value[:40].decode(errors="replace"),
)
def test_bad_bodies_are_refused_by_their_kind(client: httpx.Client, body: bytes, kind: str | None) -> None:
    response = client.post(RANK, content=body, headers={"content-type": "application/json"})
    assert problem(response) == kind or (kind is None and response.status_code in (400, 422))


def test_a_wrong_value_is_named(client: httpx.Client) -> None:
    candidates = [{"item": 1}, {"item": 2}, {"item": "x"}]
    response = client.post(RANK, json={"candidates": candidates})
    assert response.status_code == 422 and response.json()["field"] == "candidates[2].item"


def test_of_a_body_beyond_the_limit_no_more_is_kept(client: httpx.Client) -> None:
    def long_one() -> Iterator[bytes]:
        for _ in range(4096):
            yield b" " * (1 << 16)

    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert problem(client.post(RANK, content=long_one())) == "too-large"
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB, of 256 MiB


def test_a_body_that_is_declared_too_large_is_not_waited_for(client: httpx.Client) -> None:
    head = f"POST {RANK} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n"
    with create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("method", "path", "headers", "kind"),
    [
        ("POST", "/v1/models/none:rank", {}, "not-found"),
        ("POST", "/v1/models/shop/versions/9:rank", {}, "not-found"),
        ("POST", RANK, {"content-type": "text/csv"}, "unsupported-media-type"),
        ("POST", RANK, {"content-encoding": "gzip"}, "unsupported-media-type"),
        ("DELETE", RANK, {}, "method-not-allowed"),
        ("GET", "/v1/nowhere", {}, "not-found"),
        ("GET", "/page/../settings.py", {}, "not-found"),
        ("GET", "/v1/models/none", {}, "not-found"),
        ("POST", "/v1/models/none:rollback", {}, "not-found"),
        ("POST", "/v1/models/shop:rollback", {}, "conflict"),
        ("POST", "/v1/models/shop/versions/1:unload", {}, "conflict"),
        ("POST", "/v1/models/shop/versions/9:promote", {}, "not-found"),
    ],
)
def test_errors_are_problems(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], kind: str
) -> None:
    content = json.dumps(ASKED).encode() if method == "POST" else None
    response = client.request(method, path, content=content, headers=headers)
    assert problem(response) == kind and response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        (b"{", "bad-body", None),
        (b'{"split": {"1": "much"}}', "invalid-request", "split.1"),
        (b'{"split": {"1": 50}}', "invalid-request", "split"),
        (b'{"splits": {}}', "invalid-request", "splits"),
        (b'{"shadow": {"version": "1", "percent": 0}}', "invalid-request", "shadow.percent"),
        (b'{"split": {"2": 100}}', "not-found", None),
        (b" " * 70_000, "too-large", None),
    ],
)
def test_traffic_that_cannot_be_is_refused(
    client: httpx.Client, body: bytes, kind: str, field: str | None
) -> None:
    headers = {"content-type": "application/json"}
    response = client.put("/v1/models/shop/traffic", content=body, headers=headers)
    assert problem(response) == kind and response.json().get("field") == field


def test_a_bug_is_one_answer_and_the_service_goes_on(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Version, "score", lambda self, queries: 1 / 0)
        response = client.post(RANK, json=ASKED)
        assert problem(response) == "internal-error"
        assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "ZeroDivisionError" in caplog.text
    assert client.post(RANK, json=ASKED).status_code == 200
    status = client.get("/v1/status").json()
    assert sum(status["models"][0]["history"]["errors_per_second"]) >= 0
    assert metrics(client)["tesserec_failed_total"][(("model", "shop"), ("version", "1"))] == 1


def test_versions_are_promoted_rolled_back_loaded_and_unloaded(made: Path, tmp_path: Path) -> None:
    def states(client: httpx.Client) -> dict[str, str]:
        return {v["version"]: v["state"] for v in client.get("/v1/models/shop").json()["versions"]}

    with asking(made, tmp_path, "1", auto_promote=True) as client:
        shutil.copytree(made / "shop" / "2", tmp_path / "coming")
        (tmp_path / "coming").rename(tmp_path / "repository" / "shop" / "2")
        until(lambda: client.get("/v1/models/shop").json()["serving"] == "2")
        back = client.post("/v1/models/shop:rollback").json()
        assert (back["live"], back["previous"]) == ("1", None)
        assert client.post(RANK, json=ASKED).json()["version"] == "1"
        assert client.post("/v1/models/shop/versions/2:unload").status_code == 200
        until(lambda: states(client)["2"] == "unloaded")
        assert problem(client.post("/v1/models/shop/versions/2:rank", json=ASKED)) == "not-ready"
        assert problem(client.post("/v1/models/shop/versions/2:promote")) == "conflict"
        assert client.post("/v1/models/shop/versions/2:load").status_code == 200
        until(lambda: states(client)["2"] == "ready")
        assert client.post("/v1/models/shop/versions/2:promote").json()["live"] == "2"
        assert client.post(RANK, json=ASKED).json()["version"] == "2"


def test_traffic_is_split_by_keys_from_header_or_body(made: Path, tmp_path: Path) -> None:
    with asking(made, tmp_path, "1", "2") as client:
        load_first(client)
        changed = client.put("/v1/models/shop/traffic", json={"split": {"1": 50, "2": 50}})
        assert changed.json()["split"] == {"1": 50, "2": 50}

        def version(key: str, in_body: bool) -> str:
            body = {**ASKED, "request_key": key} if in_body else ASKED
            headers = {} if in_body else {"X-Request-Key": key}
            return str(client.post(RANK, json=body, headers=headers).json()["version"])

        by_header = [version(f"user {i}", False) for i in range(40)]
        assert by_header == [version(f"user {i}", True) for i in range(40)]
        assert set(by_header) == {"1", "2"}


def test_a_shadow_scores_beside_and_is_compared(made: Path, tmp_path: Path) -> None:
    with asking(made, tmp_path, "1", "2") as client:
        load_first(client)
        shadow = {"version": "1", "percent": 100}
        assert client.put("/v1/models/shop/traffic", json={"shadow": shadow}).json()["shadow"] == shadow
        answers = [client.post(f"/v1/models/shop/versions/{v}:rank", json=ASKED).json() for v in "12"]
        assert client.post(RANK, json=ASKED).json() == answers[1]
        scores = [{r["index"]: r["score"] for r in answer["results"]} for answer in answers]
        apart = sum(abs(scores[0][i] - scores[1][i]) for i in scores[0])
        label = (("model", "shop"), ("version", "1"))
        until(lambda: metrics(client)["tesserec_shadow_rows_total"][label] == 3)
        assert metrics(client)["tesserec_shadow_difference_total"][label] == pytest.approx(apart, abs=1e-5)


def test_beyond_the_queue_requests_are_refused(made: Path, tmp_path: Path) -> None:
    queue = {"max_requests": 1, "max_delay_seconds": 0.2}
    with asking(made, tmp_path, "1", queue=queue) as client, ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda _: client.post(RANK, json=ASKED), range(4)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    refused = responses[statuses.index(429)]
    assert problem(refused) == "overloaded" and int(refused.headers["retry-after"]) >= 1


def test_tokens_open_what_they_are_for(made: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    ranker, boss = (
        {"authorization": f"Bearer {new_token(tokens, rights, [rights])}"} for rights in ("rank", "manage")
    )
    with asking(made, tmp_path, "1", tokens=str(tokens)) as client:
        assert problem(client.post(RANK, json=ASKED)) == "unauthorized"
        assert client.post(RANK, json=ASKED, headers=ranker).status_code == 200
        assert problem(client.post(RANK, json=ASKED, headers=boss)) == "forbidden"
        promote = "/v1/models/shop/versions/1:promote"
        assert problem(client.post(promote, headers=ranker)) == "forbidden"
        assert client.post(promote, headers=boss).status_code == 200
        assert client.get("/v1/status", headers=ranker).json()["service"]["tokens"]
        for path in ("/", "/readyz", "/livez"):
            assert client.get(path).status_code == 200


def test_metrics_count_what_happened(made: Path, tmp_path: Path) -> None:
    asked = {"candidates": [{"item": 3, "user": "nobody"}, {"item": 4}]}
    with asking(made, tmp_path, "1") as client:
        for _ in range(3):
            client.post(RANK, json=asked)
        client.post(RANK, content=b"{")
        found = metrics(client)
    version = (("model", "shop"), ("version", "1"))
    for stage in ("decode", "queue", "score", "answer", "total"):
        label = (("model", "shop"), ("stage", stage), ("version", "1"))
        assert found["tesserec_request_seconds_count"][label] == 3
        assert 0 < found["tesserec_request_seconds_sum"][label] < 60
    assert found["tesserec_batch_rows_sum"][version] == 6
    assert found["tesserec_score_count"][version] == 6
    answers = found["tesserec_answers_total"]
    assert answers[(("operation", "rank"), ("status", "200"))] == 3
    assert answers[(("operation", "rank"), ("status", "400"))] == 1
    unknown = {dict(label)["feature"]: n for label, n in found["tesserec_unknown_ids_total"].items()}
    assert unknown["user"] >= 3
    for name, samples in found.items():
        assert all(math.isfinite(value) for value in samples.values()), name


def test_status_has_the_last_minutes(client: httpx.Client) -> None:
    def recent() -> dict[str, Any]:
        version: dict[str, Any] = client.get("/v1/status").json()["models"][0]["versions"][0]
        return version

    client.post(RANK, json=ASKED)
    until(lambda: recent()["requests_per_second"])
    total = recent()["latency_seconds"]["total"]
    assert 0 < total["p50"] <= total["p95"] <= total["p99"]
    status = client.get("/v1/status").json()
    history = status["models"][0]["history"]
    lengths = {len(values) for values in history.values() if isinstance(values, list)}
    assert lengths == {150} and history["end"] <= status["time"] < history["end"] + 2
    assert sum(history["requests_per_second"]) > 0
    assert recent()["version"] == "1" and status["service"]["ready"]


def test_a_draining_service_answers_but_is_not_ready(made: Path, tmp_path: Path) -> None:
    with serving_app(made, tmp_path, "1") as (client, app):
        app.state.service.draining = True
        ready = client.get("/readyz")
        assert problem(ready) == "not-ready" and "shutting down" in ready.json()["detail"]
        answer = client.post(RANK, json=ASKED)
    assert answer.status_code == 200 and answer.headers["connection"] == "close"


def test_the_page_and_all_that_it_names_is_there(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    assert named
    for path in named:
        file = client.get(f"/{path}")
        assert file.status_code == 200
        same = client.get(f"/{path}", headers={"if-none-match": file.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")


def test_the_example_of_a_model_can_be_sent(client: httpx.Client) -> None:
    model = client.get("/v1/models/shop").json()
    version = client.get("/v1/models/shop/versions/1").json()
    assert model["input_example"] == version["input_example"] and model["schema"] == version["schema"]
    assert set(model["schema"]["properties"]) == {"price", "user", "item", "tags"}
    assert client.post(RANK, json=model["input_example"]).status_code == 200
    assert (version["model"], version["candidate_id"], version["metrics"]) == ("dlrm", "item", {"auc": 0.75})
