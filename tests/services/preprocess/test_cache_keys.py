"""Cached work is found again exactly when it would come out the same."""

from collections.abc import Callable

import pytest
from ltxtrain.v1.preprocess_pb2 import AudioSettings, Geometry, PreprocessSettings

from services.preprocess.cache_keys import file_key, fit_key, prefix_key, prompt_key

CLIP = "ab" * 32


def settings(**changes: object) -> PreprocessSettings:
    geometry = Geometry(width=512, height=288, frame_count=17, frame_rate=24)
    made = PreprocessSettings(training=geometry, validation=geometry, conditioning_frames=9)
    made.MergeFrom(PreprocessSettings(**changes))  # type: ignore[arg-type]
    return made


def fitted(**changes: object) -> str:
    return fit_key(CLIP, settings(**changes), split=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"trigger_phrase": "sks"},
        {"training": Geometry(frame_rate=30)},  # without auto_scale_input the clip's own rate counts
        {"validation": Geometry(width=960)},
        {"conditioning_frames": 1},
        {"export_archive": True},
        {"negative_prompt": "bad"},
        {"split_above_seconds": 5.0},  # only whether this clip is split counts
    ],
    ids=str,
)
def test_what_does_not_touch_a_clip_is_not_in_its_key(changes: dict[str, object]) -> None:
    assert fitted(**changes) == fitted()


@pytest.mark.parametrize(
    "changes",
    [
        {"training": Geometry(width=768)},
        {"training": Geometry(frame_count=25)},
        {"auto_scale_input": True},
        {"audio": AudioSettings(normalize=True)},
    ],
    ids=str,
)
def test_what_changes_a_clip_changes_its_key(changes: dict[str, object]) -> None:
    assert fitted(**changes) != fitted()


def test_the_rate_counts_when_clips_are_resampled_to_it() -> None:
    assert fitted(auto_scale_input=True) != fitted(auto_scale_input=True, training=Geometry(frame_rate=30))


def test_pitch_counts_only_where_sound_is_stretched() -> None:
    kept, lost = AudioSettings(preserve_pitch=True), AudioSettings(preserve_pitch=False)
    assert fitted(audio=kept) == fitted(audio=lost)
    assert fitted(audio=kept, auto_scale_input=True) != fitted(audio=lost, auto_scale_input=True)


def test_a_split_clip_has_another_key() -> None:
    assert fit_key(CLIP, settings(), split=True) != fitted()


def test_a_prefix_depends_on_its_length_and_rate() -> None:
    one = prefix_key(CLIP, settings())
    assert one == prefix_key(CLIP, settings(training=Geometry(width=960)))
    assert one != prefix_key(CLIP, settings(conditioning_frames=17))
    assert one != prefix_key(CLIP, settings(validation=Geometry(frame_rate=30)))
    assert one != fitted()


@pytest.mark.parametrize("key", [lambda model: file_key("fit", 0, "latents", model), lambda m: prompt_key("a", m)])
def test_what_a_model_made_belongs_to_its_revision(key: Callable[[str], str]) -> None:
    assert key("one") == key("one") != key("two")


def test_scenes_and_pieces_stay_apart() -> None:
    keys = [file_key("fit", scene, file) for scene in (0, 1) for file in ("sheet", "preview")]
    assert len(set(keys)) == 4
