"""The pocket model as a pipeline folder: what was learned, and around it what is drawn from a seed.

Learned are the video VAE and the transformer; their weights lie beside this file, in half precision. Text encoder and
connectors stay random: their embeddings tell words apart, and the transformer was trained on them. The audio VAE and
the vocoder stay random too, so that the model has a picture and no sound.
"""

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ltxtrain_pocket.video_vae import CONFIG as VIDEO_VAE
from ltxtrain_pocket.weights import LEARNED, WEIGHTS
from ltxtrain_trainer.model.tiny import CONNECTORS, TRANSFORMER, build_tiny_model

HEADS, HEAD_WIDTH, AUDIO_HEAD_WIDTH, LAYERS = 4, 48, 8, 4
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


def build_pocket_model(folder: Path, weights: Path = WEIGHTS) -> None:
    """Write the pipeline folder (about 60 MB) from the stored weights."""
    learned = {name: _widened(weights / f"{name}.safetensors") for name in LEARNED}
    build_untrained(folder, learned)


def build_untrained(folder: Path, learned: dict[str, dict[str, Tensor]] | None = None) -> None:
    """Write the same folder with what is learned so far: nothing, or some of the components."""
    build_tiny_model(
        folder,
        transformer_config=TRANSFORMER_CONFIG,
        connectors_config=CONNECTORS_CONFIG,
        vae_config=VIDEO_VAE,
        learned=learned,
    )


def store_weights(name: str, state: dict[str, Tensor], folder: Path = WEIGHTS) -> None:
    """Keep a component's weights in half precision; the statistics of latents stay as they are."""
    folder.mkdir(exist_ok=True)
    stored = {key: (value if key.startswith("latents_") else value.half()).contiguous() for key, value in state.items()}
    file = folder / f"{name}.safetensors"
    safetensors.torch.save_file(stored, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _widened(file: Path) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float32) for name, tensor in safetensors.torch.load_file(file).items()}


if __name__ == "__main__":
    build_pocket_model(Path(sys.argv[1]))
