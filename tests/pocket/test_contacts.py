"""Bounces as the video's tokens tell of them, and as the sound begins by looking at them."""

import itertools
from typing import Any

import pytest
import torch

from ltxtrain_pocket import contacts
from ltxtrain_pocket.model import TRANSFORMER_CONFIG
from ltxtrain_pocket.scenes import FRAMES, sounding_opening
from ltxtrain_pocket.world import FRAME_RATE, Motion, draw_scene
from ltxtrain_trainer.geometry import audio_latents
from ltxtrain_trainer.model.transformer import VelocityModel

ROWS, COLUMNS = 9, 16
SHAPE = (3, ROWS, COLUMNS)
WIDTH = TRANSFORMER_CONFIG["cross_attention_dim"]


@pytest.fixture
def transformer() -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        transformer: Any = LTX2VideoTransformer3DModel(**TRANSFORMER_CONFIG).eval().requires_grad_(False)
    contacts.point_at_contacts(transformer)
    return transformer


def test_a_fall_is_told_of_at_the_lower_edge_when_it_ends() -> None:
    scene = next(
        scene
        for index in itertools.count()
        if (scene := draw_scene([5, index], frame_count=FRAMES, motions=[Motion.FALL])).bounces(FRAMES - 2)
    )
    time = scene.bounces(FRAMES)[0]
    found = contacts.contacts(scene, FRAMES).unflatten(0, SHAPE)
    assert not found[0].any() and not found[:, : ROWS - 1].any()
    by_frame = found[1:, ROWS - 1].amax(1).flatten()  # frames 1, 2, ...
    assert abs(float(by_frame[: round(time) + 3].argmax()) + 1 - time) <= 0.5
    column = int(scene.state(time).x // contacts.CELL)
    latent, frame = divmod(round(time) - 1, contacts.STEPS)
    assert found[latent + 1, ROWS - 1, column, frame] > 0.5


@pytest.mark.parametrize("index", range(5))
def test_every_bounce_is_told_of_and_nothing_else_is(index: int) -> None:
    scene = sounding_opening(index)
    found = contacts.contacts(scene, FRAMES)
    frames = found.unflatten(0, (3, -1))[1:].amax(1).flatten()
    near = [min(abs(frame + 1 - time) for time in scene.bounces(FRAMES + 1)) for frame in range(FRAMES - 1)]
    assert [bool(told > 0) for told in frames] == [distance < contacts.REACH_FRAMES for distance in near]


def test_what_is_told_is_read_back_from_hidden_states_of_any_size() -> None:
    truth = contacts.contacts(sounding_opening(1), FRAMES)[None]
    towards = contacts.directions(WIDTH)
    assert torch.allclose(towards @ towards.T, torch.eye(contacts.STEPS), atol=1e-5)
    # The rest of a hidden state lies elsewhere and brings its norm to that of D ones.
    drawn = torch.randn(1, truth.shape[1], WIDTH, generator=torch.Generator().manual_seed(1))
    rest = torch.nn.functional.normalize(drawn - drawn @ towards.T @ towards, dim=-1)
    telling = contacts.LEVEL * truth @ towards
    hidden = telling + rest * (WIDTH - telling.square().sum(-1, keepdim=True)).sqrt()
    assert float(contacts.telling_loss([hidden, 3 * hidden], truth)) < 1e-9
    assert float(contacts.telling_loss([rest], truth)) > 1e-3


def test_only_the_last_pass_is_listened_to(transformer: Any) -> None:
    with contacts.listening(transformer) as heard:
        for number in range(2):
            for block in transformer.transformer_blocks:
                block.norm3(torch.full((1, 2, WIDTH), float(number)))
    assert [float(hidden.mean()) for hidden in heard] == [1.0] * contacts.TELLING
    transformer.transformer_blocks[-1].norm3(torch.zeros(1, 2, WIDTH))
    assert len(heard) == contacts.TELLING


@pytest.mark.parametrize("time", [9.0, 11.5, 15.0])
def test_sound_begins_by_hearing_a_contact_at_its_time(transformer: Any, time: float) -> None:
    """One token tells of a contact: both heads bring it to the audio latents about its time, and to no other."""
    model = VelocityModel(transformer)
    video = model.video_positions(SHAPE, FRAME_RATE, 1)
    audio = model.audio_positions(audio_latents(FRAMES, FRAME_RATE), 1)
    truth = torch.zeros(3, ROWS, COLUMNS, contacts.STEPS)
    for frame in range(contacts.STEPS):
        truth[2, ROWS - 1, 5:8, frame] = max(0.0, 1 - abs(frame + 9 - time) / contacts.REACH_FRAMES)
    draws = torch.Generator().manual_seed(2)
    hidden = contacts.LEVEL * truth.flatten(0, 2)[None] @ contacts.directions(WIDTH)
    hidden += 0.2 * torch.randn(hidden.shape, generator=draws)
    attention = transformer.transformer_blocks[-1].video_to_audio_attn
    torch.nn.init.eye_(attention.to_out[0].weight)
    torch.nn.init.zeros_(attention.to_out[0].bias)
    brought = attention(
        torch.randn(1, audio.shape[2], attention.to_q.in_features, generator=draws),
        encoder_hidden_states=hidden,
        query_rotary_emb=transformer.cross_attn_audio_rope(audio[:, :1]),
        key_rotary_emb=transformer.cross_attn_rope(video[:, :1]),
    )[0]
    seconds = audio[0, 0].mean(-1)
    for head in contacts.HEARING:
        loud = brought[:, head * TRANSFORMER_CONFIG["audio_attention_head_dim"]]
        middle = float((loud.square() * seconds).sum() / loud.square().sum())
        assert abs(middle - time / FRAME_RATE) < 0.05
        assert float(loud[(seconds - middle).abs() > 0.2].max()) < 0.3 * float(loud.max())
