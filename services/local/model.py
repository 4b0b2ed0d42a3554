"""The model that a suite on this machine uses, and whether it is here. Nothing is fetched and no weights are read."""

import fcntl
from collections.abc import Mapping
from pathlib import Path

from ltxtrain_client.cli.doctor import Finding, Verdict

from trainer.errors import ModelUnavailable, ModelUnsupported
from trainer.model.folder import DEFAULT_MODEL, resolve_model
from trainer.model.hub import cached_snapshot

LOCK = "up.lock"
# Where the demo leaves its tiny model, below the state.
DEMO_MODEL = Path("demo/model")


def check_model(state_dir: Path, environ: Mapping[str, str]) -> Finding:
    """Check of `ltxtrain doctor`: the model that `up` runs with, or else would use, is here and whole."""
    reference = running_model(state_dir) or chosen_model(environ)
    lack = missing(reference, environ.get("LTXTRAIN_MODEL_REVISION"))
    if not lack:
        return Finding("model", Verdict.OK, f"{reference} is here and whole")
    advice = f"Set LTXTRAIN_MODEL to a folder that holds LTX 2.3. To try things out: {way_to_a_tiny_one(state_dir)}"
    return Finding("model", Verdict.NOTE, f"{reference}: {lack}", advice)


def chosen_model(environ: Mapping[str, str]) -> str:
    """Model of a suite that is started with these settings."""
    return environ.get("LTXTRAIN_MODEL") or DEFAULT_MODEL


def running_model(state_dir: Path) -> str:
    """Model of the suite that runs on this state, from the file that it holds locked; empty: none runs."""
    try:
        with (state_dir / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip()
    except FileNotFoundError:
        pass
    return ""


def missing(reference: str, revision: str | None = None) -> str:
    """Reason that a model cannot be loaded from this machine; empty when it is here and whole."""
    base, mark, file = reference.partition("#")
    try:
        if Path(base).expanduser().is_dir() or base.startswith(("/", ".", "~")):
            resolve_model(reference, revision or None)
        elif (snapshot := cached_snapshot(base, (revision or "").partition("+")[0] or None)) is None:
            return "not on this machine yet: the first job downloads it"
        else:
            resolve_model(f"{snapshot}{mark}{file}")
    except (ModelUnavailable, ModelUnsupported, OSError) as error:
        return str(error)
    return ""


def way_to_a_tiny_one(state_dir: Path) -> str:
    """Command that starts a suite with a small random model."""
    model = state_dir / DEMO_MODEL
    if (model / "model_index.json").exists():
        return f"ltxtrain up --model {_short(model)}"
    return f"ltxtrain model tiny {_short(model)} && ltxtrain up --model {_short(model)}"


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
