"""A headless Chromium that a test drives as a person would, by its DevTools protocol."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.services.pages.browser import PROGRAM

# Safety alone: what is waited for comes when it comes.
SECONDS = 240.0


class Page:
    """One page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        # What the page was refused, threw or wrote to its console as an error.
        self.complaints: list[str] = []
        self._loads: set[str] = set()
        self._loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                # Whoever asked may have given up.
                if not (answer := self._answers.pop(found["id"])).done():
                    answer.set_result(found)
            elif found["method"] == "Page.lifecycleEvent" and found["params"]["name"] == "load":
                self._loads.add(found["params"]["loaderId"])
                self._loaded.set()
            elif found["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(found["params"]["exceptionDetails"])[:500])
            elif found["method"] == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
                self.complaints.append(found["params"]["entry"]["text"])

    async def call(self, method: str, **parameters: Any) -> Any:
        found = await self._ask(method, **parameters)
        assert "error" not in found, found
        return found["result"]

    async def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer, which is an error where the page went elsewhere meanwhile."""
        self._last += 1
        self._answers[self._last] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        async with asyncio.timeout(SECONDS):
            found: dict[str, Any] = await answer
        return found

    async def open(self, url: str) -> None:
        """Go to an address, or to where it leads."""
        loader = (await self.call("Page.navigate", url=url))["loaderId"]
        async with asyncio.timeout(SECONDS):
            while loader not in self._loads:
                self._loaded.clear()
                await self._loaded.wait()

    async def run(self, script: str) -> Any:
        """The value of a script."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, script: str) -> Any:
        """The script's value, once it is true."""
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    # An element is no value.
                    plain = f"(found => found instanceof Node || found)({script})"
                    found = (await self._ask("Runtime.evaluate", expression=plain, returnByValue=True)).get(
                        "result", {}
                    )
                    if "exceptionDetails" not in found and (value := found.get("result", {}).get("value")):
                        return value
                    await asyncio.sleep(0.05)
        except TimeoutError:
            alerts = "[...document.querySelectorAll('[role=alert]')].map((alert) => alert.innerText).join(' ')"
            shown = await self.run(f"[location.href, {alerts}, document.body.innerText].join('\\n')")
            raise AssertionError(f"{script} never became true at {shown[:3000]} {self.complaints}") from None

    async def click(self, selector: str) -> None:
        found = await self._ask(
            "Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)}).click()"
        )
        assert "exceptionDetails" not in found.get("result", {}), found

    async def type(self, selector: str, text: str) -> None:
        """Type into an input, as a keyboard does."""
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def choose(self, selector: str, path: Path) -> None:
        """Choose a file."""
        document = await self.call("DOM.getDocument")
        found = await self.call("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
        await self.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(path)])

    async def text(self, selector: str = "body") -> str:
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def go_offline(self, offline: bool) -> None:
        rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await self.call("Network.emulateNetworkConditions", offline=offline, **rates)

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """A page of a browser of its own, which knows no other host than this machine."""
    assert PROGRAM is not None
    profile = folder / "profile"
    command = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank"]
    quiet = subprocess.DEVNULL
    browser = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = await answer.json()
            url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
                    await page.call(f"{domain}.enable")
                await page.call("Page.setLifecycleEventsEnabled", enabled=True)
                yield page
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(SECONDS):
        while not file.exists() or "\n" not in file.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return int(file.read_text().splitlines()[0])
