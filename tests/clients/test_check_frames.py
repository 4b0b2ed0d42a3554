"""The number_of_frames that a check chooses for clips most of which are too short for its default."""

from typing import Any

import grpc
import pytest
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import PreprocessReport, TrainingSet
from ltxtrain.v1.train_pb2 import JobOptions
from ltxtrain.v1.work_pb2 import Lifecycle, ReportLine, State
from ltxtrain_client.check import DataCheck, _frames_that_fit

from tests.clients.far_side import status

SUCCEEDED = Lifecycle(state=State.STATE_SUCCEEDED)


@pytest.mark.parametrize(
    ("long", "lengths", "spec", "chosen"),
    [
        (0, [60], {}, 57),
        (0, [33, 41, 44], {}, 33),
        # One clip in four may be left out.
        (0, [17, 60, 60, 60], {}, 57),
        (0, [9, 60, 60, 60], {}, 57),
        (0, [25, 60], {"conditioning_frames": 25}, 57),
        (0, [9, 8, 1], {}, None),
        (0, [60], {"number_of_frames": 89}, None),
        # One long clip and five short ones: six are more than one.
        (1, [33, 33, 36, 41, 60], {}, 33),
        (1, [60, 60, 60], {}, 57),
        # Half of them at the length that the model is used with are enough.
        (3, [33, 33, 60], {}, None),
        (6, [], {}, None),
        # Those that fit at no length do not count.
        (1, [9, 8, 1], {}, None),
        (1, [33, 33, 60], {"number_of_frames": 89}, None),
    ],
)
def test_three_in_four_clips_fit(long: int, lengths: list[int], spec: dict[str, Any], chosen: int | None) -> None:
    ended = SUCCEEDED
    if not long:
        ended = Lifecycle(state=State.STATE_FAILED)
        ended.error.CopyFrom(status(grpc.StatusCode.FAILED_PRECONDITION, "too short", "ALL_CLIPS_TOO_SHORT"))
    found = DataCheck(
        spec=ExtendPrefixSpec(**spec),
        options=JobOptions(),
        dataset=Dataset(lifecycle=SUCCEEDED),
        dataset_report=(),
        training_set=TrainingSet(lifecycle=ended, report=PreprocessReport(samples=long)),
        training_report=tuple(ReportLine(frame_count=length, needed_frames=89) for length in lengths),
    )
    assert _frames_that_fit(found) == chosen
