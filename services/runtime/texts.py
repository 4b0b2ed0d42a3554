"""How long a text may be that a caller sends: a caption, a prompt, a phrase."""

# Far beyond what a text encoder reads.
MAX_TEXT_BYTES = 64 << 10


def excess(text: str) -> str | None:
    """What to say of a text that is too long; None: it is not."""
    size = len(text.encode())
    return None if size <= MAX_TEXT_BYTES else f"{size} bytes; a text has {MAX_TEXT_BYTES} at most."
