"""Jobs and datasets as parts of pages: HTML by the id of its place."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import ValidationInput
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import EstimateJobResponse, Job, Webhook
from ltxtrain.v1.work_pb2 import Outcome, Progress, ReportLine, ReportReason, Stage, State
from ltxtrain_client.as_json import as_json
from ltxtrain_client.enum_words import word
from ltxtrain_client.errors import from_status
from ltxtrain_client.event_text import (
    describe_error,
    measure,
    origin_text,
    stage_word,
    state_word,
    time_text,
    title,
    waiting_text,
)
from ltxtrain_client.outputs import LABELLED, file_name, is_result
from ltxtrain_client.quantities import duration_text, money_text, price_text, size_text
from ltxtrain_client.report_summary import data_summary, joined, path_text, training_summary
from ltxtrain_client.sheet import continues_clips
from ltxtrain_client.watch import TERMINAL
from markupsafe import Markup

from ltxtrain_services.gateway.story import MOST_REPORT_LINES, Story
from ltxtrain_services.pages.job_page import (
    OUTCOMES,
    JobPage,
    MeasuredPreview,
    ReportRow,
    StepPreview,
    ValidationEntry,
    audit_rows,
    render_job_part,
    shown_spec,
    training_facts,
)
from ltxtrain_services.pages.render import render_part
from ltxtrain_services.runtime.addresses import shown
from ltxtrain_services.runtime.hosted_form import is_about_data

# Parts of a job's page, and the sections of job.html among them.
JOB_PARTS = ("head", "actions", "previews", "training", "metrics", "audit", "dataset", "files", "log")
SECTIONS = frozenset({"previews", "training", "metrics", "audit", "dataset"})
DATASET_PARTS = ("head", "actions", "dataset", "log")
TRAINING_SET_PARTS = ("head", "actions", "suggestions", "contact-sheet", "dataset", "log")


def job_part(part: str, job: Job, story: Story) -> Markup:
    """One part of a job's page."""
    if part in SECTIONS:
        return render_job_part(_page(job, story), part)
    return render_part("live.html", part, **job_values(job, story))


def spec_part(job: Job) -> Markup:
    """The section of job.html about the spec, with the options of the run."""
    # A continuation has few of a training's options.
    spec = shown_spec(job) | {"options": as_json(job.options, whole=not continues_clips(job))}
    return render_job_part(JobPage(title=job.name, state="", facts={}, spec=spec), "spec")


def dataset_part(part: str, dataset: Dataset, story: Story) -> Markup:
    """One part of a dataset's page."""
    name = dataset.name
    if part == "dataset":
        return render_job_part(JobPage(title=name, state="", facts={}, **_data(story.found)), part)
    values = _head(name, story, dataset.display_name) | {"kind": "dataset", "dataset": name}
    return render_part("live.html", part, **values | {"facts": {"Dataset": name} if dataset.display_name else {}})


def training_set_part(part: str, found: TrainingSet, story: Story, earlier: Story) -> Markup:
    """One part of the page of a training set; `earlier` is the story of its dataset."""
    name = found.name
    if part == "dataset":
        return render_job_part(JobPage(title=name, state="", facts={}, **_data(earlier.found, story.fitted)), part)
    facts = {"Training set": name} if found.display_name else {}
    facts |= {"Used": training_summary(earlier.found, story.fitted)} if story.fitted else {}
    values = _head(name, story, found.display_name) | {
        "kind": "training set",
        "dataset": found.dataset,
        "facts": facts,
        "suggestions": list(found.report.suggestions),
        "has_sheet": found.HasField("contact_sheet"),
    }
    return render_part("live.html", part.replace("-", "_"), **values)


def job_values(job: Job, story: Story) -> dict[str, Any]:
    return _head(job.name, story, job.display_name) | {
        "kind": "job",
        "asks": _asks(job, story),
        "trains": not continues_clips(job),
        "has_lora": bool(job.output.lora_file),
        # The same once more would fail as this did.
        "at_fault": story.lifecycle.HasField("error") and is_about_data(from_status(story.lifecycle.error)),
        "facts": _facts(job, story),
        "files": [
            {
                "name": file_name(item),
                "kind": word(Artifact.Kind.DESCRIPTOR, item.kind).replace("_", " "),
                "size": size_text(item.blob.size_bytes),
                "result": is_result(item, job),
            }
            for item in sorted(
                story.artifacts.values(), key=lambda item: (not is_result(item, job), item.kind, item.step)
            )
        ],
    }


def requested(job: Job) -> frozenset[str]:
    """Requests to a training that are not done yet, by the words of its calls; none to one that has ended."""
    if job.lifecycle.state in TERMINAL:
        return frozenset()
    flags = {"checkpoint": job.checkpoint_requested, "preview": job.preview_requested}
    return frozenset(word for word, asked in flags.items() if asked)


