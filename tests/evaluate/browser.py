"""A page in headless Chromium, spoken to over the DevTools protocol: for tests that need a real browser."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMED = "FLEXTOK_CHROMIUM"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# --no-sandbox: as root in containers there is none to be had; the pages are our own.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-port=0",
)
LISTENING = "DevTools listening on "
ANSWER_S = 30


def find_chromium() -> str | None:
    """The program that FLEXTOK_CHROMIUM names, or one of PROGRAMS; None where there is none."""
    return os.environ.get(NAMED) or next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextlib.contextmanager
def browser(program: str) -> Iterator["Browser"]:
    """A browser with a profile of its own, ended at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *OPTIONS, f"--user-data-dir={profile}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                told = next((line for line in process.stderr if LISTENING in line), "")
                with connect(told.partition(LISTENING)[2].strip(), max_size=None) as socket:
                    yield Browser(socket)
            finally:
                process.kill()


class Browser:
    """Pages by the protocol's messages; the events that came between the answers are kept."""

    def __init__(self, socket: ClientConnection):
        self._socket, self._numbers = socket, itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to a command."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        self._socket.send(json.dumps(message))
        while True:
            found = json.loads(self._socket.recv(ANSWER_S))
            if found.get("id") == number:
                assert "error" not in found, found["error"]
                return found["result"]
            self.events.append(found)

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False, script: bool = True) -> "Page":
        """The page of a file, in a window of that size; `script`: whether its own may work."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for part in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{part}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Emulation.setScriptExecutionDisabled", value=not script)
        page.call("Page.navigate", url=path.as_uri())
        page.wait_for("Page.loadEventFired")
        return page


class Page:
    """An open page."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command."""
        return self._browser.call(method, self._session, **parameters)

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """What the page has told by these methods."""
        own = (event for event in self._browser.events if event.get("sessionId") == self._session)
        return [event["params"] for event in own if event["method"] in methods]

    def wait_for(self, method: str) -> None:
        """Until the page has told so."""
        while not self.events(method):
            self.js("0")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as from the keyboard."""
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Escape": 27, "Tab": 9, "Enter": 13}[key]
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """`mouseMoved`, `mousePressed` or `mouseReleased` at a place in the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors, warnings and uncaught exceptions of the console, refusals of the policy among them."""
        thrown = [each["exceptionDetails"]["text"] for each in self.events("Runtime.exceptionThrown")]
        logged = [each["entry"]["text"] for each in self.events("Log.entryAdded")]
        called = [json.dumps(each["args"]) for each in self.events("Runtime.consoleAPICalled")]
        return thrown + logged + called

    def asked_for(self) -> list[str]:
        """Addresses that were requested, those within the page left out."""
        asked = [each["request"]["url"] for each in self.events("Network.requestWillBeSent")]
        return [address for address in asked if not address.startswith("data:")]
