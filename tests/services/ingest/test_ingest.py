"""The service by its RPCs: sources, reports, cancel, delete, what is shared and what is found again."""

import asyncio
import hashlib
import random
import time
import uuid
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from ltxtrain.v1.work_pb2 import Outcome as LineOutcome
from ltxtrain.v1.work_pb2 import ReportReason, State
from ltxtrain_client.errors import CallError

from ltxtrain_services.runtime.blobs import KEEP_UNUSED_SECONDS
from tests.cases_table import FOLDER
from tests.clips import numbered, write_clip, write_zip
from tests.processes import find, kill
from tests.services.ingest import web
from tests.services.ingest.clocks import set_clocks
from tests.services.ingest.process import PROBER
from tests.services.ingest.running import Ingest, Outcome
from tests.services.ingest.zips import archive_bytes, build

MEDIA = FOLDER / "media"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three small clips that no other test has, so that nothing of them is in the store."""
    folder = tmp_path_factory.mktemp("clips")
    names = {"a": "a.mp4", "b": "b.mov", "c": "c.mkv"}
    return {
        key: write_clip(folder / name, numbered(12, clip=40 + index, size=(64, 64))).read_bytes()
        for index, (key, name) in enumerate(names.items())
    }


def reasons_of(ended: Outcome) -> dict[str, tuple[str, list[str]]]:
    return {
        item.path: (
            LineOutcome.Name(item.outcome).removeprefix("OUTCOME_"),
            [ReportReason.Name(reason).removeprefix("REPORT_REASON_") for reason in item.reasons],
        )
        for item in ended.lines
    }


async def test_every_file_ends_in_one_line(ingest: Ingest, clips: dict[str, bytes], tmp_path: Path) -> None:
    files = {
        "set/a.mp4": clips["a"],
        "set/a.txt": b"a caption",
        "set/b.mov": clips["b"],
        "set/b.mov.txt": "café".encode("cp1252"),
        "set/c.mkv": clips["c"],
        "set/again.mp4": clips["a"],
        "set/again.mov": clips["a"],
        "set/again.txt": b"both",
        "set/empty.txt": b"",
        "set/broken.mp4": b"\0" * 500,
        "set/song.mp4": (MEDIA / "song.mp4").read_bytes(),
        "set/other.webm": b"webm",
        "set/inner.zip": b"PK",
        "set/notes.pdf": b"pdf",
        "__MACOSX/set/._a.mp4": b"junk",
        "silent.mp4": (MEDIA / "silent.mp4").read_bytes(),
    }
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", files))
    assert ended.state == "SUCCEEDED"
    assert reasons_of(ended) == {
        "": ("KEPT", ["FEW_CLIPS"]),
        "set/a.mp4": ("KEPT", []),
        "set/a.txt": ("KEPT", []),
        "set/b.mov": ("KEPT", []),
        "set/b.mov.txt": ("KEPT_CHANGED", ["CAPTION_REPAIRED"]),
        "set/c.mkv": ("KEPT", ["CAPTION_MISSING"]),
        "set/again.mov": ("KEPT", ["CAPTION_SHARED", "DUPLICATE_CONTENT"]),
        "set/again.mp4": ("KEPT", ["CAPTION_SHARED", "DUPLICATE_CONTENT"]),
        "set/again.txt": ("KEPT", ["CAPTION_SHARED"]),
        "set/empty.txt": ("IGNORED", ["CAPTION_ORPHAN"]),
        "set/broken.mp4": ("SKIPPED", ["UNDECODABLE"]),
        "set/song.mp4": ("SKIPPED", ["NO_VIDEO_TRACK"]),
        "set/other.webm": ("SKIPPED", ["IGNORED_FILE"]),
        "set/inner.zip": ("IGNORED", ["NESTED_ARCHIVE"]),
        "set/notes.pdf": ("IGNORED", ["IGNORED_FILE"]),
        "__MACOSX/set/._a.mp4": ("IGNORED", ["IGNORED_FILE"]),
        "silent.mp4": ("KEPT", ["CAPTION_MISSING", "AUDIO_SILENT"]),
    }
    told = [event.report_line for event in ended.events if event.WhichOneof("detail") == "report_line"]
    assert sorted(told, key=str) == sorted(ended.lines, key=str)
    dataset = ended.dataset
    counts = (dataset.clip_count, dataset.caption_count, dataset.skipped_count, dataset.ignored_count)
    assert counts == (6, 4, 3, 4)
    kept = {item.path: item for item in ended.lines}
    assert kept["set/again.mp4"].numbers.duplicate_of == "set/a.mp4"
    assert [clip.name.rpartition("/")[2] for clip in ended.clips] == ["0", "1", "2", "3", "5", "7"]


async def test_captions_of_every_form(ingest: Ingest, clips: dict[str, bytes], tmp_path: Path) -> None:
    """The .txt counts wherever there is one with a caption; every use and every conflict has its line."""
    names = ("txt", "caption", "json", "row", "same", "bare", "empty")
    table = [
        ("txt", "of the row"),
        ("caption", "of the file"),
        ("row", "of the row"),
        ("same", "equal"),
        ("empty", "row"),
    ]
    files = {f"{name}.mp4": clips["a"] for name in names} | {
        "txt.txt": b"of the txt",
        "txt.caption": b"of the caption",
        "caption.caption": b"of the file",
        "json.json": b'{"caption": "of the json"}',
        "same.txt": b"equal",
        "same.json": b'{"text": "equal"}',
        "bare.json": b'{"title": "of something else"}',
        "empty.txt": b" ",
        "other.json": b"{}",
        "captions.csv": b"x",
        "metadata.jsonl": "".join(
            f'{{"file_name": "{name}.mp4", "text": "{text}"}}\n' for name, text in [*table, ("lost", "x")]
        ).encode(),
        "metadata.csv": b"file_name,caption\nrow.mp4,of the csv\n",
    }
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", files))
    assert {clip.path: clip.caption for clip in ended.clips} == {
        "txt.mp4": "of the txt",
        "caption.mp4": "of the file",
        "json.mp4": "of the json",
        "row.mp4": "of the row",
        "same.mp4": "equal",
        "bare.mp4": "",
        "empty.mp4": "row",
    }
    assert ended.dataset.caption_count == 6
    found = {
        path: (kind, [one for one in why if one != "DUPLICATE_CONTENT"])
        for path, (kind, why) in reasons_of(ended).items()
    }
    assert found == {
        "": ("KEPT", ["FEW_CLIPS"]),
        "txt.mp4": ("KEPT", ["CAPTION_CONFLICT"]),
        "txt.txt": ("KEPT", []),
        "txt.caption": ("IGNORED", ["CAPTION_CONFLICT"]),
        "caption.mp4": ("KEPT", []),
        "caption.caption": ("KEPT", []),
        "json.mp4": ("KEPT", []),
        "json.json": ("KEPT", []),
        "row.mp4": ("KEPT", ["CAPTION_FROM_TABLE", "CAPTION_CONFLICT"]),
        "same.mp4": ("KEPT", []),
        "same.txt": ("KEPT", []),
        "same.json": ("IGNORED", ["IGNORED_FILE"]),
        "bare.mp4": ("KEPT", ["CAPTION_MISSING"]),
        "bare.json": ("IGNORED", ["IGNORED_FILE"]),
        "empty.mp4": ("KEPT", ["CAPTION_FROM_TABLE"]),
        "empty.txt": ("IGNORED", ["CAPTION_MISSING"]),
        "other.json": ("IGNORED", ["IGNORED_FILE"]),
        "captions.csv": ("IGNORED", ["IGNORED_FILE"]),
        "metadata.jsonl": ("KEPT_CHANGED", ["CAPTION_ORPHAN"]),
        "metadata.csv": ("KEPT", []),
    }
    told = {item.path: item.description for item in ended.lines}
    assert (
        told["row.mp4"]
        .partition("; ")[2]
        .startswith("caption from metadata.jsonl, line 3; metadata.csv, line 2 has another, which does not count")
    )
    assert "metadata.jsonl, line 1 has another" in told["txt.mp4"] and "txt.caption has another" in told["txt.mp4"]
    assert told["txt.caption"] == "txt.txt counts, with another caption"
    assert told["same.json"] == "same.txt counts, with the same caption"
    assert "metadata.jsonl, line 2 has the same" in told["caption.mp4"]
    assert "read from metadata.jsonl and metadata.csv" in told["captions.csv"]


async def test_a_failed_dataset_has_the_same_report(ingest: Ingest, clips: dict[str, bytes], tmp_path: Path) -> None:
    files = {"a.mp4": clips["a"], "a.txt": b"a", "x.png": b"png", "y.JPG": b"jpg", "n.pdf": b"pdf"}
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", files))
    assert (ended.state, ended.reason) == ("FAILED", "IMAGE_NOT_ALLOWED")
    assert "x.png" in ended.dataset.lifecycle.error.message
    assert reasons_of(ended) == {
        "a.mp4": ("IGNORED", ["NOT_EXAMINED"]),
        "a.txt": ("IGNORED", ["NOT_EXAMINED"]),
        "x.png": ("REJECTED", ["IMAGE_NOT_ALLOWED"]),
        "y.JPG": ("REJECTED", ["IMAGE_NOT_ALLOWED"]),
        "n.pdf": ("IGNORED", ["IGNORED_FILE"]),
    }
    assert ended.events[-1].lifecycle.state == State.STATE_FAILED
    assert (ended.dataset.not_examined_count, ended.dataset.ignored_count) == (2, 3)


async def test_an_archive_that_never_came_was_not_looked_at(ingest: Ingest) -> None:
    ingest.web.handlers["/gone"] = web.status(404)
    ended = await ingest.run(archive_url=ingest.web.url("/gone?token=secret"))
    assert (ended.state, ended.reason) == ("FAILED", "DOWNLOAD_REFUSED")
    assert reasons_of(ended) == {ingest.web.url("/gone"): ("IGNORED", ["NOT_EXAMINED"])}
    assert ended.dataset.not_examined_count == 1


async def test_all_clips_unusable_are_all_named(ingest: Ingest, tmp_path: Path) -> None:
    files = {"a.mp4": b"\0" * 500, "b.mp4": (MEDIA / "song.mp4").read_bytes()}
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", files))
    assert ended.reason == "NO_USABLE_CLIPS"
    assert [ended.reasons(path) for path in files] == [["UNDECODABLE"], ["NO_VIDEO_TRACK"]]
    with pytest.raises(CallError) as error:
        raise CallError(ended.dataset.lifecycle.error)
    assert sorted(subject.subject for subject in error.value.subjects) == ["a.mp4", "b.mp4"]


async def test_ten_clips_carry_no_warning(ingest: Ingest, clips: dict[str, bytes], tmp_path: Path) -> None:
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", {f"{i}.mp4": clips["a"] for i in range(10)}))
    assert "" not in reasons_of(ended)


async def test_a_second_run_finds_everything(ingest: Ingest, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "new.mp4", numbered(10, clip=60, size=(64, 64)))
    first = await ingest.upload(write_zip(tmp_path / "one.zip", {"a.mp4": clip}))
    second = await ingest.upload(write_zip(tmp_path / "two.zip", {"b/other.mp4": clip, "b/other.txt": b"hm"}))
    assert (first.dataset.reused_count, second.dataset.reused_count) == (0, 1)
    assert "earlier" in second.lines[-2].description or "earlier" in second.lines[-1].description
    assert first.clips[0].blob == second.clips[0].blob
    assert (first.clips[0].probe, first.clips[0].frame_count) == (second.clips[0].probe, 10)
    assert (second.clips[0].path, second.clips[0].caption) == ("b/other.mp4", "hm")


async def test_deleting_keeps_what_others_use(ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = write_clip(tmp_path / "s.mp4", numbered(10, clip=61, size=(64, 64)))
    own = write_clip(tmp_path / "o.mp4", numbered(10, clip=62, size=(64, 64)))
    one = await ingest.upload(write_zip(tmp_path / "one.zip", {"s.mp4": shared, "o.mp4": own}))
    two = await ingest.upload(write_zip(tmp_path / "two.zip", {"s.mp4": shared}))
    keys = {clip.path: clip.blob.key for clip in one.clips}
    await ingest.client.delete_dataset(one.dataset.name)
    with pytest.raises(CallError, match="does not exist"):
        await ingest.client.get_dataset(one.dataset.name)
    now = time.time_ns()
    await ingest.service.tidy()
    assert await ingest.runtime.objects.exists(keys["o.mp4"])  # a day of grace
    monkeypatch.setattr(time, "time_ns", lambda: now + int((KEEP_UNUSED_SECONDS + 60) * 1e9))
    await ingest.service.tidy()
    assert not await ingest.runtime.objects.exists(keys["o.mp4"])
    assert await ingest.runtime.objects.exists(keys["s.mp4"])
    await ingest.client.delete_dataset(two.dataset.name)


async def test_an_unfinished_dataset_is_not_deleted_and_can_be_cancelled(ingest: Ingest) -> None:
    ingest.web.handlers["/never"] = web.silent_after(b"x" * 100)
    dataset = await ingest.client.create_dataset(archive_url=ingest.web.url("/never"))
    with pytest.raises(CallError) as refused:
        await ingest.client.delete_dataset(dataset.name)
    assert refused.value.reason == "RESOURCE_NOT_READY"
    await ingest.client.cancel_dataset(dataset.name)
    ended = await ingest.end(dataset.name)
    assert ended.state == "CANCELLED"
    assert reasons_of(ended) == {ingest.web.url("/never"): ("IGNORED", ["NOT_EXAMINED"])}
    assert "was cancelled before" in ended.lines[0].description
    assert (ended.dataset.not_examined_count, ended.dataset.ignored_count) == (1, 1)
    assert (await ingest.client.cancel_dataset(dataset.name)).lifecycle.state == State.STATE_CANCELLED
    assert not (ingest.runtime.settings.state_dir / "ingest" / dataset.name.rpartition("/")[2]).exists()
    await ingest.client.delete_dataset(dataset.name)


async def test_a_cancellation_at_any_moment_leaves_nothing(ingest: Ingest, clips: dict[str, bytes]) -> None:
    dice = random.Random(4)
    data = archive_bytes({"a.mp4": clips["a"], "a.txt": b"a", "b.mov": clips["b"], "c.txt": b"c"})
    ingest.web.handlers["/cancelled"] = web.chunked(data)
    for _ in range(8):
        dataset = await ingest.client.create_dataset(archive_url=ingest.web.url("/cancelled"))
        await asyncio.sleep(dice.random() * dice.choice((0.02, 0.5)))  # the moment, not what is waited for
        await ingest.client.cancel_dataset(dataset.name)
        ended = await ingest.end(dataset.name)
        assert ended.state in ("CANCELLED", "SUCCEEDED")
        assert ended.events[-1].lifecycle.state == ended.dataset.lifecycle.state
        # What was not looked at is told, and counted: every file, or the archive that was not here yet.
        paths = {item.path for item in ended.lines} - {""}
        assert paths in ({"a.mp4", "a.txt", "b.mov", "c.txt"}, {ingest.web.url("/cancelled")})
        unseen = [item for item in ended.lines if ReportReason.REPORT_REASON_NOT_EXAMINED in item.reasons]
        assert ended.dataset.not_examined_count == len(unseen)
        assert bool(unseen) <= (ended.state == "CANCELLED")
        told = [event.report_line for event in ended.events if event.HasField("report_line")]
        assert sorted(told, key=str) == sorted(ended.lines, key=str)
        assert not (ingest.runtime.settings.state_dir / "ingest" / dataset.name.rpartition("/")[2]).exists()
        await ingest.client.delete_dataset(dataset.name)


async def test_one_request_id_makes_one_dataset(ingest: Ingest) -> None:
    ingest.web.handlers["/once"] = web.status(404)
    request_id = str(uuid.uuid4())
    url = ingest.web.url("/once")
    one = await ingest.client.create_dataset(archive_url=url, request_id=request_id)
    two = await ingest.client.create_dataset(archive_url=url, request_id=request_id)
    assert one.name == two.name
    with pytest.raises(CallError) as refused:
        await ingest.client.create_dataset(archive_url=f"{url}2", request_id=request_id)
    assert refused.value.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("source", [{}, {"videos": []}, {"upload": ""}, {"upload": "uploads/x"}, {"videos": ["", "x"]}])
async def test_requests_without_a_source(ingest: Ingest, source: dict[str, object]) -> None:
    with pytest.raises(CallError) as refused:
        await ingest.client.create_dataset(**source)  # type: ignore[arg-type]
    assert refused.value.reason == "INVALID_SPEC"
    assert len(refused.value.violations) == max(1, len(source.get("videos", [])))  # type: ignore[arg-type]


async def test_loose_videos_keep_their_places(ingest: Ingest, clips: dict[str, bytes], tmp_path: Path) -> None:
    ingest.web.handlers |= {f"/v/{key}": web.plain(data) for key, data in clips.items()}
    sent = await ingest.client.upload(write_clip(tmp_path / "up.mp4", numbered(11, clip=63, size=(64, 64))))
    urls = [ingest.web.url("/v/b?secret=1"), f"upload:{sent.name}", ingest.web.url("/v/a")]
    ended = await ingest.run(videos=urls)
    assert ended.state == "SUCCEEDED"
    assert [clip.name.rpartition("/")[2] for clip in ended.clips] == ["0", "1", "2"]
    assert [clip.path for clip in ended.clips] == [ingest.web.url("/v/b"), f"{urls[1]}/up.mp4", urls[2]]
    assert [clip.blob.sha256 for clip in ended.clips][::2] == [
        hashlib.sha256(clips[key]).hexdigest() for key in ("b", "a")
    ]
    assert "" not in reasons_of(ended)


async def test_a_loose_video_that_is_none_fails_the_request(ingest: Ingest, clips: dict[str, bytes]) -> None:
    ingest.web.handlers |= {"/v/good": web.plain(clips["a"]), "/v/bad": web.plain(b"\0" * 99), "/v/page": web.html()}
    bad = await ingest.run(videos=[ingest.web.url("/v/good"), ingest.web.url("/v/bad")])
    assert bad.reason == "NO_USABLE_CLIPS"
    page = await ingest.run(videos=[ingest.web.url("/v/page"), ingest.web.url("/v/good")])
    assert page.reason == "DOWNLOAD_REFUSED"
    assert "web page" in page.dataset.lifecycle.error.message
    assert len(page.lines) == 2


async def test_an_upload_that_is_not_what_was_announced(ingest: Ingest, clips: dict[str, bytes]) -> None:
    data = archive_bytes({"a.mp4": clips["a"]})
    digest = hashlib.sha256(data).hexdigest()
    for size, sha256, body in (
        (len(data), digest, None),
        (len(data) + 1, digest, data),
        (len(data), "0" * 64, data),
    ):
        created = await ingest.client.create_upload(size, sha256, "folder\\clips.zip")
        if body is not None:
            async with aiohttp.ClientSession() as session, session.put(created.put_url, data=body) as response:
                assert response.status == 200
        ended = await ingest.run(upload=created.upload)
        assert (ended.state, ended.reason) == ("FAILED", "UPLOAD_MISMATCH")
    created = await ingest.client.create_upload(len(data), digest)
    async with aiohttp.ClientSession() as session, session.put(created.put_url, data=data) as response:
        assert response.status == 200
    again = [await ingest.run(upload=created.upload), await ingest.run(archive_url=f"upload:{created.upload}")]
    assert [ended.state for ended in again] == ["SUCCEEDED"] * 2


async def test_wrong_announcements_come_back_at_once(ingest: Ingest) -> None:
    with pytest.raises(CallError) as refused:
        await ingest.client.create_upload(6 << 30, "ABC")
    assert [violation.field for violation in refused.value.violations] == ["size_bytes", "sha256"]
    with pytest.raises(CallError) as refused:
        await ingest.client.create_dataset(upload=f"uploads/{uuid.uuid4().hex}")
    assert refused.value.reason == "RESOURCE_NOT_FOUND"


async def test_unclaimed_uploads_are_swept(
    ingest: Ingest, clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zip").write_bytes(archive_bytes({"a.mp4": clips["a"]}))
    sent = await ingest.client.upload(tmp_path / "a.zip")
    await ingest.service.tidy()
    assert await ingest.runtime.objects.exists(f"ingest/{sent.name}")
    later = time.time() + 25 * 3600
    set_clocks(monkeypatch, later)
    await ingest.service.tidy()
    monkeypatch.undo()
    assert not await ingest.runtime.objects.exists(f"ingest/{sent.name}")
    with pytest.raises(CallError, match="does not exist"):
        await ingest.client.create_dataset(upload=sent.name)


async def test_reports_are_paged_by_count_and_by_bytes(ingest: Ingest, tmp_path: Path) -> None:
    folders = "/".join(["f" * 200] * 4)
    entries: list[tuple[bytes, bytes, dict[str, object]]] = [
        (f"{folders}/{index:05}.txt".encode(), b"", {}) for index in range(3000)
    ]
    (tmp_path / "many.zip").write_bytes(build(*entries))
    ended = await ingest.upload(tmp_path / "many.zip")
    assert ended.reason == "NO_VIDEOS"
    assert len(ended.lines) == len({item.path for item in ended.lines}) == 3000
    pages = [item async for item in ingest.client.list_dataset_report(ended.dataset.name, page_size=500)]
    assert pages == ended.lines


async def test_a_killed_actor_costs_a_retry(ingest: Ingest, tmp_path: Path) -> None:
    # Bytes of its own, for what was probed once is not probed again.
    large = (MEDIA / "ram4k.mp4").read_bytes() + b"\0\0\0\x0cfreekill"
    sent = await ingest.client.upload(write_zip(tmp_path / "clips.zip", {"large.mp4": large}))
    dataset = await ingest.client.create_dataset(upload=sent.name)
    async with asyncio.timeout(60):
        while not (probers := find(PROBER)):  # noqa: ASYNC110 (another process is waited for)
            await asyncio.sleep(0.02)
    kill(probers[0])
    ended = await ingest.end(dataset.name)
    assert (ended.state, len(ended.clips)) == ("SUCCEEDED", 1)
    assert probers[0] not in find(PROBER)


async def test_progress_comes_at_most_once_a_second(ingest: Ingest, clips: dict[str, bytes], tmp_path: Path) -> None:
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", {f"{i}.mp4": clips["a"] for i in range(50)}))
    times = [event.time.ToNanoseconds() for event in ended.events if event.WhichOneof("detail") == "progress"]
    # The last comes with the end of the report.
    assert all(later - earlier > 0.9e9 for earlier, later in pairwise(times[:-1]))
    last = [event.progress for event in ended.events if event.WhichOneof("detail") == "progress"][-1]
    assert (last.completed, last.total) == (50, 50)
