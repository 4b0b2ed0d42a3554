"""A finished or running job on one page: previews beside the base model, curves, metrics, audit, dataset and spec.

The page is one HTML file that opens without network. It holds every video it is given: about 4/3 of their size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from google.type.money_pb2 import Money
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import Job, LoraAudit, TrainingSummary
from ltxtrain_client.as_json import as_json
from ltxtrain_client.event_text import origin_text
from ltxtrain_client.quantities import price_text
from ltxtrain_client.sheet import continues_clips, name_datasets, name_openings
from markupsafe import Markup

from ltxtrain_services.pages.charts import Line, Points, is_drawn, legend, line_chart, number, smoothed
from ltxtrain_services.pages.render import data_uri, render, render_part
from ltxtrain_services.runtime.addresses import shown
from ltxtrain_trainer.reports import PreviewMetrics


@dataclass(frozen=True, kw_only=True)
class StepPreview:
    """The LoRA's continuation at a step, as an H.264 MP4 or the URL of one."""

    step: int
    mp4: bytes | str


@dataclass(frozen=True, kw_only=True)
class ValidationEntry:
    """One validation clip: the base model's continuation and the LoRA's, oldest first."""

    prompt: str
    given_share: float  # of the clip that is prefix, 0..1
    base_mp4: bytes | str | None
    previews: Sequence[StepPreview]


@dataclass(frozen=True, kw_only=True)
class MeasuredPreview:
    step: int
    validation_index: int
    base_model: bool
    # PreviewMetrics, or whatever has its fields.
    metrics: PreviewMetrics | SimpleNamespace


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    name: str
    value: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One file's line of the report: outcome and reasons are names of the contract without their prefixes."""

    path: str
    outcome: str
    reasons: Sequence[str]
    description: str


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """Everything the page shows. curves: (step, value) by column of the step log; absent ones are left out."""

    title: str
    state: str
    facts: Mapping[str, str]
    warnings: Sequence[str] = ()
    entries: Sequence[ValidationEntry] = ()
    with_audio: bool = False
    curves: Mapping[str, Points] = field(default_factory=dict)
    measured: Sequence[MeasuredPreview] = ()
    audit: Sequence[AuditRow] = ()
    # Sentences about all of the data, above the rows of its files.
    data_summary: Sequence[str] = ()
    report: Sequence[ReportRow] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)


LOSSES = {"video_loss": "video loss", "audio_loss": "audio loss", "held_out_loss": "held-out loss"}
SMALL_CURVES = {
    "gradient_norm": "Gradient norm before clipping",
    "learning_rate": "Learning rate",
    "seconds": "Seconds a step",
}

# Field of PreviewMetrics -> title, and the value of an unremarkable continuation where there is one.
METRIC_CHARTS: dict[str, tuple[str, tuple[float, str] | None]] = {
    "join_colour_jump": ("Colour jump at the join, × usual", (1.0, "as usual")),
    "join_contrast_jump": ("Contrast jump at the join, × usual", (1.0, "as usual")),
    "join_luminance_jump": ("Brightness jump at the join, × usual", (1.0, "as usual")),
    "join_motion_break": ("Motion break at the join, × usual", (1.0, "as usual")),
    "first_second_motion": ("Motion of the first second, × prefix", (1.0, "as in the prefix")),
    "colour_drift": ("Colour drift, levels a second", (0.0, "none")),
    "contrast_drift": ("Contrast drift, levels a second", (0.0, "none")),
    "loudness_step_db": ("Loudness step at the join, dB", (0.0, "none")),
    "prefix_psnr_db": ("Decoded prefix against source, PSNR in dB", None),
}


def shown_spec(job: Job) -> dict[str, Any]:
    """The resolved spec in the sheet's own words: datasets in place of uploads, URLs without possible secrets."""
    if continues_clips(job):
        clips = ContinueClipsSpec()
        clips.CopyFrom(job.effective_spec.continue_clips)
        name_openings(clips.openings, job.validation_dataset, uploads_only=True)
        document = as_json(clips)
        for entry in document["openings"]:
            entry["video_url"] = shown(entry["video_url"])
        return document
    resolved = ExtendPrefixSpec()
    resolved.CopyFrom(job.effective_spec.extend_prefix)
    name_datasets(resolved, job.dataset, job.validation_dataset, uploads_only=True)
    spec = as_json(resolved)
    if "training_data_url" in spec:
        spec["training_data_url"] = shown(spec["training_data_url"])
    for entry in spec["validation"]:
        entry["video_url"] = shown(entry["video_url"])
    return spec


def training_facts(job: Job, summary: TrainingSummary, units: int, price: Money | None) -> dict[str, str]:
    """Facts about a training that has ended, with its price."""
    wanted = job.effective_spec.extend_prefix.number_of_steps
    steps = f"{wanted}" if summary.steps == wanted else f"{summary.steps} of {wanted}"
    streamed = f", {summary.streamed_blocks} blocks in host memory" if summary.streamed_blocks else ""
    shared = f", each clip shared by {summary.gpus_per_clip} GPUs" if summary.gpus_per_clip > 1 else ""
    facts = {
        "Base model": f"{summary.model} at {summary.model_revision[:19]}, {summary.precision}",
        "Device": f"{summary.device}, {summary.planned_memory_bytes / 2**30:.1f} GiB planned{streamed}{shared}",
        "Clips": f"{summary.clip_count}",
    }
    if job.HasField("continue_from"):
        facts = {"Continues": origin_text(job)} | facts
    if continues_clips(job):
        return facts
    return facts | {
        "Steps": f"{steps} in {summary.step_seconds:.0f} s",
        "Price": price_text(units, price),
    }


