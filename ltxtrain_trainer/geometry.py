"""Frame counts, sizes and the prefix, in pixels, latents and seconds. No tensors.

The video VAE keeps the first frame by itself and folds the rest by eight in time and by 32 in both
directions of the picture; the audio VAE makes 25 latents of a second.
"""

from dataclasses import dataclass

TEMPORAL_COMPRESSION = 8
SPATIAL_COMPRESSION = 32
AUDIO_LATENTS_PER_SECOND = 25

# Width x height of each resolution and aspect ratio (conformance P10).
BUCKETS: dict[tuple[str, str], tuple[int, int]] = {
    ("low", "16:9"): (512, 288),
    ("low", "1:1"): (512, 512),
    ("low", "9:16"): (288, 512),
    ("medium", "16:9"): (768, 448),
    ("medium", "1:1"): (768, 768),
    ("medium", "9:16"): (448, 768),
    ("high", "16:9"): (960, 544),
    ("high", "1:1"): (960, 960),
    ("high", "9:16"): (544, 960),
}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape that clips are fitted to: pixels, frames (1 modulo 8) and frames a second."""

    width: int
    height: int
    frame_count: int
    frame_rate: float

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latent frames, height and width."""
        return latent_frames(self.frame_count), self.height // SPATIAL_COMPRESSION, self.width // SPATIAL_COMPRESSION

    @property
    def video_tokens(self) -> int:
        frames, height, width = self.latent_shape
        return frames * height * width

    @property
    def audio_tokens(self) -> int:
        return audio_latents(self.frame_count, self.frame_rate)


def snap_frames(count: int) -> int:
    """Largest frame count <= count that the video VAE can encode: 1 modulo 8."""
    return (count - 1) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1


def latent_frames(frame_count: int) -> int:
    """Latent frames of a clip, or of a prefix, of frame_count (1 modulo 8) pixel frames."""
    return (frame_count - 1) // TEMPORAL_COMPRESSION + 1


def audio_latents(frame_count: int, frame_rate: float) -> int:
    """Audio latents that last as long as frame_count frames.

    The one rounding (half to even) that training, previews and the inference recipe share.
    """
    return round(frame_count / frame_rate * AUDIO_LATENTS_PER_SECOND)
