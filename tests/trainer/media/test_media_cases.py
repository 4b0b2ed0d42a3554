"""The faulty and odd clips that people send, as the manifest says."""

import gc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from av.video.frame import VideoFrame

from ltxtrain_trainer.errors import ClipError, ClipTooShort
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import FittedClip, fit_clip, fit_prefix, fit_scenes
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.probe import probe
from ltxtrain_trainer.media.scenes import find_scenes
from tests import cards
from tests.cases_table import CLIP_ERRORS, FOLDER, cases, media
from tests.sounds import burst_seconds, pitch

FRAMES, FRAME_RATE, SIDE = 89, 24.0, 256
MEDIA = cases("media")
ACCEPTED = [case for case in MEDIA if case["expect"]["action"] == "accept"]
PROBED = [case for case in cases("media", "validation") if "frames" in case["expect"]]
UNREADABLE = ("undecodable", "no_video_stream", "image_entry")


def ids(some: list[dict[str, Any]]) -> list[str]:
    return [case["id"] for case in some]


def fit(case: dict[str, Any], *, auto_scale: bool = False, normalize: bool = False, pitch: bool = True) -> FittedClip:
    settings = FitSettings(
        geometry=Geometry(width=SIDE, height=SIDE, frame_count=FRAMES, frame_rate=FRAME_RATE),
        auto_scale=auto_scale,
        with_audio=bool(case["expect"].get("has_audio") or case["expect"].get("request", {}).get("with_audio")),
        normalize_audio=normalize,
        preserve_pitch=pitch,
    )
    return fit_clip(media(case), settings)


@pytest.mark.parametrize("case", PROBED, ids=ids(PROBED))
def test_probe_finds_the_numbers(case: dict[str, Any]) -> None:
    expect, found = case["expect"], probe(media(case))
    assert found.frame_count == expect["frames"]
    assert [found.width, found.height] == expect.get("display", [found.width, found.height])
    assert found.frame_rate == pytest.approx(expect.get("fps", found.frame_rate), rel=1e-4)
    assert found.duration_seconds == pytest.approx(expect.get("duration_s", found.duration_seconds), abs=2e-3)
    assert found.interlaced == expect.get("interlaced", False)
    assert found.hdr == ("hdr" in expect)
    assert found.variable_frame_rate == ("pts_s" in expect)
    if "has_audio" in expect:
        assert (found.audio is not None) == expect["has_audio"]
    if "audio" in expect and found.audio:
        sound = expect["audio"]
        assert (found.audio.sample_rate, found.audio.channels) == (sound["rate"], sound["channels"])
        assert found.audio.duration_seconds == pytest.approx(sound.get("duration_s", expect["duration_s"]), abs=0.04)
        assert found.audio.silence_share == pytest.approx(0.0 if sound["peak"] else 1.0, abs=0.02)
    assert found.audio_error is None and found.damage is None


# The large one is shown by the service's test.
SMALL = [case for case in ACCEPTED if case["id"] != "ram_4k"]


