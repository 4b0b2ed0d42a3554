"""How a training fits a card, told before anything runs: weights, adapter, activations, headroom. No tensors.

The sizes of weights and adapter are counted from the model's config. Activations are straight lines through what
bench/memory.py finds by running the trainer's own step on the real model's sizes; the bench says how far the two are
apart. One plan is used by the job (for what it loads, and what it falls back to), by EstimateJob and by error texts.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

GIB = 2**30

# Streaming multiprocessors of an H100; deterministic attention adds up its gradients in as many parts as these need.
MULTIPROCESSORS = 132

# The CUDA context, workspaces of matrix products, and what the allocator cannot use between blocks.
HEADROOM_BYTES = GIB
# Left to the host beside streamed blocks: samples, the object store's cache, the process itself.
HOST_RESERVE_BYTES = 6 * GIB

# From exact to small. fp8 is no rung: it is as large as int8 and needs newer cards; who wants it asks for it.
LADDER = ("bf16", "int8", "nf4")
# Bytes of a weight of a linear layer, scales included; what is around the blocks stays in bfloat16.
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0005, "fp8": 1.001, "nf4": 0.5625}

# Above this many weights a model is not taken to a CPU without being asked: 19 billion are 71 GiB in float32 there,
# and minutes a step.
MAX_CPU_WEIGHTS = 2 * 10**9

# Tensors of a worker's tokens that are under way between those who share a clip: queries, keys and values, as sent and
# as received.
EXCHANGED = 6
BUFFERED_BLOCKS = 2  # ltxtrain_trainer.model.streaming
# Of a use of a LoRA, which trains nothing.
NO_OPTIMIZER = "none"
# Of a weight: itself, gradient, moments.
ADAPTER_BYTES = {"adamw": 16, "adamw_8bit": 10.1, NO_OPTIMIZER: 4}


@dataclass(frozen=True)
class _Line:
    """Bytes of a pass over the real model: of each token, and whatever the tokens."""

    token: float
    fixed: float

    def at(self, tokens: int) -> float:
        return self.token * tokens + self.fixed


# By base format and whether there is audio: a training step with checkpointing, and one forward pass of a preview.
_STEP = {
    ("bf16", False): _Line(918_744, 0.044 * GIB),
    ("int8", False): _Line(908_373, 0.439 * GIB),
    ("fp8", False): _Line(861_400, 0.981 * GIB),
    ("nf4", False): _Line(908_696, 0.124 * GIB),
    ("bf16", True): _Line(1_070_820, 0.018 * GIB),
    ("int8", True): _Line(1_055_992, 0.662 * GIB),
    ("fp8", True): _Line(1_038_052, 1.099 * GIB),
    ("nf4", True): _Line(1_060_772, 0.099 * GIB),
}
_FORWARD = {
    ("bf16", False): _Line(303_904, 0.031 * GIB),
    ("int8", False): _Line(301_428, 0.049 * GIB),
    ("fp8", False): _Line(242_096, 0.643 * GIB),
    ("nf4", False): _Line(301_428, 0.049 * GIB),
    ("bf16", True): _Line(402_208, 0.026 * GIB),
    ("int8", True): _Line(399_732, 0.044 * GIB),
    ("fp8", True): _Line(340_400, 0.643 * GIB),
    ("nf4", True): _Line(399_732, 0.044 * GIB),
}
# By the same: the bytes that one block leaves for its backward pass, beside its input, where it is not computed once
# more. The last one's are there anyway. int8 and fp8 leave the weights that they were multiplied as.
_KEPT = {
    ("bf16", False): _Line(361_496, 0.037 * GIB),
    ("int8", False): _Line(361_496, 0.475 * GIB),
    ("fp8", False): _Line(361_496, 0.475 * GIB),
    ("nf4", False): _Line(361_496, 0.037 * GIB),
    ("bf16", True): _Line(456_228, 0.040 * GIB),
    ("int8", True): _Line(456_228, 0.681 * GIB),
    ("fp8", True): _Line(456_228, 0.681 * GIB),
    ("nf4", True): _Line(456_228, 0.040 * GIB),
}
_REAL_WIDTH = 4096
# Of the free memory that kept activations may fill together with all else: more than the plan is known to be off by.
KEPT_SHARE = 0.9
# The same on a CPU, whose memory others use as well, and where nothing can be caught.
CPU_KEPT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Widths of an LTX 2.3 transformer; the defaults are the published model's."""

    layers: int = 48
    width: int = 4096
    audio_width: int = 2048
    heads: int = 32
    audio_heads: int = 32

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelSize":
        """The size by the transformer's config.json; fields that it lacks are the published model's."""
        heads, audio_heads = config.get("num_attention_heads", 32), config.get("audio_num_attention_heads", 32)
        return cls(
            layers=config.get("num_layers", 48),
            width=heads * config.get("attention_head_dim", 128),
            audio_width=audio_heads * config.get("audio_attention_head_dim", 64),
            heads=heads,
            audio_heads=audio_heads,
        )

    def block_weights(self, with_audio: bool) -> tuple[int, int]:
        """Weights of a block: those of linear layers, which can be quantized, and all others."""
        video, audio = self.width, self.audio_width
        linear = 16 * video**2
        # Biases, norms and tables; and the gates of the heads, which stay as they are.
        other = (13 + 4 + 11) * video + 2 * self.heads * (video + 1)
        if with_audio:
            linear += 16 * audio**2 + 4 * (audio**2 + video * audio)
            other += (13 + 4 + 11) * audio + 2 * self.audio_heads * (audio + 1)
            other += 5 * (video + audio) + (7 + 4) * audio + video + self.heads * (video + 1 + audio + 1)
        return linear, other

    def outer_weights(self, with_audio: bool) -> int:
        """Weights around the blocks, all of which stay in the format of the arithmetic."""
        video, audio = self.width, self.audio_width

        def adaln(width: int, rows: int) -> int:
            return 256 * width + width + width**2 + width + rows * (width**2 + width)

        def ends(width: int) -> int:
            return 128 * width + width + width * 128 + 128 + 2 * width

        count = adaln(video, 9) + adaln(video, 2) + ends(video)
        if with_audio:
            count += adaln(audio, 9) + adaln(audio, 2) + ends(audio)
            count += sum(adaln(width, rows) for width in (video, audio) for rows in (4, 1))
        return count

    def weights(self, with_audio: bool) -> int:
        """All weights that a job with or without audio loads."""
        return self.layers * sum(self.block_weights(with_audio)) + self.outer_weights(with_audio)

    def forward_flop(self, tokens: int) -> float:
        """FLOP of one forward pass: two for each weight and token, and attention's, which grow with their square."""
        return 2.0 * self.weights(False) * tokens + 4.0 * self.layers * self.width * tokens**2

    def adapter_weights(self, rank: int, with_audio: bool) -> int:
        """Weights of the adapter: two factors for each of its modules (ltxtrain_trainer.training.lora)."""
        video, audio = self.width, self.audio_width
        sides = 26 * video + (26 * audio + 4 * video + 12 * audio if with_audio else 0)
        return self.layers * rank * sides


