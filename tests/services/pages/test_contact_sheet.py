"""The contact sheet: the four frames of each sample, its sound and its caption, in one file."""

import base64
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ltxtrain_services.pages.contact_sheet import SheetSample, peaks, render_contact_sheet, thumbnails
from tests.services.pages.browser import needs_browser, open_page

PREFIX, TOTAL = 9, 17
HOSTILE = '<img src=x onerror="alert(1)">'


def grey_ramp() -> NDArray[np.uint8]:
    """Each frame one grey that tells its number."""
    return np.broadcast_to(np.arange(TOTAL, dtype=np.uint8)[:, None, None, None] * 10, (TOTAL, 448, 768, 3)).copy()


def picture(jpeg: bytes) -> Image.Image:
    return Image.open(BytesIO(jpeg))


@pytest.fixture
def sample() -> SheetSample:
    return SheetSample(
        path="clips/kite.mp4",
        name="samples/000005",
        caption="A red kite",
        thumbnails=thumbnails(grey_ramp(), PREFIX),
        peaks=peaks(np.zeros((2, 4800), np.float32)),
        width=768,
        height=448,
        frame_count=TOTAL,
        frame_rate=24.0,
    )


def test_the_four_frames_are_those_around_the_join(sample: SheetSample) -> None:
    shown = sample.thumbnails
    greys = [
        np.asarray(picture(j))[5, 5, 0] for j in (shown.first, shown.last_prefix, shown.first_generated, shown.last)
    ]
    assert greys == pytest.approx([0, 80, 90, 160], abs=2)
    assert picture(shown.first).size == (320, 187)
    assert picture(shown.first).format == "JPEG"


def test_peaks_are_the_loudest_of_both_channels() -> None:
    audio = np.zeros((2, 2400), np.float32)
    audio[1, 1205] = -0.5
    audio[0, 2399] = 3.0
    result = peaks(audio)
    assert len(result) == 240
    assert (result[120], result[239]) == (0.5, 1.0)
    assert sum(result) == 1.5
    assert len(peaks(np.zeros((2, 5), np.float32))) == 5


def test_the_sheet_holds_every_sample(sample: SheetSample) -> None:
    other = replace(sample, path="b.mov", scene="scene from frame 120", caption="", peaks=None)
    html = render_contact_sheet("Training set", PREFIX, [sample, other])
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', html)
    assert [base64.b64decode(source) for source in sources[:4]] == [
        sample.thumbnails.first,
        sample.thumbnails.last_prefix,
        sample.thumbnails.first_generated,
        sample.thumbnails.last,
    ]
    assert len(sources) == 8
    assert html.count('class="waveform"') == 1
    for text in ("A red kite", "(no caption)", "frame 9<", "frame 10<", "frame 17<", "0.71 s", "b.mov"):
        assert text in html
    # The path comes first, then the scene where it is one.
    assert 0 < html.index("clips/kite.mp4") < html.index("samples/000005")
    assert html.count("scene from frame 120") == 1
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", html)
    assert "<script" not in html


def test_names_and_captions_are_escaped(sample: SheetSample) -> None:
    hostile = replace(sample, path=HOSTILE, scene=HOSTILE, name=HOSTILE, caption=HOSTILE, note=HOSTILE)
    html = render_contact_sheet(HOSTILE, PREFIX, [hostile])
    assert HOSTILE not in html
    assert html.count("&lt;img src=x onerror=&#34;alert(1)&#34;&gt;") == 7


def test_an_empty_set_has_a_sheet() -> None:
    assert "no samples" in render_contact_sheet("Empty", PREFIX, [])


@needs_browser
def test_a_browser_opens_it(sample: SheetSample, tmp_path: Path) -> None:
    file = tmp_path / "sheet.html"
    file.write_text(render_contact_sheet("风筝", PREFIX, [sample] * 3), encoding="utf-8")
    document = open_page(file, tmp_path)
    assert document.count("<img ") == 12
    assert document.count('class="waveform"') == 3
    assert "风筝" in document
