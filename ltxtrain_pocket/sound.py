"""Train the audio half of the pocket model's transformer, on a video half that stays as it is.

The sound looks at the pictures and the pictures not at the sound: what goes from audio into video is held at zero, so
that a clip has the same pictures with and without. Hence the video half runs once for many draws of the audio's noise,
and the audio half alone is computed here (`SoundHalf`), to the numbers of the whole model. Words are held at zero as
well: the sound follows what is seen, and guidance by text would triple what they disturb.

Of the pictures the sound is given what they tell of bounces (`.contacts`), and nothing else: of the whole of the hidden
states it learned every clip by heart (loss 0.28 on 3,600 clips, 0.61 on others, 0.75 without pictures), of what they
tell a rule that holds for others (0.56 and 0.59).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltxtrain_pocket import audio_vae, transformer
from ltxtrain_pocket.audio_vae import FRAMES
from ltxtrain_pocket.contacts import TELLING, listening, only_told, point_at_contacts, spoken, told
from ltxtrain_pocket.model import LAYERS
from ltxtrain_pocket.pretraining import Plan, mostly_noise, pretrain
from ltxtrain_pocket.scenes import PREFIX_FRAMES
from ltxtrain_pocket.transformer import LARGE, SHARD, SMALL, Pictures
from ltxtrain_pocket.world import FRAME_RATE, Scene
from ltxtrain_trainer.geometry import audio_latents, latent_frames
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.model.video_half import is_audio
from ltxtrain_trainer.seeds import generator
from ltxtrain_trainer.training.losses import draw_levels
from ltxtrain_trainer.training.objective import audio_prefix_tokens, masked_loss, objective, pack_video

PLAN = Plan(name="sound", steps=30_000, learning_rate=2.0e-3)
SEED = 1306
HEARD = {SMALL.name: 16_000, LARGE.name: 8_000}  # clips
PREFIXES = ((0, 0.05), (1, 0.05), (9, 0.9))
# What the pictures tell is used for some thousand steps, with new noise in the audio each time.
POOL_STEPS = 4_000
POOLS = {SMALL.name: 4_000, LARGE.name: 1_500}  # clips looked at
LOOKED_AT = 8  # at once
TOKENS_A_STEP, DRAWS = 1300, 2
# Clips with a bounce after the prefix, times as often as others.
BOUNCING = 3.0
# Sampling has one noise level for both; the product's objective draws two. Some pictures are clearer than that.
SAME_LEVEL, CLEARER = 0.3, 0.4
# A click is so loud that when it comes is decided while nearly all is noise: there most is learned.
DECIDING, UNDECIDED = 0.7, 0.88
# Without the pictures, as guidance by the other modality asks for.
ISOLATED = 0.2
EMPTY = 0.1  # weight of the channels of audio latents that hold nothing
OPEN = 0.7

# Weights of the audio half that are not trained: they are zero, or lead to what is.
_BLIND = [f"transformer_blocks.{block}" for block in range(LAYERS - TELLING)]
HELD = (
    "audio_to_video_attn",
    "audio_attn2",
    "av_cross_attn_video_a2v_gate",
    "av_cross_attn_video_scale_shift",
    "video_a2v_cross_attn_scale_shift_table",
    "audio_prompt",
    *(f"{block}.video_to_audio_attn" for block in _BLIND),
    *(f"{block}.audio_a2v_cross_attn_scale_shift_table" for block in _BLIND),
)
SILENT = (
    "audio_to_video_attn.to_out.0",
    "audio_attn2.to_out.0",
    "av_cross_attn_video_scale_shift.linear",
    "video_a2v_cross_attn_scale_shift_table",
    *(f"{block}.video_to_audio_attn.to_out.0" for block in _BLIND),
)
# What reads the video's hidden states: straight lines of what they tell.
READING = tuple(
    f"transformer_blocks.{LAYERS - TELLING + number}.video_to_audio_attn.{part}.weight"
    for number in range(TELLING)
    for part in ("to_k", "to_v")
)


def is_held(name: str) -> bool:
    return any(part in name for part in HELD)


def is_silent(name: str) -> bool:
    return any(part in name for part in SILENT)


def hearing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with what reads hidden states reading what they tell alone, as it was in training."""
    return {name: only_told(weight) if name in READING else weight for name, weight in state.items()}


