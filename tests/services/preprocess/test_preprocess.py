"""Whole training sets, through the front of a real service: samples, report, cache, faults, cancel, delete."""

import asyncio
import io
import itertools
import json
import re
import wave
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings
from ltxtrain.v1.work_pb2 import Outcome, Stage, State
from ltxtrain_client import errors

from ltxtrain_trainer.data.encoded import load_clip, load_prompt
from tests import cards
from tests.clips import Sound, numbered, tones, write_clip
from tests.services.preprocess.running import WHOLE, Ended, Preprocess, settings
from tests.sounds import burst_seconds


async def test_samples_are_named_and_ordered_by_their_clips(whole: Ended) -> None:
    assert [sample.name.removeprefix(f"{whole.training_set.name}/") for sample in whole.samples] == [
        f"samples/{index:06}" for index in range(5)
    ]
    paths = ["a/clip.mp4", "b/clip.mp4", "c/again.mp4", "c/heard.mp4", "d/short.mp4"]
    assert [line.path for line in whole.lines[:5]] == paths
    clips = [sample.clip.rpartition("/")[0] for sample in whole.samples]
    assert clips == [f"{whole.training_set.dataset}/clips"] * 4 + [f"{whole.training_set.validation_dataset}/clips"]
    assert [sample.HasField("validation_index") for sample in whole.samples] == [False] * 4 + [True]


async def test_latents_have_the_shape_of_the_settings(preprocess: Preprocess, whole: Ended) -> None:
    for sample in whole.samples[:4]:
        encoded = load_clip(await preprocess.fetch(sample.latents))
        assert tuple(encoded.video.shape) == (128, 3, 9, 16)
        assert encoded.audio is None
        assert (encoded.frame_count, encoded.frame_rate) == (sample.frame_count, sample.frame_rate) == (17, 24.0)
    prefix = whole.samples[4]
    assert tuple(load_clip(await preprocess.fetch(prefix.latents)).video.shape) == (128, 2, 9, 16)
    assert (prefix.frame_count, prefix.frame_rate, prefix.validation_index) == (9, 24.0, 0)


async def test_kept_clips_show_the_frames_that_were_encoded(preprocess: Preprocess, whole: Ended) -> None:
    for sample, clip in zip(whole.samples, (1, 2, 1, 3), strict=False):
        kept = await preprocess.fetch_clip(sample.clip_preview)
        assert [cards.number(picture) for picture in kept.frames] == [clip * 512 + index for index in range(17)]
    opening = await preprocess.fetch_clip(whole.samples[4].prefix_frames)
    assert [cards.number(picture) for picture in opening.frames] == [6 * 512 + index for index in range(9)]
    assert not whole.samples[4].HasField("clip_preview")


async def test_the_trigger_phrase_is_put_in_front_once(whole: Ended) -> None:
    captions = [sample.caption for sample in whole.samples]
    assert captions == ["sks a card that counts", "sks a card that counts", "sks", "sks", "another card"]
    assert whole.samples[0].prompt == whole.samples[1].prompt != whole.samples[2].prompt
    assert whole.reasons(whole.lines[-1].path) == ["TRIGGER_MISSING"]


async def test_prompts_are_embedded_with_the_negative_one(preprocess: Preprocess, whole: Ended) -> None:
    prompt = load_prompt(await preprocess.fetch(whole.samples[0].prompt))
    assert prompt.video.shape[0] == prompt.audio.shape[0] == 128
    assert prompt.token_count == len("sks a card that counts") + 1
    assert load_prompt(await preprocess.fetch(whole.training_set.negative_prompt)).token_count == len("blurry") + 1


