"""The containers for real: build the image, run compose.yaml as it is, train, kill, take it down and up.

docker/rehearse [--json FILE] [--skip-rebuild]

Needs the project installed (`make install`), and Docker with Compose, or podman with Docker's `docker-compose`. Works
on a copy of the checkout, in a project of its own with new secrets, and removes what it started; the ports that
compose.yaml publishes must be free. Other images are named by PYTHON_IMAGE, POSTGRES_IMAGE and STORE_IMAGE
(docker/stand-ins makes some without a registry); BUILD_OPTIONS go to the build. The LoRA of a job that is disturbed in
every way has to equal that of one that nothing happened to. Prints a line for each step and one JSON object of figures.
Exit status 77: there is nothing here to run containers with.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ltxtrain.v1.work_pb2 import Stage, State  # noqa: E402 (the path comes first)
from ltxtrain_client import Suite, open_suite, parse_sheet, read_settings  # noqa: E402
from ltxtrain_client.outputs import file_name  # noqa: E402

from bench.common.engine import Failed, NoEngine, Project, opened  # noqa: E402

NAME = "ltxtrain-rehearsal"
PORTS = (7000, 7001, 7002, 7003, 9000)
NOTHING_TO_RUN_WITH = 77
STEPS = 100
# To build again after.
CHANGED, CHANGE = "ltxtrain_services/runtime/settings.py", "# A change of code.\n"
SETTINGS = """LTXTRAIN_MODEL=/models/pocket
LTXTRAIN_SHM=2gb
"""
LAST_LINE = """import ltxtrain_services.runtime.settings as changed
print(open(changed.__file__).read().splitlines()[-1])
"""
NODES = """import ray
ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="error")
print(sum(node["Resources"].get("CPU", 0) > 0 for node in ray.nodes() if node["Alive"]))
"""


class Rehearsal:
    """The steps, in their order, and what was measured."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project = project
        self.folder = folder
        self.figures: dict[str, float | str] = {"engine": project.program}
        token = (folder / "secrets/tokens").read_text().split()[1]
        self.environ = {"LTXTRAIN_TOKEN": token} | {
            f"LTXTRAIN_{name}": f"127.0.0.1:{port}"
            for name, port in (("INGEST", 7001), ("PREPROCESS", 7002), ("TRAIN", 7003))
        }

    def note(self, key: str, value: float | str, text: str) -> None:
        self.figures[key] = round(value, 1) if isinstance(value, float) else value
        print(f"{time.strftime('%H:%M:%S')}  {text}: {self.figures[key]}", flush=True)

    def timed(self, key: str, text: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = work()
        self.note(key, time.monotonic() - started, f"{text}, seconds")
        return result

    def build(self, rebuild: bool) -> None:
        image = image_of((self.folder / "compose.yaml").read_text())
        self.timed("build_seconds", f"{image} is built", lambda: self._build(image))
        size = self.project.engine("image", "inspect", "--format", "{{.Size}}", image)
        self.note("image_gb", int(size) / 1e9, "it has GB")
        if rebuild:
            with (self.folder / CHANGED).open("a") as file:
                file.write(CHANGE)
            other = f"{image}-rehearsal"
            self.timed("rebuild_seconds", "after a change of code it is built again", lambda: self._build(other))
            inside = ["run", "--rm", "--entrypoint", "python", other, "-c"]
            if not self.project.engine(*inside, LAST_LINE).endswith(CHANGE):
                raise Failed("After a change of code the image still has the code of before.")
            self.project.engine("image", "rm", other)

    def _build(self, image: str) -> None:
        named = [name for name in ("PYTHON_IMAGE", "TORCH_INDEX") if os.environ.get(name)]
        given = [f"--build-arg={name}={os.environ[name]}" for name in named]
        options = shlex.split(os.environ.get("BUILD_OPTIONS", ""))
        self.project.engine("build", "--tag", image, *given, *options, str(self.folder))

    def up(self, key: str) -> None:
        def work() -> None:
            self.project.compose("up", "--detach")
            self.project.wait_healthy()

        self.timed(key, "up until all containers are healthy", work)

    def put_model(self) -> None:
        """The pocket model, made in a container as the suite's user, lies in the volume as any model would."""
        inside = ["run", "--rm", "--no-deps", "-T", "--entrypoint", "python", "train"]
        self.project.compose(*inside, "-m", "ltxtrain_pocket.model", "/models/pocket")

    def check_containers(self) -> None:
        """No container has a secret in its environment, and none but the database a privilege."""
        files = [path for path in (self.folder / "secrets").iterdir() if path.name not in ("store", "s3_access_key")]
        secrets = [path.read_text().split()[-1] for path in files]
        for container in self.project.containers():
            environment = "\n".join(container.detail["Config"]["Env"])
            if any(secret in environment for secret in secrets):
                raise Failed(f"The environment of {container.name} shows a secret.")
            if container.service != "postgres":
                status = self.project.engine("exec", container.name, "cat", "/proc/1/status")
                user, rights = re.findall(r"^(?:Uid|CapEff):\s+(\S+)", status, re.M)
                if user == "0" or int(rights, 16):
                    raise Failed(f"{container.name} runs as user {user} with capabilities {rights}.")

    def doctor(self) -> None:
        program = str(Path(sys.executable).parent / "ltxtrain")
        done = subprocess.run(
            [program, "doctor", "--json"],
            env=os.environ | self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        failed = [item for item in found if item["verdict"] == "failed"]
        if done.returncode or failed or not found:
            raise Failed(f"ltxtrain doctor: {failed or done.stdout + done.stderr}")
        with urllib.request.urlopen("http://127.0.0.1:7000/healthz", timeout=10) as answer:
            self.note("gateway", answer.status, "doctor finds no fault, and the gateway answers")

    def weigh(self) -> None:
        """Memory of each container at rest, in MB, as the engine counts it."""
        for container in self.project.containers():
            said = self.project.engine("stats", "--no-stream", "--format", "{{.MemUsage}}", container.name)
            self.note(f"{container.service}_mb", megabytes(said.partition("/")[0]), f"{container.service} at rest, MB")

    async def submit(self, suite: Suite) -> str:
        """Upload the clips and submit a job; its name."""
        from ltxtrain_services.local.demo import SHEET
        from ltxtrain_services.local.demo_data import make_demo_clips

        clips = await asyncio.to_thread(make_demo_clips, self.folder)
        upload = await suite.ingest.upload(clips)
        sheet: dict[str, Any] = {key: value for key, value in SHEET.items() if not key.startswith("validation")}
        sheet |= {"training_data_url": upload.url, "number_of_steps": STEPS}
        sheet["options"] = {"preview_interval": 0, "checkpoint_interval": 10}
        parsed = parse_sheet(sheet)
        return (await suite.train.submit(parsed.spec, parsed.options)).name

    async def undisturbed(self) -> str:
        """A job that nothing happens to; the sha256 of its LoRA."""
        async with open_suite(read_settings(os.environ | self.environ)) as suite:
            started = time.monotonic()
            job = await self.submit(suite)
            await self.ended(suite, job)
            self.note("job_seconds", time.monotonic() - started, "a job by the published ports has succeeded, seconds")
            return await self.check_files(suite, job)

    async def ended(self, suite: Suite, job: str) -> None:
        async for _ in suite.train.watch_job(job):
            pass
        lifecycle = (await suite.train.get_job(job)).lifecycle
        if lifecycle.state != State.STATE_SUCCEEDED:
            raise Failed(f"{job} has not succeeded: {lifecycle}")

    async def check_files(self, suite: Suite, job: str) -> str:
        """Every file of a job is served by its signed URL, and by no other; the sha256 of the LoRA."""
        count, lora = 0, (await suite.train.get_job(job)).output.lora_file
        digest = ""
        async for artifact in suite.train.list_artifacts(job):
            path = await suite.train.download(artifact.name, self.folder / "files" / f"{count}-{file_name(artifact)}")
            count += 1
            if artifact.name == lora:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
        url = (await suite.train.get_artifact(lora)).download_url
        status, data = await asyncio.to_thread(get, url, {"Range": "bytes=0-9"})
        forged = url.replace("X-Amz-Signature=", "X-Amz-Signature=0")
        refused, _ = await asyncio.to_thread(get, forged, {})
        if (status, len(data), refused) != (206, 10, 403):
            raise Failed(f"A range of the LoRA: {status} with {len(data)} bytes; a forged signature: {refused}.")
        self.note("files", count, "files served by signed URLs, a range too, and none by a forged one")
        return digest

    async def disturbed(self) -> str:
        """A job with every part killed, and all of it taken down and up; the sha256 of its LoRA."""
        project = self.project
        async with open_suite(read_settings(os.environ | self.environ)) as suite:
            job = await self.submit(suite)
            events = suite.train.watch_job(job)
            async for _, event in events:
                if event.stage in (Stage.STAGE_PREPROCESS, Stage.STAGE_ENCODE):
                    break
            await asyncio.to_thread(project.lose, "ray-worker")
            self.note("worker", "lost", "while data is prepared, the second node")
            plan: list[tuple[int, Callable[[], None]]] = [
                (STEPS // 10, lambda: self.crashed("train")),
                (STEPS * 3 // 10, lambda: self.crashed("ray-head")),
                (STEPS * 5 // 10, self.stores_killed),
                (STEPS * 7 // 10, self.down_and_up),
            ]
            async for _, event in events:
                if plan and event.train_metrics.step >= plan[0][0]:
                    print(f"{time.strftime('%H:%M:%S')}  at step {event.train_metrics.step}:", flush=True)
                    await asyncio.to_thread(plan.pop(0)[1])
            await self.ended(suite, job)
            if plan:
                raise Failed(f"The job ended before {len(plan)} of the disturbances.")
            return await self.check_files(suite, job)

    def crashed(self, service: str) -> None:
        seconds = self.project.crash(service)
        self.note(f"{service}_restart_seconds", seconds, f"{service} killed, started again by its policy, seconds")

    def stores_killed(self) -> None:
        self.project.compose("kill", "store", "postgres", "ingest", "preprocess")
        self.project.compose("start", "store", "postgres", "ingest", "preprocess")
        self.timed(
            "stores_seconds", "store, database, Ingest and Preprocess killed, healthy", self.project.wait_healthy
        )

    def down_and_up(self) -> None:
        self.timed("down_seconds", "down with a job in flight", lambda: self.project.compose("down"))
        self.up("up_again_seconds")

    def join_worker(self) -> None:
        self.project.compose("--profile", "worker", "up", "--detach", "ray-worker")

        def two() -> bool:
            said = self.project.compose("exec", "-T", "ray-head", "python", "-c", NODES, check=False)
            return said.strip().endswith("2")

        self.note("worker_join_seconds", self.project.wait("a second node", two), "a second node of Ray, seconds")

    def remove(self) -> None:
        self.project.compose("--profile", "worker", "down", "--volumes", "--remove-orphans")
        if left := self.project.left():
            raise Failed(f"Left behind after down: {left}")


def megabytes(said: str) -> float:
    """A size as engines print it: 1.5GiB, 12.3MB, 900kB."""
    found = re.fullmatch(r"([\d.]+)\s*([kMG]?)(i?)B", said.strip())
    if found is None:
        raise Failed(f"No size: {said!r}")
    base = 1024 if found[3] else 1000
    return float(found[1]) * float(base ** ("kMG".find(found[2] or "?") + 1)) / 1e6


def get(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def image_of(compose: str) -> str:
    """The name of the suite's image, as every engine and its Docker API understand it."""
    (name,) = set(re.findall(r"^ *image: (ltxtrain:\S+)$", compose, re.M))
    return f"docker.io/library/{name}"


def base_images(folder: Path) -> list[str]:
    """Images that are taken as they are, as the environment or else the files name them."""
    text = (folder / "compose.yaml").read_text() + (folder / "Dockerfile").read_text()
    named = re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}|ARG (PYTHON_IMAGE)=(\S+)", text)
    return [os.environ.get(variable or argument) or default or other for variable, default, argument, other in named]


def copy_checkout(folder: Path) -> None:
    """The files of the checkout that git tracks, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def check_ports() -> None:
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise NoEngine(f"port {port} is taken: stop what uses it, `ltxtrain up` or the containers") from None


def rehearse(folder: Path, *, rebuild: bool) -> dict[str, float | str]:
    copy_checkout(folder)
    subprocess.run(["sh", "docker/make-secrets"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with (folder / ".env").open("a") as file:
        file.write(SETTINGS)
    (folder / "files").mkdir()
    check_ports()
    with opened(folder, NAME) as project:
        for image in base_images(folder):
            try:
                project.engine("image", "inspect", image, check=False) or project.engine("pull", image)
            except Failed as error:
                raise NoEngine(f"{image} cannot be pulled; docker/stand-ins makes one.\n{error}") from None
        steps = Rehearsal(project, folder)
        try:
            steps.remove()
            steps.build(rebuild)
            steps.put_model()
            steps.up("up_seconds")
            steps.check_containers()
            steps.doctor()
            expected = asyncio.run(steps.undisturbed())
            steps.weigh()
            steps.remove()
            steps.put_model()
            steps.up("up_new_seconds")
            steps.join_worker()
            found = asyncio.run(steps.disturbed())
            if found != expected:
                raise Failed(f"The disturbed job's LoRA is {found}, the other's {expected}.")
            steps.note("lora", found[:12], "the LoRA of the disturbed job is the other's, sha256")
        finally:
            steps.remove()
        return steps.figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the containers for real; see the head of this file.")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--skip-rebuild", action="store_true", help="do not measure a build after a change of code")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
            figures = json.dumps(rehearse(Path(folder).resolve(), rebuild=not options.skip_rebuild))
    except NoEngine as error:
        print(f"Nothing was run: {error}", file=sys.stderr)
        return NOTHING_TO_RUN_WITH
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(figures)
    if options.json:
        options.json.write_text(f"{figures}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
