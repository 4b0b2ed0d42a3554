"""The model that a suite on this machine uses, whether it is here, and whether its GPU can be used.

No weights are fetched or read.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ltxtrain_client.cli.doctor import Finding, Verdict
from ltxtrain_client.quantities import size_text

from ltxtrain_pocket.weights import digest
from ltxtrain_services.local.lock import running_on
from ltxtrain_trainer.errors import ModelUnavailable, ModelUnsupported
from ltxtrain_trainer.model.folder import DEFAULT_MODEL, download_of, resolve_model
from ltxtrain_trainer.model.hub import cached_snapshot

# Reference of the pocket model, which is assembled below the state when a suite first needs it.
POCKET = "pocket"
WAY_TO_TRY = f"ltxtrain up --model {POCKET}"


def check_model(state_dir: Path, environ: Mapping[str, str]) -> Finding:
    """Check of `ltxtrain doctor`: the model that `up` runs with, or else would use, is here and whole."""
    reference = running_model(state_dir) or chosen_model(environ, state_dir)
    if reference == str(pocket_folder(state_dir)) and not is_assembled(Path(reference)):
        return Finding("model", Verdict.OK, "the pocket model, assembled by `ltxtrain up`; others need a GPU")
    lack = missing(reference, environ.get("LTXTRAIN_MODEL_REVISION"))
    if not lack:
        return Finding("model", Verdict.OK, f"{reference} is here and whole")
    advice = f"Set LTXTRAIN_MODEL to a folder that holds LTX 2.3. To try things out: {WAY_TO_TRY}"
    return Finding("model", Verdict.NOTE, f"{reference}: {lack}", advice)


def check_torch(state_dir: Path, environ: Mapping[str, str]) -> Finding | None:
    """Check of `ltxtrain doctor`: the installed torch can allocate on this machine's GPU; None without a driver."""
    if not has_gpu():
        return None
    import torch

    from ltxtrain_trainer.errors import DeviceUnusable
    from ltxtrain_trainer.model.device import device_of, free_bytes

    try:
        device = device_of(gpu_expected=True)
    except DeviceUnusable as error:
        advice = "Trainings would end as GPU_UNUSABLE. A machine without a GPU needs no driver either."
        return Finding("torch", Verdict.FAILED, str(error), advice)
    free = size_text(free_bytes(device))
    return Finding("torch", Verdict.OK, f"{torch.__version__} uses {torch.cuda.get_device_name(device)}, {free} free")


def chosen_model(environ: Mapping[str, str], state_dir: Path) -> str:
    """Model of a suite that is started with these settings: without any, the pocket model where there is no GPU."""
    reference = environ.get("LTXTRAIN_MODEL") or (DEFAULT_MODEL if has_gpu() else POCKET)
    return str(pocket_folder(state_dir)) if reference == POCKET else reference


def has_gpu() -> bool:
    """Whether this machine has a driver of the kind of GPU that the published model needs."""
    return shutil.which("nvidia-smi") is not None


def pocket_folder(state_dir: Path) -> Path:
    """Folder of the pocket model as its weights are now."""
    return state_dir.resolve() / "models" / f"pocket-{digest()[:12]}"


def is_assembled(folder: Path) -> bool:
    return (folder / "model_index.json").exists()


def assemble_pocket_model(folder: Path) -> None:
    """Write the pipeline folder when it is absent. In a process of its own: torch would stay in memory for good."""
    if is_assembled(folder):
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "ltxtrain_pocket.model", str(part)], check=True, stdin=subprocess.DEVNULL)
    part.replace(folder)


def running_model(state_dir: Path) -> str:
    """Model of the suite that runs on this state; empty: none runs."""
    suite = running_on(state_dir)
    return suite.model if suite is not None else ""


def missing(reference: str, revision: str | None = None) -> str:
    """Reason that a model cannot be loaded from this machine; empty when it is here and whole."""
    base, mark, file = reference.partition("#")
    try:
        if Path(base).expanduser().is_dir() or base.startswith(("/", ".", "~")):
            resolve_model(reference, revision or None)
        elif (snapshot := cached_snapshot(base, (revision or "").partition("+")[0] or None)) is None:
            return f"not on this machine yet: {_download(base, revision)}"
        else:
            resolve_model(f"{snapshot}{mark}{file}")
    except (ModelUnavailable, ModelUnsupported, OSError) as error:
        return str(error)
    return ""


def _download(reference: str, revision: str | None) -> str:
    """The download that the first job does, and the room for it."""
    from huggingface_hub import constants

    try:
        download = download_of(reference, revision)
    except (ModelUnavailable, ModelUnsupported) as error:
        return f"the first job downloads it, but now: {error}"
    assert download is not None, "it is not here"
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    lacking = download.total_bytes - download.completed_bytes()
    room = f"{'' if free > lacking else 'only '}{size_text(free)} are free"
    return f"the first job downloads {size_text(lacking)} to {cache}, where {room}"
