"""Events folded into what pages show."""

from collections.abc import AsyncGenerator
from itertools import pairwise

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.preprocess_pb2 import PreprocessReport, TrainingSet
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job, JobOutput, LoraAudit, TrainingSummary, Webhook
from ltxtrain.v1.work_pb2 import Event, Lifecycle, Outcome, ReportLine, Stage, State, TrainMetrics
from ltxtrain_client import outputs

from ltxtrain_services.gateway import views
from ltxtrain_services.gateway.story import MOST_POINTS, MOST_REPORT_LINES, Curve, Stories, Story
from ltxtrain_services.runtime.errors import FailedPrecondition
from ltxtrain_trainer.reports import LABELLED
from tests.services.gateway.running import MARKUP, file_of

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


def found_line(path: str, outcome: "Outcome") -> Event:
    return _line(Stage.STAGE_INGEST, path, outcome)


def fitted_line(path: str, outcome: "Outcome") -> Event:
    return _line(Stage.STAGE_PREPROCESS, path, outcome)


def _line(stage: "Stage", path: str, outcome: "Outcome") -> Event:
    return Event(stage=stage, report_line=ReportLine(path=path, outcome=outcome, description=MARKUP))


def test_an_event_counts_once_and_in_its_place() -> None:
    story = told(Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=1, video_loss=1.0)))
    again = Event(stage=Stage.STAGE_TRAIN, train_metrics=TrainMetrics(step=2, video_loss=0.5))
    assert not story.take(1, again) and not story.take(3, again)
    assert story.curves["video_loss"].points == [(1, 1.0)]
    assert story.take(2, again) and story.curves["video_loss"].points == [(1, 1.0), (2, 0.5)]


def test_each_step_has_one_preview_beside_the_base() -> None:
    """The picture of both models in one is a file, and no third preview."""
    assert outputs.LABELLED == LABELLED
    names = {"base-clip-1.mp4": Artifact.KIND_BASE_VIDEO, "preview-40-clip-1.mp4": Artifact.KIND_VALIDATION_VIDEO}
    names[f"preview-40-clip-1{LABELLED}"] = Artifact.KIND_VALIDATION_VIDEO
    files = [file_of(JOB.name, name, kind, step=40, validation_index=0) for name, kind in names.items()]
    story = told(*(Event(stage=Stage.STAGE_PREVIEW, artifact=item) for item in files))
    html = views.job_part("previews", JOB, story)
    assert html.count("<video") == 2 and f'src="/{JOB.name}/files/preview-40-clip-1.mp4"' in html
    assert all(name in views.job_part("files", JOB, story) for name in names)


def test_a_check_shows_every_file_as_it_was_fitted_or_found() -> None:
    kept, skipped, ignored = Outcome.OUTCOME_KEPT_CHANGED, Outcome.OUTCOME_SKIPPED, Outcome.OUTCOME_IGNORED
    dataset = told(found_line("a.mp4", kept), found_line("b.mp4", kept), found_line("notes.pdf", ignored))
    ending = Event(lifecycle=Lifecycle(state=State.STATE_SUCCEEDED))
    fitted = told(fitted_line("a.mp4", kept), fitted_line("b.mp4", skipped), ending)
    found = TrainingSet(
        name=f"trainingSets/{'0' * 32}",
        dataset=f"datasets/{'1' * 32}",
        report=PreprocessReport(suggestions=[MARKUP]),
        contact_sheet=Blob(key="sheet"),
    )
    parts = {part: views.training_set_part(part, found, fitted, dataset) for part in views.TRAINING_SET_PARTS}
    assert all(MARKUP not in html and "<script" not in html for html in parts.values())
    rows = [row.partition("</td>")[0] for row in parts["dataset"].split('<td class="path">')[1:]]
    assert sorted(rows) == ["a.mp4", "b.mp4", "notes.pdf"]
    assert f'href="/new?dataset=datasets/{"1" * 32}">Start a job with this<' in parts["actions"]
    assert f'src="/{found.name}/contact-sheet"' in parts["contact-sheet"] and " sandbox" in parts["contact-sheet"]
    assert "&lt;img" in parts["suggestions"] and "1 of 2 videos is used" in parts["head"]
    # A job's page, too, counts each file once.
    story = told(
        Event(stage=Stage.STAGE_INGEST, report_line=ReportLine(path="a.mp4", outcome=kept)),
        Event(stage=Stage.STAGE_INGEST, report_line=ReportLine(description="few clips", outcome=kept)),
        Event(stage=Stage.STAGE_PREPROCESS, report_line=ReportLine(path="a.mp4", outcome=skipped)),
    )
    html = views.job_part("dataset", JOB, story)
    assert html.count("a.mp4") == 1 and "few clips" in html and "kept" not in html
    # Before the end there is nothing to start with, and nothing to show.
    begun = TrainingSet(name=found.name, dataset=found.dataset)
    assert not any(views.training_set_part(part, begun, Story(), dataset).strip() for part in ("suggestions", "log"))
    assert "Start" not in views.training_set_part("actions", begun, Story(), dataset)


