"""The Helm chart, rendered by Helm itself and checked against published schemas, without a cluster.

Kubernetes' own kinds are checked by the schemas of kubernetes-validate, strictly: a field that a server would drop is
an error. tests/data/kubernetes has those of RayCluster and ServiceMonitor. Ray's autoscaler reads the RayCluster too.
"""

import copy
import functools
import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from ltxtrain_services.runtime.cluster import NOT_A_SERVICE
from ltxtrain_services.runtime.settings import read_settings
from tests.chart import (
    CHART,
    MISSING,
    VALUES,
    VARIANTS,
    Manifest,
    containers,
    helm,
    manifests,
    of_kind,
    pods,
    ray_cluster,
)
from tests.test_deployment import COMPOSE, ROOT, SERVICES, VARIABLES

DATA = ROOT / "tests/data/kubernetes"
# The oldest that the chart takes, and the newest that there are schemas of.
VERSIONS = ("1.27", "1.37")
OURS = ("ingest", "preprocess", "train")
pytestmark = pytest.mark.skipif(MISSING, reason="helm-python-sdk is not installed")
variants = pytest.mark.parametrize("variant", VARIANTS)


def test_helm_finds_nothing_to_say_and_renders_the_same_again() -> None:
    # Severity 1 is advice, of an icon.
    assert [message for found in helm()["lint"].values() for message in found if message["severity"] > 1] == []
    assert helm()["same"]


def test_values_that_do_not_exist_are_refused_all_at_once() -> None:
    assert re.findall(r"imag|cpuWorkers.replicas|PATH", helm()["refused"].replace("/", "."))[:1]
    assert all(word in helm()["refused"] for word in ("imag", "replicas", "PATH"))


@variants
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(variant: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "schema_contents", schema_contents)
    for manifest in manifests(variant):
        schema = DATA / f"{manifest['kind']}.json"
        if schema.exists():
            jsonschema.validate(manifest, json.loads(schema.read_text()))
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
    for name in {"ray-head", "cpu", "gpu"} & pods(variant).keys():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pods(variant)[name]}
        kubernetes_validate.validate(pod, version, strict=True)


schema_contents = functools.cache(utils.schema_contents)


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "schema_contents", schema_contents)
    (deployment, *_) = of_kind("bundled", "Deployment").values()
    with pytest.raises(jsonschema.ValidationError):
        kubernetes_validate.validate({**deployment, "spec": {**deployment["spec"], "replica": 1}}, "1.37", strict=True)
    cluster = ray_cluster("bundled")
    for name, value in (("authOption", {}), ("enableInTreeAutoscaling", "yes"), ("autoscalerOptions", {"version": 2})):
        with pytest.raises(jsonschema.ValidationError):
            wrong = {**cluster, "spec": {**cluster["spec"], name: value}}
            jsonschema.validate(wrong, json.loads((DATA / "RayCluster.json").read_text()))


