"""A headless Chromium, driven over its DevTools pipe: a page's picture, its width, and its errors.

The protocol is JSON with a NUL after each message, commands on descriptor 3 and answers on 4.
It needs no port and no library (https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any, Final

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE: Final = 60.0  # seconds for one answer

_FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# subprocess itself may hold 3 or 4 until the child begins: the child's own first act puts ours there.
_TRAMPOLINE: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4), os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own that ends, and is forgotten, with the block."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        their_in, our_out = os.pipe()
        our_in, their_out = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (their_in, their_out)]
        process = subprocess.Popen(
            [sys.executable, "-c", _TRAMPOLINE, *map(str, theirs), CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (their_in, their_out, *theirs):
            os.close(end)
        try:
            yield Browser(our_in, our_out)
        finally:
            for end in (our_in, our_out):
                os.close(end)
            try:
                process.wait(PATIENCE)  # it ends when its pipe does
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Browser:
    """One tab. `complaints` are its console errors and the refusals of its Content-Security-Policy."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number = 0
        self._session: str | None = None
        self._rest = b""
        self._events: list[dict[str, Any]] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            self._ask(f"{domain}.enable")

    def open(self, url: str, *, width: int, dark: bool = False) -> None:
        """Load a page, as on a screen `width` pixels wide."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self._ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, as JSON."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9}[key])

    def shoot(self, path: Path, *, height: int | None = None) -> None:
        """Write a PNG of the whole page, or of its upper `height` pixels."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        shot = self._ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    @property
    def complaints(self) -> list[str]:
        """Since the page was opened."""
        self._ask("Runtime.evaluate", expression="0")  # with its answer all earlier messages have arrived
        said = []
        for event in self._events:
            match event:
                case {"method": "Log.entryAdded", "params": {"entry": entry}}:
                    said.append(entry["text"])
                case {"method": "Runtime.exceptionThrown" | "Runtime.consoleAPICalled", "params": params}:
                    said.append(json.dumps(params))
        return said

    def _ask(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            said = self._read()
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]
            self._events.append(said)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select([self._reading], [], [], PATIENCE)[0], "Chromium does not answer"
            part = os.read(self._reading, 1 << 20)
            assert part, "Chromium ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        said: dict[str, Any] = json.loads(message)
        return said
