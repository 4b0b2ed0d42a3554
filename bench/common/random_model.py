"""The transformer of LTX 2.3 with random weights and as many blocks as wanted, made on its device: no download."""

from dataclasses import dataclass
from typing import Any

import torch

from bench.common.meta_card import REAL, quantize
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.memory_plan import ModelSize
from ltxtrain_trainer.model.loading import attach_stream
from ltxtrain_trainer.model.precision import UNQUANTIZED, Precision
from ltxtrain_trainer.model.streaming import BlockStream

RATE = 24.0


@dataclass(frozen=True)
class Widths:
    """Heads of each stream and their width; the defaults are the published model's."""

    heads: int = 32
    head: int = 128
    audio_head: int = 64

    def config(self, layers: int) -> dict[str, Any]:
        video, audio = self.heads * self.head, self.heads * self.audio_head
        return REAL | {
            "num_layers": layers,
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head,
            "cross_attention_dim": video,
            "audio_num_attention_heads": self.heads,
            "audio_attention_head_dim": self.audio_head,
            "audio_cross_attention_dim": audio,
        }

    def size(self, layers: int) -> ModelSize:
        return ModelSize.of(self.config(layers))


def random_transformer(
    widths: Widths, layers: int, device: torch.device, precision: Precision, *, streamed: bool = False, seed: int = 0
) -> Any:
    """A VideoTransformer; streamed: with all of its blocks in host memory."""
    from accelerate.utils import set_module_tensor_to_device

    from ltxtrain_trainer.model.video_half import VideoTransformer

    draw = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        model: Any = VideoTransformer.from_config(widths.config(layers)).eval()
    stream = BlockStream(device) if streamed else None
    for index in (None, *range(layers)):
        part = model if index is None else model.transformer_blocks[index]
        for name, parameter in list(part.named_parameters()):
            if index is None and name.startswith("transformer_blocks."):
                continue
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            drawn = torch.randn(parameter.shape, generator=draw, device=device).mul_(scale)
            set_module_tensor_to_device(part, name, device, value=drawn, dtype=precision.dtype)
        if index is not None:
            quantize(part, precision.value, lambda name: any(step in UNQUANTIZED for step in name.split(".")))
            if stream is not None:
                part.requires_grad_(False)
                stream.take(index, part)
    model.requires_grad_(False)
    if stream is not None:
        attach_stream(model, stream)
    return model


def random_samples(
    latents: tuple[int, int, int], prompt_tokens: int, widths: Widths, count: int = 2
) -> list[tuple[EncodedClip, PromptEmbedding]]:
    draw = torch.Generator().manual_seed(1)
    width = widths.heads * widths.head
    return [
        (
            EncodedClip(
                video=torch.randn(128, *latents, generator=draw).bfloat16(),
                audio=None,
                frame_rate=RATE,
                frame_count=8 * latents[0] - 7,
            ),
            PromptEmbedding(
                video=torch.randn(prompt_tokens, width, generator=draw).bfloat16(),
                audio=torch.zeros(1, 1).bfloat16(),
                token_count=prompt_tokens,
                truncated=False,
            ),
        )
        for _ in range(count)
    ]