def _asks(job: Job, story: Story) -> list[dict[str, Any]]:
    """Requests that a training takes now, or has already."""
    waiting = frozenset[str]() if story.lifecycle.state in TERMINAL else requested(job)
    possible = ["checkpoint"] + ["preview"] * bool(job.effective_spec.extend_prefix.validation)
    if continues_clips(job):
        return []
    return [{"call": call, "waits": call in waiting} for call in possible if story.training or call in waiting]


def job_row(job: Job) -> dict[str, Any]:
    """A job in the list."""
    lifecycle = job.lifecycle
    ended = lifecycle.state in TERMINAL
    progress = measure(job.stage, job.progress)
    where = "" if ended else stage_word(job.stage) if job.stage else ""
    if job.HasField("queue_position") and not ended:
        ahead = job.queue_position
        where = "next in line" if ahead == 0 else f"{ahead} job{'' if ahead == 1 else 's'} ahead"
        if job.waiting.needed_gpus > job.waiting.cluster_gpus:
            where = waiting_text(job.waiting)
    return {
        "id": job.name.removeprefix("jobs/"),
        "state": state_word(lifecycle.state),
        "where": where,
        "bar": None if ended or not progress.total else (progress.completed, progress.total),
        "progress": "" if ended else progress.text if job.HasField("progress") else "",
        "eta": _eta(job.progress) if not ended else "",
        "title": job.display_name or _subject(job),
        "size": _size(job),
        "created": lifecycle.create_time.ToJsonString()[:16].replace("T", " "),
        "price": money_text(job.price) if job.HasField("price") else "",
        "reason": from_status(lifecycle.error).reason if lifecycle.HasField("error") else "",
    }


def _subject(job: Job) -> str:
    """The name of a job without one."""
    if continues_clips(job):
        return next((entry.prompt for entry in job.effective_spec.continue_clips.openings), "")[:80]
    return job.effective_spec.extend_prefix.trigger_phrase


def _size(job: Job) -> str:
    if continues_clips(job):
        count = len(job.effective_spec.continue_clips.openings)
        return f"{count} clip{'' if count == 1 else 's'} continued"
    return f"{job.effective_spec.extend_prefix.number_of_steps:,} steps"


def estimate_text(answer: EstimateJobResponse) -> str:
    """The estimate beside the button."""
    price = price_text(answer.billable_units, answer.price)
    where = "on the CPU" if answer.on_cpu else "on each GPU"
    missing = "There is no GPU, and the model needs one: " if answer.gpu_missing else ""
    return f"{missing}{time_text(answer)}; {size_text(answer.peak_memory_bytes)} {where}; {price}"