@variants
def test_kuberay_takes_the_cluster(variant: str) -> None:
    """Rules of its operator beyond the schema (v1.7.0, controllers/ray/utils/validation.go)."""
    cluster = ray_cluster(variant)
    spec = cluster["spec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?", cluster["metadata"]["name"])
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)  # with authOptions
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert "labels" not in group["rayStartParams"] and "resources" not in group
        # With the second autoscaler: unset, or Never.
        assert "restartPolicy" not in group["template"]["spec"]
        # Its own probes ask an agent that is not in the image.
        assert group["template"]["spec"]["containers"][0].keys() >= {"livenessProbe", "readinessProbe"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@variants
def test_ray_start_has_the_options(variant: str) -> None:
    from ray.scripts.scripts import start

    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    spec = ray_cluster(variant)["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["rayStartParams"].keys() <= known


def test_rays_autoscaler_adds_gpu_nodes_for_the_placement_groups_of_jobs() -> None:
    """Its own reading of the RayCluster, and its own plan for what Train asks for."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated import autoscaler_pb2

    cluster = copy.deepcopy(ray_cluster("bundled"))
    cluster["metadata"]["namespace"] = "video"
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)
    types = config.get_node_type_configs()
    gang: Any = autoscaler_pb2.GangResourceRequest  # type: ignore[attr-defined] # made at run time
    assert {name: (kind.min_worker_nodes, kind.max_worker_nodes) for name, kind in types.items()} == {
        "headgroup": (0, 1),  # which is there
        "cpu": (1, 1),
        "gpu": (0, 4),
    }
    assert types["headgroup"].resources["CPU"] == 0 and types["gpu"].resources["GPU"] == 1

    def launched(gpus: int) -> dict[str, int]:
        bundles = [ResourceRequestUtil.make({"GPU": 1})] * gpus
        request = SchedulingRequest(
            node_type_configs=types,
            max_num_nodes=config.get_max_num_nodes(),
            disable_launch_config_check=True,
            gang_resource_requests=[gang(requests=bundles)] if gpus else [],
        )
        reply = ResourceDemandScheduler(event_logger=None).schedule(request)
        return {item.instance_type: item.count for item in reply.to_launch}

    assert launched(0) == {"cpu": 1}
    assert launched(3) == {"cpu": 1, "gpu": 3}
    # Never in part: the job goes on waiting.
    assert launched(5) == {"cpu": 1}


@variants
def test_models_and_fitters_stay_away_from_the_head(variant: str) -> None:
    """It has the service account that may change the cluster, and its pods."""
    head = ray_cluster(variant)["spec"]["headGroupSpec"]
    assert {name: f"!{value}" for name, value in head["labels"].items()} == NOT_A_SERVICE
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    for name, template in pods(variant).items():
        assert name == "ray-head" or template["spec"]["automountServiceAccountToken"] is False


@variants
def test_every_setting_exists(variant: str) -> None:
    for name, container in containers(variant):
        given = {item["name"] for item in container.get("env", []) if item["name"].startswith("LTXTRAIN_")}
        assert given <= VARIABLES, name
        if name.partition("/")[0] in OURS:
            assert {"LTXTRAIN_BIND", "LTXTRAIN_TOKENS_FILE", "LTXTRAIN_REQUIRE_GPUS"} <= given


@variants
def test_settings_are_read(variant: str, tmp_path: Path) -> None:
    """By the services' own reader, with the Secrets that are made: values have the form that each setting has."""
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    for component in {"gateway", *OURS} & pods(variant).keys():
        given = environment(variant, component)
        environ = {
            name: value.replace("/run/secrets/ltxtrain", str(tmp_path / "secrets")) for name, value in given.items()
        }
        settings = read_settings(environ)
        assert (settings.bind, settings.tokens_file is None) == ("0.0.0.0:7000", False)
        assert component == "gateway" or (
            settings.s3_secret_key and settings.database.startswith("postgresql+psycopg://")
        )


@variants
def test_commands_are_those_of_the_image(variant: str) -> None:
    """Its entrypoint knows the role, modules can be imported, and probes ask at ports that there are."""
    labels = re.findall(r"^([a-z| ]+)\)", (ROOT / "docker/entrypoint").read_text(), re.M)
    roles = {role for label in labels for role in label.split(" | ")}
    for name, container in containers(variant):
        probes = [probe for kind, probe in container.items() if kind.endswith("Probe")]
        command = [*container.get("command", []), *container.get("args", [])]
        if (component := name.partition("/")[0]) in {"gateway", *OURS}:
            assert " ".join(command).split()[-1] == component and component in roles
        run = " ".join([*command, *(word for probe in probes for word in probe.get("exec", {}).get("command", []))])
        modules = re.findall(r"-m (\S+)", run)
        modules += [item["value"].rpartition(".")[0] for item in container["env"] if item["name"] == "RAY_START_HOOK"]
        assert all(importlib.util.find_spec(module) for module in modules), name
        actions = [probe.get(kind, {}) for probe in probes for kind in ("tcpSocket", "httpGet", "grpc")]
        ports = {port[key] for port in container.get("ports", []) for key in ("name", "containerPort")}
        assert {action["port"] for action in actions if action} <= ports, name


def environment(variant: str, component: str) -> dict[str, str]:
    (container,) = pods(variant)[component]["spec"]["containers"]
    return {item["name"]: item.get("value", "") for item in container["env"]}


def test_jobs_ask_for_as_many_gpus_as_can_come() -> None:
    asked = {
        variant: [environment(variant, "train")[f"LTXTRAIN_{name}"] for name in ("REQUIRE_GPUS", "MAX_GPUS")]
        for variant in VARIANTS
    }
    assert asked == {"bundled": ["true", "4"], "by reference": ["true", "32"], "without GPUs": ["false", "0"]}


@variants
def test_whoever_is_called_is_there(variant: str) -> None:
    services = of_kind(variant, "Service")
    ports = {f"{name}:{port['port']}" for name, item in services.items() for port in item["spec"]["ports"]}
    # KubeRay makes it: NAME-head-svc.
    ports.add(f"{ray_cluster(variant)['metadata']['name']}-head-svc:6379")
    for component in {"gateway", *OURS} & pods(variant).keys():
        for name in ("TRAIN", "INGEST", "PREPROCESS", "S3_ENDPOINT"):
            address = environment(variant, component).get(f"LTXTRAIN_{name}", "")
            assert address in ports | {"", "s3.example.com:443"}
        assert environment(variant, component).get("RAY_HEAD", next(iter(ports))) in ports
    labels = [template["metadata"]["labels"] for template in pods(variant).values()]
    for name, item in services.items():
        assert any(item["spec"]["selector"].items() <= found.items() for found in labels), name


@variants
def test_every_volume_is_there_and_used(variant: str) -> None:
    made = set(of_kind(variant, "PersistentVolumeClaim", "ConfigMap")) | {"models", "certificates"}
    claims = of_kind(variant, "StatefulSet")
    for name, template in pods(variant).items():
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        templates = claims.get(f"studio-{name}", {"spec": {}})["spec"].get("volumeClaimTemplates", [])
        mounted = {mount["name"] for item in spec["containers"] for mount in item["volumeMounts"]}
        assert mounted == volumes.keys() | {claim["metadata"]["name"] for claim in templates}, name
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName") or volume.get("configMap", {}).get("name")
            assert claim in made | {None}
        # Nothing else can be written where the root is read-only.
        paths = {mount["mountPath"] for item in spec["containers"] for mount in item["volumeMounts"]}
        assert "/tmp" in paths


@variants
def test_secrets_are_those_that_are_made(variant: str, tmp_path: Path) -> None:
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    made = {("ltxtrain", path.name) for path in (tmp_path / "secrets").iterdir()} | {("ltxtrain-ray", "auth_token")}
    named = set()
    for name, template in pods(variant).items():
        own = set()
        for volume in template["spec"].get("volumes", []):
            for source in volume.get("projected", {}).get("sources", []):
                own |= {(source["secret"]["name"], item["key"]) for item in source["secret"]["items"]}
        for container in template["spec"]["containers"]:
            for item in container["env"]:
                if reference := item.get("valueFrom", {}).get("secretKeyRef"):
                    own.add((reference["name"], reference["key"]))
        named |= own
        # Where Ray runs code, and in the gateway, there is nothing but what each needs.
        if name in ("ray-head", "cpu", "gpu"):
            assert own <= {("ltxtrain-ray", "auth_token"), ("hub", "HF_TOKEN")}
        if name == "gateway":
            assert own == {("ltxtrain", "tokens")}
    assert named - made <= {("hub", "HF_TOKEN")}


@variants
def test_files_of_secrets_are_where_they_are_read(variant: str) -> None:
    for name, template in pods(variant).items():
        spec = template["spec"]
        mounts = {item["name"]: item["mountPath"] for item in spec["containers"][0]["volumeMounts"]}
        files = {
            f"{mounts[volume['name']]}/{item['path']}"
            for volume in spec.get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
            for item in source["secret"]["items"]
        }
        read = {
            item["value"] for item in spec["containers"][0]["env"] if item.get("value", "").startswith("/run/secrets/")
        }
        assert read == files, name


@variants
def test_containers_are_bounded_watched_and_may_do_little(variant: str) -> None:
    for name, container in containers(variant):
        resources = container["resources"]
        assert resources["limits"]["memory"] and resources["requests"]["cpu"] and resources["requests"]["memory"], name
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["livenessProbe"] and container["readinessProbe"], name
        assert re.search(r":[\w.-]*\d", container["image"])
    for template in pods(variant).values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] and template["spec"]["securityContext"]["runAsUser"]


@variants
def test_rays_object_store_fits_into_shared_memory_and_that_into_memory(variant: str) -> None:
    spec = ray_cluster(variant)["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shared-mem"]
        assert shm["medium"] == "Memory"
        given = int(group["rayStartParams"]["object-store-memory"])
        assert 0.8 * quantity(shm["sizeLimit"]) < given <= 0.9 * quantity(shm["sizeLimit"])
        assert quantity(shm["sizeLimit"]) <= 0.51 * quantity(pod["containers"][0]["resources"]["limits"]["memory"])


def test_memory_is_what_was_measured_with_room() -> None:
    """Requests hold a pod at rest, limits twice what it took in a job (docs/sizes.json, by bench/sizes.py)."""
    sizes: dict[str, dict[str, float]] = json.loads((ROOT / "docs/sizes.json").read_text())
    # Of every Ray node, the raylets beside services among them.
    node = ["Ray: raylet", "Ray: agent", "Ray: agent"]
    parts = {name: [name, *node] for name in OURS}
    parts |= {"ray-head": ["Ray: GCS", *node], "gateway": ["gateway"], "store": ["object store"]}
    for name, processes in parts.items():
        (container,) = pods("bundled")[name]["spec"]["containers"]
        requested, limit = (quantity(container["resources"][kind]["memory"]) for kind in ("requests", "limits"))
        assert sum(sizes[process]["rest_mb"] for process in processes) * 1e6 <= requested, name
        assert 2 * sum(sizes[process]["job_mb"] for process in processes) * 1e6 <= limit, name


def quantity(text: str) -> float:
    """Bytes of a Kubernetes quantity of memory."""
    number, unit = re.fullmatch(r"([0-9.]+)([KMGT]i)?", text).groups()  # type: ignore[union-attr]
    return float(number) * 1024.0 ** ("KMGT".index(unit[0]) + 1 if unit else 0)


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    listed = [labels.get(item["key"]) in item["values"] for item in selector.get("matchExpressions", [])]
    return all(listed) and selector.get("matchLabels", {}).items() <= labels.items()


def may_reach(variant: str, source: dict[str, str] | None, target: str, port: int) -> bool:
    """Whether the policies let a pod with these labels, None one of another namespace, through to a component."""
    labels = pods(variant)[target]["metadata"]["labels"]
    for policy in of_kind(variant, "NetworkPolicy").values():
        if not matches(policy["spec"]["podSelector"], labels) or "Ingress" not in policy["spec"]["policyTypes"]:
            continue
        for rule in policy["spec"].get("ingress", []):
            ports = [item["port"] for item in rule.get("ports", [])]
            peers = [peer["podSelector"] for peer in rule.get("from", []) if "podSelector" in peer]
            from_all = not rule.get("from")
            if (not ports or port in ports) and (
                from_all or (source is not None and any(matches(peer, source) for peer in peers))
            ):
                return True
    return False


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        (None, "train", 7000, True),
        (None, "gateway", 7000, True),
        (None, "store", 9000, True),
        (None, "store", 9333, False),
        (None, "train", 9090, False),
        (None, "ray-head", 6379, False),
        (None, "postgres", 5432, False),
        ("gateway", "train", 7000, True),
        ("gateway", "postgres", 5432, False),
        ("gateway", "ray-head", 6379, False),
        ("train", "preprocess", 7000, True),
        ("train", "postgres", 5432, True),
        ("train", "ray-head", 6379, True),
        ("ray-head", "train", 23456, True),
        ("gpu", "cpu", 12345, True),
        ("gpu", "ingest", 12345, True),
        ("gpu", "postgres", 5432, False),
        ("store", "ray-head", 6379, False),
    ],
)
def test_who_may_reach_whom(source: str | None, target: str, port: int, allowed: bool) -> None:
    """The table of docs/hosts.md, as network policies."""
    labels = pods("bundled")[source]["metadata"]["labels"] if source else None
    assert may_reach("bundled", labels, target, port) == allowed


