"""Actions of a job's page, and what the form of a new job has beside the sheet."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from google.protobuf.struct_pb2 import Struct
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import ContinueMode, Job
from ltxtrain.v1.work_pb2 import Event, Stage, State, TrainMetrics
from ltxtrain_client import TrainClient, connect, parse_sheet

from ltxtrain_services.gateway import live, views
from ltxtrain_services.gateway.story import Story
from ltxtrain_services.runtime.errors import FailedPrecondition
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.work import Attempt, Ending
from ltxtrain_services.train.publication import FACTS
from tests.services.gateway.running import MARKUP, Suite, file_of, succeed, tell, train_steps

SHEET: dict[str, Any] = {
    "training_data_url": "https://example.com/clips.zip",
    "validation": [{"prompt": "a coast", "video_url": "https://example.com/opening.mp4"}],
}


@pytest.fixture
async def train(suite: Suite) -> AsyncIterator[TrainClient]:
    async with connect(suite.train_address) as channel:
        yield TrainClient(channel)


class Browser:
    """The calls that a browser makes of the pages."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session

    async def get(self, path: str) -> str:
        async with self._session.get(self._url + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()

    async def press(self, path: str) -> tuple[int, str]:
        """The status and where it leads, or the text of the page."""
        async with self._session.post(self._url + path, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location") or await answer.text()

    async def send(self, query: Mapping[str, str], sheet: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Send the form of a new job."""
        async with self._session.post(f"{self._url}/jobs", params=query, data=json.dumps(sheet)) as answer:
            return answer.status, await answer.json()

    async def post(self, path: str, document: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        async with self._session.post(self._url + path, json=document) as answer:
            return answer.status, await answer.json()

    async def parts(self, job: str, part: str) -> AsyncIterator[str]:
        """A part of a job's page, each time that it is drawn."""
        async with self._session.get(f"{self._url}/{job}/events") as answer:
            async for line in answer.content:
                if line.startswith(b"data: ") and part in (found := json.loads(line[6:])):
                    yield found[part]


@pytest.fixture
async def browser(suite: Suite) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession() as session:
        yield Browser(suite.url, session)


def actions(html: str) -> set[str]:
    """Paths that forms and links lead to, without the job's own, and what is asked for."""
    return {path.rpartition("/")[2] for path in re.findall(r'(?:action|href)="([^"]+)"', html)} | set(
        re.findall(r"<button disabled>(\w+) asked for<", html)
    )


async def upto(shown: AsyncIterator[str], wanted: set[str]) -> None:
    """Read on until these actions are offered, among others."""
    async for html in shown:
        if wanted <= actions(html):
            return
    raise AssertionError(f"never offered: {wanted}")


async def test_a_training_is_asked_for_a_checkpoint_and_previews(
    suite: Suite, train: TrainClient, browser: Browser
) -> None:
    """Once its steps have begun; until each is done, the page says that it is asked for."""
    gates = [asyncio.Event() for _ in range(3)]

    async def play(attempt: Attempt[Job]) -> Ending[Job]:
        await gates[0].wait()
        async with attempt.edit() as edit:
            edit.put_child(FACTS, "training", Struct())
        await train_steps(attempt, 2)
        await gates[1].wait()
        async with attempt.edit() as edit:
            edit.body.checkpoint_requested = False
            edit.add_event(Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=3)))
        await gates[2].wait()
        # The service clears this flag without an event.
        async with attempt.edit() as edit:
            edit.body.preview_requested = False
        await tell(attempt, Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=4)))
        await suite.train.go.wait()
        return await succeed(attempt)

    suite.train.play = play
    sheet = parse_sheet(SHEET)
    job = (await train.submit(sheet.spec, sheet.options)).name
    shown = browser.parts(job, "actions")
    assert actions(await anext(shown)) & {"checkpoint", "preview", "Checkpoint", "Preview"} == set()
    status, text = await browser.press(f"/{job}/checkpoint")
    assert status == 422 and "has not begun" in text and "RESOURCE_NOT_READY" in text and "<h1>" in text
    gates[0].set()
    await upto(shown, {"checkpoint", "preview", "cancel"})
    for call in ("checkpoint", "checkpoint", "preview"):
        assert await browser.press(f"/{job}/{call}") == (303, f"/{job}")
    found = await train.get_job(job)
    assert found.checkpoint_requested and found.preview_requested
    # Both the page that is opened now and its stream.
    asked = actions(await browser.get(f"/{job}"))
    assert {"Checkpoint", "Preview"} <= asked and not {"checkpoint", "preview"} & asked
    later = browser.parts(job, "actions")
    await upto(later, {"Checkpoint", "Preview"})
    gates[1].set()
    await upto(later, {"checkpoint", "Preview"})
    gates[2].set()
    await upto(later, {"checkpoint", "preview"})
    suite.train.go.set()
    async for html in later:
        ended = html
    assert not {"checkpoint", "preview", "cancel", "retry"} & actions(ended)
    assert {f"new?continue_from={job[5:]}", "delete"} <= actions(ended)
    assert (await browser.press(f"/{job}/preview"))[0] == 422


