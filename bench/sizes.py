"""Memory and disk of each process of the suite: at rest, and at most in a job with the tiny model.

`ltxtrain up` is started, left alone, and given one job; memory is resident memory (VmRSS at rest, VmHWM in the job),
shared memory what is mapped of it (RssShmem), both of every process, by what it is; disk is what lies in the folder of
each part after the job. --out writes what docs/settings.md and the chart's tests read. Prints one line of JSON:

NAME: rest_mb, job_mb   memory of a process of that name, the largest where there are several
NAME: shm_mb            of it shared, at its largest
NAME: disk_mb           in its folder
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import idle
from ltxtrain_services.local.demo_data import make_demo_clips
from ltxtrain_trainer.model.tiny import build_tiny_model

REST_SECONDS = 20.0
LOOK_SECONDS = 0.2
SHEET = {
    "trigger_phrase": "at night",
    "number_of_steps": 100,
    "rank": 8,
    "conditioning_frames": 9,
    "number_of_frames": 17,
    "resolution": "low",
    "aspect_ratio": "16:9",
}
# Folders below the state of `ltxtrain up`, by what keeps them.
FOLDERS = ("ingest", "preprocess", "train", "store")
# Workers before they are an actor, and what is gone.
SHORT_LIVED = ("Ray: IDLE", "ended", "")
Sizes = dict[str, dict[str, float]]


def look(root: int, memory: str) -> Sizes:
    """Memory and shared memory of each process that descends from the root, in MB, by name."""
    found: Sizes = defaultdict(dict)
    for pid, process in idle.processes(root).items():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        sizes = {
            name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", status, re.M)
        }
        if (name := plain(process.name)) in SHORT_LIVED or "python" in name:
            continue
        kept = found[name]
        kept["memory"] = max(kept.get("memory", 0.0), sizes.get(memory, 0.0))
        kept["shm"] = max(kept.get("shm", 0.0), sizes.get("RssShmem", 0.0))
    return found


def plain(name: str) -> str:
    """An actor by its class, whatever it is at."""
    actor = re.search(r"ray::(\w+)", name)
    return f"Ray: {actor[1]}" if actor else name


def run_job(environ: dict[str, str], folder: Path) -> None:
    """A whole job, with a preview at its end."""
    sheet = folder / "job.json"
    sheet.write_text(json.dumps(SHEET))
    command = [sys.executable, "-m", "ltxtrain_client.cli", "submit", str(sheet), "--watch", "--json"]
    command += ["--data", str(make_demo_clips(folder))]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def measure(folder: Path) -> Sizes:
    build_tiny_model(folder / "model")
    settings = {"LTXTRAIN_MODEL": str(folder / "model"), "LTXTRAIN_TORCH_THREADS": "1"}
    with idle.suite(folder, settings) as (root, environ):
        time.sleep(REST_SECONDS)
        rest, most = look(root, "VmRSS"), look(root, "VmHWM")
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(LOOK_SECONDS):
                for name, sizes in look(root, "VmHWM").items():
                    for key, value in sizes.items():
                        most.setdefault(name, {})[key] = max(most.get(name, {}).get(key, 0.0), value)

        following = threading.Thread(target=follow)
        following.start()
        try:
            run_job(environ, folder)
        finally:
            ended.set()
            following.join()
        disk = {
            name: sum(path.stat().st_size for path in (folder / "state" / name).rglob("*") if path.is_file()) / 1e6
            for name in FOLDERS
        }
    found: Sizes = {}
    for name in sorted(most):
        found[name] = {"rest_mb": rest.get(name, {}).get("memory", 0.0), "job_mb": most[name]["memory"]}
        found[name]["shm_mb"] = most[name]["shm"]
    for name, size in disk.items():
        found.setdefault("object store" if name == "store" else name, {})["disk_mb"] = size
    return {name: {key: round(value) for key, value in sizes.items()} for name, sizes in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the same; it takes two minutes anyway")
    parser.add_argument("--out", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltxtrain-sizes-") as folder:
        figures = measure(Path(folder))
    print(f"{'process':28s} {'at rest':>8s} {'in a job':>9s} {'shared':>7s} {'disk, MB':>9s}")
    for name, sizes in figures.items():
        cells = [f"{sizes.get(key, 0):.0f}" for key in ("rest_mb", "job_mb", "shm_mb", "disk_mb")]
        print(f"{name:28s} {cells[0]:>8s} {cells[1]:>9s} {cells[2]:>7s} {cells[3]:>9s}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
