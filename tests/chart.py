"""The Helm chart, rendered by Helm with the values of each of some VARIANTS, and what was rendered, by its kinds."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from tests.test_deployment import ROOT

CHART = ROOT / "deploy/helm/ltxtrain"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
Manifest = dict[str, Any]

VARIANTS: dict[str, Manifest] = {
    "bundled": {
        "store": {"bundled": True, "publicEndpoint": "https://files.example.com"},
        "postgres": {"bundled": True},
    },
    "by reference": {
        "store": {"endpoint": "s3.example.com:443", "publicEndpoint": "https://s3.example.com"},
        "tls": {"secret": "certificates"},
        "settings": {"LTXTRAIN_MAX_OWNER_GPUS": "2"},
        "model": {"hubSecret": "hub", "volume": {"existingClaim": "models"}},
        "gateway": {"ingress": {"enabled": True, "className": "nginx", "host": "a.example", "tlsSecret": "cert"}},
        "imagePullSecrets": [{"name": "registry"}],
        "networkPolicy": {
            "clients": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "rayEgress": [{"ports": [{"port": 443}]}],
        },
        "ray": {"gpuWorkers": {"nodeSelector": {"gpu": "yes"}, "gpus": 8}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "without GPUs": {
        "store": {"bundled": True, "publicEndpoint": "http://files.example.com:9000"},
        "model": {"name": "/models/tiny"},
        "ray": {"gpuWorkers": {"maxReplicas": 0}},
        "gateway": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
}
WRONG: Manifest = {"ray": {"cpuWorkers": {"replicas": 0}}, "settings": {"PATH": "x"}, "imag": {}}

# In a process of its own: Helm is a Go library, whose threads the tests' own processes do not need.
RENDER = """
import json, sys
import helm_python as helm
chart, variants, wrong = sys.argv[1], *map(json.loads, sys.argv[2:])
with helm.Chart.load(chart) as loaded:
    files = {key: loaded.render(values, name="studio", namespace="video") for key, values in variants.items()}
    again = {key: loaded.render(values, name="studio", namespace="video") for key, values in variants.items()}
    try:
        loaded.render(wrong, name="studio", namespace="video")
        refused = ""
    except helm.HelmError as error:
        refused = str(error)
lint = {key: helm.lint(chart, values, strict=True)["messages"] for key, values in variants.items()}
json.dump({"files": files, "same": files == again, "refused": refused, "lint": lint}, sys.stdout)
"""
# Not every platform has a wheel of Helm's library; CI's has.
MISSING = importlib.util.find_spec("helm_python") is None and os.environ.get("CI") != "true"


def rendered(variants: Manifest) -> Manifest:
    """Answer of RENDER about each set of values."""
    command = [sys.executable, "-c", RENDER, str(CHART), json.dumps(variants), json.dumps(WRONG)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: Manifest = json.loads(done.stdout)
    return found


@functools.cache
def helm() -> Manifest:
    return rendered(VARIANTS)


@functools.cache
def manifests(variant: str) -> tuple[Manifest, ...]:
    return objects(helm()["files"][variant])


def objects(files: dict[str, str]) -> tuple[Manifest, ...]:
    """The contents of rendered files."""
    return tuple(
        manifest
        for name, text in sorted(files.items())
        if name.endswith(".yaml")
        for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader)
        if manifest
    )


def of_kind(variant: str, *kinds: str) -> dict[str, Manifest]:
    return {item["metadata"]["name"]: item for item in manifests(variant) if item["kind"] in kinds}


def ray_cluster(variant: str) -> Manifest:
    (found,) = of_kind(variant, "RayCluster").values()
    return found


def pods(variant: str) -> dict[str, Manifest]:
    return pods_among(manifests(variant))


def pods_among(found: tuple[Manifest, ...]) -> dict[str, Manifest]:
    """Pod templates by the component that they are."""
    (spec,) = [item["spec"] for item in found if item["kind"] == "RayCluster"]
    templates = [item["spec"]["template"] for item in found if item["kind"] in ("Deployment", "StatefulSet")]
    ray = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    names = [template["metadata"]["labels"]["app.kubernetes.io/component"] for template in templates]
    groups = ["ray-head", *(group["groupName"] for group in spec["workerGroupSpecs"])]
    return dict(zip([*names, *groups], [*templates, *ray], strict=True))


def containers(variant: str) -> Iterator[tuple[str, Manifest]]:
    for name, template in pods(variant).items():
        for container in template["spec"]["containers"]:
            yield f"{name}/{container['name']}", container