def test_callers_can_be_listed() -> None:
    assert not may_reach("by reference", None, "train", 7000)
    assert may_reach("by reference", pods("by reference")["gateway"]["metadata"]["labels"], "train", 7000)


def test_metrics_are_scraped_from_the_services_alone() -> None:
    (monitor,) = of_kind("by reference", "ServiceMonitor").values()
    services = of_kind("by reference", "Service")
    chosen = [item for item in services.values() if matches(monitor["spec"]["selector"], item["metadata"]["labels"])]
    (endpoint,) = monitor["spec"]["endpoints"]
    (service,) = chosen
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    scraped = {
        name
        for name, template in pods("by reference").items()
        if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    }
    assert scraped == set(OURS)


def test_versions_are_those_of_the_suite() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["version"] == chart["appVersion"] == version
    image = f"{VALUES['image']['repository']}:{chart['appVersion']}"
    assert SERVICES["train"]["image"] == image == pods("bundled")["train"]["spec"]["containers"][0]["image"]
    assert f"ray=={VALUES['ray']['version']}\n" in (ROOT / "constraints.txt").read_text()
    for name in ("postgres", "store"):
        assert f":-{VALUES[name]['image']}}}" in COMPOSE["services"][name]["image"]
    (config,) = of_kind("bundled", "ConfigMap").values()
    assert config["data"]["databases.sql"] == (ROOT / "docker/databases.sql").read_text()