@pytest.mark.parametrize("case", SMALL, ids=ids(SMALL))
def test_accepted_clips_show_their_frames_in_their_colours(case: dict[str, Any]) -> None:
    expect = case["expect"]
    fitted = fit(case, auto_scale=expect.get("auto_scale_only", False))
    assert fitted.frames.shape == (FRAMES, SIDE, SIDE, 3)
    if not expect.get("card_readable", True):
        return
    numbers = [cards.frame_number(picture) for picture in fitted.frames]
    if expect.get("auto_scale_only"):
        # From 12 to 24 frames a second: each frame is there twice.
        assert numbers == [index // 2 for index in range(FRAMES)]
    elif "index_rule" in expect:
        assert all(number in (2 * index, 2 * index + 1) for index, number in enumerate(numbers))
    else:
        first, step = expect["first_number"], expect["step"]
        assert numbers == [first + step * index for index in range(FRAMES)]
    for picture in (fitted.frames[0], fitted.frames[-1]):
        check_colours(picture, expect)


def check_colours(picture: cards.Picture, expect: dict[str, Any]) -> None:
    if "hdr" in expect:
        limits = expect["hdr"]
        white, black = (cards.cell(picture, *cards.PATCHES[name][0]) for name in ("left_white", "left_black"))
        red = cards.cell(picture, *cards.PATCHES["tl_red"][0])
        assert white.min() >= limits["white_min"]
        assert np.ptp(white) <= limits["neutral_white_spread_max"]
        assert black.max() <= limits["black_max"]
        assert red[0] - red[1] >= limits["red_minus_green_min"]
        return
    errors = cards.colour_errors(picture)
    if "alpha_patch" in expect:
        patch = expect["alpha_patch"]
        # Transparent is black here; the manifest allows another colour too.
        assert np.abs(cards.cell(picture, *cards.PATCHES[patch["name"]][0])).max() <= patch["tol"]
        errors.pop(patch["name"])
    assert max(errors.values()) <= expect["colour_tol"], errors


AUDIBLE = [case for case in ACCEPTED if "audio" in case["expect"]]


@pytest.mark.parametrize("case", AUDIBLE, ids=ids(AUDIBLE))
def test_sound_is_in_place_and_in_tune(case: dict[str, Any]) -> None:
    expect = case["expect"]
    sound = expect["audio"]
    audio = fit(case, auto_scale=expect.get("auto_scale_only", False)).audio
    assert audio is not None and audio.shape == (2, round(FRAMES / FRAME_RATE * 16_000))
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() == pytest.approx(sound["peak"], abs=0.12)
    if sound["burst_s"] is not None:
        assert burst_seconds(audio) == pytest.approx(sound["burst_s"], abs=sound["burst_tol_s"])
    for channel, hertz in zip(audio, sound["tones_hz"] * (2 if len(sound["tones_hz"]) == 1 else 1), strict=False):
        assert pitch(channel[8000:24_000]) == pytest.approx(hertz, rel=2e-3)
    if sound.get("duration_s", 9) < FRAMES / FRAME_RATE:
        assert not audio[:, round((sound["duration_s"] + 0.05) * 16_000) :].any()
    if sound["channels"] == 1:
        assert np.array_equal(audio[0], audio[1])


@pytest.mark.parametrize("case", AUDIBLE, ids=ids(AUDIBLE))
def test_normalising_fills_the_scale_and_leaves_silence(case: dict[str, Any]) -> None:
    plain = fit(case, auto_scale=case["expect"].get("auto_scale_only", False)).audio
    loud = fit(case, auto_scale=case["expect"].get("auto_scale_only", False), normalize=True).audio
    assert plain is not None and loud is not None
    if case["expect"]["audio"]["peak"] == 0:
        assert not loud.any()
        return
    assert np.abs(loud).max() == pytest.approx(0.95, abs=1e-5)
    assert np.allclose(loud, plain * (0.95 / np.abs(plain).max()), atol=1e-6)


@pytest.mark.parametrize("preserve_pitch", [True, False])
def test_resampling_without_slowing_leaves_the_pitch_alone(preserve_pitch: bool) -> None:
    (case,) = [case for case in MEDIA if case["id"] == "a_fit_pitch"]
    fitted = fit(case, auto_scale=True, pitch=preserve_pitch)
    assert fitted.audio is not None and fitted.stretch == 1
    assert pitch(fitted.audio[0][8000:24_000]) == pytest.approx(440, rel=2e-3)


REFUSED = [case for case in MEDIA if case["expect"]["action"] != "accept"]


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused_clips_raise_their_reason(case: dict[str, Any]) -> None:
    reason = case["expect"]["reason"]
    with pytest.raises(CLIP_ERRORS[reason]) as raised:
        fit(case)
    assert str(raised.value)
    if reason in UNREADABLE:
        with pytest.raises(CLIP_ERRORS[reason]):
            probe(media(case))


def test_too_short_clips_say_by_how_much() -> None:
    with pytest.raises(CLIP_ERRORS["too_short"], match=r"^88 frames, 89 needed$") as raised:
        fit(next(case for case in MEDIA if case["id"] == "short88"))
    assert isinstance(raised.value, ClipTooShort)
    assert (raised.value.frame_count, raised.value.needed_frames) == (88, 89)


SCALABLE = [case for case in MEDIA if "with_auto_scale" in case["expect"]]


@pytest.mark.parametrize("case", SCALABLE, ids=ids(SCALABLE))
def test_auto_scale_takes_clips_that_are_too_short_as_they_are(case: dict[str, Any]) -> None:
    numbers = [cards.frame_number(picture) for picture in fit(case, auto_scale=True).frames]
    assert len(numbers) == case["expect"]["with_auto_scale"]["frames_out"]
    assert numbers == sorted(numbers)


def test_auto_scale_makes_no_clip_of_a_still() -> None:
    with pytest.raises(CLIP_ERRORS["too_short"], match="no clip is slowed down more than 4 times"):
        fit(next(case for case in MEDIA if case["id"] == "one_frame"), auto_scale=True)


def test_uneven_frames_are_resampled_by_their_times() -> None:
    (case,) = [case for case in MEDIA if "pts_s" in case["expect"]]
    times = case["expect"]["pts_s"]
    numbers = [cards.frame_number(picture) for picture in fit(case, auto_scale=True).frames]
    for index, number in enumerate(numbers):
        due = max(place for place, time in enumerate(times) if time <= index / FRAME_RATE + 1e-3)
        assert abs(number - due) <= 1


SCENIC = [case for case in MEDIA if "scenes" in case["expect"]]


@pytest.mark.parametrize("case", [case for case in SCENIC if case["expect"]["duration_s"] > 30], ids=lambda c: c["id"])
def test_scenes_begin_at_their_cuts(case: dict[str, Any]) -> None:
    scenes = find_scenes(media(case))
    assert [[scene.start_frame, scene.end_frame] for scene in scenes] == case["expect"]["scenes"]
    settings = FitSettings(
        geometry=Geometry(width=128, height=72, frame_count=25, frame_rate=FRAME_RATE),
        auto_scale=False,
        with_audio=False,
        normalize_audio=True,
        preserve_pitch=True,
    )
    for scene, fitted in zip(scenes, fit_scenes(media(case), scenes, settings), strict=True):
        assert isinstance(fitted, FittedClip)
        numbers = [cards.number(picture) for picture in fitted.frames]
        assert numbers == list(range(scene.start_frame, scene.start_frame + 25))
        assert (fitted.start_frame, fitted.unused_frames) == (scene.start_frame, scene.frame_count - 25)


VALIDATION = cases("validation")


@pytest.mark.parametrize("case", VALIDATION, ids=ids(VALIDATION))
def test_validation_clips_fail_for_their_reason(case: dict[str, Any]) -> None:
    request = case["expect"]["request"]
    geometry = Geometry(width=128, height=128, frame_count=FRAMES, frame_rate=FRAME_RATE)
    frames = request.get("conditioning_frames", 9)
    with pytest.raises(CLIP_ERRORS[case["expect"]["reason"]]) as raised:
        fit_prefix(media(case), geometry, frames, request.get("with_audio", False))
    if case["id"] == "v_short_at_rate":
        assert str(raised.value) == "12 frames at 24 fps, 17 needed for the prefix"


def test_no_demuxer_follows_a_playlist() -> None:
    # The file that the playlist names lies beside it, so following it would succeed.
    assert (FOLDER / "media" / "ctl_plain.mp4").exists()
    with pytest.raises(ClipError, match="playlist"):
        probe(FOLDER / "media" / "list.avi")


def test_memory_is_bounded_by_the_frames_kept() -> None:
    code = (
        "import sys; from pathlib import Path; from ltxtrain_trainer.geometry import Geometry\n"
        "from ltxtrain_trainer.media.fit import FitSettings, fit_clip; from ltxtrain_trainer.media.probe import probe\n"
        "path = Path(sys.argv[1]); known = probe(path)\n"
        "geometry = Geometry(width=512, height=288, frame_count=89, frame_rate=24.0)\n"
        "fit_clip(path, FitSettings(geometry=geometry, auto_scale=False, with_audio=False, normalize_audio=True,"
        " preserve_pitch=True), probe=known)\n"
        # Not ru_maxrss: that begins with what the process had that started this one.
        "print(next(int(row.split()[1]) // 1024 for row in open('/proc/self/status') if row.startswith('VmHWM')))"
    )
    (case,) = [case for case in MEDIA if case["id"] == "ram_4k"]
    done = subprocess.run([sys.executable, "-c", code, str(media(case))], capture_output=True, text=True, check=True)
    # 300 frames of 4K are 7500 MB as RGB, the 89 that are kept 38 MB.
    assert int(done.stdout) < 600


@pytest.mark.parametrize("name", ["ctl_av.mp4", "itff.mp4"])
def test_frames_are_let_go_without_a_garbage_collection(name: str) -> None:
    path = FOLDER / "media" / name
    geometry = Geometry(width=64, height=64, frame_count=33, frame_rate=FRAME_RATE)
    settings = FitSettings(
        geometry=geometry, auto_scale=False, with_audio=False, normalize_audio=True, preserve_pitch=True
    )
    gc.collect()
    gc.disable()
    try:
        before = frames_alive()
        fit_clip(path, settings)
        probe(path)
        find_scenes(path)
        # PyAV ties a frame to itself when its side data are read, which is done once a clip.
        assert frames_alive() - before <= 3
    finally:
        gc.enable()


def frames_alive() -> int:
    return sum(isinstance(thing, VideoFrame) for thing in gc.get_objects())