async def test_the_report_has_a_line_with_numbers_for_every_clip(whole: Ended) -> None:
    report = whole.training_set.report
    counts = (report.clips, report.samples, report.skipped, report.split_clips, report.scenes)
    assert counts == (5, 4, 1, 0, 0)
    first, second, again, _, short, _ = whole.lines
    assert (first.outcome, whole.reasons("a/clip.mp4")) == (Outcome.OUTCOME_KEPT_CHANGED, ["FRAMES_UNUSED"])
    numbers = first.numbers
    assert numbers.source_frame_rate == numbers.used_frame_rate == 24
    assert (numbers.unused_frames, numbers.stretch) == (3, 1)
    assert (numbers.width, numbers.height, numbers.duration_seconds) == (256, 144, pytest.approx(20 / 24))
    assert numbers.crop_loss_percent == pytest.approx(0, abs=0.01)
    assert (numbers.caption, numbers.caption_tokens) == ("sks a card that counts", 23)
    assert second.numbers.unused_frames == 13
    assert again.numbers.duplicate_of == "a/clip.mp4" and "CAPTION_MISSING" in whole.reasons("c/again.mp4")
    assert short.outcome == Outcome.OUTCOME_SKIPPED
    assert short.description == "12 frames, 17 needed; too short to continue after a prefix of 9"
    assert (short.frame_count, short.needed_frames) == (12, 17)
    assert list(report.suggestions) == [
        "With auto_scale_input, 1 more clip would fit.",
        "2 of 4 clips have no caption and would be trained with the trigger phrase alone.",
        "1 of 1 validation prompts lacks the trigger phrase.",
    ]


async def test_watchers_hear_every_line_and_progress_once_a_second(whole: Ended) -> None:
    lines = [event.report_line for event in whole.events if event.WhichOneof("detail") == "report_line"]
    assert lines == whole.lines
    # Clips that are trained on, as in the report: five are looked at, one of them is left out.
    for stage, count in ((Stage.STAGE_PREPROCESS, 5), (Stage.STAGE_ENCODE, 4)):
        told = [event for event in whole.events if event.WhichOneof("detail") == "progress" and event.stage == stage]
        assert told[0].progress.total == count
        assert told[-1].progress.completed == count
        # The last comes with the end.
        gaps = [b.time.ToNanoseconds() - a.time.ToNanoseconds() for a, b in itertools.pairwise(told[:-1])]
        assert all(gap > 0.95e9 for gap in gaps)
    assert whole.events[-1].lifecycle.state == State.STATE_SUCCEEDED


async def test_the_contact_sheet_is_one_page(preprocess: Preprocess, whole: Ended) -> None:
    page = (await preprocess.fetch(whole.training_set.contact_sheet)).decode()
    assert page.count("data:image/jpeg") == 4 * 4
    assert "sks a card that counts" in page
    shown = re.findall(r'<span class="path">([^<]*)</span>', page)
    assert shown == ["a/clip.mp4", "b/clip.mp4", "c/again.mp4", "c/heard.mp4"]
    assert "scene from" not in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


async def test_the_archive_holds_what_the_model_is_given(preprocess: Preprocess, whole: Ended) -> None:
    archive = zipfile.ZipFile(io.BytesIO(await preprocess.fetch(whole.training_set.archive)))
    assert Counter(Path(name).suffix for name in archive.namelist()) == {".mkv": 5, ".txt": 5, ".json": 2}
    assert archive.read("samples/000000.txt").decode() == "sks a card that counts"
    assert archive.read("samples/000000.mkv") == await preprocess.fetch(whole.samples[0].clip_preview)
    assert archive.read("samples/000004.mkv") == await preprocess.fetch(whole.samples[4].prefix_frames)
    assert json.loads(archive.read("report.json")) == [MessageToDict(line) for line in whole.lines]
    manifest = json.loads(archive.read("manifest.json"))
    assert [item["clip"] for item in manifest["samples"]] == [sample.clip for sample in whole.samples]
    assert manifest["settings"] == MessageToDict(whole.training_set.settings)


async def test_a_second_run_encodes_nothing(
    preprocess: Preprocess, whole: Ended, dataset: str, validation: str
) -> None:
    again = await preprocess.run(dataset, settings(**WHOLE), validation)
    report = again.training_set.report
    # Four samples and the opening; two captions, the prompt and the negative prompt.
    assert (report.cache_hits, report.cache_misses) == (9, 0)
    assert [sample.latents for sample in again.samples] == [sample.latents for sample in whole.samples]
    assert again.training_set.archive.sha256 != ""
    assert again.lines == whole.lines


