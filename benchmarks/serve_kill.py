"""Kill a service while it loads, applies deltas or changes what is live: is what it said still so afterwards?

    python -m benchmarks.serve_kill [--kills 100]

`tesserec serve` runs over a repository of a small model. This process drops versions in, publishes deltas, or
asks for promotions, rollbacks and splits, one kind in each round, and kills the service (SIGKILL) at a
random moment. It is started again (in one round of four it is killed while it starts, too) and must come to
be ready. Then state.json must be what was last acknowledged, or what the one request that got no answer asked
for; and requests must be answered by the versions that it names, with the scores that the model itself gives
when all deltas that were published are in it. One JSON line for each kill, then a summary; exit status 1 if
anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Line, Report
from benchmarks.ours.serve import encoder, golden
from benchmarks.serve_cases import KEYS, OWN, sizes
from benchmarks.serving import Server, ours
from tesserec.models import Features
from tesserec.serve.artefact import Artefact, Content, write_artefact
from tesserec.serve.deltas import Follower
from tesserec.serve.golden import score_rows
from tesserec.serve.publish import DeltaWriter
from tesserec.serve.spec import ModelSpec
from tesserec.serve.state import (
    ModelState,
    StateFile,
    promoted,
    promoted_unasked,
    rolled_back,
    with_loaded,
    with_traffic,
)

NAME, LIMIT = "small", 50
PATH = f"/v1/models/{NAME}"
DIM = 8
LAYERS = {"embedding_dim": DIM, "bottom": [16], "top": [16]}
FEATURES = Features(13, dict(zip(KEYS, sizes(LIMIT), strict=True)))
ROWS = golden(LIMIT)
BODY = json.dumps({"rows": ROWS.to_pylist()}).encode()
TOLERANCE = 1e-5
POLL_SECONDS, USERS = 0.02, 8
KINDS = ("load", "delta", "promote")
Change = Callable[[ModelState], ModelState]


class Nothing:
    """An engine that keeps nothing of a model."""

    def refresh(self) -> None:
        """Nothing to do."""


class Published:
    """A version of the model with its deltas, and what it should score."""

    def __init__(self, folder: Path, number: int):
        path = folder / NAME / str(number)
        spec = ModelSpec("dlrm", number, LAYERS, FEATURES)
        with tempfile.TemporaryDirectory() as saved:
            encoder(FEATURES.sparse).save(Path(saved) / "encoder")
            model, fitted = spec.build().eval(), Path(saved) / "encoder"
            write_artefact(path, Content(NAME, spec, model, fitted, ROWS, candidate_columns=OWN))
        self.artefact = Artefact.open(path)
        self.model = self.artefact.model()
        self.writer = DeltaWriter(path)
        self.follower = Follower(path, self.model, Nothing(), nullcontext())

    def publish(self, rng: np.random.Generator) -> None:
        """A delta of rows of one table and all weights of one layer; on the disk when it returns."""
        table = self.artefact.manifest.pools[0].tables[rng.integers(len(KEYS))]
        rows = np.flatnonzero(rng.random(table.hi - table.lo) < 0.5)
        values = rng.normal(0, 0.1, (len(rows), DIM)).astype(np.float32)
        name = str(rng.choice(list(self.artefact.dense)))
        weights = rng.normal(0, 0.1, self.artefact.dense[name].shape).astype(np.float32)
        tables = {table.name: (rows, values)} if len(rows) else {}
        self.writer.write(tables, {name: weights}, step=self.writer.sequence, newest=time.time())

    def scores(self) -> npt.NDArray[np.float32]:
        """What the model itself gives when all deltas are in it."""
        self.follower.poll()
        assert self.follower.sequence == self.writer.sequence, self.follower.problem
        return score_rows(self.model, self.artefact.encoder, ROWS)


class Trial:
    """A repository, and what the service over it has acknowledged.

    asked: what the request that has no answer yet makes of the state.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.log = folder / "repository", folder / "log"
        self.random, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.published: dict[str, Published] = {}
        self.acknowledged = ModelState()
        self.asked: Change | None = None
        self.load_seconds = self.ready_seconds = 0.0  # how long these took when they were last looked at

    def start(self) -> Server:
        """The service, starting."""
        return ours(self.folder, self.log, "--set", f"poll_seconds={POLL_SECONDS}")

    def state(self) -> ModelState:
        """What the disk says."""
        return StateFile(self.folder / "state.json").read().model(NAME)

    def drop_in(self) -> None:
        """The next version is there, which goes live when it is loaded."""
        number = len(self.published) + 1
        self.published[str(number)] = Published(self.folder, number)
        self.asked = partial(promoted_unasked, number=str(number))

    def wait_for_newest(self) -> None:
        """Until the newest version is live."""
        end = time.monotonic() + 60
        while self.state().live != str(len(self.published)):
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(POLL_SECONDS)
        self.acknowledged, self.asked = self.state(), None

    def measure(self) -> None:
        """Start without any state, and see how long a version takes to be loaded."""
        self.drop_in()
        with self.start() as server:
            self.ready_seconds = server.wait()
            self.drop_in()
            begun = time.perf_counter()
            self.wait_for_newest()
            self.load_seconds = time.perf_counter() - begun

    def loading(self, server: Server) -> None:
        """A new version is being loaded."""
        if self.asked is None:
            self.change(server, "/traffic", partial(with_traffic, split={}, shadow=None), {"split": {}})
            self.drop_in()
        time.sleep(POLL_SECONDS)

    def following(self, server: Server) -> None:
        """Deltas of what is live come in."""
        assert self.acknowledged.live is not None
        self.published[self.acknowledged.live].publish(self.numbers)

    def deciding(self, server: Server) -> None:
        """One of the changes that can be asked for."""
        live, history = self.acknowledged.live, self.acknowledged.history
        assert live is not None
        other = self.random.choice([*history[-1:], *self.published])
        split = {live: 70.0, other: 30.0} if other != live else {}
        traffic = partial(with_traffic, split=split, shadow=None)
        choices: list[tuple[str, Change, Any]] = [
            (":rollback", rolled_back, None),
            (f"/versions/{other}:promote", partial(promoted, number=other), None),
            (f"/versions/{other}:load", partial(with_loaded, number=other), None),
            ("/traffic", traffic, {"split": split}),
        ]
        self.change(server, *self.random.choice(choices))

    def change(self, server: Server, path: str, change: Change, body: Any) -> None:
        """Ask for a change. A refusal, as of a version that is not loaded, changes nothing."""
        self.asked = change
        method, data = ("POST", b"") if body is None else ("PUT", json.dumps(body).encode())
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.url + PATH + path, data, headers, method=method)
        try:
            urllib.request.urlopen(request).close()
            self.acknowledged = change(self.acknowledged)
        except urllib.error.HTTPError as error:
            assert error.code == 409, error.read()
        self.asked = None

    def kill(self, server: Server, kind: str) -> Line:
        """Kill the service at a random moment of this kind of work -> what was done."""
        step, most = {
            "load": (self.loading, 1.2 * self.load_seconds),
            "delta": (self.following, 0.6),
            "promote": (self.deciding, 0.3),
        }[kind]
        step(server)
        seconds = self.random.uniform(0, most)
        killer = threading.Timer(seconds, server.process.kill)
        killer.start()
        with suppress(OSError, HTTPException):
            while server.process.poll() is None:
                step(server)
        killer.join()
        server.process.wait()
        return {"kind": kind, "after_s": round(seconds, 3)}

    def kill_at_start(self) -> None:
        """Kill the service while it starts."""
        server = self.start()
        time.sleep(self.random.uniform(0, self.ready_seconds))
        server.process.kill()
        server.process.wait()

    def check(self, server: Server) -> Line:
        """How a service came up that was started again, and what is wrong."""
        before = self.acknowledged
        after = self.asked(before) if self.asked else before
        self.ready_seconds = server.wait()
        found = self.state()
        wrong = [] if found in (before, after) else [f"state is {found}, wanted {before} or {after}"]
        for user in range(USERS):
            wrong += self.wrong_answer(server, found, f"user {user}")
        if self.newest_comes(found):
            self.wait_for_newest()
        deltas = sum(version.writer.sequence for version in self.published.values())
        self.acknowledged, self.asked = self.state(), None
        unanswered = "" if before == after else "done" if found == after else "not done"
        about = {"live": found.live, "split": found.split, "unanswered": unanswered, "deltas": deltas}
        return {**about, "ready_s": round(self.ready_seconds, 2), "wrong": wrong}

    def newest_comes(self, found: ModelState) -> bool:
        """Whether the newest version was not live yet, and soon is."""
        return found.highest < len(self.published)

    def wrong_answer(self, server: Server, found: ModelState, user: str) -> list[str]:
        """What is wrong with an answer to `user`."""
        headers = {"Content-Type": "application/json", "X-Request-Key": user}
        request = urllib.request.Request(f"{server.url}{PATH}:predict", BODY, headers)
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        may_answer = set(found.split or [found.live])
        if self.newest_comes(found):
            may_answer.add(str(len(self.published)))
        if answer["version"] not in may_answer:
            return [f"version {answer['version']} answers {user}, wanted {may_answer}"]
        off = float(np.abs(np.array(answer["scores"]) - self.published[answer["version"]].scores()).max())
        return [f"version {answer['version']} is off by {off:.2e}"] if not off <= TOLERANCE else []


def main() -> None:
    """Kill, start again, look, and so on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Report("serve_kill") as report:
        trial = Trial(Path(name), args.seed)
        trial.measure()
        server = trial.start()
        server.wait()
        for number in range(args.kills):
            line = trial.kill(server, KINDS[number % len(KINDS)])
            line["again"] = trial.random.random() < 0.25
            if line["again"]:
                trial.kill_at_start()
            server = trial.start()
            report.add({"kill": number + 1, **line, **trial.check(server)})
        server.process.kill()
        server.process.wait()
        good = sum(not line["wrong"] for line in report.lines)
        report.add({"kills": args.kills, "as_acknowledged": good, "load_s": round(trial.load_seconds, 2)})
    sys.exit(good < args.kills)


if __name__ == "__main__":
    main()
