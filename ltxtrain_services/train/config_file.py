"""`config.json`: what was asked, what was made of it, and how to use the LoRA."""

from collections.abc import Mapping
from dataclasses import asdict
from string import Template
from typing import Any

from ltxtrain_trainer.geometry import AUDIO_LATENTS_PER_SECOND, Geometry, audio_latents, latent_frames
from ltxtrain_trainer.preview.recipe import (
    AUDIO_TEXT_GUIDANCE,
    SCHEDULE_TOKENS,
    STEPS,
    VIDEO_TEXT_GUIDANCE,
    sequence_shift,
    skipped_block,
)
from ltxtrain_trainer.reports import TrainingFacts
from ltxtrain_trainer.training.settings import TRAINING_TYPE, TrainSettings


def config_content(
    *,
    spec: Mapping[str, Any],
    settings: TrainSettings,
    geometry: Geometry,
    facts: TrainingFacts,
    manifest: Mapping[str, Any],
    audit: Mapping[str, Any],
    schedule_tokens: int = SCHEDULE_TOKENS,
) -> dict[str, Any]:
    """The content of config.json, ready for JSON.

    spec: the resolved sheet. geometry: of the training clips, which inference does best to match. manifest: where the
    data came from; URLs come without query and user part. audit: numbers of ltxtrain_trainer.lora_file.audit.
    schedule_tokens: video tokens that previews' noise schedule is made for, 0 for their own.
    """
    return {
        "training_type": TRAINING_TYPE,
        "trigger_phrase": spec["trigger_phrase"],
        "spec": dict(spec),
        "settings": asdict(settings),
        "manifest": {
            **manifest,
            "device": facts.device,
            "base_precision": facts.precision,
            "memory_plan": dict(facts.memory),
            "seed": settings.seed,
            "model": {
                "reference": facts.model,
                "revision": facts.model_revision,
                "digests": dict(facts.model_digests),
            },
            "libraries": dict(facts.libraries),
            "python": facts.python,
        },
        "audit": dict(audit),
        "inference": inference_recipe(
            trigger_phrase=spec["trigger_phrase"],
            settings=settings,
            geometry=geometry,
            negative_prompt=spec["validation_negative_prompt"],
            stg_scale=spec["stg_scale"],
            facts=facts,
            schedule_tokens=schedule_tokens,
        ),
    }


def inference_recipe(
    *,
    trigger_phrase: str,
    settings: TrainSettings,
    geometry: Geometry,
    negative_prompt: str,
    stg_scale: float,
    facts: TrainingFacts,
    schedule_tokens: int = SCHEDULE_TOKENS,
) -> dict[str, Any]:
    """The window, shape and prompt that the LoRA was trained for, and code that uses it."""
    prefix_frames, rate = settings.conditioning_frames, geometry.frame_rate
    skipped = skipped_block(facts.layer_count)
    recipe: dict[str, Any] = {
        "conditioning_frames": prefix_frames,
        "conditioning_latent_frames": latent_frames(prefix_frames),
        "conditioning_seconds": prefix_frames / rate,
        "number_of_frames": geometry.frame_count,
        "frame_rate": rate,
        "width": geometry.width,
        "height": geometry.height,
        "prompt": prompt_form(trigger_phrase),
        "negative_prompt": negative_prompt,
        "guidance": {
            "video_text": VIDEO_TEXT_GUIDANCE,
            "audio_text": AUDIO_TEXT_GUIDANCE,
            "stg_scale": stg_scale,
            "stg_block": skipped,
            "steps": STEPS,
            "schedule_tokens": schedule_tokens,
        },
        "code": _CODE.substitute(
            model=repr(facts.model.partition("#")[0]),
            revision=repr(None if facts.model_revision.startswith("sha256:") else facts.model_revision),
            as_trained=_JOINT if settings.with_audio else _VIDEO_ONLY,
            conditioning_frames=prefix_frames,
            frame_count=geometry.frame_count,
            frame_rate=repr(rate),
            width=geometry.width,
            height=geometry.height,
            prompt=repr(prompt_form(trigger_phrase)),
            negative_prompt=repr(negative_prompt),
            steps=STEPS,
            schedule=_SCHEDULE.substitute(shift=repr(sequence_shift(schedule_tokens))) if schedule_tokens else "",
            stg_scale=repr(stg_scale),
            stg_block=skipped,
            video_guidance=VIDEO_TEXT_GUIDANCE,
            audio_guidance=AUDIO_TEXT_GUIDANCE,
            sound=_SOUND if settings.with_audio else "",
        ),
    }
    if settings.with_audio:
        latents = audio_latents(prefix_frames, rate)
        recipe["audio_window"] = {"latents": latents, "seconds": latents / AUDIO_LATENTS_PER_SECOND}
        recipe["note"] = (
            "The diffusers pipeline makes sound but cannot continue it from the opening; the suite's previews do. "
            "Keep the first audio_window.latents audio latents clean at timestep 0 for the same."
        )
    return recipe


