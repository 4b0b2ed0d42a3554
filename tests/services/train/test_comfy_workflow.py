"""The workflow against what ComfyUI's nodes declare: every input there, of the type that comes in."""

import json
from typing import Any

import pytest

from ltxtrain_services.train.comfy_workflow import comfy_workflow, links
from ltxtrain_trainer.geometry import Geometry

# As comfy_extras and nodes.py of ComfyUI declare them in 2026: inputs and outputs by type; "?" marks an optional input.
# A frame rate of sound is an INT there, all others are FLOAT.
DECLARED: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "CheckpointLoaderSimple": ({"ckpt_name": "STRING"}, ("MODEL", "CLIP", "VAE")),
    "LTXAVTextEncoderLoader": ({"text_encoder": "STRING", "ckpt_name": "STRING", "device": "STRING"}, ("CLIP",)),
    "LoraLoaderModelOnly": ({"model": "MODEL", "lora_name": "STRING", "strength_model": "FLOAT"}, ("MODEL",)),
    "LoadVideo": ({"file": "STRING"}, ("VIDEO",)),
    "GetVideoComponents": ({"video": "VIDEO"}, ("IMAGE", "AUDIO", "FLOAT")),
    "ImageFromBatch": ({"image": "IMAGE", "batch_index": "INT", "length": "INT"}, ("IMAGE",)),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "LTXVConditioning": (
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "frame_rate": "FLOAT"},
        ("CONDITIONING", "CONDITIONING"),
    ),
    "LTXVImgToVideo": (
        {
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "vae": "VAE",
            "image": "IMAGE",
            "width": "INT",
            "height": "INT",
            "length": "INT",
            "batch_size": "INT",
            "strength": "FLOAT",
        },
        ("CONDITIONING", "CONDITIONING", "LATENT"),
    ),
    "LTXVAudioVAELoader": ({"ckpt_name": "STRING"}, ("VAE",)),
    "LTXVEmptyLatentAudio": (
        {"frames_number": "INT", "frame_rate": "INT", "batch_size": "INT", "audio_vae": "VAE"},
        ("LATENT",),
    ),
    "LTXVConcatAVLatent": ({"video_latent": "LATENT", "audio_latent": "LATENT"}, ("LATENT",)),
    "LTXVSeparateAVLatent": ({"av_latent": "LATENT"}, ("LATENT", "LATENT")),
    "LTXVAudioVAEDecode": ({"samples": "LATENT", "audio_vae": "VAE"}, ("AUDIO",)),
    "LTXVScheduler": (
        {
            "steps": "INT",
            "max_shift": "FLOAT",
            "base_shift": "FLOAT",
            "stretch": "BOOLEAN",
            "terminal": "FLOAT",
            "latent": "LATENT?",
        },
        ("SIGMAS",),
    ),
    "RandomNoise": ({"noise_seed": "INT"}, ("NOISE",)),
    "KSamplerSelect": ({"sampler_name": "STRING"}, ("SAMPLER",)),
    "CFGGuider": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "cfg": "FLOAT"},
        ("GUIDER",),
    ),
    "SamplerCustomAdvanced": (
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        ("LATENT", "LATENT"),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "CreateVideo": ({"images": "IMAGE", "fps": "FLOAT", "audio": "AUDIO?"}, ("VIDEO",)),
    "SaveVideo": ({"video": "VIDEO", "filename_prefix": "STRING", "format": "STRING", "codec": "STRING"}, ()),
}
CONSTANTS = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}


def workflow(with_audio: bool = False, schedule_tokens: int = 4096) -> dict[str, Any]:
    return comfy_workflow(
        checkpoint="ltx-2.3-22b-dev.safetensors",
        lora="lora.safetensors",
        prompt="k1te <what happens next>",
        negative_prompt="blurry",
        geometry=Geometry(width=768, height=448, frame_count=89, frame_rate=24.0),
        conditioning_frames=17,
        schedule_tokens=schedule_tokens,
        with_audio=with_audio,
        seed=42,
    )


@pytest.mark.parametrize("with_audio", [False, True])
@pytest.mark.parametrize("schedule_tokens", [0, 4096])
def test_every_input_is_what_its_node_takes(with_audio: bool, schedule_tokens: int) -> None:
    nodes = workflow(with_audio, schedule_tokens)
    for key, node in nodes.items():
        declared, _ = DECLARED[node["class_type"]]
        required = {name for name, kind in declared.items() if not kind.endswith("?")}
        assert required <= node["inputs"].keys() <= declared.keys(), key
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source, index = value
                found = DECLARED[nodes[source]["class_type"]][1][index]
            else:
                found = CONSTANTS[type(value)]
            assert found == declared[name].removesuffix("?"), (key, name)


@pytest.mark.parametrize("with_audio", [False, True])
def test_every_node_leads_to_the_video(with_audio: bool) -> None:
    nodes = workflow(with_audio)
    used = {source for source, _ in links(nodes)}
    assert nodes.keys() - used == {"saved"}
    assert ("audio" in nodes["whole"]["inputs"]) == with_audio


def test_the_opening_is_as_long_as_in_training() -> None:
    nodes = workflow()
    assert nodes["opening"]["inputs"]["length"] == 17
    begun = nodes["begun"]["inputs"]
    assert (begun["width"], begun["height"], begun["length"], begun["strength"]) == (768, 448, 89, 1.0)
    assert nodes["sigmas"]["inputs"]["max_shift"] == pytest.approx(2.05)
    assert "latent" in workflow(schedule_tokens=0)["sigmas"]["inputs"]


def test_it_is_json() -> None:
    assert json.loads(json.dumps(workflow(True))) == workflow(True)