@torch.no_grad()
def start_sound(model: Any) -> None:
    """Silence audio to video and text to audio; the audio begins with looking at contacts of its own time."""
    model.av_cross_attn_video_scale_shift.linear.weight.zero_()
    model.av_cross_attn_video_scale_shift.linear.bias.zero_()
    for block in model.transformer_blocks:
        for name in ("audio_to_video_attn", "audio_attn2"):
            _close(block.get_submodule(name))
        block.audio_scale_shift_table[[2, 5]] = OPEN
        block.audio_a2v_cross_attn_scale_shift_table.mul_(0.1)
        block.audio_a2v_cross_attn_scale_shift_table[4] = OPEN
        block.video_a2v_cross_attn_scale_shift_table[2:4] = 0
    for block in model.transformer_blocks[:-TELLING]:
        _close(block.video_to_audio_attn)
    point_at_contacts(model)
    for name in READING:
        weight = model.get_parameter(name)
        weight.copy_(only_told(weight))


def _close(attention: Any) -> None:
    attention.to_out[0].weight.zero_()
    attention.to_out[0].bias.zero_()


@dataclass(frozen=True)
class Seen:
    """The pictures of a batch as the sound sees them.

    told: of each telling block [B, T, STEPS]; timesteps [B, T], sigma [B] and positions as in the model.
    """

    told: Sequence[Tensor]
    timesteps: Tensor
    sigma: Tensor
    positions: Tensor

    def some(self, places: Tensor) -> "Seen":
        told = [block[places] for block in self.told]
        return Seen(told, self.timesteps[places], self.sigma[places], self.positions[places])


@torch.no_grad()
def look(
    model: VelocityModel, video: Stream, latent_shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16
) -> Seen:
    """Run the video half, in that number format."""
    with (
        listening(model.transformer) as heard,
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16),
    ):
        model(video, None, frame_rate=FRAME_RATE, latent_shape=latent_shape)
    positions = model.video_positions(latent_shape, FRAME_RATE, len(video.tokens))
    return Seen([told(hidden.float()) for hidden in heard], video.timesteps, video.sigma, positions)


class SoundHalf:
    """The audio velocities of the whole model, from its own parts: several draws of each clip at once."""

    def __init__(self, model: VelocityModel) -> None:
        self.model = model

    def __call__(self, audio: Stream, seen: Seen, together: Tensor) -> Tensor:
        """[B R, L, C]; draws of a clip lie beside each other; together [B R]: false for a draw without pictures."""
        model = self.model.transformer
        scale = float(model.config.timestep_scale_multiplier)
        count, length, _ = audio.tokens.shape
        clips = len(seen.sigma)
        draws = count // clips
        positions = self.model.audio_positions(length, count)
        rope = model.audio_rope(positions)
        query_rope = [
            part.unflatten(0, (clips, draws)).transpose(1, 2).flatten(2, 3)
            for part in model.cross_attn_audio_rope(positions[:, :1])
        ]
        key_rope = model.cross_attn_rope(seen.positions[:, :1])

        def modulations(name: str, timesteps: Tensor) -> tuple[Tensor, Tensor]:
            """Timesteps [N, T] -> [N, T, P D] and [N, T, D], computed once for each of those that are equal."""
            values, places = timesteps.unique(return_inverse=True)
            parts = getattr(model, name)(values * scale, hidden_dtype=audio.tokens.dtype)
            return parts[0][places], parts[1][places]

        hidden = model.audio_proj_in(audio.tokens)
        temb, embedded = modulations("audio_time_embed", audio.timesteps)
        own, _ = modulations("av_cross_attn_audio_scale_shift", audio.timesteps)
        gate, _ = modulations("av_cross_attn_audio_v2a_gate", seen.sigma.repeat_interleave(draws)[:, None])
        pictures = [None] * (self.model.layer_count - TELLING) + [spoken(block) for block in seen.told]
        for block, picture in zip(model.transformer_blocks, pictures, strict=True):
            shift, scaled, through, shift_ff, scaled_ff, through_ff = _rows(block.audio_scale_shift_table, temb)[:6]
            normed = block.audio_norm1(hidden) * (1 + scaled) + shift
            hidden = hidden + block.audio_attn1(normed, query_rotary_emb=rope) * through
            if picture is not None:
                table = block.audio_a2v_cross_attn_scale_shift_table
                scaled, shift = _rows(table[:4], own)[2:]
                query = block.video_to_audio_norm(hidden) * (1 + scaled) + shift
                attended = block.video_to_audio_attn(
                    query.unflatten(0, (clips, draws)).flatten(1, 2),
                    encoder_hidden_states=picture,
                    query_rotary_emb=query_rope,
                    key_rotary_emb=key_rope,
                )
                attended = attended.unflatten(1, (draws, length)).flatten(0, 1)
                hidden = hidden + (table[4] + gate) * attended * together[:, None, None]
            normed = block.audio_norm3(hidden) * (1 + scaled_ff) + shift_ff
            hidden = hidden + block.audio_ff(normed) * through_ff
        shift, scaled = _rows(model.audio_scale_shift_table, embedded.repeat(1, 1, 2))
        output: Tensor = model.audio_proj_out(model.audio_norm_out(hidden) * (1 + scaled) + shift)
        return output.float()