def prompt_form(trigger_phrase: str) -> str:
    """The form of a prompt for the LoRA."""
    description = "<what happens next, as in the training captions>"
    return f"{trigger_phrase} {description}" if trigger_phrase else description


# The pipeline runs the audio stream in any case; this keeps it out of the picture, as in training.
_VIDEO_ONLY = """

def without_sound(transformer, inputs, options):
    return inputs, {**options, "isolate_modalities": True}


pipeline.transformer.register_forward_pre_hook(without_sound, with_kwargs=True)
"""

# The pipeline's own levels for the attention between sound and picture are not those the model was made with.
_JOINT = """
levels = {}


def note_levels(transformer, inputs, options):
    levels["picture"] = options["sigma"]
    levels["sound"] = options["audio_sigma"] if options.get("audio_sigma") is not None else options["sigma"]
    return inputs, {**options, "use_cross_timestep": False}


pipeline.transformer.register_forward_pre_hook(note_levels, with_kwargs=True)
pipeline.transformer.av_cross_attn_video_a2v_gate.register_forward_pre_hook(
    lambda gate, inputs: (levels["sound"], *inputs[1:])
)
pipeline.transformer.av_cross_attn_audio_v2a_gate.register_forward_pre_hook(
    lambda gate, inputs: (levels["picture"], *inputs[1:])
)
"""

_SOUND = """
    audio=sound[0].float().cpu(),
    audio_sample_rate=pipeline.vocoder.config.output_sampling_rate,"""

# The same noise levels whatever the number of tokens, as in the suite's previews.
_SCHEDULE = Template("""\
pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
    pipeline.scheduler.config, base_shift=$shift, max_shift=$shift
)
""")

_CODE = Template('''\
"""Continue a video with this LoRA: pip install torch diffusers transformers peft accelerate av"""

import itertools

import av
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2ConditionPipeline
from diffusers.pipelines.ltx2 import LTX2VideoCondition
from diffusers.utils import encode_video

LORA = "lora.safetensors"
# Its first frames are continued, at $frame_rate frames a second as the LoRA was trained. To go on from the end of a
# longer clip, cut its last CONDITIONING_FRAMES frames out first.
OPENING = "opening.mp4"
PROMPT = $prompt  # say what happens next
CONDITIONING_FRAMES = $conditioning_frames

with av.open(OPENING) as video:
    decoded = itertools.islice(video.decode(video=0), CONDITIONING_FRAMES)
    opening = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
if len(opening) < CONDITIONING_FRAMES:
    raise SystemExit(f"{OPENING} has {len(opening)} frames; {CONDITIONING_FRAMES} are needed.")

pipeline = LTX2ConditionPipeline.from_pretrained($model, revision=$revision, dtype=torch.bfloat16)
pipeline.load_lora_weights(LORA)
${schedule}if torch.cuda.is_available():
    pipeline.enable_model_cpu_offload()
$as_trained

frames, sound = pipeline(
    conditions=[LTX2VideoCondition(frames=opening, index=0, strength=1.0)],
    prompt=PROMPT,
    negative_prompt=$negative_prompt,
    width=$width,
    height=$height,
    num_frames=$frame_count,
    frame_rate=$frame_rate,
    num_inference_steps=$steps,
    guidance_scale=$video_guidance,
    audio_guidance_scale=$audio_guidance,
    stg_scale=$stg_scale,
    audio_stg_scale=$stg_scale,
    spatio_temporal_guidance_blocks=[$stg_block],
    generator=torch.Generator().manual_seed(42),
    output_type="np",
    return_dict=False,
)
encode_video(
    frames[0],
    fps=$frame_rate,
    output_path="continued.mp4",$sound
)
''')
