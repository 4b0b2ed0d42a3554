"""The whole way as a person goes it, in a browser: drop a zip, read its report, train on it, watch, download."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.gateway.server import serving
from ltxtrain_services.local.up import Suite
from ltxtrain_services.runtime.settings import Settings
from tests.services.gateway.chromium import browsing
from tests.services.pages.browser import needs_browser
from tests.suite.conftest import SHEET, Clients, finished

pytestmark = needs_browser


@pytest.fixture
async def gateway(suite: Suite) -> AsyncIterator[str]:
    """The URL of a gateway before the running suite."""
    settings = Settings(
        train=suite.train_address,
        ingest=suite.ingest_address,
        preprocess=suite.preprocess_address,
        s3_endpoint=suite.store.address.endpoint,
        grace_seconds=1.0,
    )
    async with serving(settings) as url:
        yield url


async def test_from_a_zip_to_a_lora(
    gateway: str, clients: Clients, clips_zip: Path, opening: Path, tmp_path: Path
) -> None:
    async with browsing(tmp_path) as page:
        # The data first, as a job would train on it.
        await page.open(f"{gateway}/new")
        await page.choose("#training_data_url-file", clips_zip)
        await page.until("document.querySelector('#training_data_url').value.startsWith('upload:')")
        for name in ("trigger_phrase", "number_of_steps", "learning_rate", "number_of_frames"):
            await page.type(f"#{name}", str(SHEET[name]))
        await page.type("#validation_number_of_frames", "17")
        await page.type("#display_name", "drifting, by day")
        await page.type("#options-preview_interval", "40")
        for name in ("rank", "resolution", "aspect_ratio", "validation_resolution", "validation_aspect_ratio"):
            await page.run(f"document.querySelector('#{name}').value = '{SHEET.get(name, '')}'")
        await page.type("#validation-0-prompt", "drifting shapes, a disc")
        await page.click("#check")
        await page.until("location.pathname.startsWith('/trainingSets/')")
        await page.until("document.querySelector('[data-events]').dataset.ended")
        assert "drifting, by day" in await page.text("h1") and "succeeded" in await page.text("h1")
        assert "used for training" in await page.text("#head")
        assert "kept" in await page.text("#dataset") and await page.text("#suggestions li")
        sheet = str(await page.run("document.querySelector('iframe.sheet').src"))
        async with aiohttp.ClientSession() as session, session.get(sheet) as answer:
            assert answer.content_type == "text/html" and "given to the model" in await answer.text()
        # Then the job, with what was typed.
        await page.click(".actions .button.main")
        await page.until("document.querySelector('#estimate')?.innerText.includes('billable unit')")
        assert await page.run("document.querySelector('#validation-0-prompt').value") == "drifting shapes, a disc"
        await page.choose("#validation-0-video_url-file", opening)
        await page.until("document.querySelector('#validation-0-video_url').value.startsWith('upload:')")
        await page.until("document.querySelector('#estimate').innerText.includes('billable unit')")
        await page.click("button[type=submit]")
        await page.until("location.pathname.startsWith('/jobs/')")
        address = str(await page.run("location.href"))
        # The curve grows point by point.
        points = "(document.querySelector('#training polyline')?.getAttribute('points') || '').split(' ').length"
        first = await page.until(f"{points} > 2 && {points}")
        await page.until(f"{points} > {first}")
        # Closed and opened again, everything is there, and the rest comes.
        await page.open("about:blank")
        await page.open(address)
        assert await page.until(f"{points} > {first}")
        await page.until("document.querySelectorAll('#previews video').length >= 2")
        job = await finished(clients, address.removeprefix(f"{gateway}/"))
        await page.until("document.querySelector('[data-events]').dataset.ended")
        assert "succeeded" in await page.text("h1")
        # All that job.html shows.
        assert "Weights, all finite" in await page.text("#audit") and "Base model" in await page.text("#head")
        link = await page.run("document.querySelector('#files a[href$=\"/lora.safetensors\"]').href")
        assert page.complaints == []
    assert job.lifecycle.state == State.STATE_SUCCEEDED
    artifact = (await clients.train.get_artifact(job.output.lora_file)).artifact
    async with aiohttp.ClientSession() as session, session.get(str(link)) as answer:
        assert hashlib.sha256(await answer.read()).hexdigest() == artifact.blob.sha256
