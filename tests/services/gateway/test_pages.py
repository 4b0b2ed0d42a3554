"""Pages in a real browser, against a Train service whose jobs the test plays."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Outcome, ReportLine, Stage, TrainMetrics
from ltxtrain_client import TrainClient, connect, parse_sheet

from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.work import Attempt, Ending
from tests.services.gateway.chromium import browsing
from tests.services.gateway.running import MARKUP, Suite, running, succeed, tell, train_steps, wait_in_line
from tests.services.pages.browser import needs_browser

SHEET: dict[str, Any] = {
    "training_data_url": "https://example.com/clips.zip",
    "trigger_phrase": f"phrase {MARKUP}",
    "validation": [{"prompt": f"prompt {MARKUP}", "video_url": "https://example.com/opening.mp4"}],
}
TOKEN = "ann-token-0123456789"


async def submit(suite: Suite, token: str = "") -> str:
    async with connect(suite.train_address) as channel:
        channel.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        sheet = parse_sheet(SHEET)
        return (await TrainClient(channel).submit(sheet.spec, sheet.options)).name


@needs_browser
async def test_a_job_is_drawn_as_it_goes_and_its_texts_stay_texts(suite: Suite, tmp_path: Path) -> None:
    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        line = ReportLine(path=f"{MARKUP}.mp4", outcome=Outcome.OUTCOME_SKIPPED, description=MARKUP)
        await tell(attempt, Event(stage=Stage.STAGE_INGEST, report_line=line))
        await wait_in_line(attempt, 1)
        await suite.train.go.wait()
        await train_steps(attempt, 3)
        suite.train.go.clear()
        await suite.train.go.wait()
        await tell(
            attempt, Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=4, loss=0.1, video_loss=0.1))
        )
        return await succeed(attempt)

    suite.train.play = play
    job = await submit(suite)
    async with browsing(tmp_path) as page:
        await page.open(f"{suite.url}/jobs")
        await page.until("document.body.innerText.includes('1 job ahead')")
        await page.click("#rows a")
        await page.until("document.querySelector('#head').innerText.includes('1 job ahead')")
        assert f"{MARKUP}.mp4" in await page.text("#dataset")
        # On a phone the details are there without scrolling sideways.
        await page.resize(390, 800)
        cells = "[...document.querySelectorAll('#dataset td')]"
        assert await page.run(f"{cells}.every((cell) => cell.getBoundingClientRect().right <= innerWidth)")
        suite.train.go.set()
        await page.until("document.querySelector('#training polyline')?.getAttribute('points').split(' ').length === 3")
        # A lost connection: the browser comes back by itself and misses nothing.
        await page.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        await page.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        suite.train.go.set()
        await page.until("document.querySelector('[data-events]').dataset.ended")
        assert "succeeded" in await page.text("h1") and "lora.safetensors" in await page.text("#files")
        assert await page.run("document.title") == job
        assert await page.run("document.querySelectorAll('main img, main script').length") == 0
        await page.open(f"{suite.url}/jobs")
        assert MARKUP in await page.text("#rows")


@needs_browser
async def test_faults_are_told_beside_their_fields(suite: Suite, tmp_path: Path) -> None:
    async with browsing(tmp_path) as page:
        await page.open(f"{suite.url}/new")
        await page.until("document.querySelector('#estimate').innerText.includes('2000 billable units')")
        await page.type("#number_of_steps", "300")
        await page.until("document.querySelector('#estimate').innerText.includes('300 billable units')")
        await page.type("#conditioning_frames", "10")
        await page.until("document.querySelector('#conditioning_frames-wrong').innerText.includes('modulo 8')")
        await page.click("button[type=submit]")
        await page.until("document.querySelector('#training_data_url-wrong').innerText !== ''")
        assert await page.run("document.activeElement.getAttribute('aria-invalid')") == "true"
        await page.run("document.querySelector('#conditioning_frames').value = '17'")
        await page.type("#training_data_url", "https://example.com/clips.zip")
        await page.type("#options-seed", "7")
        await page.click("button[type=submit]")
        await page.until("location.pathname.startsWith('/jobs/') && document.querySelector('#spec')")
        assert "conditioning_frames\t17" in await page.text("#spec") and '"seed": 7' in await page.text("#spec")
        # Again, with what was chosen in place.
        await page.click("a[href^='/new?job=']")
        await page.until("document.querySelector('#options-seed')?.value === '7'")
        for width in (1280, 390):
            await page.resize(width, 800)
            assert await page.run("document.documentElement.scrollWidth <= innerWidth")


@needs_browser
async def test_signing_in_and_out(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann {TOKEN}\nbob bob-token-0123456789\n")
    async with running(tmp_path, Settings(tokens_file=tokens, grace_seconds=1.0)) as suite, browsing(tmp_path) as page:
        ann, bob = await submit(suite, TOKEN), await submit(suite, "bob-token-0123456789")
        await page.open(f"{suite.url}/{ann}")
        await page.until("location.pathname === '/sign-in'")
        await page.type("#token", "wrong")
        await page.click("button.main")
        await page.until("document.querySelector('.fault')")
        await page.type("#token", TOKEN)
        await page.click("button.main")
        await page.until(f"location.pathname === '/{ann}'")
        assert await page.run("document.cookie") == ""
        await page.open(f"{suite.url}/jobs")
        links = await page.run("[...document.querySelectorAll('#rows a')].map((link) => link.pathname)")
        assert links == [f"/{ann}"]
        await page.open(f"{suite.url}/{bob}")
        assert "RESOURCE_NOT_FOUND" in await page.text()
        await page.click("nav button")
        await page.until("location.pathname === '/sign-in'")
        await page.open(f"{suite.url}/jobs")
        await page.until("location.pathname === '/sign-in'")


async def test_a_stream_goes_on_at_its_cursor(suite: Suite) -> None:
    """A reader that is up to date is sent nothing again, one that is not is drawn everything."""
    job = await submit(suite)
    async with connect(suite.train_address) as channel:
        async for _ in TrainClient(channel).watch_job(job):
            pass
        last = (await TrainClient(channel).get_job(job)).lifecycle.last_sequence
    async with aiohttp.ClientSession() as session:

        async def read(cursor: int) -> str:
            async with session.get(f"{suite.url}/{job}/events", headers={"Last-Event-ID": str(cursor)}) as answer:
                return await answer.text()

        whole = await read(0)
        assert f"id: {last}\n" in whole and "lora.safetensors" in whole
        assert await read(last) == "event: end\ndata: {}\n\n"


async def test_a_page_of_a_job_that_has_ended_offers_what_may_be_done_then(suite: Suite) -> None:
    """Also where the last that was read of it is of a time when it was running."""

    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await train_steps(attempt, 1)
        await suite.train.go.wait()
        return await succeed(attempt)

    suite.train.play = play
    job = await submit(suite)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{suite.url}/{job}/events") as stream:
            async for line in stream.content:
                if b"Loss" in line:
                    break
        suite.train.go.set()
        async with connect(suite.train_address) as channel:
            async for _ in TrainClient(channel).watch_job(job):
                pass
        async with session.get(f"{suite.url}/{job}") as answer:
            html = await answer.text()
    assert '<span class="chip succeeded">' in html
    assert f'action="/{job}/cancel"' not in html and f'action="/{job}/delete"' in html


async def test_open_pages_end_when_the_process_drains(tmp_path: Path) -> None:
    """At once: what calls get as their grace would be ten minutes."""

    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await asyncio.Event().wait()
        raise AssertionError

    async with asyncio.timeout(120), aiohttp.ClientSession() as session:
        async with running(tmp_path, Settings(grace_seconds=600.0)) as suite:
            suite.train.play = play
            answer = await session.get(f"{suite.url}/{await submit(suite)}/events")
            assert (await answer.content.readline()).startswith(b"id: ")
        with contextlib.suppress(aiohttp.ClientError):
            while await answer.content.readline():
                pass
