"""Transformer and connectors out of the original single file, whose tensors bear Lightricks' names.

Most names are equal in both layouts; the tables below are the differences, each a fact that diffusers' own conversion
of LTX 2.3 documents. Loading is strict: a name too many or too few is an error, never a weight left random.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ltxtrain_trainer.errors import ModelUnavailable, ModelUnsupported
from ltxtrain_trainer.model.files import tensor_sizes

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL_COMPONENTS = ("transformer", "connectors")

BODY = "model.diffusion_model."
TEXT_PROJECTION = "text_embedding_projection."

# First part of a name inside the body: original, diffusers.
TRANSFORMER_STEMS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
}
CONNECTOR_STEMS = {
    "video_embeddings_connector": "video_connector",
    "audio_embeddings_connector": "audio_connector",
}
PROJECTION_STEMS = {
    "video_aggregate_embed": "video_text_proj_in",
    "audio_aggregate_embed": "audio_text_proj_in",
}
# Any later part of a name.
PARTS = {
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "transformer_1d_blocks": "transformer_blocks",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
}


def diffusers_name(original: str) -> tuple[str, str] | None:
    """Component and name in diffusers of a tensor of the single file; None for what is neither component's."""
    if original.startswith(BODY):
        stem, *rest = original.removeprefix(BODY).split(".")
        parts = [PARTS.get(part, part) for part in rest]
        if stem in CONNECTOR_STEMS:
            return "connectors", ".".join([CONNECTOR_STEMS[stem], *parts])
        return "transformer", ".".join([TRANSFORMER_STEMS.get(stem, stem), *parts])
    if original.startswith(TEXT_PROJECTION):
        stem, *rest = original.removeprefix(TEXT_PROJECTION).split(".")
        return "connectors", ".".join([PROJECTION_STEMS.get(stem, stem), *rest])
    return None


def check_original(file: Path) -> None:
    """Nothing when the file is whole and holds an LTX 2.3; reads its header only."""
    if not file.is_file():
        raise ModelUnavailable(f"There is no file {file}.")
    names = tensor_sizes(file)
    if not any(name.startswith(BODY) for name in names):
        raise ModelUnsupported(f"{file} is no original LTX file: none of its tensors is named {BODY}….")
    if f"{BODY}prompt_adaln_single.linear.weight" not in names:
        raise ModelUnsupported(
            f"{file} looks like LTX 2.0: it has no prompt_adaln_single. Only LTX 2.3 can be trained."
        )
    if f"{BODY}transformer_blocks.0.ff.net.0.proj.bias" not in names:
        raise ModelUnsupported(f"{file} looks like LTX 2.5: its feed-forward has no bias. Only LTX 2.3 can be trained.")
    if not any(name.startswith(TEXT_PROJECTION) for name in names):
        raise ModelUnsupported(f"{file} holds no text connectors ({TEXT_PROJECTION}…).")


def original_tensors(file: Path, component: str) -> "Iterator[tuple[str, Tensor]]":
    """The tensors of one component under their diffusers names, each backed by the file until it is copied."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        for original in stored.keys():  # noqa: SIM118 - a safe_open is no mapping
            if (mapped := diffusers_name(original)) and mapped[0] == component:
                yield mapped[1], stored.get_tensor(original)
