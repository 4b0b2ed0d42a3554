"""A complete LTX-2.3 pipeline folder with small random weights, for tests and the demo.

Every flag and every compression factor is the real model's; only widths and depths are small, so that all code paths
of the real model run on a CPU. The weights come from a fixed seed: the same library versions write the same bytes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ltxtrain_trainer.data.mel import mel_filterbank
from ltxtrain_trainer.model.loading import hush_imports, no_progress_bars

Module = TypeVar("Module", bound=nn.Module)

SEED = 20230
LOUDNESS = 0.001
PROMPT_TOKENS = 128  # a multiple of the 128 learnable registers; the real model's is 1024

TEXT_WIDTH, TEXT_LAYERS = 32, 2
VIDEO_HEADS, VIDEO_HEAD_WIDTH = 4, 16
AUDIO_HEADS, AUDIO_HEAD_WIDTH = 4, 8
VIDEO_WIDTH, AUDIO_WIDTH = VIDEO_HEADS * VIDEO_HEAD_WIDTH, AUDIO_HEADS * AUDIO_HEAD_WIDTH

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
IMAGE_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")

TRANSFORMER: dict[str, Any] = {
    "num_layers": 4,
    "num_attention_heads": VIDEO_HEADS,
    "attention_head_dim": VIDEO_HEAD_WIDTH,
    "cross_attention_dim": VIDEO_WIDTH,
    "audio_num_attention_heads": AUDIO_HEADS,
    "audio_attention_head_dim": AUDIO_HEAD_WIDTH,
    "audio_cross_attention_dim": AUDIO_WIDTH,
    "caption_channels": TEXT_WIDTH,
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "perturbed_attn": True,
    "use_prompt_embeddings": False,
    "rope_type": "split",
}

CONNECTORS: dict[str, Any] = {
    "caption_channels": TEXT_WIDTH,
    "text_proj_in_factor": TEXT_LAYERS + 1,
    "video_connector_num_attention_heads": VIDEO_HEADS,
    "video_connector_attention_head_dim": VIDEO_HEAD_WIDTH,
    "video_connector_num_layers": 2,
    "video_gated_attn": True,
    "audio_connector_num_attention_heads": AUDIO_HEADS,
    "audio_connector_attention_head_dim": AUDIO_HEAD_WIDTH,
    "audio_connector_num_layers": 2,
    "audio_gated_attn": True,
    "per_modality_projections": True,
    "video_hidden_dim": VIDEO_WIDTH,
    "audio_hidden_dim": AUDIO_WIDTH,
    "proj_bias": True,
    "rope_type": "split",
}

VIDEO_VAE: dict[str, Any] = {
    "block_out_channels": (16, 32, 64, 64),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_block_out_channels": (16, 32, 32, 64),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True, True, True),
    "decoder_inject_noise": (False, False, False, False, False),
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False, False, False, False),
    "upsample_factor": (2, 2, 1, 2),
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}

# base_channels stays 128: the statistics of the 8 x 16 packed latents have as many entries.
AUDIO_VAE: dict[str, Any] = {"ch_mult": (1, 1, 1), "num_res_blocks": 1}

VOCODER: dict[str, Any] = {
    "hidden_channels": 64,
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1, 3, 5]],
    "bwe_hidden_channels": 32,
    "bwe_resnet_kernel_sizes": [3],
    "bwe_resnet_dilations": [[1, 3, 5]],
}

SCHEDULER: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def build_tiny_model(folder: Path, parts: Mapping[str, nn.Module] | None = None) -> None:
    """Write the pipeline folder (about 35 MB); LTX2Pipeline and LTX2ConditionPipeline load it as it is.

    parts: those of random_parts, of other sizes or with weights that were learned.
    """
    hush_imports()
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    pipeline = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER), tokenizer=_tokenizer(), **(parts or random_parts())
    )
    with no_progress_bars():
        pipeline.save_pretrained(folder)


def random_parts(
    *,
    transformer_config: Mapping[str, Any] = TRANSFORMER,
    connectors_config: Mapping[str, Any] = CONNECTORS,
    vae_config: Mapping[str, Any] = VIDEO_VAE,
    audio_vae_config: Mapping[str, Any] = AUDIO_VAE,
    vocoder_config: Mapping[str, Any] = VOCODER,
) -> dict[str, nn.Module]:
    """The models of the pipeline by their names in it, all drawn from one seed, one after the other."""
    hush_imports()
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE

    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):  # constructors draw weights that are replaced here
        transformer = _fill(LTX2VideoTransformer3DModel(**transformer_config), generator)
        connectors = _fill(LTX2TextConnectors(**connectors_config), generator)
        vae = _fill(AutoencoderKLLTX2Video(**vae_config), generator)
        audio_vae = _fill(AutoencoderKLLTX2Audio(**audio_vae_config), generator)
        vocoder = _fill(LTX2VocoderWithBWE(**vocoder_config), generator)
        text_encoder = _fill(_text_encoder(), generator)
    _fill_statistics(vae, generator)
    _fill_statistics(audio_vae, generator)
    _fill_bandwidth_extension(vocoder)
    _quieten(vocoder)
    return {
        "transformer": transformer,
        "connectors": connectors,
        "vae": vae,
        "audio_vae": audio_vae,
        "vocoder": vocoder,
        "text_encoder": text_encoder,
    }


def _fill(model: Module, generator: torch.Generator) -> Module:
    """Every parameter drawn anew, in the order of the module: outputs keep about the scale of the inputs.

    Uniform draws, because they have the same bits on every processor; normal ones have not.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(_uniform(parameter.shape, generator) * fan_in**-0.5)
            else:
                centre = 1.0 if name.endswith("weight") else 0.0
                parameter.copy_(_uniform(parameter.shape, generator) * 0.1 + centre)
    return model.eval().requires_grad_(False)


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Mean 0, deviation 1."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * math.sqrt(3)


