"""Whether a pipeline folder holds LTX 2.3, and which version it looks like when it does not.

The same diffusers classes serve 2.0, 2.3 and 2.5; only flags in the configs differ, and a class built from an
incomplete config becomes a 2.0. So every flag that the maths here rely on is looked at.
"""

from collections.abc import Mapping
from typing import Any

from trainer.errors import ModelUnsupported

# Flag, value in 2.3, value a config without it means (the default of the class).
TRANSFORMER_FLAGS: tuple[tuple[str, Any, Any], ...] = (
    ("gated_attn", True, False),
    ("audio_gated_attn", True, False),
    ("cross_attn_mod", True, False),
    ("audio_cross_attn_mod", True, False),
    ("perturbed_attn", True, False),
    ("use_prompt_embeddings", False, True),
    ("rope_type", "split", "interleaved"),
    ("ff_bias", True, True),
    ("audio_ff_bias", True, True),
    ("use_prompt_adaln_single", True, True),
    ("use_keyframes_abs_pos_embedding", False, False),
    ("in_channels", 128, 128),
    ("audio_in_channels", 128, 128),
    ("patch_size", 1, 1),
    ("patch_size_t", 1, 1),
    ("timestep_scale_multiplier", 1000, 1000),
    ("cross_attn_timestep_scale_multiplier", 1000, 1000),
)
ONLY_IN_2_5 = ("ff_bias", "audio_ff_bias", "use_prompt_adaln_single", "use_keyframes_abs_pos_embedding")

CLASSES = {
    "transformer": "LTX2VideoTransformer3DModel",
    "connectors": "LTX2TextConnectors",
    "vae": "AutoencoderKLLTX2Video",
    "audio_vae": "AutoencoderKLLTX2Audio",
    "vocoder": "LTX2VocoderWithBWE",
    "text_encoder": "Gemma3ForConditionalGeneration",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
VERSION_OF_CLASS = {"LTX2Vocoder": "2.0", "Gemma4UnifiedForConditionalGeneration": "2.5"}


def check_version(reference: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Nothing when the configs, by component, are those of LTX 2.3; else ModelUnsupported."""
    for name, config in configs.items():
        if name in CLASSES and (found := _class_name(config)) != CLASSES[name]:
            version = VERSION_OF_CLASS.get(found)
            _refuse(reference, version, f"its {name} is a {found}, not a {CLASSES[name]}")
    for flag, needed, default in TRANSFORMER_FLAGS if "transformer" in configs else ():
        if (value := configs["transformer"].get(flag, default)) != needed:
            version = "2.5" if flag in ONLY_IN_2_5 else "2.0" if value == default else None
            _refuse(reference, version, f"its transformer has {flag} = {value}, not {needed}")
    if "connectors" in configs and not configs["connectors"].get("per_modality_projections", False):
        _refuse(reference, "2.0", "its connectors have one text projection for both modalities")


def _class_name(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures") or ["model of no named class"]
    return str(config.get("_class_name") or architectures[0])


def _refuse(reference: str, version: str | None, because: str) -> None:
    looks_like = f"looks like LTX {version}" if version else "is not LTX 2.3"
    raise ModelUnsupported(
        f"{reference} {looks_like}: {because}. Only LTX 2.3 can be trained; "
        "give a diffusers-layout LTX 2.3 such as diffusers/LTX-2.3-Diffusers."
    )
