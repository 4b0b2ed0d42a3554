"""Charts as SVG: read back as XML, with values recovered from pixels."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from ltxtrain_services.pages.charts import Line, legend, line_chart, number, smoothed, waveform

SVG = "{http://www.w3.org/2000/svg}"


def parse(markup: str) -> ET.Element:
    return ET.fromstring(str(markup).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def polyline(root: ET.Element, index: int = 0) -> list[tuple[float, ...]]:
    text = root.findall(f".//{SVG}polyline")[index].attrib["points"]
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def axis_values(root: ET.Element) -> dict[float, float]:
    """Pixel row of each number left of the axis."""
    labels = [text for text in root.findall(f"{SVG}text") if text.get("text-anchor") == "end" and text.text != "step"]
    return {float((text.text or "").replace(",", "")): float(text.attrib["y"]) - 4 for text in labels}


def test_values_can_be_read_off_the_axis() -> None:
    points = [(1, 0.25), (500, 0.75), (2000, 0.5)]
    root = parse(line_chart([Line(name="loss", points=points)], title="Loss"))
    rows = axis_values(root)
    (low, low_row), *_, (high, high_row) = sorted(rows.items())
    drawn = polyline(root)
    for (_, value), (_, row) in zip(points, drawn, strict=True):
        assert low + (row - low_row) / (high_row - low_row) * (high - low) == pytest.approx(value, abs=0.005)
    columns = [x for x, _ in drawn]
    assert (columns[1] - columns[0]) / (columns[2] - columns[0]) == pytest.approx(499 / 1999, abs=0.001)


def test_axis_numbers_are_round_and_enclose_the_values() -> None:
    root = parse(line_chart([Line(name="x", points=[(0, 0.137), (10, 0.482)])], title="t"))
    assert sorted(axis_values(root)) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_values_that_are_not_finite_leave_no_trace() -> None:
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    markup = line_chart([Line(name="x", points=points)], title="t")
    assert len(polyline(parse(markup))) == 2
    assert not re.search("nan|inf", str(markup))


@pytest.mark.parametrize("points", [[], [(0, math.nan)]])
def test_without_values_it_says_so(points: list[tuple[float, float]]) -> None:
    assert "no values yet" in line_chart([Line(name="x", points=points)], title="Loss <1>")
    assert "Loss &lt;1&gt;" in line_chart([], title="Loss <1>")


def test_lines_of_one_value_each_are_told_in_words() -> None:
    lines = [
        Line(name="clip <1>, LoRA", points=[(100, 0.5), (200, math.nan)]),
        Line(name="clip 1, base", points=[(0, 1.25)], style="dashed"),
    ]
    html = line_chart(lines, title="Jump", usual=(1.0, "as usual"))
    assert "<svg" not in html and "<dt>clip &lt;1&gt;, LoRA</dt><dd>0.5</dd>" in html
    assert "<dt>clip 1, base</dt><dd>1.25</dd>" in html and "<dt>as usual</dt><dd>1</dd>" in html
    assert "Rate" not in line_chart([Line(name="Rate", points=[(1, 0.1)])], title="Rate")


def test_a_constant_has_a_chart() -> None:
    for points in ([(0, 0.0), (1, 0.0)], [(0, -3.0), (9, -3.0)]):
        for x, y in polyline(parse(line_chart([Line(name="x", points=points, dots=True)], title="t"))):
            assert 0 < x < 960
            assert 0 < y < 280


def test_a_single_value_to_compare_with_goes_all_the_way() -> None:
    lines = [
        Line(name="LoRA", points=[(0, 1.0), (100, 2.0)]),
        Line(name="base", points=[(0, 1.5)], style="dashed"),
    ]
    root = parse(line_chart(lines, title="t"))
    assert [x for x, _ in polyline(root, 1)] == [x for x, _ in polyline(root, 0)]


def test_a_spike_of_the_backdrop_does_not_set_the_scale() -> None:
    noise = [(step, 1.0 + step % 2) for step in range(1000)]
    noise[500] = (500, 1000.0)
    root = parse(line_chart([Line(name="each", points=noise, style="faint")], title="t"))
    assert max(axis_values(root)) <= 3


def test_long_series_keep_their_extremes_in_few_points() -> None:
    points = [(step, math.sin(step)) for step in range(20_000)]
    points[12_345] = (12_345, 9.0)
    root = parse(line_chart([Line(name="x", points=points)], title="t"))
    drawn = polyline(root)
    assert len(drawn) <= 800
    assert min(row for _, row in drawn) == pytest.approx(axis_values(root)[max(axis_values(root))], abs=30)
    assert len(root.findall(f"{SVG}rect")) <= 120


def test_tooltips_name_every_line() -> None:
    lines = [Line(name="a", points=[(0, 1.0), (10, 2.0)]), Line(name="b", points=[(10, 1234.0)])]
    titles = [title.text for title in parse(line_chart(lines, title="t")).iter(f"{SVG}title")]
    assert titles == ["step 0\na: 1", "step 10\na: 2\nb: 1,234"]


def test_names_are_escaped() -> None:
    lines = [Line(name="<script>", points=[(0, 1.0)])]
    for markup in (line_chart(lines, title='"><script>', x_name="<x>"), legend(lines)):
        assert "<script>" not in markup
        assert "&lt;" in markup


def test_smoothing_keeps_a_line_and_lowers_a_spike() -> None:
    line = [(step, 2.0 * step) for step in range(400)]
    assert [value for _, value in smoothed(line)][10:-10] == pytest.approx([value for _, value in line][10:-10])
    spike = [(step, 100.0 if step == 200 else 0.0) for step in range(400)]
    means = [value for _, value in smoothed(spike)]
    assert max(means) == pytest.approx(100 / 11)
    assert sum(means) == pytest.approx(100)
    assert smoothed([(0, 1.0), (1, 5.0)]) == [(0, 1.0), (1, 5.0)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(20000, "20,000"), (0.0002, "2e-4"), (5e-5, "5e-5"), (0.123456, "0.1235"), (0, "0"), (-1.5, "-1.5")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_the_waveform_changes_colour_at_the_join() -> None:
    root = parse(waveform([0.5] * 100, 0.28, width=100, height=50))
    given, generated = (path.attrib["d"].count("M") for path in root.findall(f"{SVG}path"))
    assert (given, generated) == (28, 72)
    (join,) = root.findall(f"{SVG}line")
    assert float(join.attrib["x1"]) == 28
    tall = parse(waveform([1.0, 0.0], 0.5, width=2, height=50)).findall(f"{SVG}path")
    assert tall[0].get("d") == "M0.5 1.0V49.0"
    assert tall[1].get("d") == "M1.5 24.5V25.5"
