"""Events as a person and as a script see them."""

import io
import json

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.work_pb2 import (
    Event,
    Lifecycle,
    Outcome,
    PreviewMetrics,
    Progress,
    QueuePosition,
    ReportLine,
    ReportReason,
    Stage,
    State,
    TrainMetrics,
)
from ltxtrain_client.event_text import PREVIEW_LEGEND, Measure, describe, measure
from ltxtrain_client.progress import BarView, JsonView, PlainView, make_view
from ltxtrain_client.quantities import duration_text, size_text
from ltxtrain_client.transfer import Transfer
from rich.console import Console

from tests.clients.far_side import status


def at(second: float, event: Event) -> Event:
    event.time.CopyFrom(Timestamp(seconds=int(second), nanos=int(second % 1 * 1e9)))
    return event


def skipped(path: str) -> Event:
    line = ReportLine(
        path=path,
        outcome=Outcome.OUTCOME_SKIPPED,
        reasons=[ReportReason.REPORT_REASON_CLIP_TOO_SHORT],
        description="61 frames, 89 needed",
    )
    return Event(stage=Stage.STAGE_PREPROCESS, report_line=line)


def training(step: int, total: int = 100) -> Event:
    return Event(stage=Stage.STAGE_TRAIN, progress=Progress(completed=step, total=total, eta_seconds=95.0))


METRICS = Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=10, loss=0.25, seconds_per_step=1.5))


def failed() -> Event:
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(type="AUDIO", subject="a.mp4", description="no track")
        ]
    )
    error = status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "2 clips have no audio",
        "AUDIO_TRACK_MISSING",
        details=[failure],
        count="2",
    )
    return Event(lifecycle=Lifecycle(state=State.STATE_FAILED, error=error))


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Event(lifecycle=Lifecycle(state=State.STATE_RUNNING)), "running"),
        (
            failed(),
            "failed: 2 clips have no audio (AUDIO_TRACK_MISSING)\n"
            "  a.mp4: no track\n"
            "  and 1 more; the report has all of them",
        ),
        (skipped("b/1.mp4"), "skipped b/1.mp4: 61 frames, 89 needed (CLIP_TOO_SHORT)"),
        (Event(report_line=ReportLine(path="a.mp4", outcome=Outcome.OUTCOME_KEPT)), None),
        (
            Event(
                report_line=ReportLine(
                    path="a.mp4",
                    outcome=Outcome.OUTCOME_KEPT,
                    reasons=[ReportReason.REPORT_REASON_CAPTION_MISSING],
                )
            ),
            "kept a.mp4: (CAPTION_MISSING)",
        ),
        (
            Event(artifact=Artifact(name="jobs/1/artifacts/lora-50.safetensors", blob=Blob(size_bytes=1_500_000))),
            "stored lora-50.safetensors (1.5 MB)",
        ),
        (Event(warning=status(grpc.StatusCode.ABORTED, "9 clips", "X")), "warning: 9 clips (X)"),
        (Event(queue_position=QueuePosition(ahead=1)), "waiting for its turn on the CPU, 1 job ahead"),
        (Event(queue_position=QueuePosition(needed_gpus=1, cluster_gpus=1)), "waiting for a GPU, next in line"),
        (Event(queue_position=QueuePosition(needed_gpus=4, cluster_gpus=2)), "waits for 4 GPUs; the cluster has 2"),
        (
            Event(queue_position=QueuePosition(ahead=3, needed_gpus=1)),
            "waits for 1 GPU; the cluster has none; 3 jobs ahead",
        ),
        (
            Event(preview_metrics=PreviewMetrics(step=50, prefix_latents_equal=True, prefix_psnr_db=38.25)),
            "preview of clip 1, step 50: prefix 38.2 dB; at the join colour 0.00x, luminance 0.00x, motion 0.00x; "
            "drift +0.00 levels/s",
        ),
        (
            Event(preview_metrics=PreviewMetrics(base_model=True, prefix_latents_equal=True, prefix_psnr_db=8.4)),
            "preview of clip 1, base model: prefix 8.4 dB; at the join colour 0.00x, luminance 0.00x, motion 0.00x; "
            f"drift +0.00 levels/s\n{PREVIEW_LEGEND}",
        ),
        (Event(train_metrics=TrainMetrics(step=5, held_out_loss=0.5)), "step 5: held-out loss 0.5000"),
        (
            Event(
                report_line=ReportLine(
                    outcome=Outcome.OUTCOME_KEPT,
                    reasons=[ReportReason.REPORT_REASON_FEW_CLIPS],
                    description="9 clips",
                )
            ),
            "data: 9 clips (FEW_CLIPS)",
        ),
        (
            Event(
                report_line=ReportLine(
                    path="a.mp4",
                    outcome=Outcome.OUTCOME_KEPT,
                    reasons=[ReportReason.REPORT_REASON_CAPTION_FROM_TABLE],
                    description="of a table, as good as of a file",
                )
            ),
            None,
        ),
        (training(1), None),
        (METRICS, None),
        (Event(), None),
    ],
)
def test_events_as_sentences(event: Event, text: str | None) -> None:
    assert describe(event) == text


