"""A running Preprocess service beside Ingest, with real object store, real Ray and the tiny model; one a session."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests.clips import Sound, add_burst, numbered, tones, write_clip
from tests.services.ingest.conftest import hostile, ingest
from tests.services.ingest.running import Ingest
from tests.services.preprocess.running import WHOLE, Ended, Preprocess, serving, settings

__all__ = ["hostile", "ingest"]


@pytest.fixture(scope="session")
async def preprocess(
    tmp_path_factory: pytest.TempPathFactory,
    object_store: StoreAddress,
    ray_cluster: Cluster,
    ingest: Ingest,
    tiny_model: Path,
) -> AsyncIterator[Preprocess]:
    state_dir = tmp_path_factory.mktemp("preprocess")
    async with serving(state_dir, object_store, ray_cluster, ingest, tiny_model) as running:
        yield running


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips by their name: some with sound, some too short, one with a cut."""
    folder = tmp_path_factory.mktemp("made")
    heard = Sound(waves=add_burst(tones(2.0), 0.5))
    return {
        "plain": write_clip(folder / "plain.mp4", numbered(20, clip=1)),
        "longer": write_clip(folder / "longer.mp4", numbered(30, clip=2)),
        "heard": write_clip(folder / "heard.mp4", numbered(30, clip=3), sound=heard),
        "short": write_clip(folder / "short.mp4", numbered(12, clip=4)),
        "tiny": write_clip(folder / "tiny.mp4", numbered(3, clip=5)),
        "opening": write_clip(folder / "opening.mp4", numbered(24, clip=6)),
    }


@pytest.fixture(scope="session")
async def dataset(preprocess: Preprocess, made: dict[str, Path]) -> str:
    return await preprocess.dataset(
        {
            "a/clip.mp4": made["plain"],
            "a/clip.txt": "a card that counts",
            "b/clip.mp4": made["longer"],
            "b/clip.txt": "sks a card that counts",
            "c/again.mp4": made["plain"],
            "c/heard.mp4": made["heard"],
            "d/short.mp4": made["short"],
        }
    )


@pytest.fixture(scope="session")
async def validation(preprocess: Preprocess, made: dict[str, Path]) -> str:
    return await preprocess.videos(made["opening"])


@pytest.fixture(scope="session")
async def whole(preprocess: Preprocess, dataset: str, validation: str) -> Ended:
    """Encoded with everything that can be asked for but sound."""
    ended = await preprocess.run(dataset, settings(**WHOLE), validation)
    assert ended.state == "SUCCEEDED", ended.training_set.lifecycle.error
    return ended
