"""Charts as inline SVG: lines over steps, and the waveform of a clip. Colours are classes of the page's style sheet.

Nothing here needs a script: values are read off axes, legends and tooltips.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import quantiles
from typing import Literal

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

# More points than pixels help nobody; every bin keeps its smallest and largest value.
MOST_POINTS = 800
MOST_TOOLTIPS = 120
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 30
EDGE = 6  # room for a dot on the first and the last step


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; tone picks a colour of the page, faint lines are a backdrop and do not set the scale."""

    name: str
    points: Points
    tone: int = 0
    style: Literal["solid", "dashed", "faint"] = "solid"
    dots: bool = False


@dataclass(frozen=True)
class _Scale:
    """Values to pixels, linear, with round ticks that enclose the values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def line_chart(
    lines: Iterable[Line],
    *,
    title: str,
    x_name: str = "step",
    width: int = 960,
    height: int = 280,
    usual: tuple[float, str] | None = None,
    narrow: bool = False,
) -> Markup:
    """An SVG with axes and tooltips; `usual` marks a value to compare with, and says what it is.

    A `narrow` one is shown on narrow screens alone, in place of the wide one before it.
    Points that are not finite are left out; without any left the chart says so, and where no line has two of them, it
    is their numbers in words.
    """
    lines = [_clean(line) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup('<p class="empty">{}</p>').format(f"{title}: no values yet.")
    if not is_drawn(lines):
        return _in_words(lines, title, usual)
    x_scale, y_scale = _scales(lines, usual, width, height)
    parts = [_axes(x_scale, y_scale, x_name, width, height)]
    if usual is not None:
        parts.append(_level(usual, y_scale, width))
    # A nested svg clips: spikes of a backdrop end at the edge of the plot.
    parts.append(
        Markup('<svg x="0" y="{}" width="{}" height="{}" viewBox="0 {} {} {}">').format(
            TOP - EDGE, width, height - TOP - BOTTOM + 2 * EDGE, TOP - EDGE, width, height - TOP - BOTTOM + 2 * EDGE
        )
    )
    parts += [_path(line, x_scale, y_scale) for line in sorted(lines, key=lambda line: line.style != "faint")]
    parts.append(Markup("</svg>"))
    parts.append(_tooltips(lines, x_scale, x_name, height))
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        "chart narrow" if narrow else "chart", width, height, title, Markup("").join(parts)
    )


def is_drawn(lines: Iterable[Line]) -> bool:
    """Whether these lines make a chart: one of them has two points."""
    return any(len(_clean(line).points) > 1 for line in lines)


def _in_words(lines: Iterable[Line], title: str, usual: tuple[float, str] | None) -> Markup:
    """The one value of each line, named where the title is not its name."""
    values = [("" if line.name == title else line.name, line.points[0][1]) for line in lines]
    values += [(usual[1], usual[0])] if usual is not None else []
    rows = [Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, number(value)) for name, value in values]
    return Markup('<dl class="facts">{}</dl>').format(Markup("").join(rows))


def legend(lines: Iterable[Line]) -> Markup:
    """Legend of the lines, as a list; lines without points are left out."""
    items = [
        Markup('<li><svg viewBox="0 0 22 8"><path class="line t{} {}" d="M1 4H21"/></svg>{}</li>').format(
            line.tone, line.style, line.name
        )
        for line in lines
        if line.points
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def smoothed(points: Points, share: int = 40) -> list[tuple[float, float]]:
    """The centred mean over a `share`-th of all points; near the ends over those that there are."""
    count = len(points)
    half = count // share // 2
    if half == 0:
        return list(points)
    sums = [0.0, *accumulate(value for _, value in points)]
    spans = [(max(index - half, 0), min(index + half + 1, count)) for index in range(count)]
    means = [(sums[last] - sums[first]) / (last - first) for first, last in spans]
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def waveform(peaks: Sequence[float], prefix_share: float, width: int = 480, height: int = 56) -> Markup:
    """Peaks 0..1 over the time of a clip, coloured as prefix up to its share of the clip, then as generated."""
    middle, step = height / 2, width / max(len(peaks), 1)
    paths = []
    for given in (True, False):
        bars = [
            f"M{(index + 0.5) * step:.1f} {middle - reach:.1f}V{middle + reach:.1f}"
            for index, peak in enumerate(peaks)
            if ((index + 0.5) / len(peaks) < prefix_share) is given
            for reach in [max(min(peak, 1.0) * (middle - 1), 0.5)]
        ]
        paths.append(Markup('<path class="{}" d="{}"/>').format("given" if given else "generated", "".join(bars)))
    join = round(prefix_share * width, 1)
    return Markup(
        '<svg class="waveform" viewBox="0 0 {0} {1}" preserveAspectRatio="none" role="img" aria-label="waveform">'
        '{2}<line class="join" x1="{3}" x2="{3}" y1="0" y2="{1}"/></svg>'
    ).format(width, height, Markup("").join(paths), join)


def number(value: float) -> str:
    """Four digits that count; separators in whole thousands, powers of ten below a thousandth."""
    if abs(value) >= 1000 and value == round(value):
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"


def _clean(line: Line) -> Line:
    points = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    return Line(name=line.name, points=points, tone=line.tone, style=line.style, dots=line.dots)


def _scales(lines: list[Line], usual: tuple[float, str] | None, width: int, height: int) -> tuple[_Scale, _Scale]:
    steps = [x for line in lines for x, _ in line.points]
    values = [usual[0]] if usual is not None else []
    for line in lines:
        heights = [y for _, y in line.points]
        # All but the hundredth part at each end of a backdrop.
        faint = line.style == "faint" and len(heights) > 1
        values += quantiles(heights, n=100, method="inclusive")[::98] if faint else heights
    x_ticks = _ticks(min(steps), max(steps), 8 if width > 600 else 4)
    y_ticks = _ticks(min(values), max(values), 5)
    x_low, x_high = min(steps), max(steps)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    inside = tuple(tick for tick in x_ticks if x_low <= tick <= x_high)
    y_low, y_high = min(y_ticks[0], *values), max(y_ticks[-1], *values)
    return (
        _Scale(x_low, x_high, LEFT + EDGE, width - RIGHT - EDGE, inside),
        _Scale(y_low, y_high, height - BOTTOM, TOP, y_ticks),
    )


def _ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten, from at or below low to at or above high."""
    if high == low:
        reach = abs(low) * 0.1 or 1.0
        low, high = low - reach, high + reach
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def _axes(x_scale: _Scale, y_scale: _Scale, x_name: str, width: int, height: int) -> Markup:
    floor = height - BOTTOM
    parts = [
        Markup('<path class="grid" d="{}"/>').format(
            "".join(f"M{LEFT} {y_scale(tick)}H{width - RIGHT}" for tick in y_scale.ticks)
        ),
        Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, floor, width - RIGHT),
    ]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, y_scale(tick) + 4, number(tick))
        for tick in y_scale.ticks
    ]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x_scale(tick), floor + 18, number(tick))
        for tick in x_scale.ticks
    ]
    parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, floor + 18, x_name))
    return Markup("").join(parts)


