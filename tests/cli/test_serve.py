"""`tesserec serve` and `tesserec token`, from the start of a process to its end."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tesserec.serve import Client
from tesserec.serve.artefact import write_artefact
from tesserec.serve.problems import Forbidden, Unauthorized
from tests.serve.apps import ASKED
from tests.serve.artefacts import content


def tesserec(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tesserec", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address_of(service: subprocess.Popen[str]) -> str:
    assert service.stderr is not None
    found = re.search(r"http://\S+", service.stderr.readline())
    assert found is not None
    return found[0]


def wait_until_ready(client: Client) -> None:
    until = time.monotonic() + 150
    while not client.ready():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.timeout(240)
def test_a_service_starts_answers_and_ends(tmp_path: Path, workers: int) -> None:
    write_artefact(tmp_path / "repository" / "shop" / "1", content(tmp_path / "parts"))
    shutil.copytree(tmp_path / "repository" / "shop" / "1", tmp_path / "repository" / "shop" / "draft")
    service = tesserec("serve", tmp_path / "repository", "--port", 0, "--workers", workers)
    try:
        with Client(address_of(service)) as client:
            wait_until_ready(client)
            ranking = client.rank("shop", ASKED["context"], ASKED["candidates"], top_k=2)
            assert (ranking.model, ranking.version, len(ranking.results)) == ("shop", "1", 2)
    finally:
        service.send_signal(signal.SIGTERM)
        _, said = service.communicate(timeout=60)
    assert service.returncode == 0
    assert "shop/1 is loading" in said and "shop/1 is ready" in said and "draft" in said
    assert "Traceback" not in said


@pytest.mark.timeout(240)
def test_tokens_open_what_their_scopes_say(tmp_path: Path) -> None:
    write_artefact(tmp_path / "shop", content(tmp_path / "parts"))
    made = tesserec("token", tmp_path / "tokens", "--name", "shop", "--scope", "rank")
    secret, _ = made.communicate(timeout=60)
    assert made.returncode == 0 and secret.strip() not in (tmp_path / "tokens").read_text()
    service = tesserec("serve", tmp_path / "shop", "--port", 0, "--tokens", tmp_path / "tokens")
    try:
        address = address_of(service)
        with Client(address, token=secret.strip()) as shop, Client(address) as stranger:
            wait_until_ready(stranger)
            assert shop.rank("shop", ASKED["context"], ASKED["candidates"]).results
            with pytest.raises(Forbidden):
                shop.promote("shop", 1)
            with pytest.raises(Unauthorized):
                stranger.rank("shop", ASKED["context"], ASKED["candidates"])
    finally:
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=60)
    assert service.returncode == 0


def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    service = tesserec("serve", tmp_path / "nowhere")
    _, said = service.communicate(timeout=60)
    assert service.returncode == 2 and "nowhere: no such folder" in said and "Traceback" not in said
    service = tesserec("serve", tmp_path, "--host", "0.0.0.0")
    _, said = service.communicate(timeout=60)
    assert service.returncode == 2 and "tesserec token" in said