def _rows(table: Tensor, temb: Tensor) -> tuple[Tensor, ...]:
    rows: Tensor = table + temb.unflatten(-1, table.shape)
    return rows.unbind(-2)


@dataclass(frozen=True)
class Heard:
    """Clips of one size: normalised latents of video [n, 128, F, h, w] and audio [n, L, 128], and chances [n]."""

    pictures: Pictures
    video: Tensor
    audio: Tensor
    chances: Tensor


def read_heard(folder: Path, pictures: Pictures, video_vae: Any, vae: Any) -> Heard:
    """The first clips whose video latents are in the folder, with their sounds."""
    mean, deviation = (value.view(-1, 1, 1, 1) for value in (video_vae.latents_mean, video_vae.latents_std))
    latents = transformer.read_latents(folder, pictures, HEARD[pictures.name])[:, :, : latent_frames(FRAMES)]
    scenes = [pictures.scene(index) for index in range(len(latents))]
    bouncing = torch.tensor([bounces_in_continuation(scene) for scene in scenes])
    audio = torch.cat([encode_sounds(vae, scenes[first : first + SHARD]) for first in range(0, len(scenes), SHARD)])
    video = torch.stack([((clip.float() - mean) / deviation).bfloat16() for clip in latents])
    return Heard(pictures, video, audio, torch.where(bouncing, BOUNCING, 1.0))


def bounces_in_continuation(scene: Scene, frame_count: int = FRAMES) -> bool:
    return any(time > PREFIX_FRAMES - 1 for time in scene.bounces(frame_count))


@torch.no_grad()
def encode_sounds(vae: Any, scenes: Sequence[Scene]) -> Tensor:
    """Normalised audio latents [n, L, 128] of the scenes' first FRAMES frames."""
    mel = torch.stack([audio_vae.mel_of(scene) for scene in scenes])
    latents = audio_vae.encode_mel(vae, mel)[:, : audio_latents(FRAMES, FRAME_RATE)]
    normalised: Tensor = (latents - vae.latents_mean) / vae.latents_std
    return normalised


def latent_weights(vae: Any) -> Tensor:
    """Weights [128] of mean 1: the deviation of each raw latent, as the root of what its error is in the mel."""
    weights = vae.latents_std / vae.latents_std[audio_vae.is_live()].mean()
    weights = torch.where(audio_vae.is_live(), weights, EMPTY)
    return weights / weights.mean()


@dataclass(frozen=True)
class Pool:
    """Clips of one size as seen: which they are [n], frames of their prefixes, and what the video half made of them."""

    clips: Heard
    chosen: Tensor
    prefixes: Tensor
    seen: Seen


