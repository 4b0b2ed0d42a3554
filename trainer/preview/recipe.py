"""The published inference recipe of LTX 2.3 in numbers. No tensors.

Guidance scales, steps and the skipped block are those of the official pipelines (ltx-pipelines and diffusers'
LTX2ConditionPipeline agree on them).
"""

VIDEO_TEXT_GUIDANCE = 3.0
AUDIO_TEXT_GUIDANCE = 7.0
STEPS = 30


def skipped_block(layer_count: int) -> int:
    """The block whose self-attention is skipped: 28 of the 48 of LTX 2.3, in proportion elsewhere."""
    return 28 * layer_count // 48


def passes(stg_scale: float, with_audio: bool) -> int:
    """Forward passes of one sampling step: prompt, negative prompt, and one for each further guidance in use."""
    return 2 + (stg_scale > 0) + with_audio
