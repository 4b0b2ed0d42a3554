"""Damaged archives and clips: each ends in a reason, none is a bug, none takes the service with it."""

import asyncio
from pathlib import Path

import pytest

from tests.cases_table import FOLDER
from tests.clips import write_zip
from tests.services.ingest.damage import damage
from tests.services.ingest.running import Ingest

# Small ones, of every container and of every form of archive.
CLIPS = [FOLDER / "media" / name for name in ("ctl_plain.mp4", "tmcd.mov", "bframes.avi", "nocount.mkv", "frag.mp4")]
ARCHIVES = [FOLDER / "zip" / f"z_{name}.zip" for name in ("plain", "zip64", "streamed", "deflate64", "captions")]
CONTROL = FOLDER / "media" / "exact89.mp4"
# Far beyond what any of them takes; a hang would last for ever.
LIMIT_SECONDS = 120.0


async def check_archives(ingest: Ingest, folder: Path, seeds: range) -> None:
    for seed in seeds:
        data = ARCHIVES[seed % len(ARCHIVES)].read_bytes()
        path = folder / f"{seed}.zip"
        path.write_bytes(damage(data, ARCHIVES[(seed + 1) % len(ARCHIVES)].read_bytes(), seed) or b"\0")
        async with asyncio.timeout(LIMIT_SECONDS):
            ended = await ingest.upload(path)
        assert ended.state in {"SUCCEEDED", "FAILED"}, seed
        assert (ended.reason == "") == (ended.state == "SUCCEEDED"), seed
        assert ended.reason in {"", "NO_VIDEOS", "NO_USABLE_CLIPS"} or ended.reason.startswith("ARCHIVE_"), seed


async def check_clips(ingest: Ingest, folder: Path, seeds: range) -> None:
    files: dict[str, bytes | Path | str] = {"control.mp4": CONTROL}
    for seed in seeds:
        clip, other = CLIPS[seed % len(CLIPS)], CLIPS[(seed + 1) % len(CLIPS)]
        files[f"{seed:03}{clip.suffix}"] = damage(clip.read_bytes(), other.read_bytes(), seed)
    async with asyncio.timeout(LIMIT_SECONDS):
        ended = await ingest.upload(write_zip(folder / f"clips{seeds.start}.zip", files))
    assert ended.state == "SUCCEEDED"
    assert {item.path for item in ended.lines} == {*files, *({""} if len(ended.clips) < 10 else ())}
    assert "control.mp4" in {clip.path for clip in ended.clips}
    for item in ended.lines:
        assert "not foreseen" not in item.description, item
        if item.path and item.path not in {clip.path for clip in ended.clips}:
            told = {"UNDECODABLE", "CLIP_DAMAGED", "NO_VIDEO_TRACK", "PRESENTATION_UNSUPPORTED", "ACTOR_KILLED"}
            assert set(ended.reasons(item.path)) <= told, item


async def test_damaged_archives(ingest: Ingest, tmp_path: Path) -> None:
    await check_archives(ingest, tmp_path, range(15))


async def test_damaged_clips(ingest: Ingest, tmp_path: Path) -> None:
    await check_clips(ingest, tmp_path, range(15))


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_two_hundred_damaged_files(ingest: Ingest, tmp_path: Path) -> None:
    await check_archives(ingest, tmp_path, range(1000, 1100))
    for start in range(2000, 2100, 20):
        await check_clips(ingest, tmp_path, range(start, start + 20))