def look_at(model: VelocityModel, clips: Heard, contexts: Sequence[Tensor], number: int) -> Pool:
    """A pool of its own for each number: clips, prefixes, noise and levels are drawn from it."""
    draws = generator(SEED, clips.pictures.name, number)
    shape = (clips.video.shape[2], clips.video.shape[3], clips.video.shape[4])
    tokens, frame_tokens = math.prod(shape), math.prod(shape[1:])
    count = POOLS[clips.pictures.name]
    chosen = torch.multinomial(clips.chances, count, replacement=True, generator=draws)
    prefixes = torch.tensor([transformer.pick(PREFIXES, draws) for _ in range(count)])
    parts = []
    for first in range(0, count, LOOKED_AT):
        places = slice(first, first + LOOKED_AT)
        clean = pack_video(clips.video[chosen[places]].float())
        prefix = torch.tensor(
            [latent_frames(frames) * frame_tokens if frames else 0 for frames in prefixes[places].tolist()]
        )
        level = draw_levels(len(clean), tokens, draws)
        clearer = torch.rand(len(clean), generator=draws) < CLEARER
        asked = objective(
            clean,
            torch.randn(clean.shape, generator=draws),
            torch.where(clearer, level * torch.rand(len(clean), generator=draws), level),
            torch.arange(tokens) < prefix[:, None],
            torch.stack([contexts[int(torch.randint(len(contexts), (), generator=draws))] for _ in clean]),
        )
        parts.append(look(model, asked.stream, shape))
        if first % 200 == 0:
            print(f"sound: looked at {first}/{count} {clips.pictures.name} pictures", flush=True)
    seen = Seen(
        [torch.cat(blocks) for blocks in zip(*(part.told for part in parts), strict=True)],
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("timesteps", "sigma", "positions")),
    )
    return Pool(clips, chosen, prefixes, seen)


def train_sound(
    model: nn.Module, heard: Sequence[Heard], weights: Tensor, contexts: Sequence[Tensor], folder: Path
) -> None:
    """weights [128]: of each audio latent's squares; contexts: embeddings of some prompts, which change little here."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_audio(name) and not is_held(name))
    whole = VelocityModel(model)
    half, scale = SoundHalf(whole), weights.sqrt()
    pools: dict[int, list[Pool]] = {}

    def losses(step: int) -> dict[str, Tensor]:
        number = (step - 1) // POOL_STEPS
        if number not in pools:
            pools.clear()
            pools[number] = [look_at(whole, clips, contexts, number) for clips in heard]
        draws = generator(SEED, "batch", step)
        pool = transformer.pick([(pool, pool.clips.pictures.share) for pool in pools[number]], draws)
        count = max(TOKENS_A_STEP // pool.seen.timesteps.shape[1], 1)
        places = torch.randint(len(pool.chosen), (count,), generator=draws)
        seen = pool.seen.some(places)
        audio = pool.clips.audio[pool.chosen[places]].repeat_interleave(DRAWS, 0)
        length = audio.shape[1]
        prefix = [audio_prefix_tokens(frames, FRAME_RATE) for frames in pool.prefixes[places].tolist()]
        same = torch.rand(len(audio), generator=draws) < SAME_LEVEL
        levels = torch.where(same, seen.sigma.repeat_interleave(DRAWS), draw_levels(len(audio), length, draws))
        asked = objective(
            audio,
            torch.randn(audio.shape, generator=draws),
            mostly_noise(levels, DECIDING, UNDECIDED, draws),
            torch.arange(length) < torch.tensor(prefix).repeat_interleave(DRAWS)[:, None],
            torch.empty(0),
        )
        together = (torch.rand(len(audio), generator=draws) >= ISOLATED).float()
        each = masked_loss(half(asked.stream, seen, together) * scale, asked.target * scale, asked.counts)
        seeing = together > 0
        return {
            "loss": each.mean(),
            "seeing": each.detach()[seeing].sum() / seeing.sum().clamp(min=1),
            "blind": each.detach()[~seeing].sum() / (~seeing).sum().clamp(min=1),
        }

    pretrain(model, PLAN, losses, folder)
