"""Two fields of different moments in one frame, made into a frame of one moment."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame

from trainer.media.picture import add_source


class Deinterlacer:
    """As many frames come out as go in, a frame later; frames that are not marked as interlaced pass through."""

    def __init__(self, time_base: Fraction | None, threads: int) -> None:
        self._time_base = time_base
        self._threads = threads
        self._graph: Graph | None = None
        self._kind: tuple[int, int, str] | None = None
        self._entered: deque[VideoFrame] = deque()

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        kind = frame.width, frame.height, frame.format.name
        if kind != self._kind:
            yield from self.flush()
            self._kind = kind
            graph = Graph()
            graph.threads = self._threads
            source, sink = add_source(graph, frame), graph.add("buffersink")
            # Not bwdif: it takes fine lines that alternate from field to field for a pattern that stands still.
            graph.link_nodes(source, graph.add("yadif", "mode=send_frame:parity=auto:deint=interlaced"), sink)
            graph.configure()
            self._graph = graph
        self._entered.append(frame)
        assert self._graph is not None
        self._graph.vpush(frame)
        yield from self._ready()

    def flush(self) -> Iterator[VideoFrame]:
        """The last frame, at the end or before another kind of frame."""
        if self._graph is not None and self._entered:
            self._graph.vpush(None)
            yield from self._ready()
        self._graph, self._kind = None, None
        self._entered.clear()

    def _ready(self) -> Iterator[VideoFrame]:
        assert self._graph is not None
        while self._entered:
            try:
                frame = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            # The filter counts time in half frames; the times of a clip are those of what went in.
            entered = self._entered.popleft()
            frame.pts, frame.duration, frame.time_base = entered.pts, entered.duration, self._time_base
            yield frame
