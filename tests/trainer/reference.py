"""LTX 2.3 and one step of its training in plain tensor algebra and double precision, from the published description.

It shares no code with the trainer or with diffusers: weights by name in, velocities, losses and gradients out. The
audio branch is simply not there when there is no audio. No test in here.

Letters: N tokens, D width of a stream, H heads, K frequencies. One clip at a time, so no batch dimension.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

EPSILON = 1e-6
TIME_SCALE = 1000.0

# What is known of one modality, by name; the functions say which names.
Part = dict[str, Any]


@dataclass
class Reference:
    """weights: of the base by diffusers name. adapter: lora_A and lora_B by name; leaves that want gradients."""

    weights: dict[str, torch.Tensor]
    adapter: dict[str, torch.Tensor]
    layers: int = 4
    heads: int = 4

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        if f"{name}.lora_A.weight" in self.adapter:
            y = y + x @ self.adapter[f"{name}.lora_A.weight"].T @ self.adapter[f"{name}.lora_B.weight"].T
        return y

    def modulation(self, name: str, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """levels [M] in 0..1 -> (parameters [M, P * D], embedding [M, D])."""
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float64) / 128)
        angles = TIME_SCALE * levels[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        hidden = silu(self.linear(f"{name}.emb.timestep_embedder.linear_1", waves))
        embedding = self.linear(f"{name}.emb.timestep_embedder.linear_2", hidden)
        return self.linear(f"{name}.linear", silu(embedding)), embedding

    def table(self, name: str, parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows of a block's table plus the parameters of its noise levels: one [M, D] each."""
        table = self.weights[name]
        return self.rows(table, parameters)

    @staticmethod
    def rows(table: torch.Tensor, parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows: tuple[torch.Tensor, ...] = (table + parameters.unflatten(-1, table.shape)).unbind(-2)
        return rows

    def attention(
        self,
        name: str,
        x: torch.Tensor,
        context: torch.Tensor,
        x_turns: torch.Tensor | None = None,
        context_turns: torch.Tensor | None = None,
        *,
        values_only: bool = False,
    ) -> torch.Tensor:
        gate = 2 * torch.sigmoid(self.linear(f"{name}.to_gate_logits", x))  # [N, H]
        value = self.linear(f"{name}.to_v", context)
        if not values_only:
            query = normalised(self.linear(f"{name}.to_q", x)) * self.weights[f"{name}.norm_q.weight"]
            key = normalised(self.linear(f"{name}.to_k", context)) * self.weights[f"{name}.norm_k.weight"]
            query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in (query, key, value))
            if x_turns is not None and context_turns is not None:
                query, key = turned(query, x_turns), turned(key, context_turns)
            value = scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        heads = value.unflatten(-1, (self.heads, -1)) * gate[..., None]
        return self.linear(f"{name}.to_out.0", heads.flatten(1))

    def feed_forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{name}.net.2", gelu(self.linear(f"{name}.net.0.proj", x), approximate="tanh"))

    def velocities(self, video: Part, audio: Part | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Dictionaries with tokens, context, timesteps [N], sigma (scalar) and positions [axes, N] -> velocities."""
        streams = {"": video} if audio is None else {"": video, "audio_": audio}
        state = {}
        for mark, stream in streams.items():
            width = self.weights[f"{mark}proj_in.bias"].numel()
            limits = (20.0, 2048.0, 2048.0)[: len(stream["positions"])]
            parameters, embedding = self.modulation(f"{mark}time_embed", stream["timesteps"])
            prompt, _ = self.modulation(f"{mark}prompt_adaln", stream["sigma"].reshape(1))
            state[mark] = {
                "x": self.linear(f"{mark}proj_in", stream["tokens"]),
                "context": stream["context"],
                "parameters": parameters,
                "embedding": embedding,
                "prompt": prompt,
                "turns": turns(stream["positions"], limits, width, self.heads),
            }
            if audio is not None:
                other = audio if mark == "" else video
                own, gate = ("video", "video_a2v") if mark == "" else ("audio", "audio_v2a")
                shared = self.weights["audio_proj_in.bias"].numel()
                # Scale and shift follow the token's own noise level, the gate that of the other modality.
                state[mark]["cross"], _ = self.modulation(f"av_cross_attn_{own}_scale_shift", stream["timesteps"])
                state[mark]["gate"], _ = self.modulation(f"av_cross_attn_{gate}_gate", other["sigma"].reshape(1))
                state[mark]["cross_turns"] = turns(stream["positions"][:1], (20.0,), shared, self.heads)
        for layer in range(self.layers):
            self.block(f"transformer_blocks.{layer}", state)
        found = [self.head(mark, part) for mark, part in state.items()]
        return found[0], found[1] if audio is not None else None

    def block(self, block: str, state: dict[str, Part]) -> None:
        for mark, part in state.items():
            part["mod"] = self.table(f"{block}.{mark}scale_shift_table", part["parameters"])
            shift, scale, gate = part["mod"][:3]
            x = normalised(part["x"]) * (1 + scale) + shift
            part["x"] = part["x"] + gate * self.attention(f"{block}.{mark}attn1", x, x, part["turns"], part["turns"])
        for mark, part in state.items():
            shift, scale, gate = part["mod"][6:9]
            x = normalised(part["x"]) * (1 + scale) + shift
            prompt_shift, prompt_scale = self.table(f"{block}.{mark}prompt_scale_shift_table", part["prompt"])
            context = part["context"] * (1 + prompt_scale) + prompt_shift
            part["x"] = part["x"] + gate * self.attention(f"{block}.{mark}attn2", x, context)
        if "audio_" in state:
            self.exchange(block, state[""], state["audio_"])
        for mark, part in state.items():
            shift, scale, gate = part["mod"][3:6]
            x = normalised(part["x"]) * (1 + scale) + shift
            part["x"] = part["x"] + gate * self.feed_forward(f"{block}.{mark}ff", x)

    def exchange(self, block: str, video: Part, audio: Part) -> None:
        """Attention of each modality to the other; both look at what was before either."""
        plain = [normalised(part["x"]) for part in (video, audio)]
        tables = [self.weights[f"{block}.{name}_a2v_cross_attn_scale_shift_table"] for name in ("video", "audio")]
        cross = [self.rows(table[:4], part["cross"]) for table, part in zip(tables, (video, audio), strict=True)]
        gates = [self.rows(table[4:], part["gate"])[0] for table, part in zip(tables, (video, audio), strict=True)]
        turning = [video["cross_turns"], audio["cross_turns"]]
        # Rows: scale and shift for audio to video, then for video to audio.
        to_video = [x * (1 + rows[0]) + rows[1] for x, rows in zip(plain, cross, strict=True)]
        to_audio = [x * (1 + rows[2]) + rows[3] for x, rows in zip(plain, cross, strict=True)]
        video["x"] = video["x"] + gates[0] * self.attention(f"{block}.audio_to_video_attn", *to_video, *turning)
        audio["x"] = audio["x"] + gates[1] * self.attention(
            f"{block}.video_to_audio_attn", *reversed(to_audio), *reversed(turning)
        )

    def head(self, mark: str, part: Part) -> torch.Tensor:
        x = part["x"]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + EPSILON).sqrt()
        shift, scale = (row + part["embedding"] for row in self.weights[f"{mark}scale_shift_table"])
        return self.linear(f"{mark}proj_out", x * (1 + scale) + shift)


def normalised(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


def turns(positions: torch.Tensor, limits: tuple[float, ...], width: int, heads: int) -> torch.Tensor:
    """Angles [H, N, width / heads / 2] of rotary embeddings: positions [axes, N] as shares of their limits."""
    axes = len(limits)
    shares = positions / torch.tensor(limits, dtype=torch.float64)[:, None]
    frequencies = 10000.0 ** torch.linspace(0, 1, width // (2 * axes), dtype=torch.float64) * math.pi / 2
    angles = ((2 * shares - 1)[..., None] * frequencies).permute(1, 2, 0).flatten(1)
    unturned = angles.new_zeros(len(angles), width // 2 - angles.shape[1])
    per_head: torch.Tensor = torch.cat([unturned, angles], dim=1).unflatten(1, (heads, -1)).transpose(0, 1)
    return per_head


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def video_positions(frames: int, height: int, width: int, rate: float) -> torch.Tensor:
    """Middles in seconds and pixels: latent 0 is one frame, every other eight; a cell is 32 pixels."""
    times = [0.5 / rate] + [(8 * frame - 3) / rate for frame in range(1, frames)]
    grid = [
        (time, 32 * row + 16.0, 32 * column + 16.0)
        for time in times
        for row in range(height)
        for column in range(width)
    ]
    return torch.tensor(grid, dtype=torch.float64).T


def audio_positions(length: int) -> torch.Tensor:
    """Middles in seconds: latent 0 is one mel frame of 10 ms, every other four."""
    return torch.tensor([[0.005] + [0.04 * latent - 0.01 for latent in range(1, length)]], dtype=torch.float64)


def masked_step(reference: Reference, video: Part, audio: Part | None) -> list[torch.Tensor | None]:
    """Loss of each modality; a modality has clean [N, C], noise, sigma, prefix (tokens), context and positions."""
    streams: list[Any] = []
    targets: list[Any] = []
    for part in (video, audio):
        if part is None:
            streams.append(None)
            targets.append(None)
            continue
        level = torch.full((len(part["clean"]), 1), float(part["sigma"]), dtype=torch.float64)
        level[: part["prefix"]] = 0
        streams.append(
            {
                "tokens": (1 - level) * part["clean"] + level * part["noise"],
                "timesteps": level[:, 0],
                "sigma": torch.tensor(float(part["sigma"]), dtype=torch.float64),
                "context": part["context"],
                "positions": part["positions"],
            }
        )
        targets.append(part["noise"] - part["clean"])
    velocities = reference.velocities(*streams)
    return [
        None if part is None or velocity is None else (velocity - target)[part["prefix"] :].square().mean()
        for part, velocity, target in zip((video, audio), velocities, targets, strict=True)
    ]
