"""Every URL of the manifest is refused before any connection, with nothing stored."""

from typing import Any

import pytest
from ltxtrain_client.errors import CallError

from tests.cases.reasons import ERRORS
from tests.cases_table import cases
from tests.services.ingest.running import Ingest


@pytest.mark.parametrize("as_video", [False, True], ids=["archive", "video"])
@pytest.mark.parametrize("case", cases("url"), ids=lambda case: case["id"])
async def test_case(case: dict[str, Any], as_video: bool, ingest: Ingest) -> None:
    expect = case["expect"]
    before = [dataset.name async for dataset in ingest.client.list_datasets()]
    source = {"videos": [expect["url"]]} if as_video else {"archive_url": expect["url"]}
    with pytest.raises(CallError) as refused:
        await ingest.client.create_dataset(**source)
    (violation,) = refused.value.violations
    assert violation.reason in ERRORS[expect["reason"]]
    assert violation.field == ("videos.urls[0]" if as_video else "archive_url")
    assert [dataset.name async for dataset in ingest.client.list_datasets()] == before
