"""Lines of a report, as people read them."""

from typing import Any

from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.preprocess_pb2 import Geometry, PreprocessSettings

from ltxtrain_services.preprocess.outcome import FitOutcome, SceneOutcome, Skip
from ltxtrain_services.preprocess.report import Caption, clip_lines

CLIP = Clip(path="a.mp4", frame_count=100, frame_rate=24)


def said(scene: SceneOutcome, clip: Clip = CLIP, **changes: Any) -> str:
    geometry = Geometry(width=512, height=288, frame_count=89, frame_rate=24)
    settings = PreprocessSettings(training=geometry, **{"conditioning_frames": 9, **changes})
    (line,) = clip_lines(clip, FitOutcome(scenes=(scene,)), Caption(text=""), settings, "")
    return line.description


def short(frames: int) -> SceneOutcome:
    return SceneOutcome(
        skipped=Skip.CLIP_TOO_SHORT, description=f"{frames} frames", have_frames=frames, needed_frames=89
    )


def test_too_short_says_what_would_fit() -> None:
    assert said(short(61)) == "61 frames; would fit at 57"
    assert said(short(17)) == "17 frames; would fit at 17"
    assert said(short(16)) == "16 frames; too short to continue after a prefix of 9"
    assert said(short(61), conditioning_frames=57) == "61 frames; too short to continue after a prefix of 57"
    assert said(short(5), auto_scale_input=True) == "5 frames; would fit at 17"
    assert said(short(4), auto_scale_input=True) == "4 frames; too short to continue after a prefix of 9"


def test_what_was_done_is_told() -> None:
    fitted = SceneOutcome(frame_count=89, frame_rate=24, unused_frames=11, crop_loss_percent=68.4)
    assert said(fitted) == "89 frames at 24 a second, 11 frames unused, cropped to 32 % of its picture"
    assert said(SceneOutcome(frame_count=89, frame_rate=24, crop_loss_percent=4)) == "89 frames at 24 a second"
    own_rate = "89 frames at 60 a second, the clip's own rate, where 24 was asked for: auto_scale_input resamples"
    assert said(SceneOutcome(frame_count=89, frame_rate=60), Clip(frame_rate=60)) == own_rate