async def test_one_clip_more_costs_one_clip(preprocess: Preprocess, whole: Ended, made: dict[str, Path]) -> None:
    more = await preprocess.dataset(
        {
            "a/clip.mp4": made["plain"],
            "b/clip.mp4": made["longer"],
            "c/clip.mp4": made["opening"],
        }
    )
    ended = await preprocess.run(more, settings(triggerPhrase="sks", exportArchive=True))
    report = ended.training_set.report
    # The caption is known, and so are two of the clips.
    assert (report.cache_hits, report.cache_misses) == (3, 1)
    assert [sample.latents for sample in ended.samples[:2]] == [sample.latents for sample in whole.samples[:2]]


async def test_sound_is_kept_shown_and_told(preprocess: Preprocess, made: dict[str, Path]) -> None:
    name = await preprocess.dataset({"heard.mp4": made["heard"]})
    ended = await preprocess.run(name, fit_only(audio={"normalize": True}, exportArchive=True))
    (sample,), (line,) = ended.samples, ended.clip_lines
    kept = (await preprocess.fetch_clip(sample.clip_preview)).audio
    assert kept is not None and kept.shape == (2, round(17 / 24 * 16_000))
    assert burst_seconds(kept) == pytest.approx(0.5, abs=0.002)
    assert (line.numbers.audio.sample_rate, line.numbers.audio.channels) == (48_000, 2)
    assert "<path" in (await preprocess.fetch(ended.training_set.contact_sheet)).decode()  # the waveform
    archive = zipfile.ZipFile(io.BytesIO(await preprocess.fetch(ended.training_set.archive)))
    with wave.open(io.BytesIO(archive.read("samples/000000.wav"))) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (2, 16_000, kept.shape[1])
        samples = np.frombuffer(sound.readframes(kept.shape[1]), "<i2").reshape(-1, 2).T / 32767
    assert np.abs(samples - kept).max() < 1e-4


def fit_only(**changes: object) -> PreprocessSettings:
    return settings(fitOnly=True, **changes)


async def test_every_fault_comes_back_together(preprocess: Preprocess, made: dict[str, Path]) -> None:
    mixed = await preprocess.dataset({name: made[key] for name, key in (("a.mp4", "plain"), ("b.mp4", "heard"))})
    openings = await preprocess.videos(made["tiny"], made["heard"])
    ended = await preprocess.run(
        mixed, fit_only(audio={"normalize": True}, validationPrompts=["a", "b"], conditioningFrames=1), openings
    )
    # The first opening has no sound either; the length of a clip without sound is not looked at.
    assert ended.reason == "AUDIO_TRACK_MISSING"
    assert set(ended.subjects.values()) == {"AUDIO"} and len(ended.subjects) == 2
    rejected = [line.path for line in ended.lines if line.outcome == Outcome.OUTCOME_REJECTED]
    assert sorted(rejected) == sorted(ended.subjects)
    # What was not looked at for these faults is told too, and the headline that no words would call the LoRA.
    assert ended.reasons("b.mp4") == ["NOT_EXAMINED"] and ended.reasons("") == ["NO_TEXT"]
    assert not ended.samples


async def test_a_short_opening_and_missing_sound_are_told_at_once(
    preprocess: Preprocess, made: dict[str, Path], tmp_path: Path
) -> None:
    brief = write_clip(tmp_path / "brief.mp4", numbered(5), sound=Sound(waves=tones(0.2)))
    silent = await preprocess.dataset({"a.mp4": made["plain"]})
    opening = await preprocess.videos(brief)
    ended = await preprocess.run(silent, fit_only(audio={}, validationPrompts=["a"]), opening)
    assert sorted(ended.subjects.values()) == ["AUDIO", "VALIDATION"]
    assert "5 frames at 24 fps, 9 needed" in ended.message and "a.mp4" in ended.message
    assert {tuple(line.reasons) for line in ended.clip_lines} == {(6,), (21,)}