def _head(name: str, story: Story, display_name: str) -> dict[str, Any]:
    error = from_status(story.lifecycle.error) if story.lifecycle.HasField("error") else None
    return {
        "name": name,
        "title": display_name,
        "id": name.partition("/")[2],
        "state": state_word(story.lifecycle.state) if story.lifecycle.state else "pending",
        "stages": _stages(story),
        "waits": _sentence(waiting_text(story.waiting)) if story.waiting else "",
        "warnings": story.warnings,
        "error": describe_error(error) if error is not None else "",
        "ended": story.lifecycle.state in TERMINAL,
        "usable": story.lifecycle.state == State.STATE_SUCCEEDED,
        "lines": list(story.lines)[-200:],
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _stages(story: Story) -> list[dict[str, Any]]:
    """Each stage so far, with a bar where its total is known."""
    shown = []
    for stage, progress in story.stages.items():
        if stage in (Stage.STAGE_UNSPECIFIED, Stage.STAGE_QUEUE):
            continue
        at = measure(stage, progress)
        shown.append({"name": stage_word(stage), "text": at.text, "bar": (at.completed, at.total) if at.total else None,
                      "eta": "" if story.ended else _eta(progress)})  # fmt: skip
    return shown


def _eta(progress: Progress) -> str:
    left = progress.eta_seconds if progress.HasField("eta_seconds") else 0.0
    return f"{duration_text(left)} left" if left >= 1 else ""


def _facts(job: Job, story: Story) -> dict[str, str]:
    spec, numbers = job.effective_spec.extend_prefix, story.numbers
    facts: dict[str, str] = {"Job": job.name} if job.display_name else {}
    if continues_clips(job):
        clips = job.effective_spec.continue_clips
        facts |= {"Frames": str(clips.number_of_frames), "Seed": str(job.options.seed)}
    else:
        facts |= {
            "Trigger phrase": spec.trigger_phrase or "none",
            "Steps": f"{spec.number_of_steps:,}",
            "Rank": str(spec.rank),
        }
    if numbers.step:
        facts |= {
            "Step": f"{numbers.step:,}",
            "Loss": f"{numbers.loss:.4f}",
            "Seconds a step": f"{numbers.seconds_per_step:.2f}",
        }
    if job.HasField("training_summary"):
        # As job.html has them.
        facts |= training_facts(job, job.training_summary, job.billable_units, job.price)
    if job.HasField("continue_from"):
        source = job.continue_from.source.partition("/artifacts/")[0]
        facts["Continues"] = Markup('<a href="/{}">{}</a>').format(source, origin_text(job))
    if job.HasField("webhook") and story.ended:
        facts["Webhook"] = _webhook_text(job.webhook)
    return facts


def _webhook_text(webhook: Webhook) -> str:
    if webhook.HasField("delivery_time"):
        return f"taken by {webhook.origin}"
    again = "it is tried again" if webhook.HasField("next_try_time") or not webhook.tries else "it was given up"
    return f"not taken by {webhook.origin}: {webhook.failure or 'it is being sent'} {again}"


def _page(job: Job, story: Story) -> JobPage:
    """Contents of the sections of job.html, as far as events tell."""
    openings, share, with_audio, kind = _previewed(job)
    return JobPage(
        title=title(job.name, job.display_name),
        state=state_word(story.lifecycle.state),
        facts={},
        with_audio=with_audio,
        entries=[
            ValidationEntry(
                prompt=opening.prompt,
                given_share=share,
                base_mp4=next(iter(_videos(story, job, index, Artifact.KIND_BASE_VIDEO)), (0, None))[1],
                previews=[StepPreview(step=step, mp4=url) for step, url in _videos(story, job, index, kind)],
            )
            for index, opening in enumerate(openings)
            if any(
                item.validation_index == index and item.HasField("validation_index")
                for item in story.artifacts.values()
            )
        ],
        curves={name: curve.points for name, curve in story.curves.items()},
        measured=[
            MeasuredPreview(
                step=item.step,
                validation_index=item.validation_index,
                base_model=item.base_model,
                metrics=SimpleNamespace(**{"loudness_step_db": None} | as_json(item)),
            )
            for item in story.measured
        ],
        audit=audit_rows(job.output.audit) if job.output.HasField("audit") else (),
        **_job_data(job, story),
    )


def _previewed(job: Job) -> tuple[Sequence[ValidationInput], float, bool, "Artifact.Kind"]:
    """The clips that a job continues, the share of their openings, whether with sound, and the kind of the videos."""
    if continues_clips(job):
        clips = job.effective_spec.continue_clips
        share = clips.conditioning_frames / max(clips.number_of_frames, 1)
        return clips.openings, share, clips.with_audio, Artifact.KIND_CONTINUED_VIDEO
    spec = job.effective_spec.extend_prefix
    share = spec.conditioning_frames / max(spec.validation_number_of_frames, 1)
    return spec.validation, share, spec.with_audio, Artifact.KIND_VALIDATION_VIDEO


def _videos(story: Story, job: Job, index: int, kind: "Artifact.Kind") -> Sequence[tuple[int, str]]:
    """Step and address of each preview of one clip, oldest first."""
    return sorted(
        (item.step, f"/{job.name}/files/{file_name(item)}")
        for item in story.artifacts.values()
        if item.kind == kind and item.validation_index == index and not item.name.endswith(LABELLED)
    )


def _job_data(job: Job, story: Story) -> dict[str, Any]:
    """`_data` of a job. Nothing is trained on where clips are continued; elsewhere openings are no training data."""
    if continues_clips(job):
        return _data(joined(story.found, story.fitted))
    # The path of an opening begins with its source.
    openings = job.effective_spec.extend_prefix.validation
    sources = tuple(text for entry in openings for text in (entry.video_url, shown(entry.video_url)) if text)
    return _data([line for line in story.found if not line.path.startswith(sources)], story.fitted)


def _data(found: Sequence[ReportLine], fitted: Sequence[ReportLine] = ()) -> dict[str, Any]:
    """Fields of a page about the data; nothing is counted where a story has not kept all of the lines."""
    whole = max(len(found), len(fitted)) < MOST_REPORT_LINES
    summary = data_summary(found, fitted) if whole and (found or fitted) else []
    return {"data_summary": summary, "report": _report(joined(found, fitted))}


def _report(lines: Iterable[ReportLine]) -> list[ReportRow]:
    return [
        ReportRow(
            path=path_text(line.path),
            outcome=name,
            reasons=[word(ReportReason.DESCRIPTOR, reason) for reason in line.reasons],
            description=line.description,
        )
        for line in lines
        for name in [_name(Outcome, line.outcome, "OUTCOME_")]
        if name in OUTCOMES
    ]


def _name(enum: Any, number: int, prefix: str) -> str:
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return "" if value is None else str(value.name).removeprefix(prefix)
