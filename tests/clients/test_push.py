"""Publishing: the files of a repository, as the hub gets them and as they are before."""

import base64
import hashlib
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain_client.publish import card, share_header, shared

from tests.clients.commands import JOB, Ltxtrain, add_job
from tests.clients.far_side import FarSide
from tests.clients.object_host import ObjectHost

MODEL = "/home/kim/models/ltx-2.3"
CONFIG: dict[str, Any] = {
    "training_type": "extend-prefix",
    "trigger_phrase": "k1te | `x`",
    "state": "succeeded",
    "spec": {
        "training_data_url": "https://nas.internal/kim/clips.zip",
        "validation": [{"video_url": "https://nas.internal/kim/a.mp4", "prompt": "it goes on"}],
        "with_audio": False,
        "resolution": "medium",
        "aspect_ratio": "16:9",
        "number_of_frames": 89,
    },
    "settings": {
        "steps": 500,
        "rank": 32,
        "learning_rate": 2e-4,
        "schedule": "linear",
        "optimizer": "adamw",
        "batch_size": 1,
        "seed": 42,
    },
    "manifest": {
        "job": JOB,
        "model": {"reference": f"{MODEL}#/srv/weights/ltx.safetensors", "revision": "sha256:12+34"},
        "preprocess_report": {"clips": 12, "samples": 20},
        "base_precision": "bf16",
        "device": "NVIDIA H200",
        "memory_plan": {"total_bytes": 1},
    },
    "inference": {
        "conditioning_frames": 17,
        "number_of_frames": 89,
        "frame_rate": 24.0,
        "width": 768,
        "height": 448,
        "prompt": "k1te <what happens next>",
        "code": f"pipeline = LTX2ConditionPipeline.from_pretrained({MODEL!r}, revision=None)\n",
    },
    "previews": {
        "measured": [
            {
                "step": step,
                "validation_index": 0,
                "base_model": step == 0,
                "metrics": {
                    "prefix_psnr_db": 30.0 + step,
                    "join_colour_jump": 1.0,
                    "join_motion_break": 1.5,
                    "colour_drift": -0.25,
                },
            }
            for step in (0, 250, 500)
        ]
    },
}


