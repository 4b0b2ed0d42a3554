"""The published inference recipe of LTX 2.3 in numbers. No tensors.

Guidance scales, steps and the skipped block are those of the official pipelines (ltx-pipelines and diffusers'
LTX2ConditionPipeline agree on them).
"""

VIDEO_TEXT_GUIDANCE = 3.0
AUDIO_TEXT_GUIDANCE = 7.0
STEPS = 30
# Video tokens that the noise schedule is made for, as in the official trainer's validation, whatever the clip's own:
# at the 10,800 tokens of 960x960x89 the schedule by those would spend 22 of its 30 steps above a noise level of 0.9.
SCHEDULE_TOKENS = 4096

# The straight line through (1024 tokens, 0.95) and (4096 tokens, 2.05); it goes on beyond both.
_TOKENS, _SHIFTS = (1024, 4096), (0.95, 2.05)


def skipped_block(layer_count: int) -> int:
    """The block whose self-attention is skipped: 28 of the 48 of LTX 2.3, in proportion elsewhere."""
    return 28 * layer_count // 48


def passes(stg_scale: float, with_audio: bool) -> int:
    """Forward passes of one sampling step: prompt, negative prompt, and one for each further guidance in use."""
    return 2 + (stg_scale > 0) + with_audio


def sequence_shift(token_count: int) -> float:
    """Centre of the logit-normal for a sequence of token_count tokens, before the sigmoid."""
    slope = (_SHIFTS[1] - _SHIFTS[0]) / (_TOKENS[1] - _TOKENS[0])
    return _SHIFTS[0] + slope * (token_count - _TOKENS[0])