def test_the_page_of_a_job_counts_each_file_once_and_openings_apart() -> None:
    """The same numbers as `ltxtrain report` has: a clip is found, and fitted; an opening is no clip to train on."""
    kept, skipped = Outcome.OUTCOME_KEPT, Outcome.OUTCOME_SKIPPED
    upload = f"upload:uploads/{'2' * 32}"
    opening = f"{upload}/opening.mp4"
    job = Job(name=JOB.name, effective_spec=JOB.effective_spec)
    job.effective_spec.extend_prefix.validation[0].video_url = upload
    paths = ("a.mp4", "b.mp4", "a.txt", opening)
    story = told(
        *(found_line(path, kept) for path in paths),
        fitted_line("a.mp4", kept),
        fitted_line("b.mp4", skipped),
        fitted_line(opening, kept),
    )
    html = views.job_part("dataset", job, story)
    assert "<p>1 of 2 videos is used for training, 1 is not</p>" in html
    files = "2 videos: 1 kept, 1 skipped; 1 other file: 1 kept; for validation 1 video: 1 kept"
    assert f"<p>{files}</p>" in html
    assert html.count("b.mp4") == 1 and html.count(">a.mp4<") == 1
    assert html.count(">opening.mp4<") == 1 and "upload" not in html
    # A continuation trains on nothing.
    job.effective_spec.continue_clips.openings.add(video_url=upload)
    html = views.job_part("dataset", job, told(found_line(opening, kept), fitted_line(opening, kept)))
    assert "<p>1 video: 1 kept</p>" in html and "training" not in html


async def test_a_page_that_opens_as_its_job_ends_hears_of_the_end() -> None:
    """Another page may be told of the end first, while this one is drawn."""
    running, ended = (Event(lifecycle=Lifecycle(state=state)) for state in (State.STATE_RUNNING, State.STATE_SUCCEEDED))
    log = [running, ended]

    async def watch(name: str, after: int) -> AsyncGenerator[tuple[int, Event], None]:
        for sequence, event in enumerate(log[after:], after + 1):
            yield sequence, event

    stories = Stories()
    story = stories.of(JOB.name)
    story.take(1, running)
    pages = stories.follow(JOB.name, watch)
    assert not (await anext(pages)).ended
    story.take(2, ended)
    assert [story.ended async for story in pages] == [True]


def test_a_job_that_has_ended_shows_what_its_file_shows() -> None:
    job = Job(
        name=JOB.name,
        effective_spec=TaskSpec(
            extend_prefix=ExtendPrefixSpec(
                number_of_steps=100, training_data_url="https://a:b@example.com/z?token=secret"
            )
        ),
        training_summary=TrainingSummary(model="m", model_revision="r", device="cpu", precision="bf16", steps=40),
        output=JobOutput(audit=LoraAudit(modules=3, weights=4000, update_ratios={"attn1": 0.0123})),
        webhook=Webhook(origin="https://example.com", tries=1, delivery_time=Timestamp(seconds=1)),
    )
    story = told(Event(lifecycle=Lifecycle(state=State.STATE_CANCELLED)))
    head, audit = views.job_part("head", job, story), views.job_part("audit", job, story)
    assert all(text in head for text in ("m at r, bf16", "40 of 100 in", "taken by https://example.com"))
    assert all(text in audit for text in ("<td>4,000</td>", "‖BA‖ / ‖W‖ of attn1", "0.0123"))
    assert not views.job_part("audit", JOB, story) and not views.job_part("training", JOB, story)
    spec = views.spec_part(job)
    assert "https://example.com/z" in spec and "secret" not in spec and "a:b" not in spec


def test_what_data_made_fail_is_offered_with_changes_first() -> None:
    error = FailedPrecondition(ErrorReason.ERROR_REASON_ALL_CLIPS_TOO_SHORT, "Too short.").status()
    story = told(Event(lifecycle=Lifecycle(state=State.STATE_FAILED, error=error)))
    html = views.job_part("actions", JOB, story)
    assert "<button>Go on" in html and '<a class="button main" href="/new?job=' in html
    story = told(Event(lifecycle=Lifecycle(state=State.STATE_CANCELLED)))
    html = views.job_part("actions", JOB, story)
    assert "<button class=main>Go on" in html and '<a class="button" href="/new?job=' in html


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
    assert len(story.found) == 2 * MOST_REPORT_LINES
    # Of lines that are not all there nothing is counted.
    assert "videos" not in views.job_part("dataset", JOB, story)
    stories = Stories(2)
    first = stories.of("jobs/1")
    assert stories.of("jobs/2") and stories.of("jobs/1") is first
    stories.of("jobs/3")
    assert stories.of("jobs/1") is first