def safetensors(metadata: dict[str, str], weights: bytes = b"\1\2\3\4") -> bytes:
    header = json.dumps({"__metadata__": metadata, "x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + weights


def add_lora(far: FarSide, store: ObjectHost) -> None:
    """A job that ended with a LoRA, a config, a workflow and two previews."""
    add_job(far)
    kinds = {
        "lora.safetensors": (Artifact.KIND_LORA, safetensors({"base_model": MODEL, "step": "500"})),
        "config.json": (Artifact.KIND_CONFIG, json.dumps(CONFIG).encode()),
        "comfyui-workflow.json": (Artifact.KIND_COMFYUI_WORKFLOW, b"{}"),
        "preview-000250-clip-1.mp4": (Artifact.KIND_VALIDATION_VIDEO, b"early"),
        "preview-000500-clip-1.mp4": (Artifact.KIND_VALIDATION_VIDEO, b"late"),
        "preview-000500-clip-1-beside-base.mp4": (Artifact.KIND_VALIDATION_VIDEO, b"late, both"),
    }
    for file, (kind, content) in kinds.items():
        name = far.add_artifact(JOB, file, content, kind, hashlib.sha256(content).hexdigest())
        store.objects[f"/{JOB}/{file}"] = content
        if kind == Artifact.KIND_VALIDATION_VIDEO:
            far.artifacts[name].step = int(file.split("-")[1])
    far.output.lora_file = f"{JOB}/artifacts/lora.safetensors"
    far.output.config_file = f"{JOB}/artifacts/config.json"


@dataclass
class Hub:
    """The hub's side of a commit, on loopback."""

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuse: bool = False

    async def create(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization", ""))
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        self.repositories[name] = asked
        return web.json_response({"url": f"{self.url}/{name}", "id": name, "name": name})

    async def plan(self, request: web.Request) -> web.Response:
        files = (await request.json())["files"]
        modes = [{"path": item["path"], "uploadMode": "regular", "shouldIgnore": False} for item in files]
        return web.json_response({"files": modes})

    async def commit(self, request: web.Request) -> web.Response:
        if self.refuse:
            return web.json_response({"error": "You don't have the rights"}, status=403)
        for line in (await request.text()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        return web.json_response({"commitUrl": f"{self.url}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40})

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response({"id": "kim/k1te", "sha": "b" * 40, "siblings": []})


@asynccontextmanager
async def hub_running() -> AsyncIterator[Hub]:
    hub = Hub()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/api/repos/create", hub.create)
    app.router.add_post("/api/models/{owner}/{name}/preupload/{revision}", hub.plan)
    app.router.add_post("/api/models/{owner}/{name}/commit/{revision}", hub.commit)
    app.router.add_get("/api/models/{owner}/{name}{rest:.*}", hub.info)

    async def valid(request: web.Request) -> web.Response:
        return web.json_response({"errors": [], "warnings": []})

    app.router.add_post("/api/validate-yaml", valid)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    hub.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    yield hub
    await runner.cleanup()


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    async with hub_running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield running


async def test_a_lora_becomes_a_repository(far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, hub: Hub) -> None:
    add_lora(far, store)
    done = await ltxtrain("push", JOB, "kim/k1te", "--private")
    assert done.stdout.strip() == f"{hub.url}/kim/k1te"
    assert hub.repositories["kim/k1te"]["visibility"] == "private" or hub.repositories["kim/k1te"]["private"]
    assert hub.tokens == {"Bearer hf_test"}
    assert set(hub.files) >= {"README.md", "lora.safetensors", "config.json", "comfyui-workflow.json", "preview.mp4"}
    assert hub.files["preview.mp4"] == b"late, both"
    assert hub.files["lora.safetensors"].endswith(b"\1\2\3\4")
    everything = b"".join(content for content in hub.files.values())
    for secret in (b"/home", b"kim/models", b"/srv", b"nas.internal"):
        assert secret not in everything


async def test_the_files_can_be_looked_at_first(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, hub: Hub, tmp_path: Path
) -> None:
    add_lora(far, store)
    (tmp_path / "files").mkdir()
    for other in ("README.md", "notes.txt"):
        (tmp_path / "files" / other).write_text("of another day")
    done = await ltxtrain("push", JOB, "kim/k1te", "--out", tmp_path / "files", "--license", "apache-2.0", "--json")
    assert not hub.repositories
    named = json.loads(done.stdout)["files"]
    assert named == ["README.md", "comfyui-workflow.json", "config.json", "lora.safetensors", "preview.mp4"]
    text = (tmp_path / "files/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["base_model"], head["license"], head["instance_prompt"]) == (
        "Lightricks/LTX-2.3",
        "apache-2.0",
        "k1te | `x`",
    )
    assert json.loads((tmp_path / "files/config.json").read_text())["manifest"]["model"]["reference"] == (
        "ltx-2.3#ltx.safetensors"
    )


async def test_a_refusal_is_told(far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, hub: Hub) -> None:
    add_lora(far, store)
    hub.refuse = True
    done = await ltxtrain("push", JOB, "kim/k1te", code=5)
    assert "The hub did not take kim/k1te" in done.stderr and "hf_test" not in done.stderr


@pytest.mark.parametrize("name", ["kim/k1te/more", "kim/ -"])
async def test_a_name_that_is_none(far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, hub: Hub, name: str) -> None:
    add_lora(far, store)
    assert name in (await ltxtrain("push", JOB, name, code=5)).stderr


async def test_a_job_without_a_lora(far: FarSide, ltxtrain: Ltxtrain, hub: Hub) -> None:
    add_job(far)
    assert "has no LoRA" in (await ltxtrain("push", JOB, "kim/k1te", code=5)).stderr


def test_the_card_shows_the_last_step_beside_the_base_model() -> None:
    text = card(shared(CONFIG), ["lora.safetensors"])
    assert "| 1 | base | 30.00 |" in text and "| 1 | LoRA, step 500 | 530.00 |" in text
    assert "step 250" not in text and "preview.mp4" not in text
    assert "# k1te &#124; 'x'" in text and "12 clips, 20 samples" in text
    assert "ltx-2-community-license" in text


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("/home/kim/x.json", "x.json"),
        ("~/x", "x"),
        ("./models/x/", "x"),
        ("C:\\models\\x", "x"),
        ("file:/home/x", "x"),
        ("16:9", "16:9"),
        ("a/repository", "a/repository"),
        ("k1te / it goes", "k1te / it goes"),
    ],
)
def test_a_path_becomes_its_last_part(given: str, left: str) -> None:
    assert shared({"x": given}) == {"x": left}


def test_a_header_without_paths_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    content = safetensors({"base_model": "diffusers/LTX-2.3-Diffusers"})
    path.write_bytes(content)
    share_header(path)
    assert path.read_bytes() == content


def test_weights_keep_their_bytes(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = tmp_path / "lora.safetensors"
    path.write_bytes(safetensors({"base_model": f"{MODEL}#/srv/ltx.safetensors"}, b"\5\6\7\10"))
    share_header(path)
    assert load_file(path)["x"].tolist() == [5, 6, 7, 8]
    with safe_open(path, framework="pt") as stored:
        assert stored.metadata() == {"base_model": "ltx-2.3#ltx.safetensors"}
