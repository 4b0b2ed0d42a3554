"""How fast and in how much memory clips are preprocessed, beside other ways of doing the same work.

    bench/preprocess.py [--quick]

Decodes 89 frames of 1080p H.264 at 8 Mbit/s to 768 x 768 RGB. Every way runs in a process of its own that is started
and warmed up before it is timed; rounds are interleaved and medians are compared, so that load from elsewhere meets all
of them. The last line is one JSON object:

    of_ffmpeg               speed over that of one ffmpeg command: same frames, crop and scaling, result thrown away
    of_decode_limit         speed over that of decoding alone
    vs_official             speed over that of decoding all to RGB, antialiased bicubic in torch, then cropping
    peak_mb_ratio_official  peak memory over that of the same
    two_workers             speed of two workers with one decoder thread each over that of one such worker
    cached_rerun            seconds to preprocess clips to 512 x 288 x 17 over those to do so again; the tiny model, for
                            which encoding costs least, through the services

ffmpeg is any on the path (Debian: apt-get install ffmpeg). Without one, of_ffmpeg and of_decode_limit are measured
against the same libav calls in Python, and the table says so.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.common.rerun import measure_rerun

FRAMES, SIDE = 89, 768
# Does the work on so many frames; returns seconds where it measures better than its caller can.
Way = Callable[[Path, int], float | None]
WIDTH, HEIGHT, CLIP_FRAMES, BIT_RATE = 1920, 1080, 96, 8_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within a minute")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("clip", nargs="?", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        serve(WAYS[arguments.way], arguments.clip)
        return
    with tempfile.TemporaryDirectory() as folder:
        rounds, reruns, clips = (3, 1, 2) if arguments.quick else (13, 3, 4)
        keys = measure_media(Path(folder), rounds)
        keys |= measure_rerun(Path(folder), rounds=reruns, clips=clips)
    print(json.dumps({key: round(value, 3) for key, value in keys.items()}))


def measure_media(folder: Path, rounds: int) -> dict[str, float]:
    """The keys that are about clips as files; prints their table."""
    clip = make_clip(folder / "clip.mp4")
    reference, limit = ("ffmpeg", "ffmpeg decode") if shutil.which("ffmpeg") else ("graph", "decode")
    ways = ["ours", reference, limit, "official"]
    workers = {way: Worker(way, clip) for way in ways}
    pair = [Worker("one thread", clip) for _ in range(2)]
    for worker in (*workers.values(), *pair):
        worker.wait_until_warm()
    seconds: dict[str, list[float]] = {way: [] for way in [*ways, "one worker", "two workers"]}
    for turn in range(rounds):
        for way, worker in workers.items():
            # Ten times slower than the others, so that a few of its rounds must do.
            if way != "official" or turn % 5 == 0:
                worker.start()
                seconds[way].append(worker.finish())
        pair[0].start()
        seconds["one worker"].append(pair[0].finish())
        begun = time.perf_counter()
        for worker in pair:
            worker.start()
        for worker in pair:
            worker.finish()
        seconds["two workers"].append(time.perf_counter() - begun)
    peaks = {way: worker.stop() for way, worker in workers.items()}
    for worker in pair:
        worker.stop()
    median = {way: statistics.median(values) for way, values in seconds.items()}
    print(f"{FRAMES} frames {WIDTH}x{HEIGHT} H.264 at {clip.stat().st_size * 8 * 24 / CLIP_FRAMES / 1e6:.1f} Mbit/s")
    for way, values in seconds.items():
        spread = f"{min(values):.2f}-{max(values):.2f} s"
        frames = FRAMES * (2 if way == "two workers" else 1)
        peak = f"{peaks[way]:6.0f} MB" if way in peaks else ""
        print(f"  {way:16s} {frames / median[way]:7.1f} frames/s   {spread:14s} {peak}")
    return {
        "of_ffmpeg": median[reference] / median["ours"],
        "of_decode_limit": median[limit] / median["ours"],
        "vs_official": median["official"] / median["ours"],
        "peak_mb_ratio_official": peaks["ours"] / peaks["official"],
        "two_workers": 2 * median["one worker"] / median["two workers"],
    }


class Worker:
    """A process that does one thing each time it is asked."""

    def __init__(self, way: str, clip: Path) -> None:
        command = [sys.executable, __file__, str(clip), "--way", way]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_warm(self) -> None:
        self._read()

    def start(self) -> None:
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)

    def finish(self) -> float:
        """Seconds of the work that was started."""
        return float(self._read())

    def stop(self) -> float:
        """Ends the process; its peak memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = float(self._read())
        self.process.wait()
        return peak

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def serve(way: Way, clip: Path) -> None:
    """Warms up, then does the work once for each line; at the end, says how much memory it took."""
    way(clip, 9)
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        own_time = way(clip, FRAMES)
        print(own_time if own_time is not None else time.perf_counter() - begun, flush=True)
    used = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(used / 1024, flush=True)


