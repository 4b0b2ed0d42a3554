"""The checks of `doctor` on this machine."""

import importlib
import sys
from contextlib import aclosing
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.doctor import (
    Finding,
    Verdict,
    check_disk,
    check_extra,
    check_gpu,
    check_installation,
    check_ray,
)
from ltxtrain_client.quantities import size_text

from ltxtrain_services.local.lock import Running, hold
from ltxtrain_services.local.model import WAY_TO_TRY, check_model, check_torch, chosen_model, pocket_folder
from ltxtrain_trainer.model.folder import DEFAULT_MODEL
from tests.trainer.model.hub import REPOSITORY, serve
from tests.trainer.model.test_folder import cache, point_at

__all__ = ["cache"]

# The package has a function of that name.
doctor = importlib.import_module("ltxtrain_client.cli.doctor")


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
    real = metadata.requires

    def requires(name: str) -> list[str]:
        return [*(real(name) or []), 'no-such-package>=1; extra == "server"']

    monkeypatch.setattr(metadata, "requires", requires)
    finding = check_extra("server")
    assert (finding.verdict, finding.detail) == (Verdict.NOTE, "missing: no-such-package")
    assert "pip install 'ltxtrain[server]'" in finding.advice


def test_ray_client_addresses_are_refused() -> None:
    assert check_ray({"RAY_ADDRESS": "ray://head:10001"}).verdict is Verdict.FAILED
    assert check_ray({"RAY_ADDRESS": "head:6379"}).verdict is Verdict.OK
    assert check_ray({}).verdict is Verdict.OK


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "not" / "there"
    # The download of LTX 2.3 is no matter of a suite with the pocket model: the check of the model tells of it.
    assert doctor.WANTED_DISK_BYTES < 20e9
    monkeypatch.setattr(doctor, "WANTED_DISK_BYTES", 1.0)
    assert str(tmp_path) in check_disk(place).detail and check_disk(place).verdict is Verdict.OK
    monkeypatch.setattr(doctor, "WANTED_DISK_BYTES", 1e18)
    assert check_disk(place).verdict is Verdict.NOTE


def test_a_model_is_here_or_there_is_something_to_do(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched: of a repository only the cache is asked."""
    monkeypatch.setattr("ltxtrain_services.local.model.has_gpu", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for reference, lack in (
        (str(tiny_model), ""),
        ("", "diffusers/LTX-2.3-Diffusers: not on this machine yet"),
        (str(tmp_path / "nothing"), "There is no folder"),
        (str(tmp_path), "lacks the component transformer"),
        ("no name / at all", "neither a folder here nor"),
    ):
        finding = check_model(tmp_path, {"LTXTRAIN_MODEL": reference})
        assert finding.verdict is (Verdict.NOTE if lack else Verdict.OK)
        assert lack in finding.detail
        assert ("LTXTRAIN_MODEL" in finding.advice and WAY_TO_TRY in finding.advice) is bool(lack)


def test_a_model_that_is_to_come_has_its_true_size(
    tiny_model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_text(sum(file.stat().st_size for file in tiny_model.glob("*/*")))
    with serve(tiny_model) as hub:
        point_at(hub, monkeypatch)
        finding = check_model(tmp_path, {"LTXTRAIN_MODEL": REPOSITORY})
        assert f"the first job downloads {size} to {cache}, where " in finding.detail
        assert "only" not in finding.detail and not hub.fetched
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5_000_000))
        assert "where only 5.0 MB are free" in check_model(tmp_path, {"LTXTRAIN_MODEL": REPOSITORY}).detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that works is no fault")
def test_a_driver_whose_gpu_torch_cannot_use_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_torch(tmp_path, {}) is None
    monkeypatch.setattr("ltxtrain_services.local.model.has_gpu", lambda: True)
    finding = check_torch(tmp_path, {})
    assert finding is not None and finding.verdict is Verdict.FAILED
    assert f"torch {torch.__version__}" in finding.detail and "Update the NVIDIA driver" in finding.detail


def test_without_a_gpu_the_pocket_model_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltxtrain_services.local.model.has_gpu", lambda: False)
    assert chosen_model({}, tmp_path) == chosen_model({"LTXTRAIN_MODEL": "pocket"}, tmp_path)
    assert chosen_model({}, tmp_path) == str(pocket_folder(tmp_path))
    assert chosen_model({"LTXTRAIN_MODEL": "some/where"}, tmp_path) == "some/where"
    finding = check_model(tmp_path, {})
    assert finding.verdict is Verdict.OK and "pocket" in finding.detail
    monkeypatch.setattr("ltxtrain_services.local.model.has_gpu", lambda: True)
    assert chosen_model({}, tmp_path) == DEFAULT_MODEL


def test_the_model_of_a_suite_that_runs_is_the_one_it_was_started_with(tiny_model: Path, tmp_path: Path) -> None:
    with hold(tmp_path, Running(model=str(tiny_model))):
        finding = check_model(tmp_path, {"LTXTRAIN_MODEL": "/nowhere"})
    assert finding.verdict is Verdict.OK


async def test_of_a_suite_elsewhere_the_model_is_not_known(tmp_path: Path) -> None:
    for address, known in (("127.0.0.1:1", True), ("train.example.com:7003", False)):
        subjects = set()
        async with aclosing(check_installation(ClientSettings(train=address), tmp_path, {})) as findings:
            async for finding in findings:
                subjects.add(finding.subject)
                if finding.subject.startswith("service"):
                    break
        assert ("model" in subjects) is known


async def test_of_a_suite_in_containers_the_model_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers on loopback as one of `up` does, and has no state folder on this machine."""

    async def ready(_: ClientSettings, name: str) -> Finding:
        return Finding(f"service {name}", Verdict.OK, "ready")

    async def refused(_: ClientSettings) -> Finding:
        return Finding("access", Verdict.FAILED, "no token")

    monkeypatch.setattr(doctor, "check_service", ready)
    monkeypatch.setattr(doctor, "check_access", refused)
    for state_dir, known in ((tmp_path, True), (tmp_path / "none", False)):
        async with aclosing(check_installation(ClientSettings(), state_dir, {})) as findings:
            assert ("model" in {finding.subject async for finding in findings}) is known


async def test_a_client_alone_has_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ltxtrain_services.local.model", None)
    async with aclosing(check_installation(ClientSettings(train="127.0.0.1:1"), tmp_path, {})) as findings:
        async for finding in findings:
            assert finding.subject != "model"
            if finding.subject.startswith("service"):
                break
