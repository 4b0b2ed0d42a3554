"""Attacks by other people's pages, names and paths."""

import asyncio
import base64
import json
import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
import trustme
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_services.gateway.server import tls_context
from ltxtrain_services.gateway.sign_in import local_path
from ltxtrain_services.runtime.settings import Settings, SettingsError
from ltxtrain_services.runtime.work import Attempt, Ending
from tests.services.gateway.conftest import TOKENS
from tests.services.gateway.running import MARKUP, Suite, running

SUBMIT = "/fal-ai/ltx23-trainer-v2/extend-prefix"
# Actions of a job's page.
CALLS = ("cancel", "delete", "retry", "checkpoint", "preview")
SHEET = b'{"training_data_url": "https://example.com/clips.zip"}'


async def post(suite: Suite, path: str, headers: Mapping[str, str], body: bytes = SHEET) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(suite.url + path, data=body, headers=headers, allow_redirects=False) as answer,
    ):
        return answer.status


@pytest.mark.parametrize(
    "path",
    [
        SUBMIT, "/jobs", "/estimate", "/sign-in", "/sign-out", "/uploads", "/datasets",
        f"/datasets/{'0' * 32}/check", *(f"/jobs/{'0' * 32}/{call}" for call in CALLS),
    ],
)  # fmt: skip
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


@pytest.mark.parametrize("accept", ["text/html,*/*;q=0.8", "*/*"])
async def test_a_wrong_address_is_a_page_for_a_person(suite: Suite, accept: str) -> None:
    async with aiohttp.ClientSession(headers={"Accept": accept}) as session:
        for path in ("/nowhere", "/static/none.css", f"/jobs/{'0' * 32}/files/a%2Fb"):
            async with session.get(suite.url + path) as answer:
                text = await answer.text()
                assert answer.status == 404 and answer.headers["X-Content-Type-Options"] == "nosniff"
                assert ("<h1>" in text and "Content-Security-Policy" in answer.headers) is (accept != "*/*")
        async with session.get(f"{suite.url}/no{MARKUP}") as answer:
            text = await answer.text()
            assert "Nothing is at /no" in text and (MARKUP not in text or accept == "*/*")
        async with session.get(f"{suite.url}/estimate") as answer:
            assert answer.status == 405 and "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("given", ["/evil.example", "//evil.example", f"datasets/{'0' * 32}?a=b", MARKUP])
async def test_what_a_link_says_is_no_address(suite: Suite, given: str) -> None:
    """The page's script makes an address of the name of a dataset."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{suite.url}/new", params={"dataset": given}) as answer:
            assert answer.status == 200 and given not in await answer.text()
        async with session.get(f"{suite.url}/new", params={"dataset": f"datasets/{'0' * 32}"}) as answer:
            assert f'value="datasets/{"0" * 32}"' in await answer.text()


@pytest.mark.parametrize(
    "sheet",
    ["{", "[]", "{" * 2000, '{"options": 3, "validation": [3, {"prompt": 4}]}', f'{{"trigger_phrase": {MARKUP!r}}}'],
)
async def test_a_sheet_in_a_link_is_a_sheet_or_nothing(suite: Suite, sheet: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{suite.url}/new", params={"sheet": sheet}) as answer:
            assert answer.status == 200 and MARKUP not in await answer.text()
        filled = {"trigger_phrase": MARKUP, "rank": 64, "no_such": 1, "validation": [{"prompt": MARKUP}]}
        async with session.get(f"{suite.url}/new", params={"sheet": json.dumps(filled)}) as answer:
            text = await answer.text()
            assert MARKUP not in text and "<script>" not in text and "<option selected>64</option>" in text


async def test_nobody_reaches_what_is_anothers(secure: Suite, authority: trustme.CA) -> None:
    """Not by a page, a stream, a file or an action; not although the owner has just looked at it."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    base, cookies = f"https://localhost:{secure.port}", dict[str, dict[str, str]]()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        key = {"Authorization": f"Key {TOKENS['ann']}"}
        async with session.post(base + SUBMIT, data=SHEET, headers=key) as answer:
            job = (await answer.json())["request_id"]
    for name, token in TOKENS.items():
        cookies[name] = {"ltxtrain-token": base64.urlsafe_b64encode(token.encode()).decode()}
    requests = f"/fal-ai/ltx23-trainer-v2/requests/{job}"
    reads = [f"/jobs/{job}", f"/jobs/{job}/events", f"/jobs/{job}/files/lora.safetensors", f"/new?job={job}"]
    reads += [f"/new?continue_from={job}", requests, f"{requests}/status", f"{requests}/status/stream"]
    writes = [*(("POST", f"/jobs/{job}/{call}") for call in CALLS), ("PUT", f"{requests}/cancel")]
    for name, found in (("ann", {200, 202}), ("bob", {404})):
        headers = {"Authorization": f"Key {TOKENS[name]}"}
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context), cookies=cookies[name], headers=headers
        ) as session:
            calls = [("GET", path) for path in reads] + (writes if name == "bob" else [])
            for method, path in calls:
                # Files are elsewhere: nobody listens there.
                async with session.request(method, base + path, allow_redirects=False) as answer:
                    assert answer.status in found | ({302} if name == "ann" else set()), f"{name} {method} {path}"
                    await answer.read()


async def test_there_are_no_more_requests_than_it_bears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("ltxtrain_services.gateway.server.MAX_REQUESTS", 1)
    async with running(tmp_path, Settings(grace_seconds=1.0)) as suite, aiohttp.ClientSession() as session:
        suite.train.play = play
        async with session.post(suite.url + SUBMIT, data=SHEET) as answer:
            job = (await answer.json())["request_id"]
        async with session.get(f"{suite.url}/jobs/{job}/events") as stream:
            assert (await stream.content.readline()).startswith(b"id: ")
            async with session.get(f"{suite.url}/jobs") as answer:
                assert answer.status == 503 and answer.headers["Retry-After"]


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