def test_plain_lines_tell_what_counts_and_are_few() -> None:
    out = io.StringIO()
    view = PlainView(out)
    with view:
        view.show(1, at(0, Event(lifecycle=Lifecycle(state=State.STATE_RUNNING))))
        view.show(2, at(0, skipped("b/1.mp4")))
        view.show(3, at(0, METRICS))
        for second in range(101):
            view.show(4 + second, at(second / 4, training(second)))
    assert out.getvalue().splitlines() == [
        "job: running",
        "preprocess: skipped b/1.mp4: 61 frames, 89 needed (CLIP_TOO_SHORT)",
        "train: 0/100, loss 0.2500, 1.50 s/step, 1 min 35 s left",
        "train: 40/100, loss 0.2500, 1.50 s/step, 1 min 35 s left",
        "train: 80/100, loss 0.2500, 1.50 s/step, 1 min 35 s left",
        "train: 100/100, loss 0.2500, 1.50 s/step, 1 min 35 s left",
    ]


def test_json_lines_hold_the_whole_event() -> None:
    out = io.StringIO()
    with JsonView(out) as view:
        view.show(7, at(1, training(3)))
        view.show(8, failed())
        view.show_transfer("clips.zip", Transfer(1, 2))
        view.show_transfer("clips.zip", Transfer(2, 2))
    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert first["sequence"] == 7
    assert (first["event"]["time"], first["event"]["stage"]) == ("1970-01-01T00:00:01Z", "train")
    assert first["event"].keys() == {"time", "stage", "progress"}
    assert first["event"]["progress"].items() >= {"completed": 3, "total": 100, "eta_seconds": 95.0}.items()
    assert second["event"]["lifecycle"]["state"] == "failed"
    assert second["event"]["lifecycle"]["error"] == {
        "code": "FAILED_PRECONDITION",
        "reason": "AUDIO_TRACK_MISSING",
        "message": "2 clips have no audio",
        "metadata": {"count": "2"},
        "violations": [],
        "subjects": [{"type": "AUDIO", "subject": "a.mp4", "description": "no track"}],
    }
    assert third == {"transfer": "clips.zip", "size_bytes": 2}


def test_bars_show_stage_count_loss_and_time_left() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, no_color=True)
    with BarView(console) as view:
        view.show(1, skipped("[b]/1.mp4"))
        view.show(2, Event(stage=Stage.STAGE_INGEST, progress=Progress(completed=4)))
        view.show(3, METRICS)
        view.show(4, training(50))
        view.show(5, Event(stage=Stage.STAGE_PUBLISH, progress=Progress(completed=10**6, total=10**7)))
        view.show_transfer("clips.zip", Transfer(5, 10))
    text = out.getvalue()
    for part in ("skipped [b]/1.mp4", "50/100", "loss 0.2500", "1 min 35 s left", "1.0 MB/10.0 MB", "5 B/10 B"):
        assert part in text
    for stage in ("ingest", "train", "publish", "clips.zip"):
        assert stage in text


def test_fetching_is_counted_in_bytes_until_the_clips_are_known() -> None:
    assert measure(Stage.STAGE_INGEST, Progress(fetched_bytes=10**6, fetch_total_bytes=10**7)) == Measure(
        10**6, 10**7, "1.0 MB/10.0 MB fetched"
    )
    assert measure(Stage.STAGE_INGEST, Progress(fetched_bytes=10**6)).text == "1.0 MB fetched"
    assert measure(Stage.STAGE_INGEST, Progress(fetched_bytes=10**6, completed=1, total=4)) == Measure(1, 4, "1/4")


def test_a_stage_that_this_client_does_not_know_is_still_shown() -> None:
    out = io.StringIO()
    event = Event(progress=Progress(completed=1, total=2))
    event.MergeFromString(b"\x10\x63")  # stage = 99
    PlainView(out).show(1, event)
    assert out.getvalue() == "99: 1/2\n"


def test_the_form_goes_by_the_output() -> None:
    assert isinstance(make_view(json_lines=True), JsonView)
    assert isinstance(make_view(json_lines=False, out=io.StringIO()), PlainView)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e12, "2.0 TB")])
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text


def test_bars_that_begin_again_leave_what_was_printed_meanwhile() -> None:
    out = io.StringIO()
    view = BarView(Console(file=out, force_terminal=True, width=100))
    with view:
        view.show_transfer("clips.zip", Transfer(1, 2))
    out.write("jobs/1\n")
    printed = out.tell()
    with view:
        pass
    # No cursor that moves up, over the name.
    assert "\x1b[1A" not in out.getvalue()[printed:]
