"""The contract as buf sees it: linted, and compatible with what was released."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUF = Path(sys.executable).parent / "buf"
RELEASED = ROOT / "protos/released.binpb"


def descriptors(protos: Path, out: Path) -> Path:
    files = sorted((protos / "ltxtrain/v1").glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"-I{ROOT / 'third_party'}"]
    command += ["--include_imports", "--include_source_info", f"--descriptor_set_out={out}", *map(str, files)]
    subprocess.run(command, check=True)
    return out


def buf(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(BUF), *map(str, arguments), "--config", str(ROOT / "protos/buf.json")]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return descriptors(ROOT / "protos", tmp_path_factory.mktemp("contract") / "api.binpb")


def test_lint(contract: Path) -> None:
    done = buf("lint", contract)
    assert done.returncode == 0, done.stdout + done.stderr
