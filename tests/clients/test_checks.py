"""What `doctor` looks at on this machine."""

from pathlib import Path

import pytest
from ltxtrain_client import checks
from ltxtrain_client.checks import Verdict, check_disk, check_extra, check_gpu, check_ray


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, first on the path, for machines without the real one."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return program


def answers(program: Path, *lines: str, code: int = 0) -> None:
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        (["NVIDIA H100 80GB HBM3, 81559", "NVIDIA H100 80GB HBM3, 81559"], Verdict.OK),
        (["NVIDIA GeForce RTX 4090, 24564"], Verdict.NOTE),
        (["NVIDIA GB10, [N/A]"], Verdict.OK),
    ],
)
async def test_gpus_as_the_driver_tells_them(nvidia_smi: Path, lines: list[str], verdict: Verdict) -> None:
    answers(nvidia_smi, *lines)
    finding = await check_gpu()
    assert finding.verdict is verdict
    assert all(line.partition(",")[0] in finding.detail for line in lines)
    assert bool(finding.advice) is (verdict is Verdict.NOTE)


async def test_a_broken_driver(nvidia_smi: Path) -> None:
    answers(nvidia_smi, "NVIDIA-SMI has failed", "more", code=9)
    finding = await check_gpu()
    assert (finding.verdict, finding.detail) == (Verdict.FAILED, "NVIDIA-SMI has failed")


async def test_no_driver_is_fine_for_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await check_gpu()).verdict is Verdict.NOTE


def test_packages_of_an_extra_are_those_of_the_distribution() -> None:
    finding = check_extra("server")
    assert finding.verdict is Verdict.OK and "torch " in finding.detail and "minio " in finding.detail


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.metadata.requires

    def requires(name: str) -> list[str]:
        return [*(real(name) or []), 'no-such-package>=1; extra == "server"']

    monkeypatch.setattr(checks.metadata, "requires", requires)
    finding = check_extra("server")
    assert (finding.verdict, finding.detail) == (Verdict.NOTE, "missing: no-such-package")
    assert "pip install 'ltxtrain[server]'" in finding.advice


def test_ray_client_addresses_are_refused() -> None:
    assert check_ray({"RAY_ADDRESS": "ray://head:10001"}).verdict is Verdict.FAILED
    assert check_ray({"RAY_ADDRESS": "head:6379"}).verdict is Verdict.OK
    assert check_ray({}).verdict is Verdict.OK


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "not" / "there"
    monkeypatch.setattr(checks, "WANTED_DISK_BYTES", 1.0)
    assert str(tmp_path) in check_disk(place).detail and check_disk(place).verdict is Verdict.OK
    monkeypatch.setattr(checks, "WANTED_DISK_BYTES", 1e18)
    assert check_disk(place).verdict is Verdict.NOTE
