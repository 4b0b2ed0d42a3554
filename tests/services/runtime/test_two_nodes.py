"""A cluster of two nodes, one of them beside a service: what actors make stays where they are, and models stay away."""

import subprocess
import sys

import pytest

# In a process of its own, which can attach to one cluster only.
SCRIPT = """
import asyncio
import ray
from ray.cluster_utils import Cluster as Nodes
from ltxtrain_services.runtime.cluster import Cluster

async def main():
    service = {"num_cpus": 0, "include_dashboard": False, "labels": {"ltxtrain": "service"}}
    nodes = Nodes(initialize_head=True, head_node_args=service)
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    cluster = Cluster()

    @ray.remote(num_cpus=1)
    class Fitter:
        def fit(self):
            for index in range(3):
                yield bytes(50_000_000)
                yield index

    stream = Fitter.remote().fit.options(num_returns="streaming").remote()
    here = ray.get_runtime_context().get_node_id()
    for index in range(3):
        picture = await cluster.reference(stream)
        assert await cluster.value(await cluster.reference(stream)) == index
        (holder,) = ray.experimental.get_object_locations([picture])[picture]["node_ids"]
        assert holder != here
    assert await cluster.reference(stream) is None

    @ray.remote
    class Model:
        def where(self):
            return ray.get_runtime_context().get_node_id()

    models = [Model.options(**cluster.model_options()).remote() for _ in range(4)]
    assert here not in [await cluster.value(model.where.remote()) for model in models]
    ray.shutdown()
    nodes.shutdown()

asyncio.run(main())
"""


@pytest.mark.soak
def test_neither_pictures_nor_models_come_to_a_service() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
