"""A Ray head whose parts are killed, and what it does without until somebody asks."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltxtrain_services.local.ray_head import RayHead
from ltxtrain_services.runtime import ray_hook
from ltxtrain_services.runtime.cluster import wait_for_listener
from tests import processes

# Prints what an actor finds in its environment.
DRIVER = """
import os, sys, ray
ray.init(sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=0, runtime_env={"env_vars": {"GREETING": "from the environment"}})
class Actor:
    def greeting(self):
        return os.environ["GREETING"]

print(ray.get(Actor.remote().greeting.remote()))
"""


async def test_a_head_that_lost_its_raylet_is_started_again(tmp_path: Path) -> None:
    with RayHead(tmp_path, num_cpus=1) as head:
        first = head.pid
        # The raylet ends with its agents, in good order.
        processes.kill(agents(first)[0])
        await asyncio.wait_for(processes.gone(first), 60)
        await asyncio.to_thread(wait_for_listener, head.address, 60)
        assert head.pid != first


@pytest.mark.parametrize("role", ["nothing", "when-asked"])
def test_an_agent_ends_with_its_raylet(tmp_path: Path, role: str) -> None:
    options = [f"--session-dir={tmp_path}", "--node-id=1", "--node-ip-address=127.0.0.1", "--runtime-env-agent-port=0"]
    agent = subprocess.Popen([*ray_hook.PROGRAM, role, "agent", *options], stdin=subprocess.PIPE)
    assert agent.stdin is not None
    agent.stdin.close()
    assert agent.wait(60) == 0
    told = {path.name: int(path.read_text()) for path in tmp_path.iterdir()}
    ports = {f"{name}_1": -1 for name in ray_hook.AGENT_PORTS}
    assert told == ports if role == "nothing" else told["runtime_env_agent_port_1"] > 0


def test_the_agent_of_environments_is_there_when_an_actor_asks_for_one(tmp_path: Path) -> None:
    """Both agents are small processes at rest, which one of them leaves off to be."""
    with RayHead(tmp_path, num_cpus=1) as head:
        assert len(agents(head.pid)) == 2
        environ = os.environ | head.environ()
        command = [sys.executable, "-c", DRIVER, head.address]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout == "from the environment\n"
        assert len(agents(head.pid)) == 1


def agents(head: int) -> list[int]:
    """Small processes in the place of a raylet's agents."""
    roles = ("\0nothing\0", "\0when-asked\0")
    return [pid for pid in processes.descendants(head) if any(role in processes.title(pid) for role in roles)]
