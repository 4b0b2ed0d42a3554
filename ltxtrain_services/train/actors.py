"""Ray actors that train, or use a LoRA: one a GPU, or one on the CPU. Thin around the trainer: fetch, run, store."""

import dataclasses
import logging
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ltxtrain_services.runtime.cluster import gpu_assigned
from ltxtrain_services.runtime.disk import scratch_folder
from ltxtrain_services.runtime.objects import Objects, StoreAddress
from ltxtrain_services.runtime.telemetry import resumed_trace
from ltxtrain_services.train.artifacts import StoredFile, object_key
from ltxtrain_trainer.errors import PeerLost, TrainerError
from ltxtrain_trainer.plan import ContinuationPlan, JobPlan
from ltxtrain_trainer.reports import Report
from ltxtrain_trainer.training.requests import Request, Requests

if TYPE_CHECKING:
    import torch

    from ltxtrain_trainer.training.distributed import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A file in the object store that a plan needs on this machine."""

    key: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """A plan whose paths are relative, and where each of them comes from."""

    job: str
    plan: JobPlan | ContinuationPlan
    files: dict[str, Remote]
    worker_count: int
    # The trace that the work belongs to, across processes.
    trace: dict[str, str]
    # Workers that share the tokens of each clip.
    team_size: int = 1


@dataclass(frozen=True)
class Stored:
    """A report of the trainer, and its files where they are now."""

    report: Report
    files: tuple[StoredFile, ...] = ()


@ray.remote(concurrency_groups={"requests": 1})  # type: ignore[call-overload] # its stubs lack it
class TrainActor:
    """One worker of a training; `run` streams reports. Killing it at any moment loses nothing that was stored."""

    def __init__(self, store: StoreAddress, rank: int, threads: int) -> None:
        self._objects = Objects(store)
        self._rank = rank
        self._threads = threads
        self._requests = Requests()

    def meeting_point(self) -> str:
        """host:port on this machine where the workers of a group find each other."""
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            address: str = ray.util.get_node_ip_address()
            return f"{address}:{free.getsockname()[1]}"

    @ray.method(concurrency_group="requests")
    def request(self, request: Request) -> None:
        """Ask the training that runs meanwhile; for the first worker alone."""
        self._requests.put(request)

    def run(self, task: TrainTask, meeting_point: str) -> Iterator[Stored | PeerLost]:
        """Yield the first worker's reports as they come; PeerLost is the last item when another worker is gone.

        Raises every other TrainerError, and DiskFull.
        """
        import torch

        from ltxtrain_trainer.model.device import device_of
        from ltxtrain_trainer.reports import Stopped
        from ltxtrain_trainer.training.distributed import join

        # Of this thread, as OpenMP counts them.
        torch.set_num_threads(self._threads)
        device = device_of(gpu_expected=gpu_assigned())
        try:
            with (
                resumed_trace(task.trace, "train", flush=True),
                join(self._rank, task.worker_count, meeting_point, device, team_size=task.team_size) as worker,
            ):
                with scratch_folder("train") as work_dir:
                    last = yield from self._run(task, device, worker, work_dir)
                # Whoever gets the last report ends all workers: before it, each has left its folder. But one that was
                # asked to stop leaves the others within a step.
                if last is None or not isinstance(last.report, Stopped):
                    worker.collected(None)
            if last is not None:
                yield last
        except PeerLost as error:
            yield error

    def _run(
        self, task: TrainTask, device: "torch.device", worker: "Worker", work_dir: Path
    ) -> Generator[Stored, None, Stored | None]:
        """Yields the first worker's reports but its last, and returns that."""
        from ltxtrain_trainer.reports import Checkpointed, Finished, Stopped
        from ltxtrain_trainer.training.beside import Beside

        plan, last = self._fetched(task, worker, work_dir), None
        with Beside[Stored]("uploads") as uploads:
            try:
                for report in self._reports(plan, device, worker):
                    if self._rank:
                        continue
                    if isinstance(report, Checkpointed):
                        # Gigabytes: a slow store costs no step.
                        yield from uploads.start(partial(self._stored, task.job, report))
                    elif isinstance(report, Finished | Stopped):
                        yield from uploads.rest()
                        last = self._stored(task.job, report)
                    else:
                        yield self._stored(task.job, report)
                        yield from uploads.ready()
            except TrainerError:
                # The checkpoint before the error is the last good one.
                yield from uploads.rest()
                raise
        return last

    def _reports(self, plan: JobPlan | ContinuationPlan, device: "torch.device", worker: "Worker") -> Iterator[Report]:
        from ltxtrain_trainer.continuation import continue_clips
        from ltxtrain_trainer.job import run_job

        if isinstance(plan, ContinuationPlan):
            return continue_clips(plan, device=device)
        return run_job(plan, device=device, worker=worker, requests=self._requests)

    def _fetched(self, task: TrainTask, worker: "Worker", work_dir: Path) -> JobPlan | ContinuationPlan:
        """The plan with its files on this machine, where one worker fetches them for all."""
        inputs, made = work_dir / "inputs", work_dir / "made"
        inputs.mkdir()
        made.mkdir()
        node = ray.get_runtime_context().get_node_id() if worker.count > 1 else ""
        folders = [folder for at, folder in worker.exchanged((node, inputs)) if at == node]
        if inputs == folders[0]:
            for name, remote in task.files.items():
                self._objects.get_file(remote.key, inputs / name, sha256=remote.sha256)
                for other in folders[1:]:
                    # Its own from then on: neither worker's end takes it from the other.
                    os.link(inputs / name, other / name)
        worker.exchanged(None)
        placed = _replace_paths(task.plan, inputs)
        assert isinstance(placed, JobPlan | ContinuationPlan)
        return dataclasses.replace(placed, work_dir=made)

    def _stored(self, job: str, report: Report) -> Stored:
        stored = []
        for file in getattr(report, "files", ()):
            blob = self._objects.put_file(object_key(job, file.path.name), file.path, file.content_type)
            stored.append(StoredFile(file=dataclasses.replace(file, path=Path(file.path.name)), blob=blob))
            file.path.unlink()
        return Stored(report, tuple(stored))


@ray.remote
class AuditActor:
    """Audits a stored LoRA; needs no GPU."""

    def __init__(self, store: StoreAddress) -> None:
        self._objects = Objects(store)

    def audit(self, lora: Remote, model: str, revision: str | None, with_audio: bool) -> dict[str, Any]:
        """The numbers of a LoRA that passes. Raises TrainerError."""
        from ltxtrain_trainer.lora_file.audit import audit_lora
        from ltxtrain_trainer.model.folder import resolve_model

        with scratch_folder("audit") as folder:
            path = folder / "lora.safetensors"
            self._objects.get_file(lora.key, path, sha256=lora.sha256)
            audit = audit_lora(path, resolve_model(model, revision, ("transformer",)), with_audio=with_audio)
        return dataclasses.asdict(audit)


def _replace_paths(value: Any, folder: Path) -> Any:
    """The same dataclasses and tuples, with every relative path put into a folder."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple):
        return tuple(_replace_paths(item, folder) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {item.name: _replace_paths(getattr(value, item.name), folder) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