def test_a_shared_drawing_is_one_of_the_same_requests() -> None:
    """Requests are no events: the cursor alone does not tell drawings apart."""
    story = Story()
    drawn = [
        live._drawn(Job(name=f"jobs/{'0' * 32}", checkpoint_requested=asked), story, ["actions"], views.job_part)
        for asked in (False, True, False)
    ]
    assert ["asked for" in text for text in drawn] == [False, True, False]


async def test_going_on_with_a_failed_job_leads_to_the_new_one(
    suite: Suite, train: TrainClient, browser: Browser
) -> None:
    async def fail(attempt: Attempt[Job]) -> Ending[Job]:
        raise FailedPrecondition(ErrorReason.ERROR_REASON_TRAINING_DIVERGED, "Its numbers are not finite.")

    suite.train.play = fail
    sheet = parse_sheet(SHEET)
    job = (await train.submit(sheet.spec, sheet.options, display_name=MARKUP)).name
    async for html in browser.parts(job, "actions"):
        ended = html
    assert {"retry", "delete"} <= actions(ended) and "continue_from" not in ended
    # The same again would end the same way: changes are what helps.
    assert "<button>Go on" in ended and f'class="button main" href="/new?job={job[5:]}"' in ended
    suite.train.play = succeed
    status, page = await browser.press(f"/{job}/retry")
    assert status == 303 and page != f"/{job}"
    # Pressed twice, or from a page that is left open.
    assert await browser.press(f"/{job}/retry") == (303, page)
    assert (await train.get_job(page[1:])).continue_from.source == job
    async for _ in browser.parts(page[1:], "actions"):
        pass
    status, text = await browser.press(f"{page}/retry")
    assert status == 422 and "RESOURCE_NOT_READY" in text and "succeeded" in text
    escaped = MARKUP.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = escaped.replace('"', "&#34;").replace("'", "&#39;")
    for path in (f"/{job}", page, "/jobs", f"/new?job={job[5:]}", f"/new?continue_from={page[6:]}"):
        text = await browser.get(path)
        assert MARKUP not in text and escaped in text, path
    assert f"<title>{escaped} ({job})</title>" in await browser.get(f"/{job}")


async def test_a_form_continues_a_job_and_names_it(suite: Suite, train: TrainClient, browser: Browser) -> None:
    sheet = parse_sheet(SHEET | {"rank": 16, "options": {"schedule": "constant"}})
    source = (await train.submit(sheet.spec, sheet.options, display_name="coast")).name
    async for _ in browser.parts(source, "actions"):
        pass
    html = await browser.get(f"/new?continue_from={source[5:]}")
    assert f'name="continue_from.source" value="{source}"' in html and 'name="display_name" value="coast"' in html
    assert "<option selected>exact</option>" in html and "<option selected>16</option>" in html
    # The service's faults have the form's places; a name that is too long is one of all at once.
    query = {"continue_from.source": source, "continue_from.mode": "weights", "display_name": "n" * 129}
    status, answer = await browser.send(query, {"rank": 32})
    assert status == 422
    assert {tuple(item["loc"][1:]) for item in answer["detail"]} == {("display_name",), ("rank",)}
    for broken in ({"display_name": "n" * 129}, query):
        status, answer = await browser.send(broken, {"training_data_url": 3})
        assert status == 422 and ["body", "display_name"] in [item["loc"] for item in answer["detail"]]
    assert (await browser.send(query | {"continue_from.mode": "other"}, {}))[0] == 422

    query |= {"display_name": "coast, again"}
    status, answer = await browser.send(query, {"number_of_steps": 150})
    assert status == 200, answer
    made = await train.get_job(answer["location"][1:])
    assert made.display_name == "coast, again" and made.effective_spec.extend_prefix.rank == 16
    assert made.continue_from.source == source and made.continue_from.mode == ContinueMode.CONTINUE_MODE_WEIGHTS
    assert made.lifecycle.state != State.STATE_UNSPECIFIED and "coast, again" in await browser.get("/jobs")


