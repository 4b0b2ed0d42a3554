"""LTX 2.3 as a folder: found, checked and named by what is in it, before anything heavy is loaded.

A reference is a folder in diffusers layout, the name of a hub repository in that layout, or either followed by `#` and
the original single file (`ltx-2.3-22b-dev.safetensors`), which then takes the place of the transformer's and the
connectors' weights: `diffusers/LTX-2.3-Diffusers#/models/ltx-2.3-22b-dev.safetensors`. A relative file is looked
for in the folder.
"""

import threading
from collections.abc import Collection, Generator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltxtrain_trainer.errors import ModelUnavailable, ModelUnsupported
from ltxtrain_trainer.model.files import (
    COMPONENTS,
    component_digest,
    digest_of,
    file_digest,
    read_json,
    readable,
    weight_files,
)
from ltxtrain_trainer.model.hub import Download, cached_snapshot, download_snapshot, pending_download
from ltxtrain_trainer.model.single_file import ORIGINAL_COMPONENTS, check_original

# Flag, value in 2.3, value a config without it means (the default of the class).
TRANSFORMER_FLAGS: tuple[tuple[str, Any, Any], ...] = (
    ("gated_attn", True, False),
    ("audio_gated_attn", True, False),
    ("cross_attn_mod", True, False),
    ("audio_cross_attn_mod", True, False),
    ("perturbed_attn", True, False),
    ("use_prompt_embeddings", False, True),
    ("rope_type", "split", "interleaved"),
    ("ff_bias", True, True),
    ("audio_ff_bias", True, True),
    ("use_prompt_adaln_single", True, True),
    ("use_keyframes_abs_pos_embedding", False, False),
    ("in_channels", 128, 128),
    ("audio_in_channels", 128, 128),
    ("patch_size", 1, 1),
    ("patch_size_t", 1, 1),
    ("timestep_scale_multiplier", 1000, 1000),
    ("cross_attn_timestep_scale_multiplier", 1000, 1000),
)
ONLY_IN_2_5 = ("ff_bias", "audio_ff_bias", "use_prompt_adaln_single", "use_keyframes_abs_pos_embedding")

