"""The page of a job: everything in one file, nothing from outside, and it works in a real browser."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltxtrain_services.pages.job_page import (
    METRIC_CHARTS,
    AuditRow,
    JobPage,
    MeasuredPreview,
    ReportRow,
    StepPreview,
    ValidationEntry,
    render_job_page,
)
from ltxtrain_trainer.preview.metrics import formulas
from ltxtrain_trainer.preview.reel import Continuation, write_preview
from ltxtrain_trainer.reports import PreviewMetrics
from tests.services.gateway.chromium import browsing
from tests.services.pages.browser import needs_browser, open_page, plays_h264

HOSTILE = '<script>alert("1")</script>"\'&'

METRICS = PreviewMetrics(
    prefix_latents_equal=True,
    prefix_psnr_db=34.5,
    join_colour_jump=1.25,
    join_contrast_jump=1.5,
    join_luminance_jump=1.1,
    join_motion_break=1.75,
    colour_drift=2.5,
    contrast_drift=-0.5,
    first_second_motion=0.9,
    loudness_step_db=-1.5,
)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small preview with sound, as the reel module writes it."""
    path = tmp_path_factory.mktemp("preview") / "preview.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)
    audio = np.zeros((2, 34_000), np.float32)
    write_preview(path, Continuation(label="LoRA", frames=frames, audio=audio), frames[:9], 24)
    return path.read_bytes()


@pytest.fixture(scope="module")
def page(mp4: bytes) -> JobPage:
    return JobPage(
        title=f"jobs/kite {HOSTILE}",
        state="SUCCEEDED",
        facts={"Trigger phrase": HOSTILE, "Steps": "2,000"},
        warnings=[f"A warning {HOSTILE}"],
        entries=[
            ValidationEntry(
                prompt=f"A red kite {HOSTILE}",
                given_share=9 / 17,
                base_mp4=mp4,
                previews=[StepPreview(step=step, mp4=mp4) for step in (500, 1000)],
            ),
            ValidationEntry(prompt="", given_share=9 / 17, base_mp4=None, previews=[StepPreview(step=1000, mp4=mp4)]),
        ],
        curves={
            "video_loss": [(step, 1 / step) for step in range(1, 201)],
            "audio_loss": [(step, 2 / step) for step in range(1, 201)],
            "held_out_loss": [(100, 0.5), (200, 0.4)],
            "learning_rate": [(1, 2e-4), (200, 0.0)],
        },
        measured=[
            MeasuredPreview(step=step, validation_index=index, base_model=step == 0, metrics=METRICS)
            for index in range(2)
            for step in (0, 500, 1000)
        ],
        audit=[
            AuditRow(name=f"finite {HOSTILE}", value="2,304 tensors", passed=True),
            AuditRow(name="No foreign keys", value="2 audio keys", passed=False),
        ],
        data_summary=["1 of 2 videos is used for training, 1 is not"],
        report=[
            ReportRow(path="good.mp4", outcome="KEPT", reasons=[], description="89 frames"),
            ReportRow(
                path=f"{HOSTILE}.mp4",
                outcome="SKIPPED",
                reasons=["CLIP_TOO_SHORT"],
                description="61 frames, 89 needed; would fit at 57",
            ),
            ReportRow(path="notes.md", outcome="IGNORED", reasons=["IGNORED_FILE"], description=HOSTILE),
        ],
        spec={"rank": 32, "learning_rate": 2e-4, "validation": [{"prompt": HOSTILE}], "with_audio": True},
    )


@pytest.fixture(scope="module")
def html(page: JobPage) -> str:
    return render_job_page(page)


def test_every_string_is_escaped(html: str) -> None:
    assert "<script>alert" not in html
    # The title twice, fact, warning, prompt, check, path and description; and once more inside the JSON of the spec.
    assert html.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&#34;&#39;&amp;") == 8
    assert html.count("&lt;script&gt;alert(\\&#34;1\\&#34;)&lt;/script&gt;") == 1


