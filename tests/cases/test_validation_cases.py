"""Validation cases, and the archives whose end the job's settings decide, through the services."""

from typing import Any

import pytest

from tests.cases.reasons import NOT_OURS, PREPROCESS_ERRORS, PREPROCESS_LINES
from tests.cases_table import FOLDER, cases, media
from tests.services.preprocess.running import Preprocess, settings

ARCHIVES = [case for case in cases("zip") if case["expect"].get("reason") in NOT_OURS]


def chosen(case: dict[str, Any], **changes: Any) -> Any:
    request = case["expect"].get("request", {})
    if request.get("with_audio"):
        changes["audio"] = {"normalize": True}
    changes["conditioningFrames"] = request.get("conditioning_frames", 9)
    return settings(fitOnly=True, training={"frameCount": 89}, validation={"frameCount": 89}, **changes)


@pytest.mark.parametrize("case", cases("validation"), ids=lambda case: case["id"])
async def test_validation(case: dict[str, Any], preprocess: Preprocess) -> None:
    reason = case["expect"]["reason"]
    control = FOLDER / "media" / "ctl_av.mp4"
    training, validation = await preprocess.dataset({"a.mp4": control}), await preprocess.videos(media(case))
    ended = await preprocess.run(training, chosen(case, validationPrompts=["it goes on"]), validation)
    assert ended.state == "FAILED" and ended.reason in PREPROCESS_ERRORS[reason]
    (line,) = [line for line in ended.clip_lines if set(ended.reasons(line.path)) & PREPROCESS_LINES[reason]]
    if case["id"] == "v_short_at_rate":
        assert "12 frames at 24 fps, 17 needed" in ended.message
        assert (line.frame_count, line.needed_frames) == (12, 17)


@pytest.mark.parametrize("case", ARCHIVES, ids=lambda case: case["id"])
async def test_archive(case: dict[str, Any], preprocess: Preprocess) -> None:
    expect = case["expect"]
    ingested = await preprocess.ingest.upload(media(case))
    assert ingested.state == "SUCCEEDED"
    ended = await preprocess.run(ingested.dataset.name, chosen(case))
    assert ended.state == "FAILED" and ended.reason in PREPROCESS_ERRORS[expect["reason"]]
    assert ended.message == expect.get("message", ended.message)
    if case["id"] == "z_audio_mixed":
        assert set(ended.subjects) == {"b.mp4"}
        without = await preprocess.run(ingested.dataset.name, settings(fitOnly=True, training={"frameCount": 89}))
        assert without.state == "SUCCEEDED" and len(without.samples) == 2
