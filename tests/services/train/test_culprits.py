"""The opening that an error of another service is about."""

import pytest
from google.rpc.error_details_pb2 import PreconditionFailure
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client.errors import from_status

from ltxtrain_services.runtime.errors import FailedPrecondition, Upstream
from ltxtrain_services.runtime.hosted_form import error_items
from ltxtrain_services.train.prepare import named_culprit

UPLOAD = f"upload:uploads/{'1' * 32}"
SOURCES = ("https://me:secret@example.com/a.mp4?token=secret", UPLOAD, f"dataset:datasets/{'2' * 32}/clips/7")
OPENINGS = [ValidationInput(video_url=url) for url in SOURCES]
TRAINING = Job(effective_spec=TaskSpec(extend_prefix=ExtendPrefixSpec(validation=OPENINGS)))
CLIPS = Job(effective_spec=TaskSpec(continue_clips=ContinueClipsSpec(openings=OPENINGS)))


@pytest.mark.parametrize("job", [TRAINING, CLIPS])
@pytest.mark.parametrize(
    ("index", "text", "metadata", "subject", "file"),
    [
        (0, "It could not be fetched.", {"url": "https://example.com/a.mp4"}, "", "a.mp4"),
        (1, f"{UPLOAD}/my clip.mp4 has no picture.", {}, "", "my"),
        (1, "A clip cannot be used.", {}, f"{UPLOAD}/opening.mp4", "opening.mp4"),
        (2, "Too short.", {}, f"{SOURCES[2]}/b.mov", "b.mov"),
    ],
)
def test_field_and_file_are_named(
    job: Job, index: int, text: str, metadata: dict[str, str], subject: str, file: str
) -> None:
    reason = ErrorReason.ERROR_REASON_VALIDATION_CLIP_TOO_SHORT
    error = FailedPrecondition(reason, text, metadata=metadata)
    if subject:
        violation = PreconditionFailure.Violation(type="VALIDATION", subject=subject, description=text)
        error.details.append(PreconditionFailure(violations=[violation]))
    named = named_culprit(Upstream(error.status()), job)
    found = from_status(named.status())
    path = "spec.continue_clips.openings" if job is CLIPS else "spec.extend_prefix.validation"
    assert found.message == f"{path}[{index}].video_url ({file}): {text}"
    assert found.metadata["field"] == f"{path}[{index}].video_url" and found.metadata["file"] == file
    assert named.reason == reason and found.code == error.code
    assert [item.subject for item in found.subjects] == ([subject] if subject else [])
    place = ["body", "openings" if job is CLIPS else "validation", index, "video_url"]
    assert error_items(found)[0]["loc"] == place
    assert "secret" not in str(named.status())


def test_an_error_about_the_training_data_stays_as_it_is() -> None:
    error = Upstream(FailedPrecondition(ErrorReason.ERROR_REASON_NO_VIDEOS, "clips.zip holds no videos.").status())
    assert named_culprit(error, TRAINING) is error
