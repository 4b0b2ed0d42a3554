"""compose.yaml and the image, as far as they can be checked without an engine."""

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from ltxtrain_services.runtime.cluster import NOT_A_SERVICE
from ltxtrain_services.runtime.settings import Settings, read_settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MINIO: dict[str, Any] = yaml.safe_load((ROOT / "compose.minio.yaml").read_text())["services"]["store"]
OURS = ("ingest", "preprocess", "train")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PINNED = ("Dockerfile", "compose.yaml", "compose.minio.yaml", "deploy/helm/ltxtrain/values.yaml")


VARIABLES = {f"LTXTRAIN_{field.name.upper()}" for field in dataclasses.fields(Settings)}
VARIABLES |= {f"{variable}_FILE" for variable in VARIABLES}


@pytest.mark.parametrize("name", OURS)
def test_every_setting_exists(name: str) -> None:
    given = {variable for variable in SERVICES[name]["environment"] if variable.startswith("LTXTRAIN_")}
    assert given <= VARIABLES
    assert {"LTXTRAIN_BIND", "LTXTRAIN_TOKENS_FILE", "LTXTRAIN_DATABASE_URL_FILE"} <= given


def test_every_direct_dependency_is_pinned_for_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (installed,) = re.findall(r"'\.\[([\w,]+)\]'", (ROOT / "Dockerfile").read_text())
    extras = [*installed.split(","), "dev"]
    wanted = [
        *project["dependencies"],
        *(item for extra in extras for item in project["optional-dependencies"][extra]),
    ]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").open()}
    names = {re.split(r"[\[<>=!;~ ]", item)[0].lower().replace("_", "-") for item in wanted}
    assert names - pinned == {project["name"]}


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


def is_pinned(image: str) -> bool:
    """Whether an image, or the default of a variable that names one, is a tag for people with a digest for engines."""
    return re.fullmatch(r"(\$\{[A-Z]+_IMAGE:-)?[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}\}?", image) is not None


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_watched_and_their_images_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    # Our own image has no digest before it is built; the base of it has.
    assert service["image"].startswith("ltxtrain:") or is_pinned(service["image"])
    assert service["restart"] == "unless-stopped"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_the_image_has_the_folders_of_its_volumes() -> None:
    """Made and owned: a new volume takes both from the image, and belongs to root without."""
    mounted = {volume.split(":")[1] for name in (*OURS, "ray-head") for volume in SERVICES[name]["volumes"]}
    made = re.search(r"mkdir ([/\w ]+) && chown ltxtrain ([/\w ]+)\n", (ROOT / "Dockerfile").read_text())
    assert made and set(made[1].split()) == set(made[2].split()) == mounted