async def test_a_short_opening_alone_has_its_reason(preprocess: Preprocess, made: dict[str, Path]) -> None:
    name, opening = await preprocess.dataset({"a.mp4": made["plain"]}), await preprocess.videos(made["tiny"])
    ended = await preprocess.run(name, fit_only(validationPrompts=["a"]), opening)
    assert ended.reason == "VALIDATION_CLIP_TOO_SHORT"
    line = next(line for line in ended.clip_lines if line.outcome == Outcome.OUTCOME_REJECTED)
    assert line.frame_count == 3 and line.needed_frames == 9


async def test_all_too_short_fails_word_for_word(preprocess: Preprocess, made: dict[str, Path]) -> None:
    name = await preprocess.dataset({"short.mp4": made["short"], "tiny.mp4": made["tiny"]})
    ended = await preprocess.run(name, settings())
    assert (ended.state, ended.reason) == ("FAILED", "ALL_CLIPS_TOO_SHORT")
    assert ended.message == "All training videos are too short to be trainable"
    assert set(ended.subjects) == {"short.mp4", "tiny.mp4"}
    assert [line.outcome for line in ended.clip_lines] == [Outcome.OUTCOME_SKIPPED] * 2
    assert ended.training_set.report.skipped == 2
    assert not any(event.stage == Stage.STAGE_ENCODE and event.progress.completed for event in ended.events)


async def test_mixed_causes_are_all_listed(preprocess: Preprocess, made: dict[str, Path]) -> None:
    name = await preprocess.dataset({"short.mp4": made["short"], "broken.mp4": b"no video at all"})
    ended = await preprocess.run(name, settings())
    assert ended.reason == "NO_USABLE_CLIPS"
    assert set(ended.subjects) == {"short.mp4", "broken.mp4"}
    assert "1 too short" in ended.message and "1 undecodable" in ended.message


async def test_strict_mode_fails_for_a_skipped_clip(preprocess: Preprocess, made: dict[str, Path]) -> None:
    name = await preprocess.dataset({"a.mp4": made["plain"], "short.mp4": made["short"]})
    ended = await preprocess.run(name, settings(onSkippedClip="ON_SKIPPED_CLIP_FAIL"))
    assert ended.reason == "CLIP_SKIPPED"
    assert "short.mp4" in ended.message and set(ended.subjects) == {"short.mp4"}


async def test_prompts_and_validation_clips_belong_together(
    preprocess: Preprocess, dataset: str, validation: str
) -> None:
    ended = await preprocess.run(dataset, fit_only(validationPrompts=["one", "two"]), validation)
    assert (ended.state, ended.reason) == ("FAILED", "INVALID_SPEC")


async def test_fit_only_keeps_lossless_clips_and_loads_no_model(
    preprocess: Preprocess, dataset: str, validation: str
) -> None:
    ended = await preprocess.run(
        dataset, fit_only(validationPrompts=["a"], modelRevision="of another model"), validation
    )
    assert ended.state == "SUCCEEDED"
    for sample in ended.samples:
        assert not sample.HasField("latents") and not sample.HasField("prompt")
    kept = await preprocess.fetch_clip(ended.samples[0].clip_preview)
    assert [cards.number(picture) for picture in kept.frames] == [512 + index for index in range(17)]
    assert not any(event.stage == Stage.STAGE_ENCODE for event in ended.events)
    # The tokenizer alone tells the length of a caption.
    assert ended.lines[0].numbers.caption_tokens == len("a card that counts") + 1


async def test_another_revision_of_the_model_is_refused(preprocess: Preprocess, dataset: str) -> None:
    ended = await preprocess.run(dataset, settings(modelRevision="of another model"))
    assert ended.reason == "MODEL_UNAVAILABLE"
    assert "of another model" in ended.message and "LTXTRAIN_MODEL" in ended.message


async def test_a_dataset_that_does_not_exist_is_named(preprocess: Preprocess) -> None:
    ended = await preprocess.run("datasets/none", fit_only())
    assert (ended.state, ended.reason) == ("FAILED", "RESOURCE_NOT_FOUND")
    assert "datasets/none" in ended.message