def _fill_statistics(model: nn.Module, generator: torch.Generator) -> None:
    """Latent statistics near those of the random weights, so that normalised latents have about the scale of noise."""
    means, deviations = model.get_buffer("latents_mean"), model.get_buffer("latents_std")
    means.copy_(_uniform(means.shape, generator) * 0.1)
    deviations.copy_(torch.rand(deviations.shape, generator=generator) * 0.3 + 0.3)


def _fill_bandwidth_extension(vocoder: nn.Module) -> None:
    """The Fourier and mel tables that the real file holds, in bfloat16 as there; the class leaves them zero."""
    forward = vocoder.get_buffer("mel_stft.stft_fn.forward_basis")
    inverse = vocoder.get_buffer("mel_stft.stft_fn.inverse_basis")
    rows, _, length = forward.shape
    frequency = torch.arange(rows // 2, dtype=torch.float64)[:, None]
    sample = torch.arange(length, dtype=torch.float64)
    angle = 2 * math.pi * frequency * sample / length
    waves = torch.cat([angle.cos(), -angle.sin()])
    window = 0.5 - 0.5 * (2 * math.pi * sample / length).cos()
    # Each frequency between the first and the last stands for two of a whole transform.
    weight = torch.where((frequency == 0) | (frequency == length // 2), 1.0, 2.0) / length
    forward.copy_((waves * window)[:, None].bfloat16())
    inverse.copy_((waves * window * torch.cat([weight, weight]))[:, None].bfloat16())
    vocoder.get_buffer("mel_stft.mel_basis").copy_(mel_filterbank(length).T.bfloat16())


def _quieten(vocoder: nn.Module) -> None:
    """Random weights would clip every sample."""
    for name in ("vocoder.conv_out.weight", "bwe_generator.conv_out.weight"):
        vocoder.get_parameter(name).mul_(LOUDNESS)


def _text_encoder() -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    first_image_token = len(SPECIAL_TOKENS) + 256
    config = Gemma3Config(
        text_config={
            "vocab_size": first_image_token + len(IMAGE_TOKENS),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "max_position_embeddings": 1024,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=first_image_token,
        eoi_token_index=first_image_token + 1,
        image_token_index=first_image_token + 2,
    )
    model: nn.Module = Gemma3ForConditionalGeneration(config)
    return model


def _tokenizer() -> Any:
    """One token a byte, so that any text goes there and back without a trained vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *IMAGE_TOKENS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=PROMPT_TOKENS,
    )
