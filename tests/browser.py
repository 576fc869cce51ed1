"""A headless Chromium, driven over its DevTools pipe without any package."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60  # seconds that anything may take


class Browser:
    """One page. `problems` collects what its console says, exceptions, and requests that failed."""

    def __init__(self, folder: Path, *flags: str):
        (read, write), (own_read, own_write) = os.pipe(), os.pipe()  # to the browser; from it
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read, own_write)]
        command = [PATH, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", *flags, "about:blank"]
        self.process = os.posix_spawn(PATH, command, os.environ, setpgroup=0, file_actions=[
            (os.POSIX_SPAWN_DUP2, theirs[0], 3), (os.POSIX_SPAWN_DUP2, theirs[1], 4),
            (os.POSIX_SPAWN_OPEN, 2, str(folder / "browser.log"), os.O_WRONLY | os.O_CREAT, 0o600)])
        for fd in (read, own_write, *theirs):
            os.close(fd)
        self.to, self.source = write, own_read
        self.text, self.number, self.session, self.problems, self.requests = b"", 0, None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _receive(self, deadline: float) -> dict:
        while b"\0" not in self.text:
            ready, _, _ = select.select([self.source], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            self.text += os.read(self.source, 1 << 16)
        message, _, self.text = self.text.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str, params: dict) -> None:
        if event == "Runtime.exceptionThrown":
            thrown = params["exceptionDetails"]
            self.problems.append(thrown.get("exception", {}).get("description", thrown["text"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(str(params["args"]))
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, address: str, width: int = 1280, height: int = 860, dark: bool = False) -> None:
        self.look(width, height, dark)
        self.call("Page.navigate", url=address)

    def look(self, width: int, height: int, dark: bool) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def js(self, expression: str):
        """The value of an expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True,
                           userGesture=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.js(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                shown = self.js("document.body?.innerText")
                raise AssertionError(f"{expression} is not true: {self.problems} {shown}")
            time.sleep(0.05)

    def text_of(self, selector: str) -> str:
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def mouse(self, kind: str, selector: str) -> None:
        """"mousePressed" or "mouseReleased" in the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.js(f"{box}.x + {box}.width / 2"), self.js(f"{box}.y + {box}.height / 2")
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str) -> None:
        self.mouse("mousePressed", selector)
        self.mouse("mouseReleased", selector)

    def key(self, kind: str, key: str) -> None:
        """"keyDown" or "keyUp" of Enter, Tab, Escape or a space."""
        code = {"Enter": 13, "Tab": 9, " ": 32, "Escape": 27}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        more = {"text": text} if text and kind == "keyDown" else {}
        self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                  code="Space" if key == " " else key, **more)

    def press(self, key: str) -> None:
        self.key("keyDown", key)
        self.key("keyUp", key)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def close(self) -> None:
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.to)
        os.close(self.source)
