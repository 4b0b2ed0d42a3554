"""Events folded into what pages show."""

from itertools import pairwise

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Outcome, ReportLine, Stage, TrainMetrics

from ltxtrain_services.gateway import views
from ltxtrain_services.gateway.story import MOST_POINTS, MOST_REPORT_LINES, Curve, Stories, Story
from ltxtrain_trainer.reports import LABELLED
from tests.services.gateway.running import file_of

JOB = Job(
    name=f"jobs/{'0' * 32}",
    effective_spec=TaskSpec(
        extend_prefix=ExtendPrefixSpec(validation=[ValidationInput(prompt="a coast")], validation_number_of_frames=89)
    ),
)


def told(*events: Event) -> Story:
    story = Story()
    for sequence, event in enumerate(events, start=1):
        assert story.take(sequence, event)
    return story


def test_an_event_counts_once_and_in_its_place() -> None:
    story = told(Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=1, video_loss=1.0)))
    again = Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=2, video_loss=0.5))
    assert not story.take(1, again) and not story.take(3, again)
    assert story.curves["video_loss"].points == [(1, 1.0)]
    assert story.take(2, again) and story.curves["video_loss"].points == [(1, 1.0), (2, 0.5)]


def test_each_step_has_one_preview_beside_the_base() -> None:
    """The picture of both models in one is a file, and no third preview."""
    assert views.LABELLED == LABELLED
    names = {"base-0.mp4": Artifact.KIND_BASE_VIDEO, "preview-40-0.mp4": Artifact.KIND_VALIDATION_VIDEO}
    names[f"preview-40-0{LABELLED}"] = Artifact.KIND_VALIDATION_VIDEO
    files = [file_of(JOB.name, name, kind, step=40, validation_index=0) for name, kind in names.items()]
    story = told(*(Event(stage=Stage.STAGE_PREVIEW, artifact=item) for item in files))
    html = views.job_part("previews", JOB, story)
    assert html.count("<video") == 2 and f'src="/{JOB.name}/files/preview-40-0.mp4"' in html
    assert all(name in views.job_part("files", JOB, story) for name in names)


def test_what_a_job_may_tell_without_end_is_bounded() -> None:
    curve = Curve()
    for step in range(50_000):
        curve.add(step, float(step))
    assert MOST_POINTS / 2 <= len(curve.points) <= MOST_POINTS
    steps = [step for step, _ in curve.points]
    assert len({after - before for before, after in pairwise(steps)}) == 1
    lines = [
        Event(stage=Stage.STAGE_INGEST, report_line=ReportLine(path=f"{number}.mp4", outcome=outcome))
        for outcome in (Outcome.OUTCOME_KEPT, Outcome.OUTCOME_SKIPPED)
        for number in range(3 * MOST_REPORT_LINES)
    ]
    story = told(*lines)
    assert len(story.report) == 2 * MOST_REPORT_LINES
    assert story.outcomes == {Outcome.OUTCOME_KEPT: 3_000, Outcome.OUTCOME_SKIPPED: 3_000}
    stories = Stories(2)
    first = stories.of("jobs/1")
    assert stories.of("jobs/2") and stories.of("jobs/1") is first
    stories.of("jobs/3")
    assert stories.of("jobs/1") is first
