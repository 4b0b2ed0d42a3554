"""Suggestions: settings and captions that would make more of the data."""

from typing import Any

from ltxtrain.v1.ingest_pb2 import Clip, ClipProbe
from ltxtrain.v1.preprocess_pb2 import Geometry, PreprocessSettings

from ltxtrain_services.preprocess.outcome import FitOutcome, SceneOutcome, Skip
from ltxtrain_services.preprocess.suggestions import suggestions


def clip(
    frames: int, *skipped: tuple[str, int], size: tuple[int, int] = (0, 0), caption: str = "a street"
) -> tuple[Clip, FitOutcome]:
    """A clip of 24 frames a second that ended in scenes (reason, frames); a reason of "" was kept."""
    scenes = tuple(
        SceneOutcome(skipped=Skip(reason) if reason else None, source_frames=count) for reason, count in skipped
    )
    probe = ClipProbe(duration_seconds=frames / 24)
    made = Clip(frame_count=frames, frame_rate=24, probe=probe, width=size[0], height=size[1], caption=caption)
    return made, FitOutcome(scenes=scenes)


def chosen(**changes: Any) -> PreprocessSettings:
    geometry = Geometry(frame_count=89, frame_rate=24)
    return PreprocessSettings(training=geometry, conditioning_frames=9, **changes)


def test_nothing_is_suggested_when_all_clips_fit() -> None:
    assert suggestions([clip(97, ("", 97))], chosen()) == []


def test_short_clips_name_the_count_that_saves_some_and_the_one_that_saves_all() -> None:
    clips = [clip(61, ("CLIP_TOO_SHORT", 61)), clip(30, ("CLIP_TOO_SHORT", 30)), clip(97, ("", 97))]
    assert suggestions(clips, chosen()) == [
        "With number_of_frames = 57, 1 more clip would fit.",
        "With number_of_frames = 25, 2 more clips would fit.",
        "With auto_scale_input, 2 more clips would fit.",
    ]


def test_a_count_that_the_prefix_covers_is_none() -> None:
    assert suggestions([clip(12, ("CLIP_TOO_SHORT", 12))], chosen()) == []


def test_scaling_helps_to_four_times_the_duration_and_no_further() -> None:
    clips = [clip(23, ("CLIP_TOO_SHORT", 23)), clip(22, ("CLIP_TOO_SHORT", 22))]
    assert "With auto_scale_input, 1 more clip would fit." in suggestions(clips, chosen())


def test_with_scaling_a_clip_counts_four_times_its_frames() -> None:
    scaled = chosen(auto_scale_input=True)
    assert suggestions([clip(20, ("CLIP_TOO_SHORT", 20))], scaled) == [
        "With number_of_frames = 73, 1 more clip would fit."
    ]


def test_a_clip_whose_scenes_are_all_too_short_fits_whole() -> None:
    clips = [clip(120, ("SCENE_TOO_SHORT", 60), ("SCENE_TOO_SHORT", 60))]
    assert suggestions(clips, chosen())[-1] == "Without split_input_into_scenes, 1 more clip would fit."


def test_what_cannot_be_decoded_is_no_matter_of_settings() -> None:
    assert suggestions([clip(97, ("UNDECODABLE", 97))], chosen()) == []


def shaped(*sizes: tuple[int, int], width: int = 768, height: int = 448) -> list[str]:
    settings = chosen()
    settings.training.width, settings.training.height = width, height
    return suggestions([clip(97, ("", 97), size=size) for size in sizes], settings)


def test_the_shape_that_keeps_most_of_the_pictures() -> None:
    assert shaped((1080, 1920), (1080, 1920), (1920, 1080)) == [
        "With aspect_ratio = 9:16, 75 % of the picture would be kept on average, and more of it in 2 of 3 clips; "
        "with 16:9 it is 54 %."
    ]
    assert shaped((1000, 1000), width=448, height=768)[0].startswith("With aspect_ratio = 1:1, 100 % of the picture")


def test_no_shape_is_suggested_that_keeps_hardly_more() -> None:
    assert shaped((1920, 1080), (1920, 1080), (1080, 1920)) == []
    assert shaped((0, 0)) == [] and shaped((1080, 1920), width=100, height=100) == []


def test_captions_and_the_trigger_phrase() -> None:
    bare, told = clip(97, ("", 97), caption=" "), clip(97, ("", 97))
    # A line of the report for itself, at its head.
    assert suggestions([bare, bare], chosen()) == []
    assert suggestions([bare, told, told], chosen()) == [
        "1 of 3 clips has no caption and would be trained with an empty prompt."
    ]
    assert suggestions([bare, bare], chosen(trigger_phrase="sks")) == [
        "2 of 2 clips have no caption and would be trained with the trigger phrase alone."
    ]
    prompts = chosen(trigger_phrase="sks", validation_prompts=["sks, a dog", "a cat"])
    assert suggestions([told], prompts) == ["1 of 2 validation prompts lacks the trigger phrase."]
    left_out = clip(12, ("CLIP_TOO_SHORT", 12), caption="")
    assert suggestions([left_out], chosen()) == []
