"""A ComfyUI workflow that continues a clip with the job's LoRA, in the form that its API and its canvas both load.

Nodes of ComfyUI itself alone, with the settings of the job's own previews, but for skipped-block guidance (stg_scale),
which no node of them has. Its names of inputs and outputs are tested against those that ComfyUI declares.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.preview.recipe import STEPS, VIDEO_TEXT_GUIDANCE, sequence_shift

Link = Sequence[str | int]
TERMINAL_SIGMA = 0.1  # as in the scheduler's config of LTX 2.3


def comfy_workflow(
    *,
    checkpoint: str,
    lora: str,
    prompt: str,
    negative_prompt: str,
    geometry: Geometry,
    conditioning_frames: int,
    schedule_tokens: int,
    with_audio: bool,
    seed: int,
) -> dict[str, Any]:
    """Nodes by id.

    checkpoint, lora: file names in ComfyUI's folders. prompt: its form, to be completed. schedule_tokens: video tokens
    that the noise schedule is made for; 0: the clip's own.
    """
    nodes: dict[str, Any] = {}

    def node(key: str, kind: str, title: str, **inputs: Any) -> str:
        nodes[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        return key

    def out(key: str, index: int = 0) -> Link:
        return [key, index]

    model = node("model", "CheckpointLoaderSimple", "LTX 2.3", ckpt_name=checkpoint)
    text = node(
        "text",
        "LTXAVTextEncoderLoader",
        "Text encoder of LTX 2.3",
        text_encoder="gemma_3_12B_it.safetensors",
        ckpt_name=checkpoint,
        device="default",
    )
    adapted = node(
        "lora", "LoraLoaderModelOnly", "The LoRA of this job", model=out(model), lora_name=lora, strength_model=1.0
    )
    video = node("video", "LoadVideo", "The clip to continue", file="opening.mp4")
    parts = node("parts", "GetVideoComponents", "Its frames", video=out(video))
    opening = node(
        "opening",
        "ImageFromBatch",
        f"Its first {conditioning_frames} frames, at {geometry.frame_rate:g} a second",
        image=out(parts),
        batch_index=0,
        length=conditioning_frames,
    )
    positive = node("positive", "CLIPTextEncode", "Prompt: say what happens next", text=prompt, clip=out(text))
    negative = node("negative", "CLIPTextEncode", "Negative prompt", text=negative_prompt, clip=out(text))
    timed = node(
        "timed",
        "LTXVConditioning",
        "Frame rate",
        positive=out(positive),
        negative=out(negative),
        frame_rate=float(geometry.frame_rate),
    )
    begun = node(
        "begun",
        "LTXVImgToVideo",
        "Opening kept clean, the rest to be made",
        positive=out(timed),
        negative=out(timed, 1),
        vae=out(model, 2),
        image=out(opening),
        width=geometry.width,
        height=geometry.height,
        length=geometry.frame_count,
        batch_size=1,
        strength=1.0,
    )
    latent = out(begun, 2)
    schedule: dict[str, Any] = {"max_shift": 2.05, "base_shift": 0.95, "latent": latent}
    if schedule_tokens:
        shift = sequence_shift(schedule_tokens)
        schedule = {"max_shift": shift, "base_shift": shift}
    if with_audio:
        sound = node("sound", "LTXVAudioVAELoader", "Sound of LTX 2.3", ckpt_name=checkpoint)
        silence = node(
            "silence",
            "LTXVEmptyLatentAudio",
            "Sound to be made",
            frames_number=geometry.frame_count,
            frame_rate=round(geometry.frame_rate),
            batch_size=1,
            audio_vae=out(sound),
        )
        both = node("both", "LTXVConcatAVLatent", "Both", video_latent=latent, audio_latent=out(silence))
        latent = out(both)
    sampled = node(
        "sampled",
        "SamplerCustomAdvanced",
        "Continue",
        noise=out(node("noise", "RandomNoise", "Seed", noise_seed=seed)),
        guider=out(
            node(
                "guider",
                "CFGGuider",
                "Guidance",
                model=out(adapted),
                positive=out(begun),
                negative=out(begun, 1),
                cfg=VIDEO_TEXT_GUIDANCE,
            )
        ),
        sampler=out(node("sampler", "KSamplerSelect", "Sampler", sampler_name="euler")),
        sigmas=out(
            node(
                "sigmas",
                "LTXVScheduler",
                "Noise levels of the job's previews",
                steps=STEPS,
                stretch=True,
                terminal=TERMINAL_SIGMA,
                **schedule,
            )
        ),
        latent_image=latent,
    )
    found, made = out(sampled), dict[str, Any]()
    if with_audio:
        split = node("split", "LTXVSeparateAVLatent", "Picture and sound", av_latent=found)
        found = out(split)
        made["audio"] = out(node("waves", "LTXVAudioVAEDecode", "Sound", samples=out(split, 1), audio_vae=out("sound")))
    frames = node("frames", "VAEDecode", "Frames", samples=found, vae=out(model, 2))
    whole = node("whole", "CreateVideo", "Video", images=out(frames), fps=float(geometry.frame_rate), **made)
    node(
        "saved", "SaveVideo", "continued.mp4", video=out(whole), filename_prefix="continued", format="mp4", codec="auto"
    )
    return nodes


def links(nodes: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Every output that an input of a node is connected to."""
    values = [value for node in nodes.values() for value in node["inputs"].values()]
    return [(value[0], value[1]) for value in values if isinstance(value, list)]
