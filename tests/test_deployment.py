"""compose.yaml and the image, as far as they can be checked without an engine."""

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.runtime.settings import Settings, read_settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("ingest", "preprocess", "train")


VARIABLES = {f"LTXTRAIN_{field.name.upper()}" for field in dataclasses.fields(Settings)}
VARIABLES |= {f"{variable}_FILE" for variable in VARIABLES}


@pytest.mark.parametrize("name", OURS)
def test_every_setting_exists(name: str) -> None:
    given = {variable for variable in SERVICES[name]["environment"] if variable.startswith("LTXTRAIN_")}
    assert given <= VARIABLES
    assert {"LTXTRAIN_BIND", "LTXTRAIN_TOKENS_FILE", "LTXTRAIN_DATABASE_URL_FILE"} <= given


def test_the_readme_names_settings_that_exist() -> None:
    named = set(re.findall(r"LTXTRAIN_[A-Z0-9_]+", (ROOT / "README.md").read_text()))
    assert named - {"LTXTRAIN_"} <= VARIABLES


def test_every_secret_is_declared_and_made(tmp_path: Path) -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    for _ in range(2):
        subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    for secret in COMPOSE["secrets"].values():
        assert (tmp_path / secret["file"]).read_text()


def test_the_secrets_files_are_settings(tmp_path: Path) -> None:
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    environ = {
        variable: str(value).replace("/run/secrets", str(tmp_path / "secrets"))
        for variable, value in SERVICES["train"]["environment"].items()
        if "$" not in str(value)
    }
    settings = read_settings(environ)
    assert settings.database.startswith("postgresql+psycopg://") and settings.s3_secret_key and settings.service_token


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_watched_and_their_images_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert re.search(r":[\w.-]*\d", service["image"]) and not service["image"].endswith("latest")
    assert service["restart"] == "unless-stopped"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_the_image_has_the_folders_of_its_volumes() -> None:
    """Made and owned: a new volume takes both from the image, and belongs to root without."""
    mounted = {volume.split(":")[1] for name in (*OURS, "ray-head") for volume in SERVICES[name]["volumes"]}
    made = re.search(r"mkdir ([/\w ]+) && chown ltxtrain ([/\w ]+)\n", (ROOT / "Dockerfile").read_text())
    assert made and set(made[1].split()) == set(made[2].split()) == mounted


@pytest.mark.parametrize("role", ["head", "worker", "train"])
def test_rays_object_store_fits_into_shared_memory(tmp_path: Path, role: str) -> None:
    for program in ("ray", "python"):
        (tmp_path / program).write_text('#!/bin/sh\necho "$0" "$@"\n')
        (tmp_path / program).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_AUTH_TOKEN": "token"}
    command = ["sh", str(ROOT / "docker/entrypoint"), role]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    (size,) = re.findall(r"--object-store-memory=(\d+)", said)
    assert 0 < int(size) < shutil.disk_usage("/dev/shm").free
    assert said.splitlines()[-1].endswith("-m services.train") == (role == "train")


def test_volumes_are_declared() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {volume for volume in used if not volume.startswith(".")} == set(COMPOSE["volumes"])


@pytest.mark.parametrize("script", ["docker/entrypoint", "docker/make-secrets"])
def test_scripts_are_sound(script: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / script)], check=True)
    assert (ROOT / script).stat().st_mode & 0o111


def test_the_image_copies_what_the_wheel_needs() -> None:
    copied = re.findall(r"^COPY (?!--)(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert {"protos", "services", "trainer", "clients", "third_party", "pyproject.toml"} <= set(copied)


def test_the_image_runs_the_services_that_exist() -> None:
    entrypoint = (ROOT / "docker/entrypoint").read_text()
    for name in OURS:
        assert name in entrypoint and (ROOT / f"services/{name}/__main__.py").exists()
        assert SERVICES[name]["command"] == [name]