def audit_rows(audit: LoraAudit) -> list[AuditRow]:
    """Rows about a LoRA that has passed its audit."""
    return [
        AuditRow(name="Modules", value=f"{audit.modules}", passed=True),
        AuditRow(name="Weights, all finite", value=f"{audit.weights:,}", passed=True),
        *(
            AuditRow(name=f"‖BA‖ / ‖W‖ of {family}", value=f"{size:.3g}", passed=True)
            for family, size in sorted(audit.update_ratios.items())
        ),
    ]


# In the order of what a reader has to know.
OUTCOMES = {
    "REJECTED": "rejected",
    "SKIPPED": "skipped",
    "IGNORED": "ignored",
    "KEPT_CHANGED": "kept, changed",
    "KEPT": "kept",
}


def render_job_page(page: JobPage) -> str:
    """The HTML of the page."""
    return render("job.html", script="players.js", **_values(page))


def render_job_part(page: JobPage, part: str) -> Markup:
    """One section of the page, by the name of its block in job.html. Empty where there is nothing to show."""
    values = _values(page)
    shown = {
        "training": page.curves,
        "metrics": values["metric_charts"],
        "audit": page.audit,
        "dataset": page.report,
        "spec": page.spec,
        "previews": page.entries,
    }
    return render_part("job.html", part, **values) if shown.get(part, True) else Markup("")


def _values(page: JobPage) -> dict[str, Any]:
    """Variables of the template."""
    # A line about the data as a whole has no path.
    whole = [row for row in page.report if not row.path]
    metric_lines = _metric_lines(page.measured, "prefix_psnr_db")
    rows = sorted((row for row in page.report if row.path), key=lambda row: list(OUTCOMES).index(row.outcome))
    return {
        "page": page,
        "warnings": [*page.warnings, *(row.description for row in whole if "NO_TEXT" in row.reasons)],
        "whole": whole,
        "entries": [_entry(entry) for entry in page.entries],
        "loss_chart": _loss_chart(page.curves),
        "small_charts": [
            (
                title,
                line_chart([Line(name=title, points=smoothed(page.curves[name]))], title=title, width=400, height=180),
            )
            for name, title in SMALL_CURVES.items()
            if page.curves.get(name)
        ],
        "metric_charts": _metric_charts(page.measured),
        # Empty where each has one value, which is told in words.
        "metric_legend": legend(metric_lines) if is_drawn(metric_lines) else "",
        "latents": _latents(page.measured),
        "remarkable": [(row, OUTCOMES[row.outcome]) for row in rows if row.outcome != "KEPT"],
        "kept": [row for row in rows if row.outcome == "KEPT"],
        "spec": [(name, _plain(value)) for name, value in page.spec.items()],
    }


def _entry(entry: ValidationEntry) -> dict[str, Any]:
    return {
        "prompt": entry.prompt,
        "given_percent": round(100 * entry.given_share, 1),
        "base": None if entry.base_mp4 is None else _source(entry.base_mp4),
        "previews": [(preview.step, _source(preview.mp4)) for preview in entry.previews],
    }


def _source(mp4: bytes | str) -> str:
    return mp4 if isinstance(mp4, str) else data_uri(mp4, "video/mp4")


def _loss_chart(curves: Mapping[str, Points]) -> Markup:
    lines = []
    for tone, (column, name) in enumerate(LOSSES.items()):
        points = curves.get(column) or []
        if column == "held_out_loss":
            lines.append(Line(name=name, points=points, tone=tone, dots=True))
            continue
        mean = smoothed(points)
        if mean != list(points):
            lines.append(Line(name=f"{name}, each step", points=points, tone=tone, style="faint"))
        lines.append(Line(name=name, points=mean, tone=tone))
    title = "Loss over steps"
    if not is_drawn(lines):
        return line_chart(lines, title=title, width=1040, height=320)
    # A page shows one of them: the text of the wide one is too small on a phone.
    wide = line_chart(lines, title=title, width=1040, height=320)
    return wide + line_chart(lines, title=title, width=400, height=240, narrow=True) + legend(lines)


def _metric_charts(measured: Sequence[MeasuredPreview]) -> list[dict[str, Any]]:
    # With NumPy, which a process at rest is spared.
    from ltxtrain_trainer.preview.metrics import formulas

    explained = formulas()
    charts = []
    for name, (title, usual) in METRIC_CHARTS.items():
        lines = _metric_lines(measured, name)
        if any(line.points for line in lines):
            chart = line_chart(lines, title=title, usual=usual, width=400, height=200)
            charts.append({"title": title, "svg": chart, "formula": explained[name]})
    return charts


def _metric_lines(measured: Sequence[MeasuredPreview], name: str) -> list[Line]:
    lines = []
    for index in sorted({preview.validation_index for preview in measured}):
        for base_model, side in ((False, "LoRA"), (True, "base")):
            points = [
                (preview.step, value)
                for preview in measured
                if (preview.validation_index, preview.base_model) == (index, base_model)
                for value in [getattr(preview.metrics, name)]
                if value is not None
            ]
            lines.append(
                Line(
                    name=f"clip {index + 1}, {side}",
                    points=points,
                    tone=index,
                    style="dashed" if base_model else "solid",
                    dots=not base_model,
                )
            )
    return lines


def _latents(measured: Sequence[MeasuredPreview]) -> tuple[int, int]:
    """Previews whose prefix latents came out as they went in, and all previews."""
    return sum(preview.metrics.prefix_latents_equal for preview in measured), len(measured)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number(value)
    return json.dumps(value, ensure_ascii=False, default=str)
