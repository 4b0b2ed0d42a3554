"""The pocket model as a pipeline folder: what was learned, and around it what is drawn from a seed.

The weights of what was learned lie beside this file, in half precision: of the two VAEs, of the vocoder, and of the
transformer's video half and audio half. Text encoder and connectors stay random: their embeddings tell words apart, and
the transformer was trained on them.
"""

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from ltxtrain_pocket import audio_vae, video_vae, vocoder
from ltxtrain_pocket.weights import LEARNED, WEIGHTS
from ltxtrain_trainer.model.tiny import CONNECTORS, TRANSFORMER, build_tiny_model, random_parts

HEADS, HEAD_WIDTH, AUDIO_HEAD_WIDTH, LAYERS = 4, 48, 24, 4
WIDTH, AUDIO_WIDTH = HEADS * HEAD_WIDTH, HEADS * AUDIO_HEAD_WIDTH

TRANSFORMER_CONFIG: dict[str, Any] = TRANSFORMER | {
    "num_layers": LAYERS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "cross_attention_dim": WIDTH,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": AUDIO_HEAD_WIDTH,
    "audio_cross_attention_dim": AUDIO_WIDTH,
}
CONNECTORS_CONFIG: dict[str, Any] = CONNECTORS | {
    "video_connector_num_attention_heads": HEADS,
    "video_connector_attention_head_dim": HEAD_WIDTH,
    "video_connector_num_layers": 1,
    "audio_connector_num_attention_heads": HEADS,
    "audio_connector_attention_head_dim": AUDIO_HEAD_WIDTH,
    "audio_connector_num_layers": 1,
    "video_hidden_dim": WIDTH,
    "audio_hidden_dim": AUDIO_WIDTH,
}
# What is drawn from the seed hangs on the sizes of what was drawn before. The video half was trained on the embeddings
# of a text encoder and connectors that came after an audio half of heads of 8, so these are drawn as they were then.
WORDS_AUDIO_HEAD_WIDTH = 8


def build_pocket_model(folder: Path, weights: Path = WEIGHTS) -> None:
    """Write the pipeline folder (about 60 MB) from the stored weights."""
    build_untrained(folder, {name: load_weights(name, weights) for name in LEARNED})


def build_untrained(folder: Path, learned: dict[str, dict[str, Tensor]] | None = None) -> None:
    """Write the same folder with what is learned so far: nothing, or some of LEARNED."""
    parts = untrained_parts()
    for name, state in (learned or {}).items():
        part = parts["transformer" if name == "sound" else name]
        if name == "audio_vae":
            state = audio_vae.widened(state, part.state_dict())
        unknown = part.load_state_dict(state, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"The weights of {name} are of another model: it has no {unknown[0]}.")
    build_tiny_model(folder, parts)


def untrained_parts() -> dict[str, nn.Module]:
    """Every model of the pipeline, drawn from a seed."""
    sizes: dict[str, Any] = {
        "transformer_config": TRANSFORMER_CONFIG,
        "connectors_config": CONNECTORS_CONFIG,
        "vae_config": video_vae.CONFIG,
        "audio_vae_config": audio_vae.CONFIG,
        "vocoder_config": vocoder.CONFIG,
    }
    width = HEADS * WORDS_AUDIO_HEAD_WIDTH
    before = random_parts(
        transformer_config=TRANSFORMER_CONFIG
        | {"audio_attention_head_dim": WORDS_AUDIO_HEAD_WIDTH, "audio_cross_attention_dim": width},
        connectors_config=CONNECTORS_CONFIG
        | {"audio_connector_attention_head_dim": WORDS_AUDIO_HEAD_WIDTH, "audio_hidden_dim": width},
        vae_config=video_vae.CONFIG,
    )
    words = {name: weight for name, weight in before["connectors"].state_dict().items() if name.startswith("video_")}
    parts = random_parts(**sizes) | {"text_encoder": before["text_encoder"]}
    parts["connectors"].load_state_dict(words, strict=False)
    return parts


def load_weights(name: str, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """One of LEARNED in float32; "sound" is the audio half of the transformer, which has a file of its own."""
    stored = safetensors.torch.load_file(folder / f"{name}.safetensors")
    return {key: tensor.float() for key, tensor in stored.items()}


def store_weights(name: str, state: dict[str, Tensor], folder: Path = WEIGHTS) -> None:
    """Keep a component's weights in half precision; the statistics of latents stay as they are."""
    folder.mkdir(exist_ok=True)
    stored = {key: (value if key.startswith("latents_") else value.half()).contiguous() for key, value in state.items()}
    file = folder / f"{name}.safetensors"
    safetensors.torch.save_file(stored, file, metadata={"format": "pt"})
    file.chmod(0o644)


if __name__ == "__main__":
    build_pocket_model(Path(sys.argv[1]))
