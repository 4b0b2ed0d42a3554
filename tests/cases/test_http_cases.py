"""Every misbehaving server of the manifest, fetched from, ends as the manifest says."""

import zipfile
from typing import Any

import pytest

from tests.cases.reasons import ERRORS
from tests.cases_table import FOLDER, bounded, cases
from tests.services.ingest import web
from tests.services.ingest.running import Ingest
from tests.services.ingest.web import Web
from tests.services.ingest.zips import archive_bytes


@pytest.fixture(scope="session")
def served() -> bytes:
    """One clip with the caption that the manifest names."""
    with zipfile.ZipFile(FOLDER / "zip" / "z_plain.zip") as archive:
        return archive_bytes({"a.mp4": archive.read("set/a.mp4"), "a.txt": b"served"})


def handlers(server: Web, behaviour: str, route: str, body: bytes) -> dict[str, web.Handler]:
    """Handlers of the case's route, and of those it leads to."""
    other = f"{route}.moved"
    match behaviour:
        case "plain":
            return {route: web.plain(body)}
        case "chunked":
            return {route: web.chunked(body)}
        case "redirects":
            return {
                route: web.redirect(server.url(f"{other}1")),
                f"{other}1": web.redirect(server.url(f"{other}2"), 307),
                f"{other}2": web.redirect(f"{other}3".rpartition("/")[2]),
                f"{other}3": web.plain(body),
            }
        case "redirect_loop":
            return {route: web.redirect(route)}
        case "redirect_private":
            return {route: web.redirect("http://169.254.169.254/latest/meta-data/")}
        case "html":
            return {route: web.html()}
        case "404":
            return {}
        case "truncated":
            return {route: web.truncated(body)}
        case "cut_once":
            return {route: web.cut(body, times=1)}
        case "gzip":
            return {route: web.gzipped(body)}
        case "huge":
            return {route: web.huge()}
        case "503_once":
            return {route: web.failing_once(503, web.plain(body), Retry_After=1)}
        case "no_ext":
            headers = {
                "Content_Type": "application/octet-stream",
                "Content_Disposition": 'attachment; filename="c.zip"',
            }
            return {route: web.plain(body, **headers)}
    raise AssertionError(f"the manifest has a new behaviour: {behaviour}")


@pytest.mark.parametrize("case", cases("http"), ids=lambda case: case["id"])
async def test_case(case: dict[str, Any], ingest: Ingest, served: bytes) -> None:
    expect, server = case["expect"], ingest.web
    route = expect["route"].split("?")[0]
    server.handlers |= handlers(server, expect["behaviour"], route, served)
    async with bounded(expect):
        ended = await ingest.run(archive_url=server.url(expect["route"]))
    if expect["action"] == "accept":
        assert ended.state == "SUCCEEDED", ended.dataset.lifecycle.error
        assert [(clip.path, clip.caption) for clip in ended.clips] == [
            (item["entry"], item["caption"]) for item in expect["clips"]
        ]
    else:
        assert ended.state == "FAILED"
        assert ended.reason in ERRORS[expect["reason"]]
    assert server.requests[expect["route"]] <= expect.get("max_requests", 5)


async def test_a_web_page_is_named_as_such(ingest: Ingest) -> None:
    ingest.web.handlers["/share"] = web.html()
    ended = await ingest.run(archive_url=ingest.web.url("/share?id=secret"))
    assert "web page" in ended.dataset.lifecycle.error.message
    assert "upload" in ended.dataset.lifecycle.error.message
    assert "secret" not in str([ended.dataset.lifecycle, ended.events, ended.lines])
