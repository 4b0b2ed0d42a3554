import json
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_trainer.errors import ModelUnavailable, ModelUnsupported
from ltxtrain_trainer.model.files import COMPONENTS, file_digest
from ltxtrain_trainer.model.folder import fetching_model, resolve_model
from tests.trainer.model.hub import COMMIT, REPOSITORY, Hub, serve


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy whose settings may be changed; its weights are links."""
    folder = tmp_path / "model"
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(tiny_model, folder, ignore=weights)
    for file in tiny_model.rglob("*.safetensors"):
        (folder / file.relative_to(tiny_model)).symlink_to(file)
    return folder


def change(folder: Path, component: str, **settings: Any) -> None:
    file = folder / component / COMPONENTS[component].config
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_a_folder_resolves_to_itself(tiny_model: Path) -> None:
    found = resolve_model(str(tiny_model))
    assert (found.path, found.reference, found.original) == (tiny_model, str(tiny_model), None)
    assert found.public_name == tiny_model.name, "a LoRA says what it was trained on, and not where that lay"
    assert found.digests.keys() == COMPONENTS.keys()
    assert (found.prompt_tokens, found.layer_count) == (128, 4)
    assert resolve_model(str(tiny_model), found.revision) == found


@pytest.mark.parametrize("closed", ["vae/diffusion_pytorch_model.safetensors", "vae/config.json", "vae", ""])
def test_a_model_that_is_closed_to_this_user_is_unavailable(tiny_model: Path, closed: str) -> None:
    """As weights that another user has copied: a container's user gets the reason, with the number it has."""
    # The tests' own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(tiny_model, folder / "model")
        for path in (folder, folder / "model", *(folder / "model").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (folder / "model" / closed).chmod(0o000)
        mine = os.geteuid()
        other = mine or pwd.getpwnam("nobody").pw_uid
        os.seteuid(other)
        try:
            with pytest.raises(ModelUnavailable, match=f"cannot be read by uid {other}"):
                resolve_model(str(folder / "model"))
        finally:
            os.seteuid(mine)
            (folder / "model" / closed).chmod(0o755)


def test_a_tokenizer_without_a_limit_means_the_published_one(copy: Path) -> None:
    change(copy, "tokenizer", model_max_length=1_000_000_000_000_000_019_884_624_838_656)
    assert resolve_model(str(copy)).prompt_tokens == 1024


def test_revision_is_of_the_content_not_of_the_place(tiny_model: Path, copy: Path) -> None:
    original = resolve_model(str(tiny_model))
    assert resolve_model(str(copy)).revision == original.revision
    change(copy, "scheduler", max_shift=2.0)
    changed = resolve_model(str(copy))
    assert changed.revision != original.revision
    assert {name for name in COMPONENTS if changed.digests[name] != original.digests[name]} == {"scheduler"}
    with pytest.raises(ModelUnavailable, match="holds revision"):
        resolve_model(str(copy), original.revision)


def test_one_changed_weight_changes_the_revision(tiny_model: Path, copy: Path) -> None:
    link = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(link.read_bytes())
    link.unlink()
    assert len(content) > 10_000_000  # large enough to be sampled
    for position in range(len(content) // 2, len(content), 1000):  # a training changes nearly every weight
        content[position] ^= 1
    link.write_bytes(content)
    assert resolve_model(str(copy)).digests["vae"] != resolve_model(str(tiny_model)).digests["vae"]


def test_a_digest_reads_a_small_part_of_a_large_file(tmp_path: Path) -> None:
    sparse = tmp_path / "large.safetensors"
    with sparse.open("wb") as stream:
        stream.truncate(200 << 30)
    assert file_digest(sparse) == file_digest(sparse)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_missing_component_is_named(copy: Path, component: str) -> None:
    shutil.rmtree(copy / component)
    with pytest.raises(ModelUnavailable, match=f"lacks the component {component}"):
        resolve_model(str(copy))
    rest = [name for name in COMPONENTS if name != component]
    assert component not in resolve_model(str(copy), components=rest).digests


def test_missing_settings_and_weights_are_named(copy: Path) -> None:
    (copy / "vocoder" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"vocoder lacks its weights: diffusion_pytorch_model.safetensors"):
        resolve_model(str(copy))
    (copy / "vocoder" / "config.json").unlink()
    with pytest.raises(ModelUnavailable, match=r"no vocoder/config.json"):
        resolve_model(str(copy))


def test_a_missing_shard_is_named(copy: Path) -> None:
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    weights.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match=r"part-1.safetensors, part-2.safetensors"):
        resolve_model(str(copy))


@pytest.mark.parametrize(
    ("cut", "text"), [(-1, "bytes where its header says"), (100, "not a safetensors"), (0, "not a safetensors")]
)
def test_a_cut_download_is_found_without_loading(copy: Path, cut: int, text: str) -> None:
    link = copy / "connectors" / "diffusion_pytorch_model.safetensors"
    content = link.read_bytes()[:cut]
    link.unlink()
    link.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=text):
        resolve_model(str(copy))


def test_settings_that_are_no_json_are_named(copy: Path) -> None:
    (copy / "vae" / "config.json").write_text("<html>")
    with pytest.raises(ModelUnavailable, match=r"vae/config.json is not JSON"):
        resolve_model(str(copy))


