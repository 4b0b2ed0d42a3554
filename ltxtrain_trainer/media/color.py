"""The colours that the numbers of a frame stand for, and how the scaler is told.

Code points are those of ITU-T H.273, names those of ffmpeg.
"""

from dataclasses import dataclass
from enum import IntEnum

from av.video.frame import VideoFrame

from ltxtrain_trainer.errors import PresentationUnsupported

UNSPECIFIED = 2

MATRICES = {0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco"}
MATRICES |= {9: "bt2020nc", 10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c"}
MATRICES |= {14: "ictcp", 15: "ipt-c2", 16: "ycgco-re", 17: "ycgco-ro"}
RANGES = {1: "tv", 2: "pc"}
PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020"}
PRIMARIES |= {10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213"}
TRANSFERS = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100"}
TRANSFERS |= {10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10"}
TRANSFERS |= {15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67"}


class Transfer(IntEnum):
    PQ = 16
    HLG = 18


# Matrices that the scaler knows.
CONVERTIBLE = {0, 1, 4, 5, 6, 7, 9, 10}
# Derived from the primaries (12 and 13), and equal to another matrix for these.
DERIVED = {1: 1, 5: 5, 6: 6, 7: 7, 9: 9}
# Wider than BT.709 by so much that showing them unconverted looks pale. The primaries of SD video differ by less than
# players care for, and none converts them.
WIDE_PRIMARIES = {9, 11, 12}
HD_HEIGHT = 720


@dataclass(frozen=True)
class Colors:
    """The tags of a frame as code points."""

    matrix: int
    range: int
    primaries: int
    transfer: int
    rgb: bool
    height: int

    @property
    def hdr(self) -> bool:
        return self.transfer in (Transfer.PQ, Transfer.HLG)

    @property
    def needs_mapping(self) -> bool:
        """Whether its RGB is not what a BT.709 display would show; see ltxtrain_trainer.media.hdr."""
        return self.hdr or self.primaries in WIDE_PRIMARIES

    @property
    def wide_primaries(self) -> int:
        """The primaries as far as they are converted; all that are not wide count as those of BT.709."""
        if self.primaries in WIDE_PRIMARIES:
            return self.primaries
        return 9 if self.hdr and self.primaries not in PRIMARIES else 1

    def refuse_unsupported(self) -> None:
        """Raises PresentationUnsupported for a colour matrix that the scaler does not know."""
        if not self.rgb and self._named not in CONVERTIBLE and self.matrix in MATRICES:
            text = f"The video's colours are coded as {MATRICES[self.matrix]}, which is not supported."
            raise PresentationUnsupported(f"{text} Convert it to BT.709.")

    def parameters(self) -> str:
        """Return the arguments of `setparams` that leave nothing untagged which decoding YUV depends on.

        Primaries and transfer are given as those of BT.709, so that the scaler converts neither.
        """
        return f"colorspace={self._matrix()}:range={self._range()}:color_primaries=1:color_trc=1"

    @property
    def _named(self) -> int:
        """The matrix that the frame names, by its number or by its primaries."""
        return DERIVED.get(self.primaries, self.matrix) if self.matrix in (12, 13) else self.matrix

    def _matrix(self) -> int:
        if self.rgb:
            return 0
        if self._named in CONVERTIBLE - {0}:
            return self._named
        if self.hdr or self.primaries == 9:
            return 9
        return 1 if self.height >= HD_HEIGHT else 6

    def _range(self) -> int:
        return 2 if self.rgb or self.range == 2 else 1


def colors_of(frame: VideoFrame) -> Colors:
    """Read the tags of a frame."""
    return Colors(
        matrix=int(frame.colorspace),
        range=2 if frame.format.name.startswith("yuvj") else int(frame.color_range),
        primaries=int(frame.color_primaries),
        transfer=int(frame.color_trc),
        rgb=frame.format.is_rgb or frame.format.name == "pal8",
        height=frame.height,
    )
