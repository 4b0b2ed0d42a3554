"""Each `runtime` case of the manifest, by the tests that follow its recipe. One has no better place than here."""

from pathlib import Path

import grpc.aio
import pytest
from ltxtrain.v1 import ingest_pb2, ingest_pb2_grpc
from ltxtrain.v1.work_pb2 import State

from tests.cases_table import FOLDER, cases
from tests.clips import write_zip
from tests.services.ingest.running import Ingest
from tests.test_conformance import fault

MANY = 10_000
MIB = 2**20

CHECKS = {
    "t_grpc_big": ["tests/cases/test_runtime_cases.py::test_ten_thousand_files_left_out_fit_into_messages"],
    "t_grpc_pings": ["tests/services/runtime/test_server.py::test_pings_on_a_quiet_stream_are_borne"],
    "t_grpc_deadline": ["tests/suite/test_watchers.py::test_a_deadline_ends_the_watch_and_not_the_job"],
    "t_fork": ["tests/suite/test_watchers.py::test_datasets_are_made_while_streams_are_open"],
    "t_actor_killed": [
        "tests/services/train/test_training.py::test_a_killed_actor_changes_no_byte",
        "tests/services/train/test_training.py::test_an_actor_that_dies_again_and_again_ends_the_job",
    ],
    "t_presign": [
        "tests/services/runtime/test_objects.py::test_presigned_urls_name_the_public_endpoint_and_are_signed_offline",
        "tests/services/runtime/test_objects.py::test_presigned_urls_work_without_credentials",
    ],
    "t_leak": ["tests/services/runtime/test_object_sockets.py::test_reads_leave_no_more_sockets_than_the_pool_holds"],
    "t_lora_keys": [
        "tests/suite/test_whole_job.py::test_the_lora_holds_video_modules_alone",
        "tests/trainer/lora_file/test_export.py::test_every_key_is_consumed",
    ],
    "t_lora_alpha": [
        "tests/trainer/lora_file/test_export.py::test_a_fresh_pipeline_computes_what_was_trained",
        "tests/trainer/lora_file/test_export.py::test_names_are_the_original_ones_and_there_is_no_alpha",
    ],
    "t_8k1": ["tests/trainer/data/test_lengths.py::test_a_clip_of_every_length_is_encoded_and_trained"],
    "t_prefix_sync": ["tests/trainer/data/test_lengths.py::test_a_burst_is_clean_when_it_is_heard_in_the_prefix"],
}


@pytest.mark.parametrize("case", cases("runtime"), ids=lambda case: case["id"])
def test_a_case_has_checks_that_exist(case: dict[str, object]) -> None:
    checks = CHECKS[str(case["id"])]
    assert {check: found for check in checks if (found := fault(check)) is not None} == {}


@pytest.mark.parametrize(("kind", "state"), [("txt", State.STATE_SUCCEEDED), ("png", State.STATE_FAILED)])
async def test_ten_thousand_files_left_out_fit_into_messages(
    ingest: Ingest, tmp_path: Path, kind: str, state: State
) -> None:
    left_out = [f"{'f' * 150}/{index:05}.{kind}" for index in range(MANY)]
    files = {"kept.mp4": (FOLDER / "media/ctl_plain.mp4").read_bytes()} | dict.fromkeys(left_out, b"a caption")
    sent = await ingest.client.upload(write_zip(tmp_path / "clips.zip", files))
    name = (await ingest.client.create_dataset(upload=sent.name)).name
    # The channel takes no longer message.
    options = [("grpc.max_receive_message_length", MIB)]
    async with grpc.aio.insecure_channel(ingest.address, options=options) as channel:
        stub = ingest_pb2_grpc.IngestServiceStub(channel)
        async for _ in stub.WatchDataset(ingest_pb2.WatchDatasetRequest(name=name)):
            pass
        ended = (await stub.GetDataset(ingest_pb2.GetDatasetRequest(name=name))).dataset
        assert ended.lifecycle.state == state
        paths: list[str] = []
        request = ingest_pb2.ListDatasetReportRequest(parent=name, page_size=MANY)
        while not paths or request.page_token:
            page = await stub.ListDatasetReport(request)
            paths += [line.path for line in page.lines]
            request.page_token = page.next_page_token
    # One line, without a path, is about the dataset: it has few clips.
    assert sorted(filter(None, paths)) == sorted(files)
