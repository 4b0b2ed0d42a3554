"""docs/settings.md says what the code reads."""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ltxtrain_services.runtime.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_page", DOCS / "settings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_as_the_settings_are(maker: ModuleType) -> None:
    assert (DOCS / "settings.md").read_text() == maker.page(), "run: python docs/settings.py"


def test_every_setting_has_a_meaning_and_a_reader(maker: ModuleType) -> None:
    names = [field.name for field in dataclasses.fields(Settings)]
    said, by = maker.comments(), maker.readers()
    assert [name for name in names if not said.get(name)] == []
    assert [name for name in names if not by[name]] == []