def entrypoint(folder: Path, role: str, programs: Mapping[str, str] = MappingProxyType({}), **environ: str) -> str:
    """Programs that the entrypoint of a role starts, a line for each with its arguments and environment."""
    for program in ("ray", "python"):
        (folder / program).write_text('#!/bin/sh\necho "$0" "$@" $(env)\n')
        (folder / program).chmod(0o755)
    for program, text in programs.items():
        (folder / program).write_text(f"#!/bin/sh\n{text}\n")
        (folder / program).chmod(0o755)
    environ |= {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["sh", str(ROOT / "docker/entrypoint"), role]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def store_bytes(said: str) -> int:
    (size,) = re.findall(r"--object-store-memory=(\d+)", said)
    return int(size)


@pytest.mark.parametrize("role", ["head", "worker", "train"])
def test_rays_object_store_fits_into_shared_memory_and_into_memory(tmp_path: Path, role: str) -> None:
    said = entrypoint(tmp_path, role)
    assert 0 < store_bytes(said) < shutil.disk_usage("/dev/shm").free
    assert ("-m ltxtrain_services.train" in said.splitlines()[-1]) == (role == "train")
    # Shared memory of 100 TiB: what is left is a share of the machine's, or of the container's limit.
    row = "echo Filesystem; echo shm 107374182400 0 107374182400 0% /dev/shm"
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0.05 * machine < store_bytes(entrypoint(tmp_path, role, {"df": row})) <= 0.3 * machine or cgroup_limit()
    limited = {"df": row, "cat": 'case "$1" in */memory.max) echo 6442450944 ;; *) exit 1 ;; esac'}
    assert store_bytes(entrypoint(tmp_path, role, limited)) == 6442450944 // 10 * 3
    unlimited = limited | {"cat": "echo max"}
    assert store_bytes(entrypoint(tmp_path, role, unlimited)) > 6442450944 // 10 * 3 or machine < 8 * 2**30


def cgroup_limit() -> bool:
    """Whether these tests run under a limit themselves."""
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return any(path.exists() and len(path.read_text().strip()) < 16 for path in limits)


@pytest.mark.parametrize("role", ["head", "worker"])
def test_a_ray_node_ends_with_its_raylet(tmp_path: Path, role: str) -> None:
    """F1: `ray start --block` alone leaves a head that looks alive and never runs an actor."""
    (hook,) = re.findall(r"RAY_START_HOOK=(\S+)", entrypoint(tmp_path, role))
    module, _, name = hook.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("role", OURS)
def test_the_raylet_beside_a_service_takes_no_models(tmp_path: Path, role: str) -> None:
    ray_line, service_line = entrypoint(tmp_path, role, RAY_HEAD="head:1").splitlines()
    assert "--num-cpus=0" in ray_line and "--labels=ltxtrain=service" in ray_line
    assert NOT_A_SERVICE == {"ltxtrain": "!service"}
    assert "--address=head:1" in ray_line and "LTXTRAIN_RAY_ADDRESS=head:1" in service_line


def test_rays_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    said = entrypoint(tmp_path, "head")
    assert "RAY_AUTH_MODE=token" in said and "RAY_AUTH_TOKEN_PATH=/run/secrets/ray_token" in said
    assert "RAY_AUTH_TOKEN_PATH" not in entrypoint(tmp_path, "head", RAY_AUTH_TOKEN="word")
    # A healthcheck is run beside the entrypoint and has the container's environment alone.
    for name in (*OURS, "ray-head", "ray-head-gpu", "ray-worker", "ray-worker-gpu"):
        environment = SERVICES[name]["environment"]
        assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", "/run/secrets/ray_token")


def test_rays_token_may_come_from_a_file_for_a_service_too(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("word\n")
    code = "import os, ltxtrain_services.runtime; print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_AUTH_TOKEN'])"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "LTXTRAIN_"))}
    environ["LTXTRAIN_RAY_TOKEN_FILE"] = str(tmp_path / "token")
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["token", "word"]


def test_each_container_has_the_secrets_that_it_needs() -> None:
    """Ray's nodes run what callers' data makes them run: they have Ray's token alone."""
    for name in ("ray-head", "ray-head-gpu", "ray-worker", "ray-worker-gpu"):
        assert SERVICES[name]["secrets"] == ["ray_token"]
        assert not [variable for variable in SERVICES[name]["environment"] if variable.startswith("LTXTRAIN_")]
    for name in OURS:
        named = {str(value).removeprefix("/run/secrets/") for value in SERVICES[name]["environment"].values()}
        assert set(SERVICES[name]["secrets"]) <= named


def test_the_gateway_is_a_client_and_has_no_keys_of_the_store(tmp_path: Path) -> None:
    gateway = SERVICES["gateway"]
    assert set(gateway["environment"]) <= VARIABLES
    assert gateway["secrets"] == ["tokens"] and "volumes" not in gateway
    assert entrypoint(tmp_path, "gateway").splitlines()[0].split()[1:3] == ["-m", "ltxtrain_services.gateway"]


def test_secrets_are_kept_from_other_users(tmp_path: Path) -> None:
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o004 for path in (tmp_path / "secrets").iterdir())


def test_compose_means_the_same_containers_with_every_command(tmp_path: Path) -> None:
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    (profile,) = re.findall(r"^COMPOSE_PROFILES=(\w+)$", (tmp_path / ".env").read_text(), re.M)
    started = {name for name in SERVICES if profile in SERVICES[name].get("profiles", [])}
    assert started == {*OURS, "gateway", "ray-head"}
    (tmp_path / ".env").write_text("COMPOSE_PROFILES=gpu\n")
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / ".env").read_text() == "COMPOSE_PROFILES=gpu\n"


