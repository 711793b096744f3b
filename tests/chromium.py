"""A page in a real browser: Debian's chromium, driven through the DevTools protocol over a pipe."""

import base64
import json
import os
import shutil
import subprocess

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    PROGRAM is None, reason="needs chromium: on Debian and Ubuntu, apt-get install chromium"
)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--remote-debugging-pipe", "--disable-background-networking", "about:blank",
)  # fmt: skip
WATCHED = ("Page", "Network", "Runtime", "Log")


class Browser:
    """One chromium with one tab. What the tab does is kept in `events`, as the protocol names it."""

    def __init__(self, profile):
        hears, self._to = os.pipe()
        self._from, says = os.pipe()
        # The protocol's pipe is 3 (commands) and 4 (answers) of the browser.
        command = f'exec "$@" 3<&{hears} 4>&{says}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "chromium", PROGRAM, f"--user-data-dir={profile}", *OPTIONS],
            pass_fds=(hears, says), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(hears), os.close(says)
        self._rest, self._count, self._session, self.events = b"", 0, None, []
        (page,) = [
            one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in WATCHED:
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._to), os.close(self._from)

    def call(self, method, **parameters):
        """The result of a command; events that come before it are kept."""
        self._count += 1
        wanted = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            wanted["sessionId"] = self._session
        os.write(self._to, json.dumps(wanted).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._count:
                assert "error" not in message, message["error"]
                return message["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            piece = os.read(self._from, 1 << 20)
            assert piece, "chromium has ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path, width=1280, height=900, dark=False):
        """Loads a file and waits until it is there, its pictures decoded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def value(self, expression):
        """What JavaScript says."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", **asked)["result"].get("value")

    def happened(self, *methods):
        """The parameters of such events since `open`."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def screenshot(self, path):
        """The whole page as a PNG file."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )
        path.write_bytes(base64.b64decode(shot["data"]))