async def test_a_form_continues_a_clip_with_a_jobs_lora(suite: Suite, train: TrainClient, browser: Browser) -> None:
    sheet = parse_sheet(SHEET | {"trigger_phrase": MARKUP, "options": {"seed": 7}})
    source = (await train.submit(sheet.spec, sheet.options)).name
    async for html in browser.parts(source, "actions"):
        ended = html
    assert f'href="/{source}/continue"' in ended
    html = await browser.get(f"/{source}/continue")
    assert f'data-action="/{source}/continue"' in html and MARKUP not in html
    names = set(re.findall(r' name="([^"]+)"', html))
    assert {"openings[0].video_url", "openings[0].prompt", "number_of_frames", "base_model", "options.seed"} <= names
    assert "with_audio" not in names and 'placeholder="89"' in html and 'placeholder="7"' in html
    assert "Its first 9 frames, at 24 a second, are continued." in html and "validation_frame_rate" not in html

    status, answer = await browser.post(f"/{source}/continue", {"openings": [{"prompt": "on"}], "sampling_steps": 1})
    places = {tuple(item["loc"][1:]) for item in answer["detail"]}
    assert status == 422 and places == {("openings", 0, "video_url"), ("sampling_steps",)}
    status, answer = await browser.post(f"/{source}/continue", {"openings": "all", "rank": 8})
    assert status == 422 and [item["loc"][1:] for item in answer["detail"]] == [["openings"], ["rank"]]

    opening = {"prompt": "on", "video_url": "https://example.com/a.mp4"}
    suite.train.play = continue_one
    given = {"openings": [opening], "number_of_frames": 57, "base_model": True}
    status, answer = await browser.post(f"/{source}/continue", given)
    assert status == 200, answer
    made = (await train.get_job(answer["location"][1:])).name
    async for html in browser.parts(made, "previews"):
        shown = html
    found = await train.get_job(made)
    assert found.effective_spec.continue_clips.number_of_frames == 57 and found.options.seed == 7
    assert f'src="/{made}/files/continued-clip-1.mp4"' in shown and f'src="/{made}/files/base-clip-1.mp4"' in shown
    page = await browser.get(f"/{made}")
    assert f'<a href="/{source}">clips with {source}/artifacts/lora.safetensors</a>' in page
    assert "unspecified" not in page
    offered = actions(page)
    assert "delete" in offered and not {"continue", "checkpoint", f"new?job={made[5:]}"} & offered
    assert "1 clip continued" in await browser.get("/jobs")
    result = json.loads(await browser.get(f"/fal-ai/ltx23-trainer-v2/requests/{made[5:]}"))
    assert [file["file_name"] for file in result["continued_videos"]] == ["continued-clip-1.mp4"]


async def continue_one(attempt: Attempt[Job]) -> Ending[Job]:
    """A clip continued with the LoRA and without."""

    def ending(edit: Edit[Job]) -> None:
        kinds = {"base-clip-1.mp4": Artifact.KIND_BASE_VIDEO, "continued-clip-1.mp4": Artifact.KIND_CONTINUED_VIDEO}
        for name, kind in kinds.items():
            made = file_of(edit.body.name, name, kind, step=100, validation_index=0)
            edit.put_child("artifacts", name, made)
            edit.add_event(Event(stage=Stage.STAGE_PREVIEW, artifact=made))
        edit.body.output.continued_videos.append(f"{edit.body.name}/artifacts/continued-clip-1.mp4")

    return ending
