"""A headless Chromium that opens files without network, where one is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

PLAYS_H264 = """<!doctype html><p id=answer></p><script>
answer.textContent = document.createElement("video").canPlayType('video/mp4; codecs="avc1.64001f, mp4a.40.2"') || "no";
</script>"""


def open_page(page: Path, folder: Path, width: int = 1280) -> str:
    """The document after its scripts ran, as HTML; `page` is a file, shown in a window of so many pixels."""
    assert PROGRAM is not None
    command = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command.append(f"--window-size={width},800")
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def plays_h264(folder: Path) -> bool:
    probe = folder / "probe.html"
    probe.write_text(PLAYS_H264)
    return ">no<" not in open_page(probe, folder)
