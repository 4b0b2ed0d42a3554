"""Versions of cached work that cannot be forgotten: digests of the code and the libraries that made it."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable


@cache
def code_version(modules: Sequence[str], libraries: Sequence[str]) -> str:
    """Hex sha256 of the sources of modules and packages, and of the installed versions of libraries.

    Whatever the result depends on belongs into the list; a test walks the imports.
    """
    digest = hashlib.sha256()
    for module in modules:
        package, _, name = module.rpartition(".")
        folder = resources.files(package)
        file = folder / f"{name}.py"
        for source in [file] if file.is_file() else _sources(folder / name):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for library in libraries:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    return digest.hexdigest()


def _sources(folder: Traversable) -> list[Traversable]:
    return sorted((item for item in folder.iterdir() if item.name.endswith(".py")), key=lambda item: item.name)
