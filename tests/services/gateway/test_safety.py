"""Attacks by other people's pages, names and paths."""

import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
import trustme

from ltxtrain_services.gateway.server import tls_context
from ltxtrain_services.gateway.sign_in import local_path
from ltxtrain_services.runtime.settings import Settings, SettingsError
from tests.services.gateway.conftest import TOKENS
from tests.services.gateway.running import Suite

SUBMIT = "/fal-ai/ltx23-trainer-v2/extend-prefix"
SHEET = b'{"training_data_url": "https://example.com/clips.zip"}'


async def post(suite: Suite, path: str, headers: Mapping[str, str], body: bytes = SHEET) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(suite.url + path, data=body, headers=headers, allow_redirects=False) as answer,
    ):
        return answer.status


@pytest.mark.parametrize("path", [SUBMIT, "/jobs", "/estimate", "/sign-out", f"/jobs/{'0' * 32}/delete"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_pages_of_other_sites_start_nothing(suite: Suite, path: str, headers: Mapping[str, str]) -> None:
    assert await post(suite, path, {"Content-Type": "text/plain", **headers}) == 403


async def test_own_pages_and_programs_are_let_in(suite: Suite) -> None:
    assert await post(suite, SUBMIT, {"Origin": suite.url}) == 200
    assert await post(suite, SUBMIT, {"Sec-Fetch-Site": "same-origin"}) == 200
    assert await post(suite, SUBMIT, {}) == 200


async def test_a_name_that_resolves_here_is_not_ours(suite: Suite) -> None:
    """A page of another site can have its own name lead to this machine; its browser then thinks that we are it."""
    headers = {"Host": f"evil.example:{suite.port}", "Origin": f"http://evil.example:{suite.port}"}
    assert await post(suite, SUBMIT, headers) == 403
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{suite.url}/jobs", headers={"Host": f"evil.example:{suite.port}"}) as answer:
            assert answer.status == 403
        async with session.get(f"http://localhost:{suite.port}/jobs") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("given", "followed"),
    [
        ("/jobs/1?a=b", "/jobs/1?a=b"),
        ("", "/jobs"),
        ("https://evil.example/", "/jobs"),
        ("//evil.example/", "/jobs"),
        ("/\\evil.example/", "/jobs"),
        ("\\\\evil.example", "/jobs"),
        ("/\t/evil.example", "/jobs"),
        ("/jobs\r\nSet-Cookie: a=b", "/jobs"),
        ("javascript:alert(1)", "/jobs"),
    ],
)
def test_signing_in_leads_nowhere_else(given: str, followed: str) -> None:
    assert local_path(given) == followed


async def test_every_page_has_its_policy(suite: Suite) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/jobs", "/new", "/sign-in", f"/jobs/{'0' * 32}"):
            async with session.get(suite.url + path) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
                assert "frame-ancestors 'none'" in policy and answer.headers["X-Content-Type-Options"] == "nosniff"
                text = await answer.text()
                assert "<script>" not in text and "http://" not in text.replace(suite.url, "")


@pytest.mark.parametrize("path", ["/static/..%2f..%2fpages.py", "/static/job.html", f"/jobs/{'0' * 32}/files/..%2fx"])
async def test_paths_lead_to_nothing_else(suite: Suite, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(suite.url + path) as answer:
        assert answer.status == 404


async def test_a_request_has_an_end(suite: Suite) -> None:
    assert await post(suite, SUBMIT, {}, b" " * (2**20 + 1)) == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff\xfe", b"{" * 100_000, b'{"options": 3}', b"9" * 5000])
async def test_what_is_no_sheet_is_told_so(suite: Suite, body: bytes) -> None:
    assert await post(suite, SUBMIT, {}, body) == 422


@pytest.mark.parametrize("header", ["Basic YTpi", "Key", "Key a b", "Key \u00fc", "Bearer " + "x" * 600])
async def test_what_is_no_key_is_refused(suite: Suite, header: str) -> None:
    assert await post(suite, SUBMIT, {"Authorization": header}) == 401


async def test_the_cookie_is_out_of_reach(secure: Suite, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with aiohttp.ClientSession() as session:
        form, address = {"token": TOKENS["ann"], "next": "//evil.example"}, f"https://localhost:{secure.port}/sign-in"
        async with session.post(address, data=form, ssl=context, allow_redirects=False) as answer:
            assert answer.status == 303 and answer.headers["Location"] == "/jobs"
            cookie = answer.headers["Set-Cookie"]
            assert all(word in cookie for word in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/"))
            assert TOKENS["ann"] not in cookie


def test_other_machines_are_let_in_by_the_rules_of_the_services(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LTXTRAIN_TOKENS_FILE"):
        tls_context(Settings(bind="0.0.0.0:7000"))
    (tmp_path / "tokens").write_text("ann token\n")
    assert tls_context(Settings(bind="0.0.0.0:7000", tokens_file=tmp_path / "tokens")) is None
