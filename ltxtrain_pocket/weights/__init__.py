"""The pocket model's learned weights, and a name for what they are. Nothing here imports torch."""

import functools
import hashlib
from pathlib import Path

WEIGHTS = Path(__file__).parent
LEARNED = ("vae", "transformer", "audio_vae", "vocoder", "sound")


@functools.cache
def digest() -> str:
    """sha256 of the learned weights, in hexadecimal: another one with each generation of them."""
    state = hashlib.sha256()
    for name in LEARNED:
        state.update((WEIGHTS / f"{name}.safetensors").read_bytes())
    return state.hexdigest()
