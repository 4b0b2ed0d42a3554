"""Text that goes in front of the text encoder."""

# Default negative prompt of previews.
NEGATIVE_PROMPT = (
    "low quality, blurry, noisy, compression artifacts, flicker, frozen picture, sudden cut, jitter, warped anatomy, "
    "washed out or oversaturated colours, text, watermark, distorted or clipped sound, background hiss, silence"
)


def with_trigger(caption: str, trigger_phrase: str) -> str:
    """The caption as it is trained: the trigger phrase in front, unless the caption begins with it already."""
    caption, trigger_phrase = caption.strip(), trigger_phrase.strip()
    if not trigger_phrase or caption.startswith(trigger_phrase):
        return caption
    return f"{trigger_phrase} {caption}".strip()
