"""A LoRA trained through the suite on the pocket model shows its style, and the base model does not."""

import json
import uuid
from pathlib import Path

import av
import numpy as np
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import JobOptions
from ltxtrain_client.sheet import parse_sheet

from ltxtrain_pocket.detect import dusk_level, see
from ltxtrain_pocket.drawing import Frames
from ltxtrain_pocket.scenes import FRAMES, PREFIX_FRAMES
from ltxtrain_services.local.demo import SHEET
from ltxtrain_services.local.demo_data import make_demo_clips, make_validation_clip
from ltxtrain_services.local.model import POCKET
from ltxtrain_services.local.up import Suite
from tests.suite.conftest import FREE_PORTS, SETTINGS, connected, finished


def frames_of(path: Path) -> Frames:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def dusk_of(frames: Frames) -> float:
    first, last = see(frames[0]), see(frames[-1])
    assert first is not None and last is not None and len(frames) == FRAMES
    return dusk_level(first.ground, last.ground)


async def test_the_demo_s_lora_shows_its_style_and_the_base_model_does_not(tmp_path: Path) -> None:
    async with (
        Suite(tmp_path / "suite", model=POCKET, ports=FREE_PORTS, num_cpus=2, environ=SETTINGS) as suite,
        connected(suite) as clients,
    ):
        clips = await clients.ingest.upload(make_demo_clips(tmp_path))
        opening = await clients.ingest.upload(make_validation_clip(tmp_path))
        entry = SHEET["validation"][0] | {"video_url": opening.url}
        document = SHEET | {"training_data_url": clips.url, "validation": [entry]}
        document.pop("options")
        spec = parse_sheet(json.dumps(document), []).spec
        job = await clients.train.submit(spec, JobOptions(preview_interval=0), request_id=str(uuid.uuid4()))
        await finished(clients, job.name)
        made = {}
        async for artifact in clients.train.list_artifacts(job.name):
            if artifact.kind in (Artifact.KIND_BASE_VIDEO, Artifact.KIND_VALIDATION_VIDEO):
                path = tmp_path / artifact.name.rpartition("/")[2]
                made[path.name] = await clients.train.download(artifact.name, path)
    base = frames_of(next(path for name, path in made.items() if name.startswith("base-")))
    lora = frames_of(next(path for name, path in made.items() if name.endswith("-clip-1.mp4") and "base" not in name))
    assert np.array_equal(base[:PREFIX_FRAMES], lora[:PREFIX_FRAMES])
    assert dusk_of(base) < 0.3 and dusk_of(lora) > 0.5
    ends = see(base[-1]), see(lora[-1])
    assert ends[0] is not None and ends[1] is not None
    assert np.hypot(ends[0].x - ends[1].x, ends[0].y - ends[1].y) < 24
