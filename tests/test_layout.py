"""The rules of the layout, held by walking the imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("ltxtrain_trainer", "ltxtrain_services", "ltxtrain_pocket", "clients")
MAX_LINES = 400


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offenders(paths: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if any(name == word or name.startswith(f"{word}.") for word in forbidden)
    ]


def test_the_trainer_knows_tensors_and_files_only() -> None:
    forbidden = ("grpc", "ray", "minio", "sqlalchemy", "ltxtrain", "ltxtrain_client", "ltxtrain_services")
    assert offenders(modules("ltxtrain_trainer"), forbidden) == []


def test_media_and_geometry_import_no_torch() -> None:
    paths = [*modules("ltxtrain_trainer/media"), ROOT / "ltxtrain_trainer/geometry.py"]
    assert offenders(paths, ("torch", "diffusers", "transformers", "peft")) == []


SERVICES = ("ingest", "preprocess", "train", "gateway")


@pytest.mark.parametrize("service", SERVICES)
def test_services_do_not_import_each_other(service: str) -> None:
    others = tuple(f"ltxtrain_services.{other}" for other in (*SERVICES, "local") if other != service)
    assert offenders(modules(f"ltxtrain_services/{service}"), others) == []


def test_the_gateway_is_a_client_with_pages() -> None:
    """Nothing that a client of another language could not do as well."""
    beyond = ("store", "tables", "events", "blobs", "objects", "cluster", "work", "service")
    forbidden = (
        "ltxtrain_trainer",
        "ray",
        "minio",
        "sqlalchemy",
        *(f"ltxtrain_services.runtime.{name}" for name in beyond),
    )
    assert offenders(modules("ltxtrain_services/gateway"), forbidden) == []


def test_the_runtime_knows_no_service() -> None:
    forbidden = tuple(f"ltxtrain_services.{name}" for name in (*SERVICES, "local"))
    assert offenders(modules("ltxtrain_services/runtime"), forbidden) == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        (
            "ray",
            {
                "ltxtrain_services/runtime/cluster.py",
                "ltxtrain_services/runtime/ray_hook.py",  # changes what `ray start` starts
                "actors.py",
                "ltxtrain_services/ingest/prober.py",
            },
        ),
        ("minio", {"ltxtrain_services/runtime/objects.py", "ltxtrain_services/runtime/bucket.py"}),
        (
            "sqlalchemy",
            {
                f"ltxtrain_services/runtime/{name}.py"
                for name in ("tables", "database", "store", "events", "blobs", "paging", "edit")
            },
        ),
        (
            "av",
            {
                "ltxtrain_trainer/media",
                "ltxtrain_services/local/demo_data.py",
                "ltxtrain_trainer/preview/reel.py",
                "clients/ltxtrain_client/trackers.py",  # an extra's: TensorBoard wants a GIF
            },
        ),
    ],
)
def test_libraries_stay_where_they_belong(library: str, allowed: set[str]) -> None:
    paths = [path for path in modules(*ROOMS) if not any(part in str(path.relative_to(ROOT)) for part in allowed)]
    assert offenders(paths, (library,)) == []


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_modules_are_short() -> None:
    lengths = {path.relative_to(ROOT): lines(path) for path in modules(*ROOMS)}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


# Modules below MIN_LINES with at most one importer, and why each is a room of its own all the same.
SMALL = {
    "clients/ltxtrain_client/cli/__main__.py": "python -m",
    "clients/ltxtrain_client/grpc_log_level.py": "has to run before grpc is imported",
    "ltxtrain_services/gateway/__main__.py": "python -m",
    "ltxtrain_services/ingest/__main__.py": "python -m",
    "ltxtrain_services/preprocess/__main__.py": "python -m",
    "ltxtrain_services/train/__main__.py": "python -m",
    "ltxtrain_services/runtime/guarded_server.py": "goes when grpcio mends its accept loop",
    "ltxtrain_services/preprocess/salvage.py": "what an early end leaves; the run itself must not know it",
    "ltxtrain_trainer/continuation.py": "the use of a LoRA, beside job.py: a training must not know it",
    "ltxtrain_trainer/media/rate.py": "one measurement, on times alone",
    "ltxtrain_trainer/preview/guidance.py": "formulas of three papers, proven against the reference by themselves",
    "ltxtrain_trainer/training/preflight.py": "one step before the steps; the loop must not know it",
}
MIN_LINES = 80


def module_name(path: Path) -> str:
    return str(path.relative_to(ROOT)).removeprefix("clients/").removesuffix(".py").replace("/", ".")


def test_small_modules_have_several_importers_or_a_reason() -> None:
    product = {module_name(path): path for path in modules(*ROOMS) if path.name != "__init__.py"}
    importers: dict[str, set[str]] = {name: set() for name in product}
    for path in modules(*ROOMS):
        for name in importers.keys() & set(imports(path)) - {module_name(path)}:
            importers[name].add(module_name(path))
    small = {
        str(path.relative_to(ROOT))
        for name, path in product.items()
        if lines(path) < MIN_LINES and len(importers[name]) <= 1
    }
    assert small == SMALL.keys()


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if text := ast.get_docstring(node):
            yield getattr(node, "lineno", 1), text


def test_docstrings_name_the_thing() -> None:
    """An imperative or a noun phrase: "What an item came to" makes a reader guess."""
    vague = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in modules(*ROOMS, "tests", "bench")
        for line, text in docstrings(path)
        if text.split()[0] in ("What", "Of")
    ]
    assert vague == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ltxtrain_client", ("torch", "ray", "ltxtrain_services", "ltxtrain_trainer", "av", "minio", "aiohttp")),
        ("ltxtrain_trainer.media.probe", ("torch", "diffusers", "ray")),
        ("ltxtrain_services.ingest.prober", ("torch", "diffusers", "av")),
        # Of a process that runs for days: what it needs at rest.
        ("ltxtrain_services.ingest.service", ("torch", "diffusers", "av", "numpy", "opentelemetry.sdk")),
        ("ltxtrain_services.preprocess.service", ("torch", "av", "numpy", "aiohttp", "opentelemetry.sdk")),
        ("ltxtrain_services.train.service", ("torch", "av", "numpy", "cryptography", "opentelemetry.sdk")),
        (
            "ltxtrain_services.gateway.server",
            ("torch", "ray", "sqlalchemy", "minio", "av", "numpy", "opentelemetry.sdk"),
        ),
        ("ltxtrain_services.local.up", ("torch", "ray", "sqlalchemy", "numpy", "aiohttp", "opentelemetry.sdk")),
    ],
)
def test_imports_stay_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tests_keep_the_event_loop() -> None:
    """asyncio.run leaves the async tests that follow without their loop: tests.loops.run gives it back."""
    calls = [
        str(path.relative_to(ROOT))
        for path in modules("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "run" and getattr(node.value, "id", "") == "asyncio"
    ]
    assert set(calls) == {"tests/loops.py", "tests/attack/target.py"}