CLASSES = {
    "transformer": "LTX2VideoTransformer3DModel",
    "connectors": "LTX2TextConnectors",
    "vae": "AutoencoderKLLTX2Video",
    "audio_vae": "AutoencoderKLLTX2Audio",
    "vocoder": "LTX2VocoderWithBWE",
    "text_encoder": "Gemma3ForConditionalGeneration",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
VERSION_OF_CLASS = {"LTX2Vocoder": "2.0", "Gemma4UnifiedForConditionalGeneration": "2.5"}


def check_version(reference: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ModelUnsupported unless the configs, by component, are those of LTX 2.3."""
    for name, config in configs.items():
        if name in CLASSES and (found := _class_name(config)) != CLASSES[name]:
            version = VERSION_OF_CLASS.get(found)
            _refuse(reference, version, f"its {name} is a {found}, not a {CLASSES[name]}")
    for flag, needed, default in TRANSFORMER_FLAGS if "transformer" in configs else ():
        if (value := configs["transformer"].get(flag, default)) != needed:
            version = "2.5" if flag in ONLY_IN_2_5 else "2.0" if value == default else None
            _refuse(reference, version, f"its transformer has {flag} = {value}, not {needed}")
    if "connectors" in configs and not configs["connectors"].get("per_modality_projections", False):
        _refuse(reference, "2.0", "its connectors have one text projection for both modalities")


def _class_name(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures") or ["model of no named class"]
    return str(config.get("_class_name") or architectures[0])


def _refuse(reference: str, version: str | None, because: str) -> None:
    looks_like = f"looks like LTX {version}" if version else "is not LTX 2.3"
    raise ModelUnsupported(
        f"{reference} {looks_like}: {because}. Only LTX 2.3 can be trained; "
        "give a diffusers-layout LTX 2.3 such as diffusers/LTX-2.3-Diffusers."
    )


# Between two looks at a download.
LOOK_SECONDS = 1.0

DEFAULT_MODEL = "diffusers/LTX-2.3-Diffusers"
PROMPT_TOKENS = 1024  # of the published model; its tokenizer names no limit


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A whole LTX 2.3 on this machine."""

    path: Path
    reference: str  # as it was given
    revision: str  # hub commit, or sha256:… of a folder (see model_files.file_digest), then + that of a single file
    digests: dict[str, str]  # sha256 by component, and of "original" where there is one
    original: Path | None = None  # the single file with the transformer and the connectors

    @property
    def public_name(self) -> str:
        """The reference without folders of this machine, for files that are shared; the revision tells the bytes."""
        return public_name(self.reference, self.revision)

    def config(self, component: str) -> dict[str, Any]:
        return read_json(self.path / component / COMPONENTS[component].config)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that every prompt is padded or cut to."""
        return int(min(self.config("tokenizer").get("model_max_length", PROMPT_TOKENS), PROMPT_TOKENS))

    @property
    def layer_count(self) -> int:
        return int(self.config("transformer")["num_layers"])


def public_name(reference: str, revision: str) -> str:
    """A reference without its folders: "ltx-2.3" for a folder, and "a/repository#ltx.safetensors" as it is."""
    base, mark, file = reference.partition("#")
    if revision.startswith("sha256:"):  # a folder's; a repository's is its commit
        base = Path(base).expanduser().resolve().name
    return base + mark + Path(file).name


@readable()
def resolve_model(
    reference: str, revision: str | None = None, components: Collection[str] = tuple(COMPONENTS)
) -> ModelFolder:
    """The folder with the components asked for, known to be LTX 2.3 and whole.

    `revision` picks a commit, branch or tag of the hub; of a folder or a single file it is what that must be, as an
    earlier ModelFolder named it. Without it, the local cache is used as it is. Raises ModelUnavailable for a missing
    component and a gated or absent repository, and ModelUnsupported with the version that the model looks like.
    """
    base, _, file = reference.partition("#")
    base_revision, _, _ = (revision or "").partition("+")
    folder = Path(base).expanduser()
    from_hub = not base or not folder.is_dir()
    if from_hub:
        if base.startswith(("/", ".", "~")) or not base:
            raise ModelUnavailable(
                f"There is no folder {base or 'without a name'} on this machine. Set LTXTRAIN_MODEL to one that holds "
                "LTX 2.3, or to the name of a repository."
            )
        folder = _snapshot(base, base_revision or None, components, ORIGINAL_COMPONENTS if file else ())
    original = folder / Path(file).expanduser() if file else None
    _check(reference, folder, original, components)

    named = components if from_hub else [name for name in COMPONENTS if (folder / name).is_dir()]
    digests = {name: component_digest(folder, name) for name in named}
    found = folder.name if from_hub else f"sha256:{digest_of(digests.items())}"
    if original is not None:
        digests["original"] = file_digest(original)
        found = f"{found}+{digests['original']}"
    if revision is not None and found != revision and (original is not None or not from_hub):
        raise ModelUnavailable(f"{reference} holds revision {found}, not the {revision} that was asked for.")
    return ModelFolder(path=folder, reference=reference, revision=found, digests=digests, original=original)


def transformer_config(reference: str) -> dict[str, Any]:
    """The transformer's config.json of a folder on this machine; empty for a repository, and where there is none."""
    folder = Path(reference.partition("#")[0]).expanduser() / "transformer"
    try:
        return read_json(folder / COMPONENTS["transformer"].config)
    except (ModelUnavailable, OSError):
        return {}


def _snapshot(repo: str, revision: str | None, components: Collection[str], skip: Collection[str]) -> Path:
    cached = cached_snapshot(repo, revision)
    if cached is not None and _is_whole(cached, components, skip):
        return cached
    # Settings first: another version is refused before 100 GB of it are here.
    folder = download_snapshot(repo, revision, _settings(components))
    check_version(repo, _configs(folder, components))
    return download_snapshot(repo, revision, _all_files(components, skip))


def fetching_model(
    reference: str, revision: str | None = None, components: Collection[str] = tuple(COMPONENTS)
) -> Generator[tuple[int, int], None, ModelFolder]:
    """resolve_model while it downloads: bytes that are here and all of them, each second, and at last the folder.

    Who stops asking leaves the download to go on.
    """
    try:
        download = download_of(reference, revision, components)
    except ModelUnavailable:
        # resolve_model says better what is the matter.
        download = None
    if download is None:
        return resolve_model(reference, revision, components)
    resolving: Future[ModelFolder] = Future()

    def resolve() -> None:
        try:
            resolving.set_result(resolve_model(reference, revision, components))
        except BaseException as error:
            resolving.set_exception(error)

    threading.Thread(target=resolve, name="model", daemon=True).start()
    while True:
        ended = resolving.done()
        yield download.completed_bytes(), download.total_bytes
        if ended:
            return resolving.result()
        wait([resolving], timeout=LOOK_SECONDS)


def download_of(
    reference: str, revision: str | None = None, components: Collection[str] = tuple(COMPONENTS)
) -> Download | None:
    """The download that resolve_model does; None where it has nothing to fetch. Raises ModelUnavailable."""
    base, _, file = reference.partition("#")
    wanted = (revision or "").partition("+")[0] or None
    skip = ORIGINAL_COMPONENTS if file else ()
    if not base or base.startswith(("/", ".", "~")) or Path(base).is_dir():
        return None
    cached = cached_snapshot(base, wanted)
    if cached is not None and _is_whole(cached, components, skip):
        return None
    return pending_download(base, wanted, _all_files(components, skip))


def _settings(components: Collection[str]) -> set[str]:
    return {f"{name}/*.json" for name in components}


def _all_files(components: Collection[str], skip: Collection[str]) -> set[str]:
    """Patterns of the files that are needed of a repository."""
    weights = {f"{name}/*.safetensors" for name in components if name not in skip}
    vocabulary = {f"{name}/*" for name in components if name == "tokenizer"}
    return _settings(components) | weights | vocabulary


def _is_whole(folder: Path, components: Collection[str], skip: Collection[str]) -> bool:
    try:
        _configs(folder, components)
        for name in components:
            if name not in skip:
                weight_files(folder, name)
    except ModelUnavailable:
        return False
    return True


def _check(reference: str, folder: Path, original: Path | None, components: Collection[str]) -> None:
    missing = [name for name in components if not (folder / name).is_dir()]
    if missing:
        raise ModelUnavailable(
            f"{reference} lacks the component {', '.join(missing)} (looked in {folder}). "
            "Set LTXTRAIN_MODEL to a whole LTX 2.3 in diffusers layout."
        )
    check_version(reference, _configs(folder, components))
    for name in components:
        if original is None or name not in ORIGINAL_COMPONENTS:
            weight_files(folder, name)
    if original is not None:
        check_original(original)


def _configs(folder: Path, components: Collection[str]) -> dict[str, dict[str, Any]]:
    return {name: read_json(folder / name / COMPONENTS[name].config) for name in components}
