"""The front door's estimates beside what jobs did take."""

import json
from pathlib import Path

import pytest
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import JobOptions
from ltxtrain_client.errors import InvalidArgument, NotFound
from ltxtrain_client.sheet import parse_sheet

from ltxtrain_services.train.estimate import PUBLISHED
from tests.suite.conftest import SHEET, Clients
from tests.suite.trainings import COMPARED, metrics

# Minutes long on two cores.
pytestmark = pytest.mark.soak

# 17 frames of 512 x 288: 3 latent frames of 16 x 9.
TOKENS = 3 * 16 * 9
STEPS = 100


def spec(**sheet: object) -> ExtendPrefixSpec:
    document = SHEET | sheet
    if "dataset" not in document:
        document["training_data_url"] = "https://example.com/clips.zip"
    return parse_sheet(json.dumps(document), []).spec


async def test_tokens_and_price_are_told_before_anything_runs(clients: Clients) -> None:
    answer = await clients.train.estimate(spec(number_of_steps=250))
    assert (answer.tokens_per_clip, answer.audio_tokens_per_clip) == (TOKENS, 0)
    assert answer.billable_units == 250 and not answer.HasField("price")
    assert 0 < answer.seconds_low <= answer.seconds_high
    assert answer.peak_memory_bytes > 0
    # 17 frames at 24 a second are 0.71 s, at 25 audio tokens a second.
    assert (await clients.train.estimate(spec(with_audio=True))).audio_tokens_per_clip == 18


async def test_what_jobs_took_here_is_what_is_expected_of_the_next(
    clients: Clients, undisturbed: str, ingested: str, tmp_path: Path
) -> None:
    answer = await clients.train.estimate(spec(dataset=ingested), JobOptions(**COMPARED))
    work = STEPS * COMPARED["batch_size"] * TOKENS
    measured = [work / row["tokens_per_second"] for row in await metrics(clients, undisturbed, tmp_path)]
    assert answer.seconds_low <= measured[-1] <= answer.seconds_high
    assert answer.seconds_low != pytest.approx(work * PUBLISHED[0])
    # One of the demo's clips is too short.
    assert (answer.cached_samples, answer.total_samples) == (4, 5)
    assert (await clients.train.estimate(spec(dataset=ingested, number_of_frames=25))).cached_samples == 0


async def test_a_wrong_spec_and_a_missing_dataset_are_refused(clients: Clients) -> None:
    with pytest.raises(InvalidArgument):
        await clients.train.estimate(spec(number_of_steps=99))
    with pytest.raises(NotFound):
        await clients.train.estimate(spec(dataset="datasets/none"))