def _level(usual: tuple[float, str], y_scale: _Scale, width: int) -> Markup:
    height = y_scale(usual[0])
    return Markup('<path class="usual" d="M{} {}H{}"/><text x="{}" y="{}">{}</text>').format(
        LEFT, height, width - RIGHT, LEFT + 4, round(height - 5, 1), usual[1]
    )


def _path(line: Line, x_scale: _Scale, y_scale: _Scale) -> Markup:
    points = [(x_scale(x), y_scale(y)) for x, y in _thinned(line.points)]
    if len(points) == 1 and line.style == "dashed":
        # A single value to compare with, such as the base model's, holds at every step.
        points = [(x_scale.start, points[0][1]), (x_scale.end, points[0][1])]
    path = Markup('<polyline class="line t{} {}" points="{}"/>').format(
        line.tone, line.style, " ".join(f"{x:g},{y:g}" for x, y in points)
    )
    dots = [Markup('<circle class="dot t{}" cx="{}" cy="{}" r="3.2"/>').format(line.tone, x, y) for x, y in points]
    return Markup("").join([path, *dots]) if line.dots else path


def _thinned(points: Points) -> Points:
    if len(points) <= MOST_POINTS:
        return points
    kept: list[tuple[float, float]] = []
    bins = MOST_POINTS // 2
    for first, last in pairwise(len(points) * index // bins for index in range(bins + 1)):
        values = [y for _, y in points[first:last]]
        kept += [points[first + place] for place in sorted({values.index(min(values)), values.index(max(values))})]
    return kept


def _tooltips(lines: list[Line], x_scale: _Scale, x_name: str, height: int) -> Markup:
    """Invisible bars with every line's value at the nearest step."""
    read = [line for line in lines if line.style != "faint"] or lines
    steps = sorted({x for line in read for x, _ in line.points})
    if len(steps) > MOST_TOOLTIPS:
        apart = (len(steps) - 1) / (MOST_TOOLTIPS - 1)
        steps = [steps[round(index * apart)] for index in range(MOST_TOOLTIPS)]
    at = [dict(line.points) for line in read]
    width = max((x_scale.end - x_scale.start) / max(len(steps) - 1, 1), 4)
    bars = []
    for step in steps:
        values = "\n".join(
            f"{line.name}: {number(seen[step])}" for line, seen in zip(read, at, strict=True) if step in seen
        )
        bars.append(
            Markup('<rect class="hit" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                round(x_scale(step) - width / 2, 1),
                TOP,
                round(width, 1),
                height - TOP - BOTTOM,
                f"{x_name} {number(step)}\n{values}",
            )
        )
    return Markup("").join(bars)
