"""The OpenAPI document is whole and true: what it allows, and what it does not, is answered as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tesserec.serve.access import new_token
from tests.serve.apps import asking, make_versions

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
KNOWN = """
[parameters]
"path.name" = "shop"
"path.version" = "1"
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service that asks for tokens; the client has one for everything."""
    folder = tmp_path_factory.mktemp("service")
    secret = new_token(folder / "tokens", "all", ["rank", "manage"])
    with asking(make_versions(folder / "made"), folder, "1", "2", tokens=str(folder / "tokens")) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        yield client


@pytest.fixture
def document(client: httpx.Client) -> Any:
    return client.get("/openapi.json").json()


def schemathesis(client: httpx.Client, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """All operations, with what is documented and what is not."""
    run = [str(Path(sys.executable).with_name("schemathesis")), *options, "run"]
    how = [f"{client.base_url}/openapi.json", "--phases=examples,coverage,fuzzing", "--max-examples=8"]
    token = ["-H", f"Authorization: {client.headers['authorization']}"]
    checks = [f"--checks={','.join(CHECKS)}", "--seed=1", "--no-color"]
    command = [*run, *how, *token, *checks]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)


def test_all_operations_do_as_documented(client: httpx.Client, tmp_path: Path) -> None:
    ran = schemathesis(client, tmp_path)
    assert ran.returncode == 0, ran.stdout


def test_operations_of_a_model_that_is_there_do_as_documented(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(KNOWN)
    ran = schemathesis(client, tmp_path, "--config-file=known.toml")
    assert ran.returncode == 0, ran.stdout


def test_every_path_is_documented_with_its_errors_and_examples(document: Any) -> None:
    assert {path for path in document["paths"] if ":" in path} == {
        f"/v1/models/{{name}}{path}"
        for path in (
            ":rank",
            ":predict",
            ":rollback",
            *(f"/versions/{{version}}:{verb}" for verb in ("rank", "predict", "load", "unload", "promote")),
        )
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            wrong = {status: told for status, told in operation["responses"].items() if status[0] in "45"}
            assert "500" in wrong and ("401" in wrong) == path.startswith(("/v1", "/metrics")), path
            assert all(list(told["content"]) == ["application/problem+json"] for told in wrong.values())


def test_examples_are_those_of_the_models_and_can_be_sent(client: httpx.Client, document: Any) -> None:
    for verb in ("rank", "predict"):
        body = document["paths"][f"/v1/models/{{name}}:{verb}"]["post"]["requestBody"]
        for name, example in body["content"]["application/json"]["examples"].items():
            assert client.post(f"/v1/models/{name}:{verb}", json=example["value"]).status_code == 200


def test_references_lead_somewhere(document: Any) -> None:
    named = set(document["components"]["schemas"])
    text = json.dumps(document)
    assert {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} <= named
    assert "HTTPValidationError" not in text
