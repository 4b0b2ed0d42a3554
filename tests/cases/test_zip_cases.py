"""Every zip of the manifests, ingested, ends as they say."""

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ltxtrain.v1.work_pb2 import Outcome as LineOutcome

from tests import cards
from tests.cases.reasons import ERRORS, LINES, NOT_OURS
from tests.cases_table import FOLDER, bounded, cases, media
from tests.services.ingest.running import Ingest, Outcome

# Where the manifest allows several ends: ours, as conformance.md has it.
CHOSEN: dict[str, dict[str, Any]] = {
    "z_deflate64": {"action": "accept", "clips": [{"entry": "a.mp4", "caption": "d64"}]},
    "z_duplicate": {"action": "accept", "clips": [{"entry": "a.mp4", "caption": "first"}]},
}
MORE: list[dict[str, Any]] = json.loads((FOLDER / "more_zips.json").read_text())["cases"]


def expected(case: dict[str, Any]) -> dict[str, Any]:
    expect: dict[str, Any] = CHOSEN.get(case["id"], case["expect"])
    if expect.get("reason") in NOT_OURS:
        return {"action": "accept", "clips": None}
    return expect


def check_clips(ended: Outcome, expect: dict[str, Any]) -> None:
    assert ended.state == "SUCCEEDED", ended.dataset.lifecycle.error
    left_to_preprocess = {item["entry"] for item in expect.get("skipped", []) if item["reason"] in NOT_OURS}
    found = {clip.path: clip.caption for clip in ended.clips if clip.path not in left_to_preprocess}
    if expect["clips"] is not None:
        nfc = {unicodedata.normalize("NFC", item["entry"]): item["caption"] or "" for item in expect["clips"]}
        assert found == nfc
    for item in expect.get("skipped", []):
        if item["reason"] not in NOT_OURS:
            assert set(ended.reasons(item["entry"])) & LINES[item["reason"]]
            assert item["entry"] not in found
    paths = [clip.path for clip in ended.clips]
    assert paths == sorted(paths)


@pytest.mark.parametrize("case", cases("zip"), ids=lambda case: case["id"])
async def test_case(case: dict[str, Any], ingest: Ingest) -> None:
    expect = expected(case)
    async with bounded(expect):
        ended = await ingest.upload(media(case))
    if expect["action"] == "accept":
        check_clips(ended, expect)
    else:
        assert ended.state == "FAILED"
        assert ended.reason in ERRORS[expect["reason"]]
        assert not ended.clips
    if "message" in expect:
        assert expect["message"] in ended.dataset.lifecycle.error.message
    assert ended.lines or case["id"] in {"z_html", "z_truncated", "z_empty"}
    assert LineOutcome.OUTCOME_UNSPECIFIED not in {item.outcome for item in ended.lines}


def first_card(data: bytes) -> int:
    """Number of a clip's first frame."""
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))
        return cards.number(np.asarray(frame.to_ndarray(format="rgb24")))


@pytest.mark.parametrize("case", MORE, ids=lambda case: case["id"])
async def test_further_case(case: dict[str, Any], ingest: Ingest) -> None:
    expect = case["expect"]
    ended = await ingest.upload(media(case))
    # Where the manifest tolerates a refusal or a skip: ours are kept, all of them, with the caption as it was written.
    assert ended.state == "SUCCEEDED", ended.dataset.lifecycle.error
    right = {item["path"]: item.get("captions", [item.get("caption")])[0] for item in expect["clips"]}
    assert {clip.path: clip.caption for clip in ended.clips} == right
    for clip, item in zip(ended.clips, expect["clips"], strict=True):
        assert first_card(await ingest.runtime.objects.get_bytes(clip.blob.key)) // 512 == item["clip"]
    skipped = [item.path for item in ended.lines if item.outcome == LineOutcome.OUTCOME_SKIPPED]
    assert skipped == []
    told = " ".join(item.description for item in ended.lines)
    assert not [words for words in expect.get("untrue", []) if words in told]


async def test_nothing_is_written_outside_of_the_work_folder(ingest: Ingest) -> None:
    slip = next(case for case in cases("zip") if case["id"] == "z_slip")
    await ingest.upload(media(slip))
    state_dir = ingest.runtime.settings.state_dir
    assert not list(state_dir.parent.rglob("evil*"))
    assert not Path("/abs").exists()
    assert not list((state_dir / "ingest").glob("*"))
