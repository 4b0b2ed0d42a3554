"""Long clips become their scenes, and what a clip's own rate and length do, through the front of the service."""

from fractions import Fraction
from pathlib import Path

import pytest
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from tests import cards
from tests.clips import Video, numbered, write_clip
from tests.services.preprocess.running import Ended, Preprocess, settings


def inverted(count: int, clip: int) -> list[cards.Picture]:
    """Cards that are no continuation of `numbered` ones."""
    return [255 - picture for picture in numbered(count, clip=clip)]


@pytest.fixture(scope="session")
async def split(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A clip of three scenes, the last of which is too short, and one as long as the threshold."""
    folder = tmp_path_factory.mktemp("split")
    long = write_clip(folder / "long.mp4", [*numbered(20, clip=1), *inverted(18, clip=2), *numbered(10, clip=3)])
    just = write_clip(folder / "just.mp4", [*numbered(18, clip=4), *inverted(18, clip=5)])
    dataset = await preprocess.dataset(
        {"a/long.mp4": long, "a/long.txt": "of the parent", "b/just.mp4": just, "b/just.txt": "whole"}
    )
    ended = await preprocess.run(dataset, settings(fitOnly=True, splitAboveSeconds=1.5, triggerPhrase="sks"))
    assert ended.state == "SUCCEEDED", ended.message
    return ended


def told(line: ReportLine) -> tuple[str, str, list[str]]:
    reasons = [ReportReason.Name(reason).removeprefix("REPORT_REASON_") for reason in line.reasons]
    return line.path, Outcome.Name(line.outcome).removeprefix("OUTCOME_"), reasons


async def test_each_scene_is_a_clip_with_its_parents_caption(preprocess: Preprocess, split: Ended) -> None:
    scenes = [sample for sample in split.samples if sample.caption == "sks of the parent"]
    assert [sample.start_frame for sample in scenes] == [0, 20]
    assert len({sample.clip for sample in scenes}) == 1
    first = await preprocess.fetch_clip(scenes[0].clip_preview)
    assert [cards.number(picture) for picture in first.frames] == [512 + index for index in range(17)]
    second = await preprocess.fetch_clip(scenes[1].clip_preview)
    assert [cards.number(255 - picture) for picture in second.frames] == [1024 + index for index in range(17)]


async def test_the_contact_sheet_tells_scenes_of_one_clip_apart(preprocess: Preprocess, split: Ended) -> None:
    page = (await preprocess.fetch(split.training_set.contact_sheet)).decode()
    starts = [sample.start_frame for sample in split.samples if sample.caption == "sks of the parent"]
    assert len(starts) == 2
    for start in starts:
        assert f'<span class="path">a/long.mp4</span> <span>scene from frame {start}</span>' in page
    assert page.count("scene from frame") == 2


async def test_the_report_names_the_clip_and_each_of_its_scenes(split: Ended) -> None:
    parent, first, second, third = (line for line in split.lines if line.path == "a/long.mp4")
    assert told(parent) == ("a/long.mp4", "KEPT_CHANGED", ["SPLIT"])
    assert [cut.frame for cut in parent.numbers.scene_cuts] == [20, 38]
    assert told(first)[1:] == told(second)[1:] == ("KEPT_CHANGED", ["FRAMES_UNUSED"])
    assert told(third)[1:] == ("SKIPPED", ["SCENE_TOO_SHORT"])
    assert (third.frame_count, third.needed_frames) == (10, 17)
    report = split.training_set.report
    assert (report.clips, report.split_clips, report.scenes, report.samples) == (2, 1, 3, 3)


async def test_a_clip_at_the_threshold_is_never_split(split: Ended) -> None:
    (whole,) = (sample for sample in split.samples if sample.caption == "sks whole")
    assert whole.start_frame == 0
    (line,) = (line for line in split.lines if line.path == "b/just.mp4")
    assert told(line)[1:] == ("KEPT_CHANGED", ["FRAMES_UNUSED"])


async def test_a_rate_of_its_own_is_named_and_kept_or_resampled(preprocess: Preprocess, tmp_path: Path) -> None:
    dataset = await preprocess.dataset(
        {
            "near.mp4": write_clip(tmp_path / "near.mp4", numbered(17, clip=6), Video(rate=Fraction(24_000, 1001))),
            "slow.mp4": write_clip(tmp_path / "slow.mp4", numbered(17, clip=7), Video(rate=Fraction(12))),
        }
    )
    as_they_are = await preprocess.run(dataset, settings(fitOnly=True))
    assert as_they_are.reasons("near.mp4") == ["CAPTION_MISSING"]
    assert as_they_are.reasons("slow.mp4") == ["FRAME_RATE_DIFFERS", "CAPTION_MISSING"]
    assert [sample.frame_rate for sample in as_they_are.samples] == pytest.approx([24_000 / 1001, 12])
    resampled = await preprocess.run(dataset, settings(fitOnly=True, autoScaleInput=True))
    assert "FRAME_RATE_DIFFERS" not in resampled.reasons("slow.mp4")
    assert [sample.frame_rate for sample in resampled.samples] == [24, 24]
