"""The picture of a reel: continuations side by side at full size, with labels, prompt and a strip that shows the join.

Pictures are put onto the canvas pixel for pixel; everything drawn is outside of them.
"""

import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from io import BytesIO
from itertools import groupby

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, features

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
        """Count of leading characters that fit: a search, since kerning makes widths of parts not add up."""
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
    return ImageFont.truetype(BytesIO((files("ltxtrain_trainer") / "assets" / name).read_bytes()), size)


Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB

TEXT, QUIET_TEXT = "#e6e9ec", "#98a2ad"
BACKGROUND = (20, 23, 26)
# Colours of given and generated frames: border and strip change from one to the other at the join.
GIVEN, GENERATED = (126, 141, 156), (245, 158, 45)
GIVEN_AHEAD, GENERATED_AHEAD = (48, 55, 62), (86, 60, 27)
PROMPT_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Panels:
    """The still parts of one segment's frames; `frame` adds what moves.

    size: width and height of every picture. labels: one a picture, left to right. given_frames: how many of
    frame_count are prefix.
    """

    size: tuple[int, int]
    labels: tuple[str, ...]
    prompt: str
    given_frames: int
    frame_count: int

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Width and height, both even as yuv420p needs them."""
        width = 2 * self._margin + len(self.labels) * self.size[0] + (len(self.labels) - 1) * self._gap
        height = self._prompt_top + PROMPT_LINES * self._prompt.line_height + self._unit
        return width + width % 2, height + height % 2

    def picture_corner(self, index: int) -> tuple[int, int]:
        """Left and top of a picture on the canvas."""
        return self._margin + index * (self.size[0] + self._gap), self._header_height

    def frame(self, number: int, pictures: list[Frame]) -> Frame:
        """The canvas at frame `number` (from 0), with one picture [H, W, 3] a label."""
        given = number < self.given_frames
        canvas = (self._given_still if given else self._generated_still).copy()
        for index, picture in enumerate(pictures):
            left, top = self.picture_corner(index)
            canvas[top : top + self.size[1], left : left + self.size[0]] = picture
        self._fill_strip(canvas, number + 1)
        return canvas

    def _fill_strip(self, canvas: Frame, done: int) -> None:
        left, right = self._margin, canvas.shape[1] - self._margin
        top, bottom = self._strip_top, self._strip_top + self._strip_height
        per_frame = (right - left) / self.frame_count
        join, now = (left + round(count * per_frame) for count in (self.given_frames, done))
        canvas[top:bottom, left:join] = GIVEN_AHEAD
        canvas[top:bottom, join:right] = GENERATED_AHEAD
        canvas[top:bottom, left : min(now, join)] = GIVEN
        canvas[top:bottom, join : max(now, join)] = GENERATED
        # A gap in the strip: the join can be found without knowing the colours.
        canvas[top:bottom, join - self._rule // 2 : join + self._rule - self._rule // 2] = BACKGROUND

    @cached_property
    def _given_still(self) -> Frame:
        return self._still("source", GIVEN)

    @cached_property
    def _generated_still(self) -> Frame:
        return self._still("continued", GENERATED)

    def _still(self, state: str, colour: tuple[int, int, int]) -> Frame:
        image = Image.new("RGB", self.canvas_size, BACKGROUND)
        draw = ImageDraw.Draw(image)
        for index, label in enumerate(self.labels):
            left, top = self.picture_corner(index)
            right, bottom = left + self.size[0], top + self.size[1]
            draw.rectangle(
                (left - self._rule, top - self._rule, right + self._rule - 1, bottom + self._rule - 1),
                outline=colour,
                width=self._rule,
            )
            text_top = (self._header_height - self._rule - self._label.line_height) / 2
            state_left = right - self._label.width(state)
            label = self._label.shorten(label, self.size[0] - self._label.width(f"  {state}"))
            self._label.draw(draw, left, text_top, label, TEXT)
            if left + self._label.width(label) < state_left:
                self._label.draw(draw, state_left, text_top, state, "#{:02x}{:02x}{:02x}".format(*colour))
        top = self._prompt_top
        width = self.canvas_size[0] - 2 * self._margin
        for line in self._prompt.wrap(self.prompt, width, PROMPT_LINES):
            self._prompt.draw(draw, self._margin, top, line, QUIET_TEXT)
            top += self._prompt.line_height
        return np.array(image)

    @property
    def _unit(self) -> int:
        """Unit of all distances: grows with the pictures, within what is readable and not obtrusive."""
        return min(max(min(self.size) // 60, 5), 12)

    @property
    def _rule(self) -> int:
        return max(self._unit // 4, 1)

    @property
    def _margin(self) -> int:
        return 2 * self._unit

    @property
    def _gap(self) -> int:
        return 2 * self._unit

    @property
    def _strip_height(self) -> int:
        return self._unit

    @property
    def _strip_top(self) -> int:
        return self._header_height + self.size[1] + self._rule + self._unit

    @property
    def _prompt_top(self) -> int:
        return self._strip_top + self._strip_height + self._unit

    @property
    def _header_height(self) -> int:
        # Even, as all corners of pictures: chroma is stored for 2 x 2 pixels, and borders must not bleed into pictures.
        return (self._label.line_height + 2 * self._unit + 1) // 2 * 2

    @property
    def _label(self) -> Lettering:
        return Lettering(max(round(self._unit * 1.9), 11))

    @property
    def _prompt(self) -> Lettering:
        return Lettering(max(round(self._unit * 1.7), 11))