async def test_a_wrong_request_is_refused_with_nothing_stored(preprocess: Preprocess) -> None:
    before = [one.name async for one in preprocess.client.list_training_sets()]
    with pytest.raises(errors.InvalidArgument) as refused:
        await preprocess.client.create_training_set("", PreprocessSettings())
    assert len(refused.value.violations) > 4
    assert [one.name async for one in preprocess.client.list_training_sets()] == before


async def test_a_repeated_request_makes_no_second_set(preprocess: Preprocess, dataset: str) -> None:
    request_id = "3f0c9a52-6a43-4d6e-9a0c-7c2d0f6d9c11"
    one = await preprocess.client.create_training_set(dataset, fit_only(), request_id=request_id)
    two = await preprocess.client.create_training_set(dataset, fit_only(), request_id=request_id)
    assert one.name == two.name
    with pytest.raises(errors.AlreadyExists):
        await preprocess.client.create_training_set(dataset, settings(), request_id=request_id)
    await preprocess.end(one.name)


async def test_cancel_ends_the_work_and_its_actors(preprocess: Preprocess, dataset: str) -> None:
    made = await preprocess.client.create_training_set(dataset, settings(triggerPhrase="never seen before"))
    async for _, event in preprocess.client.watch_training_set(made.name):
        if event.WhichOneof("detail") == "progress":
            break
    async with asyncio.timeout(10):
        await preprocess.client.cancel_training_set(made.name)
        ended = await preprocess.end(made.name)
    assert ended.state == "CANCELLED"
    assert (await preprocess.client.cancel_training_set(made.name)) == ended.training_set
    unseen = [line for line in ended.lines if "NOT_EXAMINED" in ended.reasons(line.path)]
    assert len(ended.lines) == 5 and ended.training_set.report.not_examined == len(unseen)
    assert all("was cancelled before" in line.description for line in unseen)


async def test_a_set_that_fails_shows_the_samples_that_there_are(
    preprocess: Preprocess, made: dict[str, Path], tmp_path: Path
) -> None:
    """Fitted by another set, or by itself before it failed; what nobody looked at is told and counted."""
    await preprocess.run(await preprocess.dataset({"a.mp4": made["plain"]}), fit_only())
    new = write_clip(tmp_path / "new.mp4", numbered(20, clip=80))
    mixed = await preprocess.dataset({"a.mp4": made["plain"], "new.mp4": new, "short.mp4": made["short"]})
    ended = await preprocess.run(mixed, fit_only(onSkippedClip="ON_SKIPPED_CLIP_FAIL"))
    assert (ended.state, ended.reason) == ("FAILED", "CLIP_SKIPPED")
    assert {line.path: ended.reasons(line.path) for line in ended.lines if line.path} == {
        "a.mp4": ["FRAMES_UNUSED", "CAPTION_MISSING"],
        "new.mp4": ["NOT_EXAMINED"],
        "short.mp4": ["CLIP_TOO_SHORT"],
    }
    assert ended.training_set.report.not_examined == 1 and not ended.samples
    page = (await preprocess.fetch(ended.training_set.contact_sheet)).decode()
    assert "a.mp4" in page and "new.mp4" not in page
    headline = "No clip has a caption and there is no trigger phrase"
    assert headline in page
    (whole,) = [line for line in ended.lines if not line.path]
    assert ended.reasons("") == ["NO_TEXT"] and whole.description.startswith(headline)


async def test_delete_frees_the_name_and_what_nobody_else_needs(preprocess: Preprocess, dataset: str) -> None:
    ended = await preprocess.run(dataset, fit_only())
    await preprocess.client.delete_training_set(ended.training_set.name)
    with pytest.raises(errors.NotFound):
        await preprocess.client.get_training_set(ended.training_set.name)
    # Its page named it, so no other set has it.
    assert ended.training_set.contact_sheet.key in await preprocess.runtime.blobs.unused(keep_seconds=0)
