"""A version moves with every module that decides, however it is imported, and with no other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ltxtrain_services.runtime.code_version import code_version, import_closure


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**sources: str) -> None:
        folder = tmp_path / "made_up"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)

    write(
        entry="import json\nfrom made_up import eager\n\ndef late():\n    from made_up.lazy import helper\n",
        eager="VALUE = 1\n",
        lazy="import made_up.deep\n",
        deep="",
        apart="import made_up.entry\n",
    )
    return write


def version() -> str:
    code_version.cache_clear()
    return code_version("made_up.entry")


def test_the_closure_is_what_is_imported_anywhere(package: Callable[..., None]) -> None:
    assert set(import_closure("made_up.entry")) == {
        "made_up",
        "made_up.entry",
        "made_up.eager",
        "made_up.lazy",
        "made_up.deep",
    }
    assert "made_up.deep" not in import_closure("made_up.entry", apart_from=("made_up.lazy",))


@pytest.mark.parametrize("module", ["entry", "eager", "lazy", "deep"])
def test_a_change_of_any_moves_the_version(package: Callable[..., None], module: str) -> None:
    before = version()
    package(**{module: "VALUE = 2\n"})
    assert version() != before


def test_a_change_elsewhere_does_not(package: Callable[..., None]) -> None:
    before = version()
    package(apart="VALUE = 2\n")
    assert version() == before


def test_libraries_count_by_their_version(monkeypatch: pytest.MonkeyPatch, package: Callable[..., None]) -> None:
    before = code_version("made_up.entry", ("numpy",))
    monkeypatch.setattr("ltxtrain_services.runtime.code_version.metadata.version", lambda name: "another")
    code_version.cache_clear()
    assert code_version("made_up.entry", ("numpy",)) != before


def test_nothing_is_imported_to_find_out() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from ltxtrain_services.runtime.code_version import code_version;"
        "code_version('ltxtrain_trainer.data.encode');"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
