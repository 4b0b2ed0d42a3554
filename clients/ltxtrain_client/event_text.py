"""Text for people: events, errors, report lines and progress."""

from dataclasses import dataclass

from ltxtrain.v1.train_pb2 import ContinueMode, EstimateBasis, EstimateJobResponse, Job
from ltxtrain.v1.work_pb2 import (
    Event,
    Outcome,
    PreviewMetrics,
    Progress,
    QueuePosition,
    ReportLine,
    ReportReason,
    Stage,
    State,
)

from ltxtrain_client.enum_words import word
from ltxtrain_client.errors import CallError, from_status
from ltxtrain_client.outputs import file_name
from ltxtrain_client.quantities import duration_text, size_text
from ltxtrain_client.report_summary import outcome_word, path_text
from ltxtrain_client.sheet import continues_clips


def stage_word(stage: int) -> str:
    return word(Stage.DESCRIPTOR, stage)


def title(name: str, display_name: str) -> str:
    """A resource as people know it: by its display name, with its name."""
    return f"{display_name} ({name})" if display_name else name


def state_word(state: int) -> str:
    return word(State.DESCRIPTOR, state)


def describe(event: Event) -> str | None:
    """One line about an event; None for progress, which is shown as a bar, and for clips kept unchanged."""
    match event.WhichOneof("detail"):
        case "lifecycle":
            if event.lifecycle.HasField("error"):
                return f"{state_word(event.lifecycle.state)}: {describe_error(from_status(event.lifecycle.error))}"
            return state_word(event.lifecycle.state)
        case "report_line":
            return describe_report_line(event.report_line)
        case "artifact":
            return f"stored {file_name(event.artifact)} ({size_text(event.artifact.blob.size_bytes)})"
        case "warning":
            return f"warning: {describe_error(from_status(event.warning))}"
        case "preview_metrics":
            return describe_preview(event.preview_metrics)
        case "queue_position":
            return waiting_text(event.queue_position)
        case "train_metrics" if event.train_metrics.HasField("held_out_loss"):
            return f"step {event.train_metrics.step}: held-out loss {event.train_metrics.held_out_loss:.4f}"
    return None


def origin_text(job: Job) -> str:
    """The job that another goes on from, or whose LoRA it uses; empty for one that starts anew."""
    origin = job.continue_from
    if continues_clips(job):
        return f"clips with {origin.artifact}"
    if origin.mode == ContinueMode.CONTINUE_MODE_WEIGHTS:
        return f"the weights of {origin.source}"
    return f"{origin.source} from {f'step {origin.step}' if origin.step else 'its beginning'}" if origin.source else ""


def waiting_text(position: QueuePosition) -> str:
    """The cause of a job's waiting: others that are ahead of it, or GPUs that the cluster does not have."""
    ahead = f"{position.ahead} job{'' if position.ahead == 1 else 's'} ahead"
    if position.needed_gpus <= position.cluster_gpus:
        # Where no job needs a GPU, they take turns on the CPUs.
        what = "a GPU" if position.needed_gpus else "its turn on the CPU"
        return f"waiting for {what}, {ahead if position.ahead else 'next in line'}"
    text = f"waits for {position.needed_gpus} GPU{'' if position.needed_gpus == 1 else 's'}; "
    text += f"the cluster has {position.cluster_gpus or 'none'}"
    return f"{text}; {ahead}" if position.ahead else text


def describe_error(error: CallError) -> str:
    """An error's message and reason, followed by a line for each field and each clip."""
    lines = [f"{error.message} ({error.reason or error.code.name})", *error.particulars()]
    more = int(error.metadata.get("count", "0")) if error.metadata.get("count", "").isdecimal() else 0
    if error.subjects and more > len(error.subjects):
        lines.append(f"  and {more - len(error.subjects)} more; the report has all of them")
    return "\n".join(lines)


def describe_report_line(line: ReportLine) -> str | None:
    # A caption from a table is as good as one from a file.
    if line.outcome == Outcome.OUTCOME_KEPT and set(line.reasons) <= {ReportReason.REPORT_REASON_CAPTION_FROM_TABLE}:
        return None
    reasons = ", ".join(word(ReportReason.DESCRIPTOR, reason) for reason in line.reasons)
    text = line.description + (f" ({reasons})" if reasons else "")
    # A line about the data as a whole has no path.
    subject = f"{outcome_word(line.outcome)} {path_text(line.path)}" if line.path else "data"
    return subject + (f": {text.strip()}" if text else "")


# Shown once, with the first preview: the base model on the first validation clip.
PREVIEW_LEGEND = (
    "  prefix: similarity of the decoded prefix to its source, higher is better; at the join: change relative to the "
    "clip's own change between frames, 1x is no more than usual; drift: of colour along the continuation, 0 is none"
)


def describe_preview(metrics: PreviewMetrics) -> str:
    which = "base model" if metrics.base_model else f"step {metrics.step}"
    prefix = f"{metrics.prefix_psnr_db:.1f} dB" + ("" if metrics.prefix_latents_equal else ", latents differ")
    text = (
        f"preview of clip {metrics.validation_index + 1}, {which}: prefix {prefix}; at the join colour "
        f"{metrics.join_colour_jump:.2f}x, luminance {metrics.join_luminance_jump:.2f}x, motion "
        f"{metrics.join_motion_break:.2f}x; drift {metrics.colour_drift:+.2f} levels/s"
    )
    first = metrics.base_model and metrics.validation_index == 0
    return f"{text}\n{PREVIEW_LEGEND}" if first else text


_BASES = {
    EstimateBasis.ESTIMATE_BASIS_PUBLISHED: "published figures; nothing was measured here yet",
    EstimateBasis.ESTIMATE_BASIS_MEASURED: "as measured here",
    EstimateBasis.ESTIMATE_BASIS_MEASURED_OTHERWISE: "as measured here with another precision or optimizer",
}


def time_text(answer: EstimateJobResponse) -> str:
    """Estimated time, and what it is known from."""
    time = f"{duration_text(answer.seconds_low)} to {duration_text(answer.seconds_high)}"
    before = answer.preparation_seconds_high
    parts = [f"{duration_text(before)} of it before the first step"] if before else []
    parts += [_BASES[answer.basis]] if answer.basis in _BASES else []
    return f"{time} ({', '.join(parts)})" if parts else time


@dataclass(frozen=True)
class Measure:
    """Progress of a stage: numbers for a bar, and the same as text in the stage's unit."""

    completed: int
    total: int
    """0 while unknown."""

    text: str


def measure(stage: int, progress: Progress) -> Measure:
    if progress.fetched_bytes and not progress.total:
        completed, total = progress.fetched_bytes, progress.fetch_total_bytes
        return Measure(completed, total, f"{_of(size_text(completed), size_text(total), total)} fetched")
    completed, total = progress.completed, progress.total
    if stage in (Stage.STAGE_MODEL, Stage.STAGE_PUBLISH):
        return Measure(completed, total, _of(size_text(completed), size_text(total), total))
    return Measure(completed, total, _of(str(completed), str(total), total))


def _of(completed: str, total: str, known: int) -> str:
    return f"{completed}/{total}" if known else completed
