"""Counting videos apart from other files."""

import pytest
from ltxtrain.v1.work_pb2 import ClipNumbers, Outcome, ReportLine, ReportReason
from ltxtrain_client.report_summary import outcome_summary, path_text, training_summary

KEPT, CHANGED, SKIPPED = Outcome.OUTCOME_KEPT, Outcome.OUTCOME_KEPT_CHANGED, Outcome.OUTCOME_SKIPPED
IGNORED, REJECTED = Outcome.OUTCOME_IGNORED, Outcome.OUTCOME_REJECTED
NUMBERS = ClipNumbers(width=768)


def clip(path: str, outcome: "Outcome") -> ReportLine:
    return ReportLine(path=path, outcome=outcome, numbers=NUMBERS)


@pytest.mark.parametrize(
    ("used", "left_out", "text"),
    [
        (10, 3, "10 of 13 videos are used for training, 3 are not"),
        (1, 1, "1 of 2 videos is used for training, 1 is not"),
        (1, 0, "1 of 1 video is used for training"),
        (0, 2, "0 of 2 videos are used for training, 2 are not"),
    ],
)
def test_how_many_videos_train(used: int, left_out: int, text: str) -> None:
    outcomes = [CHANGED] * used + [SKIPPED] * left_out
    lines = [clip(f"{index}.mp4", outcome) for index, outcome in enumerate(outcomes)]
    dataset = [clip(line.path, KEPT) for line in lines]
    # The validation clip is none of the dataset.
    assert training_summary(dataset, [*lines, clip("opening.mp4", KEPT)]) == text


def test_a_video_counts_once_and_as_the_best_of_its_lines() -> None:
    lines = [clip("a.mp4", SKIPPED), clip("a.mp4", KEPT), clip("b.mp4", CHANGED), clip("b.mp4", SKIPPED)]
    assert outcome_summary(lines) == "2 videos: 1 kept, 1 changed"


def test_what_was_not_looked_at_is_a_video_by_its_name() -> None:
    junk, unseen = ReportReason.REPORT_REASON_IGNORED_FILE, ReportReason.REPORT_REASON_NOT_EXAMINED
    lines = [
        ReportLine(path="a.MP4", outcome=IGNORED, reasons=[unseen]),
        ReportLine(path="__MACOSX/._a.mp4", outcome=IGNORED, reasons=[junk]),
        ReportLine(path="photo.jpg", outcome=REJECTED),
        ReportLine(path="https://example.com/clip", outcome=SKIPPED),
        ReportLine(outcome=KEPT, description="of the whole of the data"),
    ]
    assert outcome_summary(lines) == "2 videos: 1 not looked at, 1 skipped; 2 other files: 1 ignored, 1 rejected"
    assert outcome_summary([]) == "no lines yet"


def test_an_upload_is_told_by_its_file() -> None:
    paths = {"a/b.mp4": "a/b.mp4", "upload:uploads/0f/o.mp4": "o.mp4", "upload:uploads/0f": "upload:uploads/0f"}
    assert {path: path_text(path) for path in paths} == paths
