"""What probing found, in the words of the contract."""

from ltxtrain.v1.ingest_pb2 import Clip, ClipProbe
from ltxtrain.v1.work_pb2 import AudioNumbers, ClipNumbers, ReportReason

from trainer.media.probe import Probe

# A track whose every moment is below -60 dBFS.
SILENT_SHARE = 1.0


def describe(probe: Probe) -> Clip:
    """The clip as far as its bytes decide it: without name, path, caption and blob."""
    clip = Clip(
        width=probe.width,
        height=probe.height,
        frame_count=probe.frame_count,
        frame_rate=probe.frame_rate,
        probe=ClipProbe(
            duration_seconds=probe.duration_seconds,
            variable_frame_rate=probe.variable_frame_rate,
            codec=probe.codec,
            pixel_format=probe.pixel_format,
            rotation=probe.rotation,
            sample_aspect_ratio=probe.sample_aspect_ratio,
            interlaced=probe.interlaced,
            color_matrix=probe.color_matrix,
            color_range=probe.color_range,
            color_primaries=probe.color_primaries,
            color_transfer=probe.color_transfer,
            hdr=probe.hdr,
            container=probe.container,
            audio_error=probe.audio_error or "",
        ),
    )
    if probe.audio is not None:
        clip.audio_sample_rate = probe.audio.sample_rate
        clip.probe.audio.CopyFrom(
            AudioNumbers(
                sample_rate=probe.audio.sample_rate,
                channels=probe.audio.channels,
                duration_seconds=probe.audio.duration_seconds,
                start_offset_seconds=probe.audio.start_offset_seconds,
                silence_share=probe.audio.silence_share,
            )
        )
    return clip


def numbers(clip: Clip, duplicate_of: str = "") -> ClipNumbers:
    """The numbers of a clip's report line."""
    return ClipNumbers(
        source_frame_rate=clip.frame_rate,
        width=clip.width,
        height=clip.height,
        duration_seconds=clip.probe.duration_seconds,
        audio=clip.probe.audio if clip.probe.HasField("audio") else None,
        duplicate_of=duplicate_of,
    )


def summary(clip: Clip) -> str:
    """A clip in one sentence."""
    rate = f"{'about ' if clip.probe.variable_frame_rate else ''}{clip.frame_rate:.4g} fps"
    sound = f"audio {clip.audio_sample_rate} Hz" if clip.HasField("audio_sample_rate") else "no audio"
    return f"{clip.frame_count} frames, {clip.width}x{clip.height}, {rate}, {sound}"


def warnings(clip: Clip) -> list["ReportReason"]:
    """What a person should know of a clip that is kept."""
    found: list[ReportReason] = []
    if clip.probe.HasField("audio") and clip.probe.audio.silence_share >= SILENT_SHARE:
        found.append(ReportReason.REPORT_REASON_AUDIO_SILENT)
    if clip.probe.audio_error:
        found.append(ReportReason.REPORT_REASON_AUDIO_UNDECODABLE)
    return found