PUBLISHED = ModelSize()


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of a plan: tokens of one training clip and of one preview (0: none of it), adapter and optimizer.

    workers_per_clip: that share the tokens of a training clip; each samples whole previews.
    """

    tokens: int
    rank: int
    with_audio: bool
    optimizer: str = "adamw"
    preview_tokens: int = 0
    workers_per_clip: int = 1

    @property
    def own_tokens(self) -> int:
        """Tokens of a training clip that are one worker's."""
        return -(-self.tokens // self.workers_per_clip)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """A way to hold a training on a card, and its bytes there; host_bytes are those of the streamed blocks.

    exact: the numbers do not depend on streamed_blocks and kept_blocks. precision, and whether the audio half is there,
    decide them. kept_blocks: the last ones, which a backward pass does not compute once more.
    """

    precision: str
    with_audio: bool
    workers_per_clip: int
    streamed_blocks: int
    kept_blocks: int
    weight_bytes: int
    adapter_bytes: int
    activation_bytes: int
    headroom_bytes: int
    host_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.adapter_bytes + self.activation_bytes + self.headroom_bytes

    def __str__(self) -> str:
        streamed = f", {self.streamed_blocks} of its blocks in host memory" if self.streamed_blocks else ""
        half = "" if self.with_audio else " without its audio half"
        kept = f", {self.kept_blocks} of its blocks computed once" if self.kept_blocks else ""
        shared = f", each clip shared by {self.workers_per_clip}" if self.workers_per_clip > 1 else ""
        return (
            f"the base model in {self.precision}{half}{streamed}{kept}{shared}: about {self.total_bytes / GIB:.1f} GiB"
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}


@dataclass(frozen=True)
class PlanChoice:
    plan: MemoryPlan
    fits: bool
    reason: str


def plan_for(
    load: Load, precision: str, streamed_blocks: int = 0, model: ModelSize = PUBLISHED, kept_blocks: int = 0
) -> MemoryPlan:
    """The bytes of one way to hold a training; activations of other widths in proportion."""
    linear, other = model.block_weights(load.with_audio)
    size = 4 if precision == "fp32" else 2
    block = linear * WEIGHT_BYTES[precision] + other * size
    held = model.layers - streamed_blocks + (BUFFERED_BLOCKS if streamed_blocks else 0)
    kind = ("bf16" if precision == "fp32" else precision, load.with_audio)
    step = _STEP[kind].at(load.own_tokens)
    step += max(kept_blocks - 1, 0) * _KEPT[kind].at(load.own_tokens)
    if load.workers_per_clip > 1:
        step += EXCHANGED * 2 * _REAL_WIDTH * load.own_tokens
    step = max(step, _FORWARD[kind].at(load.preview_tokens))
    return MemoryPlan(
        precision=precision,
        with_audio=load.with_audio,
        workers_per_clip=load.workers_per_clip,
        streamed_blocks=streamed_blocks,
        kept_blocks=kept_blocks,
        weight_bytes=round(held * block + model.outer_weights(load.with_audio) * size),
        adapter_bytes=round(model.adapter_weights(load.rank, load.with_audio) * ADAPTER_BYTES[load.optimizer]),
        activation_bytes=round(step * model.width / _REAL_WIDTH * size / 2),
        headroom_bytes=HEADROOM_BYTES,
        host_bytes=round(streamed_blocks * block),
    )


def rungs(
    load: Load, host_bytes: int, precisions: Collection[str] = LADDER, model: ModelSize = PUBLISHED
) -> Iterator[MemoryPlan]:
    """The ways to hold a training from the most exact: each format whole, then with more and more blocks streamed."""
    for precision in precisions:
        for streamed in (0, *range(BUFFERED_BLOCKS + 1, model.layers + 1)):
            plan = plan_for(load, precision, streamed, model)
            if not streamed or plan.host_bytes + HOST_RESERVE_BYTES <= host_bytes:
                yield plan


def choose_plan(
    load: Load,
    device_bytes: int,
    host_bytes: int,
    precisions: Collection[str] = LADDER,
    model: ModelSize = PUBLISHED,
) -> PlanChoice:
    """The first rung that fits what is free on the device and on the host; the smallest of all when none does."""
    free = device_bytes / GIB
    smallest: MemoryPlan | None = None
    for plan in rungs(load, host_bytes, precisions, model):
        if plan.total_bytes <= device_bytes:
            # What is kept goes first when the device is full after all: there has to be something to fall back to.
            if more_streamed(plan, load, host_bytes, model) is not None:
                plan = keeping(plan, load, KEPT_SHARE * device_bytes, model)
            return PlanChoice(plan, True, f"{plan} of the {free:.1f} GiB free")
        if smallest is None or plan.total_bytes < smallest.total_bytes:
            smallest = plan
    assert smallest is not None
    return PlanChoice(smallest, False, f"{smallest}, the least that is possible here, and {free:.1f} GiB are free")


def keeping(plan: MemoryPlan, load: Load, most_bytes: float, model: ModelSize = PUBLISHED) -> MemoryPlan:
    """The same training, with as many blocks computed once as together with all else take most_bytes."""
    if not load.tokens or plan.streamed_blocks:
        return plan
    for kept in range(model.layers, 0, -1):
        more = plan_for(load, plan.precision, 0, model, kept)
        if more.total_bytes <= most_bytes:
            return more
    return plan


def more_streamed(plan: MemoryPlan, load: Load, host_bytes: int, model: ModelSize = PUBLISHED) -> MemoryPlan | None:
    """The next rung that computes the same bytes: an eighth more of the blocks in host memory, or None."""
    wanted = min(max(plan.streamed_blocks, BUFFERED_BLOCKS) + max(model.layers // 8, 1), model.layers)
    following = plan_for(load, plan.precision, wanted, model)
    fits_host = following.host_bytes + HOST_RESERVE_BYTES <= host_bytes
    return following if fits_host and following.total_bytes < plan.total_bytes else None


def remedy(plan: MemoryPlan, load: Load, host_bytes: int, precisions: Collection[str], model: ModelSize) -> str:
    """The setting to change after a plan did not fit, and what that would need: the largest rung below it."""

    def needed(rung: MemoryPlan) -> int:
        return rung.total_bytes - rung.headroom_bytes

    smaller = [rung for rung in rungs(load, host_bytes, precisions, model) if needed(rung) < 0.95 * needed(plan)]
    if others := [rung for rung in smaller if rung.precision != plan.precision]:
        best = max(others, key=lambda rung: rung.total_bytes)
        return f"set base_precision to {best.precision} (about {best.total_bytes / GIB:.0f} GiB)"
    if load.optimizer == NO_OPTIMIZER:
        return "lower resolution or number_of_frames"
    if load.optimizer == "adamw":
        smaller_optimizer = plan_for(replace(load, optimizer="adamw_8bit"), plan.precision, plan.streamed_blocks, model)
        return f"set optimizer to adamw_8bit (about {smaller_optimizer.total_bytes / GIB:.0f} GiB)"
    if load.rank > 8:
        return f"set rank to {load.rank // 2}"
    return "lower resolution or number_of_frames"
