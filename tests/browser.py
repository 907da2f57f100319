"""A headless Chromium, spoken to over its pipe: what a page logs, asks the network for and looks like.

`python -m tests.browser page.html shot.png --width 390 --height 900 --at "#traffic" --dark` takes a picture.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
LISTENED = ("Page", "Runtime", "Log", "Network")


class Browser:
    """One page in a browser. `events` are those of the DevTools protocol so far."""

    def __init__(self, to: BinaryIO, back: BinaryIO) -> None:
        self.to, self.back = to, back
        self.events: list[dict[str, Any]] = []
        self._number, self._session = 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in LISTENED:
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What `method` of the DevTools protocol answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        found: dict[str, Any] = answer["result"]
        return found

    def open(self, page: Path | str, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file or address, as wide as this many CSS pixels; comes back when its scripts have run."""
        self.events.clear()
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """What `expression` is in the page, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """What the page logged as warning or error, and what it did not catch."""
        wrong = {"Runtime.exceptionThrown": "exceptionDetails", "Log.entryAdded": "entry"}
        found = [str(e["params"][wrong[e["method"]]]) for e in self.events if e["method"] in wrong]
        logs = [e["params"] for e in self.events if e["method"] == "Runtime.consoleAPICalled"]
        return found + [str(log["args"]) for log in logs if log["type"] in ("warning", "error", "assert")]

    def requests(self) -> list[str]:
        """The addresses that it asked for."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [parameters["request"]["url"] for parameters in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _next(self) -> dict[str, Any]:
        """The next message, which ends with a zero byte."""
        message = bytearray()
        while (byte := self.back.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser is gone")
            message += byte
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium of its own, gone afterwards."""
    assert CHROMIUM is not None, "no chromium"
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # the pipe's ends must be file descriptors 3 and 4 there
        script = f'exec "$@" 3<&{to_read} 4>&{back_write}'
        command = ["bash", "-c", script, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, pass_fds=(to_read, back_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(back_write)
        try:
            with open(to_write, "wb") as to, open(back_read, "rb") as back:
                yield Browser(to, back)
        finally:
            process.terminate()
            process.wait(timeout=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", help="a file or an address")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--at", default="body", help="CSS selector of where the picture starts")
    parser.add_argument("--run", default="", help="JavaScript to run before")
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    page = asked.page if "://" in asked.page else Path(asked.page)
    with browser() as shown:
        shown.open(page, asked.width, asked.height, asked.dark)
        if asked.run:
            shown.value(asked.run)
        shown.value("new Promise(done => setTimeout(done, 800))")
        place = f"document.querySelector({json.dumps(asked.at)}).getBoundingClientRect().top"
        shown.value(f"scrollBy({{top: {place} - 24, behavior: 'instant'}})")
        shown.value("new Promise(done => setTimeout(done, 200))")
        shown.picture(asked.picture)
        for complaint in shown.complaints():
            print(complaint)


if __name__ == "__main__":
    main()
