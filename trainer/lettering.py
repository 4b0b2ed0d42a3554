"""Text on pictures: any Unicode text, measured, wrapped and drawn with the fonts that come with this package.

DejaVu Sans draws what it has a glyph for (Latin, Greek, Cyrillic, Arabic, ...), Droid Sans Fallback the rest (Chinese,
Japanese, Korean); what neither has shows as a box.
"""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from itertools import groupby

from PIL import ImageDraw, ImageFont, features

FONTS = ("DejaVuSans.ttf", "DroidSansFallback.ttf")
ELLIPSIS = "…"
# A code point that no font may have a glyph for.
_NO_CHARACTER = "\uffff"
# Without it a line that begins in Arabic would run from the right as a whole.
_DIRECTION = "ltr" if features.check("raqm") else None


@dataclass(frozen=True)
class Lettering:
    """Lettering of one size in pixels."""

    size: int

    @property
    def line_height(self) -> int:
        return round(self.size * 1.4)

    def width(self, text: str) -> float:
        return sum(_length(name, self.size, run) for name, run in _runs(text))

    def draw(self, canvas: ImageDraw.ImageDraw, left: float, top: float, text: str, colour: str) -> None:
        """One line; `top` is the top of a line of line_height, in which the text is centred."""
        baseline = top + self.line_height / 2 + self.size * 0.36
        for name, run in _runs(text):
            font = _font(name, self.size)
            canvas.text((left, baseline), run, font=font, fill=colour, anchor="ls", direction=_DIRECTION)
            left += _length(name, self.size, run)

    def wrap(self, text: str, width: float, line_limit: int) -> list[str]:
        """Lines no wider than `width`, broken at spaces where there are any; the last one ends in … if text is left."""
        lines: list[str] = []
        rest = printable(text)
        while rest and len(lines) < line_limit:
            line, rest = self._first_line(rest, width)
            lines.append(line)
        if rest:
            lines[-1] = self.shorten(f"{lines[-1]} {rest}", width)
        return lines

    def shorten(self, text: str, width: float) -> str:
        """As much of one line as fits, with … where it was cut."""
        text = printable(text)
        if self.width(text) <= width:
            return text
        kept = self._fitting(text, width - self.width(ELLIPSIS))
        return f"{text[:kept].rstrip()}{ELLIPSIS}"

    def _first_line(self, text: str, width: float) -> tuple[str, str]:
        fitting = max(self._fitting(text, width), 1)
        if fitting == len(text):
            return text, ""
        space = text.rfind(" ", 0, fitting + 1)
        end = space if space > 0 else fitting
        return text[:end].rstrip(), text[end:].lstrip()

    def _fitting(self, text: str, width: float) -> int:
        """How many leading characters fit: a search, since kerning makes widths of parts not add up."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(text[:middle]) <= width else (low, middle - 1)
        return low


def printable(text: str) -> str:
    """One line of text without control characters, broken surrogates and runs of white space."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in text).split())


def _runs(text: str) -> list[tuple[str, str]]:
    return [(name, "".join(run)) for name, run in groupby(text, key=_font_for)]


@lru_cache(maxsize=4096)
def _font_for(char: str) -> str:
    return next((name for name in FONTS if _has_glyph(name, char)), FONTS[0])


def _has_glyph(name: str, char: str) -> bool:
    font = _font(name, 24)
    return char.isspace() or bytes(font.getmask(char)) != bytes(font.getmask(_NO_CHARACTER))


def _length(name: str, size: int, run: str) -> float:
    return _font(name, size).getlength(run, direction=_DIRECTION)


@lru_cache(maxsize=32)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(BytesIO((files("trainer") / "assets" / name).read_bytes()), size)
