"""The number_of_frames that a check chooses for clips that are all too short for its default."""

from typing import Any

import grpc
import pytest
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import JobOptions
from ltxtrain.v1.work_pb2 import Lifecycle, ReportLine, State
from ltxtrain_client.check import DataCheck, _frames_that_fit

from tests.clients.far_side import status

SUCCEEDED = Lifecycle(state=State.STATE_SUCCEEDED)


@pytest.mark.parametrize(
    ("lengths", "spec", "chosen"),
    [
        ([60], {}, 57),
        ([33, 41, 44], {}, 33),
        # One clip in four may be left out.
        ([17, 60, 60, 60], {}, 57),
        ([9, 60, 60, 60], {}, 57),
        ([25, 60], {"conditioning_frames": 25}, 57),
        ([9, 8, 1], {}, None),
        ([60], {"number_of_frames": 89}, None),
    ],
)
def test_three_in_four_clips_fit(lengths: list[int], spec: dict[str, Any], chosen: int | None) -> None:
    failed = Lifecycle(state=State.STATE_FAILED)
    failed.error.CopyFrom(status(grpc.StatusCode.FAILED_PRECONDITION, "too short", "ALL_CLIPS_TOO_SHORT"))
    found = DataCheck(
        spec=ExtendPrefixSpec(**spec),
        options=JobOptions(),
        dataset=Dataset(lifecycle=SUCCEEDED),
        dataset_report=(),
        training_set=TrainingSet(lifecycle=failed),
        training_report=tuple(ReportLine(frame_count=length, needed_frames=89) for length in lengths),
    )
    assert _frames_that_fit(found) == chosen