def test_a_database_that_is_being_made_is_not_ready() -> None:
    """Its temporary server listens on the socket, where pg_isready looks by itself."""
    check = SERVICES["postgres"]["healthcheck"]["test"]
    assert check[check.index("-h") + 1] == "127.0.0.1"
    assert all(SERVICES[name]["stop_grace_period"] == "60s" for name in ("postgres", "store"))


@pytest.mark.parametrize("name", [name for name in SERVICES if name.endswith("-gpu")])
def test_nodes_with_gpus_get_them(name: str) -> None:
    (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_worker_is_judged_by_its_own_raylet() -> None:
    check = SERVICES["ray-worker"]["healthcheck"]["test"]
    assert check[0] == "CMD-SHELL" and "/proc" in check[1]
    # The same words find a process of that name, and nothing where there is none.
    for name, found in ((b"raylet\n", 0), (b"ray::IDLE\n", 1)):
        command = check[1].replace("/proc/[0-9]*/status", "/dev/stdin")
        assert subprocess.run(["sh", "-c", command], input=b"Name:\t" + name).returncode == found


@pytest.mark.parametrize("name", SERVICES)
def test_logs_have_an_end(name: str) -> None:
    assert SERVICES[name]["logging"]["options"].keys() == {"max-size", "max-file"}


def test_an_operators_settings_reach_every_container_of_ours() -> None:
    for name in (*OURS, "ray-head", "ray-head-gpu", "ray-worker", "ray-worker-gpu"):
        assert SERVICES[name]["env_file"] == [{"path": "ltxtrain.env", "required": False}]
    extras = re.search(r"\.\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    assert extras and {"server", "telemetry"} <= set(extras[1].split(","))


def test_nothing_but_what_is_copied_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored and "**/__pycache__" in ignored and "**/*_pb2.py" in ignored
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    named = {name for names in copied for name in names.split()}
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == named


def test_volumes_are_declared() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {volume for volume in used if not volume.startswith(".")} == set(COMPOSE["volumes"])


@pytest.mark.parametrize("script", ["entrypoint", "make-secrets", "pin.sh", "rehearse", "stand-ins"])
def test_scripts_are_sound(script: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / "docker" / script)], check=True)
    assert (ROOT / "docker" / script).stat().st_mode & 0o111


def test_the_image_copies_what_the_wheel_needs() -> None:
    copied = re.findall(r"^COPY (?!--)(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert {
        "protos",
        "ltxtrain_services",
        "ltxtrain_trainer",
        "ltxtrain_pocket",
        "clients",
        "third_party",
        "pyproject.toml",
    } <= set(copied)


def test_the_image_runs_the_services_that_exist() -> None:
    entrypoint = (ROOT / "docker/entrypoint").read_text()
    for name in OURS:
        assert name in entrypoint and (ROOT / f"ltxtrain_services/{name}/__main__.py").exists()
        assert SERVICES[name]["command"] == [name]


def test_the_base_and_the_other_store_are_pinned_too() -> None:
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.M)
    assert is_pinned(base) and is_pinned(MINIO["image"])
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)[0] == "${PYTHON_IMAGE}"
    assert not is_pinned("python:3.11") and not is_pinned("minio/minio:latest@sha256:" + "0" * 64)


