from tests.cases_table import FOLDER
from tests.services.ingest.running import Ingest


async def test_an_archive_becomes_clips(ingest: Ingest) -> None:
    ended = await ingest.upload(FOLDER / "zip" / "z_plain.zip")
    print(ended)
    assert ended.state == "SUCCEEDED"
