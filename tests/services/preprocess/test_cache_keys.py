"""Cached work is found again exactly when it would come out the same."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from ltxtrain.v1.preprocess_pb2 import AudioSettings, Geometry, PreprocessSettings

from ltxtrain_services.preprocess.cache_keys import (
    ENCODER,
    FITTER,
    SHEET,
    fit_key,
    latents_key,
    lossless_key,
    prefix_key,
    prompt_key,
    sheet_key,
)
from ltxtrain_services.preprocess.outcome import FitOutcome, SceneOutcome
from ltxtrain_services.runtime.code_version import import_closure

CLIP = "ab" * 32


def settings(**changes: Any) -> PreprocessSettings:
    geometry = Geometry(width=512, height=288, frame_count=17, frame_rate=24)
    made = PreprocessSettings(training=geometry, validation=geometry, conditioning_frames=9)
    made.MergeFrom(PreprocessSettings(**changes))
    return made


def fitted(**changes: Any) -> str:
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
def test_what_does_not_touch_a_clip_is_not_in_its_key(changes: dict[str, Any]) -> None:
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
def test_what_changes_a_clip_changes_its_key(changes: dict[str, Any]) -> None:
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


@pytest.mark.parametrize("key", [lambda model: latents_key("fit", 0, model), lambda m: prompt_key("a", m)])
def test_what_a_model_made_belongs_to_its_revision(key: Callable[[str], str]) -> None:
    assert key("one") == key("one") != key("two")


def test_scenes_and_files_stay_apart() -> None:
    keys = [lossless_key("fit", scene, file) for scene in (0, 1) for file in ("prefix", "preview")]
    keys += [sheet_key("fit", 0, 9), sheet_key("fit", 0, 17), latents_key("fit", 0, "one")]
    assert len(set(keys)) == 7


@pytest.mark.parametrize(
    ("entry", "deciding"),
    [
        (
            FITTER,
            {
                "ltxtrain_services.preprocess.outcome",
                "ltxtrain_trainer.geometry",
                "ltxtrain_trainer.media.scenes",
                "ltxtrain_trainer.media.audio",
            },
        ),
        (
            ENCODER,
            {
                "ltxtrain_trainer.data.mel",
                "ltxtrain_trainer.model.single_file",
                "ltxtrain_trainer.model.folder",
                "ltxtrain_trainer.model.precision",
            },
        ),
        (SHEET, {"ltxtrain_services.pages.charts", "ltxtrain_services.pages.contact_sheet"}),
    ],
    ids=["fitter", "encoder", "sheet"],
)
def test_keys_know_all_that_decides(entry: tuple[str, Sequence[str]], deciding: set[str]) -> None:
    assert deciding | {entry[0]} <= import_closure(entry[0]).keys()


def test_an_outcome_with_other_fields_is_not_cached() -> None:
    facts = FitOutcome(scenes=(SceneOutcome(),)).dump()
    assert FitOutcome.load(facts) is not None
    facts["scenes"][0]["forgotten"] = 1
    assert FitOutcome.load(facts) is None
    assert FitOutcome.load({}) is None
