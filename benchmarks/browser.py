"""A headless Chromium, driven over its own protocol through two pipes: what a page says on its console, and does."""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
WORDS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-zygote", "--single-process", "--remote-debugging-pipe")
PATIENCE = 60  # seconds
# Not subprocess's preexec_fn, which may hang in a process that has threads.
LAUNCH = """
import fcntl, os, sys
spare = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]  # the pipes may be 3 or 4 themselves
for there, here in zip(spare, (3, 4)):
    os.dup2(there, here)
os.execv(sys.argv[3], sys.argv[3:])
"""


def path() -> str | None:
    """Where a Chromium is: `CHROME_PATH`, or on the search path."""
    return os.environ.get("CHROME_PATH") or next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab. ``complaints``: errors and warnings of the console, exceptions, and requests that left ``home``."""

    def __init__(self, to: int, back: int, home: tuple[str, ...]) -> None:
        self._home = (*home, "data:", "blob:")
        self._to, self._back, self._buffer, self._number, self._session = to, back, b"", 0, {}
        self.complaints: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for part in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Ask for ``method`` and wait for its answer; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], PATIENCE)
            part = os.read(self._back, 1 << 16) if ready else b""
            assert part, "the browser has gone" if ready else f"the browser says nothing for {PATIENCE} s"
            self._buffer += part

        # A message ends at a zero byte; what is not an answer tells what happened in the page.
        whole, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(whole)
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(params["entry"]["text"])
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith(self._home):
                self.complaints.append(params["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"a script ran: {params['message']}")
        return message

    def open(self, file: Path, fragment: str = "") -> None:
        """Go to a file and wait until it is loaded with its scripts run."""
        self.visit(file.resolve().as_uri() + fragment)

    def visit(self, address: str) -> None:
        """The same of any address."""
        for url in ("about:blank", address):  # another fragment alone would load nothing
            self._loaded = False
            self.call("Page.navigate", url=url)
            while not self._loaded:
                self._receive()

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, patience: float = PATIENCE) -> None:
        """Until an expression in the page is true."""
        end = time.monotonic() + patience
        while not self.run(script):
            assert time.monotonic() < end, f"after {patience} s not: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.2)

    def press(self, key: str, code: int, **more: Any) -> None:
        """Press a key and let it go; ``code``: its Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)


@contextmanager
def opened(binary: str, profile: Path, *home: str) -> Iterator[Page]:
    """Start a browser that reads commands on its descriptor 3 and answers on 4; stop it afterwards."""
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()

    words = [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), binary, *WORDS]
    ours = (theirs_in, theirs_out)
    browser = subprocess.Popen([*words, f"--user-data-dir={profile}"], pass_fds=ours, stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(to, back, home or ("file:",))
    finally:
        browser.kill()
        browser.wait()
        os.close(to)
        os.close(back)