@pytest.mark.parametrize(
    ("component", "settings", "looks_like"),
    [
        ("transformer", {"gated_attn": False}, "looks like LTX 2.0"),
        ("transformer", {"cross_attn_mod": False}, "looks like LTX 2.0"),
        ("transformer", {"use_prompt_embeddings": True}, "looks like LTX 2.0"),
        ("connectors", {"per_modality_projections": False}, "looks like LTX 2.0"),
        ("vocoder", {"_class_name": "LTX2Vocoder"}, "looks like LTX 2.0"),
        ("transformer", {"ff_bias": False}, "looks like LTX 2.5"),
        ("transformer", {"use_keyframes_abs_pos_embedding": True}, "looks like LTX 2.5"),
        ("text_encoder", {"architectures": ["Gemma4UnifiedForConditionalGeneration"]}, "looks like LTX 2.5"),
        ("transformer", {"cross_attn_timestep_scale_multiplier": 1}, "is not LTX 2.3"),
        ("transformer", {"_class_name": "WanTransformer3DModel"}, "is not LTX 2.3"),
    ],
)
def test_another_version_is_refused_by_name(
    copy: Path, component: str, settings: dict[str, Any], looks_like: str
) -> None:
    change(copy, component, **settings)
    with pytest.raises(ModelUnsupported, match=looks_like):
        resolve_model(str(copy))


def test_a_flag_left_out_counts_as_the_default_of_the_class(copy: Path) -> None:
    file = copy / "transformer" / "config.json"
    settings = json.loads(file.read_text())
    del settings["rope_type"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelUnsupported, match="rope_type = interleaved"):
        resolve_model(str(copy))


@pytest.mark.parametrize("reference", ["/nowhere/model", "./nowhere", "~/nowhere", "", "#file.safetensors"])
def test_an_absent_folder_is_not_looked_for_on_the_hub(reference: str) -> None:
    with pytest.raises(ModelUnavailable, match="no folder"):
        resolve_model(reference)


def test_a_reference_that_is_neither_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="neither a folder here nor"):
        resolve_model("not a name/at all/")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "hub"


def place(cache: Path, folder: Path) -> Path:
    """Into the cache, as an earlier download left it."""
    repository = cache / ("models--" + REPOSITORY.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot, copy_function=lambda source, target: Path(target).symlink_to(source))
    return snapshot


def point_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read when the library is imported."""
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_the_cache_is_used_without_a_network(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = place(cache, tiny_model)
    found = resolve_model(REPOSITORY)
    assert (found.path, found.revision, found.reference) == (snapshot, COMMIT, REPOSITORY)
    assert found.public_name == REPOSITORY
    assert resolve_model(REPOSITORY, COMMIT) == found
    assert found.digests == resolve_model(str(tiny_model)).digests


def test_offline_says_what_is_missing(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match=r"not whole in the local cache.*LTXTRAIN_MODEL"):
        resolve_model(REPOSITORY)
    (place(cache, tiny_model) / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="vae lacks its weights"):
        resolve_model(REPOSITORY)


def test_a_download_brings_what_is_needed_and_no_more(
    tiny_model: Path, copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (copy / "examples.mp4").write_bytes(b"film")
    with serve(copy) as hub:
        point_at(hub, monkeypatch)
        found = resolve_model(REPOSITORY, components=("vae", "scheduler"))
        assert sorted(hub.fetched) == [
            "scheduler/scheduler_config.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
        assert found.digests["vae"] == resolve_model(str(tiny_model)).digests["vae"]
        whole = resolve_model(REPOSITORY)
    assert not [name for name in hub.fetched if name.endswith((".bin", ".mp4"))]
    assert whole.revision == COMMIT
    assert whole.digests == resolve_model(str(tiny_model)).digests
    assert resolve_model(REPOSITORY) == whole  # the hub is gone


def test_a_download_is_told_in_bytes(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltxtrain_trainer.model.folder.LOOK_SECONDS", 0.01)
    wanted = ("vae", "scheduler")
    size = sum(file.stat().st_size for name in wanted for file in (tiny_model / name).iterdir())
    with serve(tiny_model) as hub:
        point_at(hub, monkeypatch)
        hub.open.clear()
        fetching = fetching_model(REPOSITORY, components=wanted)
        assert next(fetching) == (0, size)
        settings = sum(file.stat().st_size for name in wanted for file in (tiny_model / name).glob("*.json"))
        while (seen := next(fetching)) != (settings, size):
            assert seen[0] < settings
        hub.open.set()
        looks = []
        while True:
            try:
                looks.append(next(fetching))
            except StopIteration as done:
                found = done.value
                break
    assert looks[-1] == (size, size) and found == resolve_model(REPOSITORY, components=wanted)
    # What is here already is not fetched, and not told.
    with pytest.raises(StopIteration) as again:
        next(fetching_model(REPOSITORY, components=wanted))
    assert again.value.value == found


def test_another_version_is_refused_before_its_weights_are_here(
    copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copy, "transformer", ff_bias=False)
    with serve(copy) as hub:
        point_at(hub, monkeypatch)
        with pytest.raises(ModelUnsupported, match=r"looks like LTX 2.5"):
            resolve_model(REPOSITORY)
    assert hub.fetched and not [name for name in hub.fetched if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (403, "GatedRepo", "is gated: accept its terms"),
        (404, "RepoNotFound", "no model .* or it is private"),
        (404, "RevisionNotFound", "no revision v9"),
        (503, "", "hub cannot be reached"),
    ],
)
def test_a_refusal_of_the_hub_is_explained(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, text: str
) -> None:
    with serve(tiny_model, (status, code)) as hub:
        point_at(hub, monkeypatch)
        with pytest.raises(ModelUnavailable, match=text):
            resolve_model(REPOSITORY, "v9")


def test_checking_loads_no_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", refuse)
    resolve_model(str(tiny_model))
