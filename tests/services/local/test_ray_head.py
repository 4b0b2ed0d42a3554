"""A Ray head whose parts are killed."""

import asyncio
from pathlib import Path

from ltxtrain_services.local.ray_head import RayHead
from ltxtrain_services.runtime.cluster import wait_for_listener
from tests import processes


async def test_a_head_that_lost_its_raylet_is_started_again(tmp_path: Path) -> None:
    with RayHead(tmp_path, num_cpus=1) as head:
        first = head.pid
        # The raylet ends with its agents, in good order.
        agents = [
            pid for pid in processes.descendants(first) if processes.title(pid).startswith("ray::RuntimeEnvAgent")
        ]
        processes.kill(agents[0])
        await asyncio.wait_for(processes.gone(first), 60)
        await asyncio.to_thread(wait_for_listener, head.address, 60)
        assert head.pid != first
