"""config.json, and its code run as a reader would run it."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from ltxtrain_services.train.config_file import config_content, inference_recipe
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.job import library_versions
from ltxtrain_trainer.lora_file.export import lora_tensors, write_lora
from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.reports import TrainingFacts
from ltxtrain_trainer.training.lora import adapter
from tests.trainer.golden import PROMPT_TOKENS, settings
from tests.trainer.lora_file.test_export import METADATA, trained, transformer_of

GEOMETRY = Geometry(width=96, height=64, frame_count=17, frame_rate=24.0)
TRIGGER = 'it\'s "k1te" at $5'

Finished = tuple[dict[str, Any], Path, bool]


def facts_of(model: Path) -> TrainingFacts:
    folder = resolve_model(str(model))
    return TrainingFacts(
        device="a processor",
        precision="fp32",
        memory={"streamed_blocks": 0, "total_bytes": 2**30},
        model=folder.reference,
        model_revision=folder.revision,
        model_digests=folder.digests,
        layer_count=folder.layer_count,
        clip_count=3,
        libraries=library_versions(),
        python="3.11",
    )


def recipe(model: Path, with_audio: bool, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "trigger_phrase": TRIGGER,
        "settings": settings(with_audio=with_audio),
        "geometry": GEOMETRY,
        "negative_prompt": "blurry, still",
        "stg_scale": 1.0,
        "facts": facts_of(model),
    }
    return inference_recipe(**options | changes)


@pytest.fixture(scope="module", params=[False, True], ids=["video", "joint"])
def finished(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The names that the code leaves behind, its folder, and whether there is audio."""
    from diffusers.utils import encode_video

    folder = tmp_path_factory.mktemp("recipe")
    write_lora(lora_tensors(adapter(trained(tiny_model, request.param))), METADATA, folder / "lora.safetensors")
    frames = np.random.default_rng(1).integers(0, 256, (12, 64, 96, 3), dtype=np.uint8)
    encode_video(torch.from_numpy(frames), fps=24, output_path=str(folder / "opening.mp4"))
    (folder / "extend.py").write_text(recipe(tiny_model, request.param)["code"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return runpy.run_path("extend.py"), folder, request.param


def test_the_code_extends_the_opening_clip(finished: Finished) -> None:
    names, folder, with_audio = finished
    assert names["opening"].shape == (9, 64, 96, 3)
    assert names["frames"].shape == (1, 17, 64, 96, 3)
    with av.open(folder / "continued.mp4") as video:
        assert len(video.streams.audio) == with_audio
        assert video.streams.video[0].average_rate == 24
        assert sum(1 for _ in video.decode(video=0)) == 17


def test_the_code_uses_the_lora(finished: Finished) -> None:
    names, _, with_audio = finished
    loaded = [name for name, _ in names["pipeline"].transformer.named_parameters() if ".lora_A." in name]
    assert len(loaded) == 4 * (28 if with_audio else 10)


def test_the_code_calls_the_model_as_training_did(tiny_model: Path, finished: Finished) -> None:
    names, folder, with_audio = finished
    generator = torch.Generator().manual_seed(3)
    sigma, shape = torch.tensor([0.6]), (3, 2, 3)

    def stream(tokens: int, width: int, prefix: int) -> Stream:
        timesteps = sigma.expand(1, tokens).clone()
        timesteps[:, :prefix] = 0
        latents, context = (
            torch.randn(1, count, size, generator=generator) for count, size in ((tokens, 128), (PROMPT_TOKENS, width))
        )
        return Stream(latents, context, timesteps, sigma)

    video, audio = stream(18, 64, 12), stream(18, 32, 0)
    expected_model = transformer_of(tiny_model, torch.bfloat16)
    expected_model.load_lora_adapter(_state(folder), prefix="transformer")
    model = VelocityModel(expected_model)
    with torch.no_grad():
        expected, expected_audio = model(video, audio if with_audio else None, frame_rate=24.0, latent_shape=shape)
        found, found_audio = names["pipeline"].transformer(
            hidden_states=video.tokens.bfloat16(),
            audio_hidden_states=audio.tokens.bfloat16(),
            encoder_hidden_states=video.context.bfloat16(),
            audio_encoder_hidden_states=audio.context.bfloat16(),
            timestep=video.timesteps * 1000,
            audio_timestep=sigma * 1000,
            sigma=sigma * 1000,
            audio_sigma=sigma * 1000,
            video_coords=model.video_positions(shape, 24.0, 1),
            audio_coords=model.audio_positions(18, 1),
            use_cross_timestep=True,
            return_dict=False,
        )
    # The pipeline gives one audio level for all tokens where the suite gives one for each, which rounds differently.
    assert (found.float() - expected).abs().max() < 1e-2 * expected.abs().max()
    if expected_audio is not None:
        assert (found_audio.float() - expected_audio).abs().max() < 1e-2 * expected_audio.abs().max()


def _state(folder: Path) -> Any:
    from diffusers import LTX2ConditionPipeline

    return LTX2ConditionPipeline.lora_state_dict(str(folder / "lora.safetensors"))


def test_the_recipe_names_window_shape_and_prompt(tiny_model: Path) -> None:
    found = recipe(tiny_model, with_audio=True)
    assert (found["conditioning_frames"], found["conditioning_latent_frames"]) == (9, 2)
    assert found["conditioning_seconds"] == 0.375
    assert (found["width"], found["height"], found["number_of_frames"], found["frame_rate"]) == (96, 64, 17, 24.0)
    assert found["audio_window"] == {"latents": 9, "seconds": 0.36}
    assert found["prompt"].startswith(f"{TRIGGER} ")
    assert found["guidance"]["stg_block"] == 2, "28 of 48 layers, of four"
    silent = recipe(tiny_model, with_audio=False, trigger_phrase="")
    assert "audio_window" not in silent
    assert silent["prompt"].startswith("<")


def test_the_code_pins_a_revision_of_the_hub_alone(tiny_model: Path) -> None:
    assert "revision=None" in recipe(tiny_model, False)["code"]
    revision = "0123456789abcdef0123456789abcdef01234567"
    hub = replace(facts_of(tiny_model), model="a/model", model_revision=revision)
    assert f"from_pretrained('a/model', revision='{revision}'" in recipe(tiny_model, False, facts=hub)["code"]


def test_the_config_file_is_json_with_all_its_parts(tiny_model: Path) -> None:
    spec = {"trigger_phrase": TRIGGER, "rank": 8, "validation_negative_prompt": "blurry", "stg_scale": 0.0}
    facts = facts_of(tiny_model)
    content = config_content(
        spec=spec,
        settings=settings(),
        geometry=GEOMETRY,
        facts=facts,
        manifest={"dataset": "abc"},
        audit={"modules": 40, "parameters": 10, "update": {"attn1": 0.1}},
    )
    read = json.loads(json.dumps(content))
    assert read == content
    assert (read["training_type"], read["trigger_phrase"]) == ("extend-prefix", TRIGGER)
    assert read["spec"] == spec
    assert (read["manifest"]["dataset"], read["manifest"]["device"]) == ("abc", "a processor")
    assert read["manifest"]["model"]["revision"] == facts.model_revision
    assert {"torch", "diffusers", "peft"} <= read["manifest"]["libraries"].keys()
    assert read["audit"]["update"] == {"attn1": 0.1}
    assert read["inference"]["code"]
