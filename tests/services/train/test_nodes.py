"""Nodes with declared GPUs that join, leave and die while jobs wait and train: real Ray nodes.

Workers fall to the CPU by what each finds when it starts, as in no product: its node is told that it has no GPU.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltxtrain_services.runtime.objects import StoreAddress

# Every worker of these nodes imports it when it starts.
NO_GPU = """
import sys
if any("default_worker" in word for word in sys.orig_argv):
    import ltxtrain_services.runtime.cluster as cluster
    cluster.gpu_assigned = lambda: False
"""

# In a process of its own, which can attach to one cluster only.
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster as Nodes
from ltxtrain.v1.work_pb2 import Stage, State
from ltxtrain_services.runtime import cluster as module
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests.services.train.running import running, steps_of

module.PROBE_SECONDS = 0.5
state, model, store = Path(sys.argv[1]), Path(sys.argv[2]), StoreAddress(**json.loads(sys.argv[3]))

async def waits(trainer, job, needed, present):
    async for _, event in trainer.jobs.log.follow(job, 0):
        position = event.queue_position if event is not None else None
        if position is not None and (position.needed_gpus, position.cluster_gpus) == (needed, present):
            return
    raise AssertionError(f"{job} ended: {await trainer.jobs.get(job)}")

async def main():
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=nodes.address, log_to_driver=False)
    cluster = Cluster(needs_gpus=True)
    watch = asyncio.create_task(cluster.watch())
    async with running(state, model, store, cluster, max_gpus=2) as trainer:
        samples = await trainer.samples(4)
        options = {"checkpoint_interval": 10, "holdout_fraction": 0.0}

        # Nobody has a GPU: the job asks for one and waits, and is not taken to a CPU.
        job = await trainer.start(samples, options)
        await waits(trainer, job, 1, 0)
        assert (await trainer.jobs.get(job)).waiting.needed_gpus == 1
        demanded = [group["state"] for group in ray.util.placement_group_table().values()]
        assert demanded.count("PENDING") == 1, demanded
        first = nodes.add_node(num_cpus=1, num_gpus=1)
        await trainer.reached(job, 12)
        # Its node dies, and it waits for another, from its checkpoint.
        nodes.remove_node(first, allow_graceful=False)
        second = nodes.add_node(num_cpus=1, num_gpus=1)
        ended = await trainer.ended(job)
        assert ended.lifecycle.state == State.STATE_SUCCEEDED, ended.lifecycle.error
        assert steps_of(await trainer.events(job))[-1] == 100

        # Two are more than there are now: others go on meanwhile, and it begins when the second comes.
        both = await trainer.start(samples, options | {"batch_size": 2, "gpu_count": 2})
        await waits(trainer, both, 2, 1)
        third = nodes.add_node(num_cpus=1, num_gpus=1)
        await trainer.reached(both, 12)
        # One leaves in good order: what the job then lacks is told, until it is there.
        nodes.remove_node(third, allow_graceful=True)
        await waits(trainer, both, 2, 1)
        nodes.add_node(num_cpus=1, num_gpus=1)
        ended = await trainer.ended(both)
        assert ended.lifecycle.state == State.STATE_SUCCEEDED, ended.lifecycle.error
    watch.cancel()
    ray.shutdown()
    nodes.shutdown()

asyncio.run(main())
"""


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_jobs_use_the_gpus_that_there_are_while_nodes_join_leave_and_die(
    tiny_model: Path, object_store: StoreAddress, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_GPU)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])
    store = json.dumps(dataclasses.asdict(object_store), default=str)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "state"), str(tiny_model), store],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=2300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