def test_a_change_of_code_fetches_no_package() -> None:
    """Every fetching step lies above every copy of code, and the last stage has copies of what was made."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    code = next(number for number, line in enumerate(lines) if line.startswith("COPY pyproject.toml README.md"))
    fetching = re.compile(r"apt-get|pip install (?!.*--no-index)|pip install .*--constraint")
    below = "\n".join(lines[code:]).replace("\\\n", "")
    assert fetching.search("\n".join(lines[:code])) and not fetching.search(below)
    assert "--no-build-isolation" in below and "--no-deps" in below and "--mount" not in DOCKERFILE


def requirements(*arguments: str) -> list[str]:
    command = [sys.executable, str(ROOT / "docker/requirements.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_image_installs_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extras,) = re.findall(r"requirements\.py ([\w ]+) >", DOCKERFILE)
    wanted = {*project["project"]["dependencies"]}
    for extra in extras.split():
        wanted |= {*project["project"]["optional-dependencies"][extra]}
    assert {"server", "quantized", "telemetry"} <= set(extras.split())
    assert set(requirements(*extras.split())) == wanted
    assert requirements("--build") == project["build-system"]["requires"]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").open()}
    assert {re.split(r"[<>=~]", item)[0] for item in requirements("--build")} <= pinned


def test_the_image_has_a_compiler() -> None:
    assert re.search(r"^FROM \$\{PYTHON_IMAGE\} AS packages\n(.*\n)*?RUN apt-get .*g\+\+", DOCKERFILE, re.M)
    assert DOCKERFILE.split("FROM ")[-1].startswith("packages\n")


@pytest.mark.parametrize("name", SERVICES)
def test_nobody_has_a_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    # The database's image begins as root, to give its folder to its user.
    assert ("cap_add" in service) == (name == "postgres")
    assert not service.keys() & {"privileged", "network_mode", "pid", "ipc", "devices"}


@pytest.mark.parametrize("service", [*SERVICES.values(), MINIO])
def test_no_secret_is_written_down(service: dict[str, Any]) -> None:
    for variable, value in service.get("environment", {}).items():
        if re.search(r"PASSWORD|SECRET|TOKEN|_KEY|DATABASE_URL", variable):
            assert str(value).startswith("/run/secrets/") and variable.endswith(("_FILE", "_PATH")), variable


@pytest.mark.parametrize("name", SERVICES)
def test_health_is_asked_by_programs_that_the_image_has(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    kind, program, *arguments = check["test"]
    # Engines before Docker 25, and podman, refuse a container with one.
    assert "start_interval" not in check
    # podman's API takes words apart that have spaces in them.
    assert kind == "CMD-SHELL" or not any(" " in word for word in arguments)
    if SERVICES[name]["image"].startswith("ltxtrain:"):
        assert kind == "CMD-SHELL" or program in ("python", "ray")
        if arguments[:1] == ["-m"]:
            assert importlib.util.find_spec(arguments[1]) is not None
    else:
        assert (name, program) in (("store", "curl"), ("postgres", "pg_isready"))


@pytest.mark.parametrize("role", ["head", "worker", "train"])
def test_ray_knows_the_options_that_it_is_started_with(tmp_path: Path, role: str) -> None:
    package = importlib.util.find_spec("ray")
    assert package and package.origin
    known = (Path(package.origin).parent / "scripts/scripts.py").read_text()
    given = set(re.findall(r" (--[a-z-]+)", entrypoint(tmp_path, role)))
    assert {"--include-log-monitor", "--object-store-memory"} <= given
    assert [option for option in given if f'"{option}"' not in known] == []


def moved(folder: Path, answer: str, *arguments: str) -> tuple[int, str]:
    """Exit status and words of docker/pin.sh on a copy of the files, where every tag has this digest now."""
    for name in (*PINNED, "docker/pin.sh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/docker").write_text(f'#!/bin/sh\nfor image; do :; done\necho "$image" >>asked\necho "{answer}"\n')
    (folder / "bin/docker").chmod(0o755)
    command = ["sh", "docker/pin.sh", *arguments]
    environ = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("skopeo") is not None, reason="its own program would be asked")
def test_digests_are_compared_and_moved(tmp_path: Path) -> None:
    new = "sha256:" + "7" * 64
    status, said = moved(tmp_path, new, "--check")
    assert status == 1 and said.count("has moved") == 4
    asked = set((tmp_path / "asked").read_text().split())
    assert {"docker.io/chrislusf/seaweedfs:4.48", "docker.io/library/python:3.11-slim-bookworm"} <= asked
    assert (tmp_path / "compose.yaml").read_text() == (ROOT / "compose.yaml").read_text()
    assert moved(tmp_path, new)[0] == 0
    for name in PINNED:
        old = (ROOT / name).read_text()
        assert (tmp_path / name).read_text() == re.sub(r"sha256:[0-9a-f]{64}", new, old) != old
    # What is no digest is not written.
    status, said = moved(tmp_path, "no such manifest")
    assert status == 2 and "no such manifest" in said
    assert (tmp_path / "compose.yaml").read_text() == (ROOT / "compose.yaml").read_text()
