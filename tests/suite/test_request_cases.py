"""The `request` cases of the manifest, through the API of a running suite; nothing is stored by a refused one."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain_client.errors import AlreadyExists, InvalidArgument
from ltxtrain_client.sheet import parse_sheet

from tests.suite.conftest import Clients

DATA = Path(__file__).parents[1] / "data"
CASES: list[dict[str, Any]] = [
    case for case in json.loads((DATA / "cases/cases.json").read_text())["cases"] if case["kind"] == "request"
]
URL = "https://example.com/clips.zip"
# The manifest's reason word is bad_param; ours say which kind of bad.
REASONS = {
    "r_cond_10": "NOT_ONE_MODULO_EIGHT",
    "r_prefix_equals": "PREFIX_COVERS_CLIP",
    "r_val_prefix": "PREFIX_COVERS_CLIP",
    "r_rank_12": "FIELD_NOT_ALLOWED",
    "r_steps": "FIELD_OUT_OF_RANGE",
    "r_val_three": "TOO_MANY_VALIDATION_INPUTS",
}


def specs(case: dict[str, Any]) -> list[ExtendPrefixSpec]:
    fields = dict(case["expect"]["request"])
    if fields.get("validation") == "3 entries":
        fields["validation"] = [ValidationInput(video_url=URL)] * 3
    if isinstance(steps := fields.get("number_of_steps"), list):
        return [ExtendPrefixSpec(training_data_url=URL, number_of_steps=count) for count in steps]
    return [ExtendPrefixSpec(training_data_url=URL, **fields)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
async def test_request_cases(clients: Clients, case: dict[str, Any]) -> None:
    for spec in specs(case):
        if case["expect"]["action"] == "accept":
            job = await clients.train.validate(spec)
            for name, value in case["expect"]["effective"].items():
                assert getattr(job.effective_spec.extend_prefix, name) == value
            continue
        before = [job.name async for job in clients.train.list_jobs()]
        with pytest.raises(InvalidArgument) as caught:
            await clients.train.submit(spec)
        assert [violation.reason for violation in caught.value.violations] == [REASONS[case["id"]]]
        assert [job.name async for job in clients.train.list_jobs()] == before


@pytest.mark.parametrize("steps", [100, 20000])
async def test_the_ends_of_ranges_are_allowed(clients: Clients, steps: int) -> None:
    spec = ExtendPrefixSpec(training_data_url=URL, number_of_steps=steps)
    assert (await clients.train.validate(spec)).effective_spec.extend_prefix.number_of_steps == steps


async def test_the_sheets_example_is_accepted_word_for_word(clients: Clients) -> None:
    sheet = parse_sheet((DATA / "extend-prefix-example.json").read_text(), [])
    job = await clients.train.validate(sheet.spec)
    effective = job.effective_spec.extend_prefix
    assert not job.name and effective.rank == 32 and len(effective.validation) == 1


async def test_a_request_id_belongs_to_one_request(clients: Clients) -> None:
    request_id = str(uuid.uuid4())
    spec = ExtendPrefixSpec(training_data_url="https://clips.invalid/a.zip")
    job = await clients.train.submit(spec, request_id=request_id)
    assert (await clients.train.submit(spec, request_id=request_id)).name == job.name
    with pytest.raises(AlreadyExists) as caught:
        await clients.train.submit(
            ExtendPrefixSpec(training_data_url="https://clips.invalid/b.zip"), request_id=request_id
        )
    assert caught.value.reason == "REQUEST_ID_REUSED" and caught.value.metadata["job"] == job.name
    await clients.train.cancel_job(job.name)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.zip",
        "http://[::ffff:10.0.0.1]/a.zip",
        "ftp://example.com/a.zip",
        "https://u:p@example.com/a",
    ],
)
async def test_addresses_that_are_not_fetched(clients: Clients, url: str) -> None:
    spec = ExtendPrefixSpec(training_data_url=url, validation=[ValidationInput(video_url=url)])
    with pytest.raises(InvalidArgument) as caught:
        await clients.train.submit(spec)
    assert [(item.field, item.reason) for item in caught.value.violations] == [
        ("spec.extend_prefix.training_data_url", "URL_NOT_ALLOWED"),
        ("spec.extend_prefix.validation[0].video_url", "URL_NOT_ALLOWED"),
    ]
