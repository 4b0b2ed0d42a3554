"""Versions of cached work as a function of the code that makes it, so that no cache outlives a change of either.

The modules that decide are found by walking the imports, those inside functions included: none can be forgotten.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Collection, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

# They carry and describe results and decide none: a change of theirs makes nothing anew.
UNDECIDING = (
    "ltxtrain_services.runtime",
    "ltxtrain_trainer.errors",
    "ltxtrain_trainer.memory_plan",
    "ltxtrain_trainer.model.device",
    "ltxtrain_trainer.model.hub",
)


@cache
def code_version(module: str, libraries: Collection[str] = (), apart_from: Collection[str] = UNDECIDING) -> str:
    """Digest of a module, of all that it imports of this project, and of the installed versions of libraries."""
    digest = hashlib.sha256()
    for name, path in sorted(import_closure(module, apart_from).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    for library in libraries:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    return digest.hexdigest()


def import_closure(module: str, apart_from: Collection[str] = UNDECIDING) -> dict[str, Path]:
    """Source files by module name: the module, and what it imports of trainer, services and its own package."""
    own = {"ltxtrain_trainer", "ltxtrain_services", module.partition(".")[0]}
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] not in own or _is_below(name, apart_from):
            continue
        if (path := _source(name)) is not None:
            found[name] = path
            waiting += _imports(path)
    return found


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            # A name may be a module, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(name: str) -> Path | None:
    """The file of a module, found without importing it; None for a name inside one."""
    root, *parts = name.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*parts)
    candidates = path.with_suffix(".py"), path / "__init__.py"
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _is_below(name: str, packages: Collection[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