def test_nothing_comes_from_outside(html: str) -> None:
    sources = re.findall(r'(?:src|href|srcset|poster|action|data)="([^"]*)"', html)
    assert len(sources) == 4
    assert all(source.startswith("data:video/mp4;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", html)
    assert "default-src 'none'" in html


def test_it_says_what_became_of_the_data_and_of_the_lora(html: str) -> None:
    for text in ("CLIP_TOO_SHORT", "61 frames, 89 needed; would fit at 57", "IGNORED_FILE", "Kept as they are"):
        assert text in html
    assert html.count(">passed<") == html.count(">failed<") == 1
    assert "<p>1 of 2 videos is used for training, 1 is not</p>" in html
    assert re.search(r">learning_rate</th><td>2e-4<", html)


def test_every_metric_has_a_chart_with_its_formula(html: str) -> None:
    assert html.count("How it is measured") == len(METRIC_CHARTS) == len(formulas()) - 1
    assert "6 of 6 previews" in html


def test_a_job_with_one_preview_has_its_numbers_and_no_charts_of_dots(page: JobPage) -> None:
    once = [seen for seen in page.measured if seen.step == 1000]
    html = render_job_page(
        replace(page, measured=once, curves={"video_loss": [(1, 0.5)], "learning_rate": [(1, 2e-4)]})
    )
    assert "<polyline" not in html and "Solid: the LoRA" not in html
    assert "<dt>clip 2, LoRA</dt><dd>1.25</dd>" in html and "<dt>video loss</dt><dd>0.5</dd>" in html
    assert html.count("How it is measured") == len(METRIC_CHARTS)


def test_without_audio_there_is_no_chart_of_loudness(page: JobPage) -> None:
    silent = [replace(seen, metrics=replace(METRICS, loudness_step_db=None)) for seen in page.measured]
    assert "Loudness" not in render_job_page(replace(page, measured=silent))


def test_an_empty_job_has_a_page() -> None:
    html = render_job_page(JobPage(title="jobs/new", state="PENDING", facts={}))
    assert "This job has no previews." in html
    assert "Loss over steps: no values yet." in html


def test_a_silent_job_says_nothing_of_sound() -> None:
    entry = ValidationEntry(prompt="", given_share=0.5, base_mp4=None, previews=[])
    silent = render_job_page(JobPage(title="", state="SUCCEEDED", facts={}, entries=[entry]))
    heard = render_job_page(JobPage(title="", state="SUCCEEDED", facts={}, entries=[entry], with_audio=True))
    assert "sound is heard" in heard and "sound is heard" not in silent


@needs_browser
def test_a_phone_shows_charts_that_can_be_read(page: JobPage, tmp_path: Path) -> None:
    """Numbers of every chart that is shown have at least 10 pixels on a screen of 390."""
    script = """<script>
const sizes = [...document.querySelectorAll("svg.chart")].filter((chart) => chart.clientWidth).map((chart) =>
  parseFloat(getComputedStyle(chart.querySelector("text")).fontSize) * chart.clientWidth / chart.viewBox.baseVal.width);
document.body.dataset.sizes = sizes.map((size) => size.toFixed(1)).join(" ");
</script></body>"""
    # The page's policy lets no script run that is not its own.
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_job_page(replace(page, entries=[])))
    file = tmp_path / "narrow.html"
    file.write_text(html.replace("</body>", script), encoding="utf-8")
    shown = {}
    for width in (390, 1280):
        found = re.search(r'data-sizes="([^"]*)"', open_page(file, tmp_path, width))
        assert found is not None
        shown[width] = [float(size) for size in found[1].split()]
    assert len(shown[390]) == len(shown[1280]) == 2 + len(METRIC_CHARTS)
    assert min(*shown[390], *shown[1280]) >= 10


@needs_browser
def test_a_browser_opens_it(html: str, tmp_path: Path) -> None:
    file = tmp_path / "job page.html"
    file.write_text(html, encoding="utf-8")
    document = open_page(file, tmp_path)
    assert document.count("<video") == 4
    assert document.count('class="chart"') == 2 + len(METRIC_CHARTS)
    assert document.count("<polyline") == 2 * 5 + 1 + 4 * len(METRIC_CHARTS)
    assert not re.search(r'(?:points|d|x|y|cx|cy)="[^"]*(?:NaN|nan|inf)', document)


@needs_browser
async def test_its_players_read_their_videos(html: str, tmp_path: Path) -> None:
    if not await asyncio.to_thread(plays_h264, tmp_path):
        pytest.skip("this browser has no H.264 decoder")
    file = tmp_path / "job page.html"
    file.write_text(html, encoding="utf-8")
    async with browsing(tmp_path) as page:
        await page.open(file.as_uri())
        await page.until("document.querySelectorAll('[data-size=\"96x64\"]').length === 4")
        # 17 frames at 24 a second, read from the file by the browser.
        durations = await page.run("[...document.querySelectorAll('.duration')].map((found) => found.textContent)")
        # A slow page's script comes after the videos were read, and no event comes again.
        await page.run("document.querySelectorAll('[data-size]').forEach((found) => { delete found.dataset.size; })")
        await page.run("setUpPlayers(document)")
        known_late = await page.run("document.querySelectorAll('[data-size=\"96x64\"]').length")
    assert durations == ["0.7 s"] * 4 and known_late == 4


@needs_browser
def test_a_script_in_the_data_does_not_run(page: JobPage, tmp_path: Path) -> None:
    """Were escaping to fail, the page's policy would still stop it."""
    html = render_job_page(replace(page, entries=[]))
    file = tmp_path / "attacked.html"
    file.write_text(html.replace("</header>", "<script>document.title = 'owned'</script></header>"), encoding="utf-8")
    document = open_page(file, tmp_path)
    assert "document.title = 'owned'" in document
    assert "<title>owned</title>" not in document
