"""Media workers are many and small: they load libav and numpy, and nothing that is large."""

import subprocess
import sys
from pathlib import Path

import ltxtrain_trainer.media

MODULES = sorted(
    path.stem for path in Path(ltxtrain_trainer.media.__file__).parent.glob("*.py") if path.stem != "__init__"
)


def test_media_modules_load_libav_and_numpy_alone() -> None:
    names = ", ".join(f"ltxtrain_trainer.media.{module}" for module in MODULES)
    code = f"import sys; before = set(sys.modules); import {names}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Cython registers its own helpers beside the modules that it compiled.
    roots = {name.split(".")[0] for name in done.stdout.split() if "cython" not in name}
    assert roots - set(sys.stdlib_module_names) == {"av", "numpy", "ltxtrain_trainer"}