def ours(clip: Path, frames: int, threads: int = 0) -> None:
    from ltxtrain_trainer.geometry import Geometry
    from ltxtrain_trainer.media.fit import fit_clip
    from ltxtrain_trainer.media.frame_schedule import FitSettings

    geometry = Geometry(width=SIDE, height=SIDE, frame_count=frames, frame_rate=24)
    fit_clip(
        clip,
        FitSettings(geometry=geometry, auto_scale=False, with_audio=False, normalize_audio=True, preserve_pitch=True),
        threads=threads,
    )


def ffmpeg(clip: Path, frames: int, *filters: str) -> float:
    command = ["ffmpeg", "-benchmark", "-i", str(clip), "-frames:v", str(frames), "-an", *filters, "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # What ffmpeg says of itself leaves its start out, as ours is left out.
    return float(done.stderr.rsplit("rtime=", 1)[1].split("s", 1)[0])


def filters_of_ours() -> str:
    from ltxtrain_trainer.media.picture import RESAMPLER

    return f"crop={HEIGHT}:{HEIGHT},scale={SIDE}:{SIDE}:flags={RESAMPLER},format=rgb24"


def decode(clip: Path, frames: int) -> None:
    import av

    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _, _frame in zip(range(frames), container.decode(video=0), strict=False):
            pass


def graph(clip: Path, frames: int) -> None:
    import av
    from av.filter import Graph

    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        chain = Graph()
        nodes = [chain.add_buffer(template=stream)]
        nodes += [chain.add(*text.split("=", 1)) for text in filters_of_ours().split(",")]
        chain.link_nodes(*nodes, chain.add("buffersink")).configure()
        for _, frame in zip(range(frames), container.decode(stream), strict=False):
            chain.vpush(frame)
            chain.vpull()


def official(clip: Path, frames: int) -> None:
    """The way of the reference trainer: all frames whole, as floats, resized in one batch, then cropped."""
    import av
    import numpy as np
    import torch

    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        pictures = [
            frame.to_ndarray(format="rgb24") for _, frame in zip(range(frames), container.decode(video=0), strict=False)
        ]
    video = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    size = (SIDE, round(WIDTH * SIDE / HEIGHT))
    resized = torch.nn.functional.interpolate(video, size=size, mode="bicubic", antialias=True)
    left = (size[1] - SIDE) // 2
    resized[..., left : left + SIDE].clamp(0, 1).contiguous()


def make_clip(path: Path) -> Path:
    """A moving pattern with grain, which takes its bit rate."""
    import av
    from av.filter import Graph

    chain = Graph()
    nodes = [chain.add("testsrc2", f"size={WIDTH}x{HEIGHT}:rate=24"), chain.add("noise", "alls=12:allf=t:all_seed=1")]
    nodes += [chain.add("format", "yuv420p"), chain.add("buffersink")]
    chain.link_nodes(*nodes).configure()
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "maxrate": str(BIT_RATE), "bufsize": str(BIT_RATE)}
        stream: Any = container.add_stream("libx264", rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", BIT_RATE
        for index in range(CLIP_FRAMES):
            frame = chain.vpull()
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


WAYS: dict[str, Way] = {
    "ours": ours,
    "one thread": lambda clip, frames: ours(clip, frames, threads=1),
    "ffmpeg": lambda clip, frames: ffmpeg(clip, frames, "-vf", filters_of_ours()),
    "ffmpeg decode": ffmpeg,
    "graph": graph,
    "decode": decode,
    "official": official,
}

if __name__ == "__main__":
    main()
