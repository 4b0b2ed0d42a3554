"""The Helm chart's pods as processes: each in a network namespace, with its command, settings, secrets and volumes.

Stands in for a cluster: one host a pod, names of Services in a hosts file, volumes as folders below a /tmp of its own,
all else read-only; KubeRay's part, the command of Ray's containers, as its operator makes it (v1.7.0, pod.go). Not
here: the operator, the autoscaler's container, PostgreSQL, probes, GPUs, the user that containers run as.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltxtrain_services.local.embedded import weed_program
from tests.namespaces import ROOT, Host, Running, network
from tests.shapes import make_clips
from tests.suite.conftest import SHEET
from tests.test_kubernetes import Manifest, pods, quantity, ray_cluster

VARIANT = "without GPUs"
COMPONENTS = ("store", "ray-head", "cpu", "ingest", "preprocess", "train")
ADDRESSES = {name: f"10.79.0.{10 + number}" for number, name in enumerate((*COMPONENTS, "laptop"))}
SERVICES = {
    "studio-ray-head-svc": "ray-head",
    **{f"studio-{name}": name for name in ("store", "ingest", "preprocess", "train")},
    "files.example.com": "store",
}
# Where volumes are mounted, and where they are below the pod's own /tmp here.
MOVED = {"/run/secrets/ltxtrain": "/tmp/secrets", "/models": "/tmp/models", "/data": "/tmp/data"}
SHM_BYTES = 2**29


def started_by_kuberay(component: str) -> str:
    """The command of a Ray container."""
    spec = ray_cluster(VARIANT)["spec"]
    head = component == "ray-head"
    group = spec["headGroupSpec"] if head else spec["workerGroupSpecs"][0]
    (container,) = group["template"]["spec"]["containers"]
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    given = {"num-cpus": requests["cpu"], "memory": str(int(quantity(limits["memory"])))} | group["rayStartParams"]
    given |= {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365", "block": "true"}
    given |= {"dashboard-host": "0.0.0.0", "no-monitor": "true"} if head else {"address": "studio-ray-head-svc:6379"}
    if labels := group.get("labels"):
        given["labels"] = ",".join(f"{key}={value}" for key, value in labels.items())
    # A machine of tests has less than the nodes that the chart is for.
    given |= {"object-store-memory": str(SHM_BYTES * 9 // 10), "num-cpus": "0" if head else "2"}
    flags = [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in sorted(given.items())]
    return f"ulimit -n 65536; exec ray start {'--head ' if head else ''}{shlex.join(flags)}"


def moved(text: str) -> str:
    for path, to in MOVED.items():
        text = text.replace(path, to)
    return text


class Pod:
    """A pod's own container on a host."""

    def __init__(self, host: Host, secrets: Path, model: Path) -> None:
        self.host, self._secrets = host, secrets
        spec: Manifest = pods(VARIANT)[host.name]["spec"]
        (self._container,) = spec["containers"]
        for folder in ("secrets", "state", "data"):
            (host.folder / folder).mkdir()
        for volume in spec["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                for item in source["secret"]["items"]:
                    (host.folder / "secrets" / item["path"]).write_text(self._secret(item["key"]))
        shutil.copytree(model, host.folder / "models/tiny")

    def _secret(self, key: str) -> str:
        return (self._secrets / ("ray_token" if key == "auth_token" else key)).read_text()

    def environ(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for item in self._container["env"]:
            reference = item.get("valueFrom", {}).get("secretKeyRef")
            found[item["name"]] = self._secret(reference["key"]) if reference else moved(item["value"])
        # A SQLite file in place of PostgreSQL.
        found.pop("LTXTRAIN_DATABASE_URL_FILE", None)
        return found | {"LTXTRAIN_STATE_DIR": "/tmp/state", "LTXTRAIN_TORCH_THREADS": "1", "RAY_TMPDIR": "/tmp"}

    def command(self) -> str:
        if self.host.name in ("ray-head", "cpu"):
            return started_by_kuberay(self.host.name)
        command = shlex.join([*self._container["command"], *map(moved, self._container["args"])])
        image = {"weed": str(weed_program()), "exec entrypoint": f"exec {ROOT / 'docker/entrypoint'}"}
        for program, here in image.items():
            command = command.replace(program, here, 1)
        return f"exec {command}"

    def start(self) -> Running:
        mounts = f"mount --bind {self.host.folder} /tmp && mount -t tmpfs -o size={SHM_BYTES} tmpfs /dev/shm"
        inside = f"{mounts} && mount -o remount,bind,ro / && cd /tmp && {{ {self.command()}; }}"
        return self.host.start(f"exec unshare --mount bash -euo pipefail -c {shlex.quote(inside)}", **self.environ())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    with network(ADDRESSES, tmp_path) as made:
        names = {name: ADDRESSES[host] for name, host in SERVICES.items()}
        for host in made.values():
            host.call_others({"localhost": "127.0.0.1"} | names)
        yield made


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_charts_pods_run_a_job(hosts: dict[str, Host], tiny_model: Path, tmp_path: Path) -> None:
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    started: dict[str, Running] = {}
    for name in COMPONENTS:
        started[name] = Pod(hosts[name], tmp_path / "secrets", tiny_model).start()
        if name == "ray-head":
            started[name].says("Ray runtime started")
    laptop = hosts["laptop"]
    (laptop.folder / "job.json").write_text(json.dumps(SHEET))
    make_clips(laptop.folder)
    token = (tmp_path / "secrets/tokens").read_text().split()[1]
    environ = {f"LTXTRAIN_{name.upper()}": f"http://studio-{name}:7000" for name in ("ingest", "preprocess", "train")}
    # The readiness probe of each service, from where the kubelet would ask.
    probe = "until python -m ltxtrain_services.runtime.healthcheck; do sleep 1; done"
    for name in ("ingest", "preprocess", "train"):
        assert hosts[name].run(f"timeout 180 bash -c {shlex.quote(probe)}", LTXTRAIN_BIND="0.0.0.0:7000")[0] == 0, name
    submit = "ltxtrain submit job.json --data clips.zip --watch --out results"
    status, said = laptop.run(submit, LTXTRAIN_TOKEN=token, **environ)
    assert status == 0, said
    assert (laptop.folder / "results/lora.safetensors").stat().st_size > 0
    assert [name for name, pod in started.items() if pod.process.poll() is not None] == []
    status, said = laptop.run("timeout 5 curl -s http://studio-train:9090/metrics")
    assert status == 0 and "ltxtrain_work_ends" in said
