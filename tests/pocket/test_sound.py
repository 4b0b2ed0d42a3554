"""The pocket model's sound: what is heard goes there and back, and the pictures do not hang on it."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_pocket import pretraining, sound
from ltxtrain_pocket.contacts import only_told
from ltxtrain_pocket.detect import clicks, pitch
from ltxtrain_pocket.learning import Pocket
from ltxtrain_pocket.model import TRANSFORMER_CONFIG, build_pocket_model, load_weights, untrained_parts
from ltxtrain_pocket.scenes import FRAMES, sounding_opening
from ltxtrain_pocket.transformer import Pictures
from ltxtrain_pocket.world import FRAME_RATE, Motion, draw_scene, tone_hertz
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.model.video_half import is_audio
from ltxtrain_trainer.preview.previewer import AUDIO_RATE

SHAPE, LENGTH, CLIPS, DRAWS = (3, 2, 3), 18, 2, 3
WIDTH, AUDIO_WIDTH = TRANSFORMER_CONFIG["cross_attention_dim"], TRANSFORMER_CONFIG["audio_cross_attention_dim"]


def fresh_transformer() -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformer: Any = LTX2VideoTransformer3DModel(**TRANSFORMER_CONFIG).eval().requires_grad_(False)
    sound.start_sound(transformer)
    return transformer


@pytest.fixture(scope="module")
def model() -> VelocityModel:
    return VelocityModel(fresh_transformer())


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Pocket:
    folder = tmp_path_factory.mktemp("model") / "pocket"
    build_pocket_model(folder)
    return Pocket(folder)


def stream(tokens: int, width: int, prefix: int, clips: int = CLIPS) -> Stream:
    draws = torch.Generator().manual_seed(tokens + clips)
    level = torch.rand(clips, generator=draws)
    return Stream(
        tokens=torch.randn(clips, tokens, 128, generator=draws),
        context=torch.randn(clips, 4, width, generator=draws),
        timesteps=torch.where(torch.arange(tokens) < prefix, 0.0, level[:, None]),
        sigma=level,
    )


def test_the_audio_half_alone_computes_the_numbers_of_the_whole_model(model: VelocityModel) -> None:
    video, audio = stream(18, WIDTH, 6), stream(LENGTH, AUDIO_WIDTH, 9, CLIPS * DRAWS)
    seen = sound.look(model, video, SHAPE, torch.float32)
    alone = sound.SoundHalf(model)(audio, seen, torch.ones(CLIPS * DRAWS))
    blind = sound.SoundHalf(model)(audio, seen, torch.zeros(CLIPS * DRAWS))
    repeated = Stream(*(getattr(video, name).repeat_interleave(DRAWS, 0) for name in Stream.__annotations__))
    for found, isolate in ((alone, False), (blind, True)):
        _, whole = model(repeated, audio, frame_rate=24.0, latent_shape=SHAPE, isolate=isolate)
        assert whole is not None and torch.allclose(found, whole, atol=1e-5)
    assert not torch.allclose(alone, blind, atol=1e-3)


def test_a_clip_has_the_same_pictures_with_and_without_sound(model: VelocityModel) -> None:
    video, audio = stream(18, WIDTH, 6), stream(LENGTH, AUDIO_WIDTH, 9)
    silent, _ = model(video, None, frame_rate=24.0, latent_shape=SHAPE)
    sounding, heard = model(video, audio, frame_rate=24.0, latent_shape=SHAPE)
    assert torch.equal(silent, sounding) and heard is not None


def test_a_training_moves_the_audio_half_alone_and_ends_the_same_when_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(name="tiny", seed=1, count=4, frame_count=FRAMES, width=96, height=64, share=1.0)
    draws = torch.Generator().manual_seed(8)
    clips = sound.Heard(
        pictures,
        torch.randn(4, 128, *SHAPE, generator=draws).bfloat16(),
        torch.randn(4, LENGTH, 128, generator=draws),
        torch.ones(4),
    )
    monkeypatch.setattr(sound, "POOLS", {"tiny": 3})
    monkeypatch.setattr(sound, "POOL_STEPS", 2)
    monkeypatch.setattr(sound, "TOKENS_A_STEP", 40)
    monkeypatch.setattr(pretraining, "CHECKPOINT_STEPS", 1)
    contexts = [torch.randn(4, WIDTH, generator=draws)]
    transformers = []
    for steps in ((4,), (3, 4)):
        trained: Any = fresh_transformer()
        for count in steps:
            monkeypatch.setattr(sound, "PLAN", replace(sound.PLAN, steps=count))
            monkeypatch.setattr(pretraining, "rate_at", lambda step, steps: 1.0)
            sound.train_sound(trained, [clips], torch.ones(128), contexts, tmp_path / str(steps))
        transformers.append(trained.state_dict())
    for name, before in fresh_transformer().state_dict().items():
        whole, resumed = (state[name] for state in transformers)
        assert torch.equal(whole, resumed), name
        moves = is_audio(name) and not sound.is_held(name)
        assert torch.equal(whole, before) is not moves or "norm" in name, name


def test_the_stored_sound_reads_of_the_pictures_only_what_they_tell() -> None:
    stored = load_weights("sound")
    for name in sound.READING:
        assert stored[name].abs().max() > 0.05, name
        assert torch.allclose(stored[name], only_told(stored[name]), atol=2e-3), name


def test_words_embed_as_the_video_half_has_learned_them() -> None:
    """The weights behind a prompt's video embedding: drawn from a seed, whatever the sizes of other parts."""
    parts = untrained_parts()
    state = hashlib.sha256()
    for name in ("text_encoder", "connectors"):
        for key, weight in sorted(parts[name].state_dict().items()):
            if name == "text_encoder" or key.startswith("video_"):
                state.update(key.encode() + weight.float().numpy().tobytes())
    assert state.hexdigest() == "ec8df4bdbe43769f98a565d223ac26d6473f4d5529e278ce79ea9bcad0b9f502"


def test_a_click_is_heard_where_it_was_after_vae_and_vocoder(pocket: Pocket) -> None:
    assert pocket.clicks_heard([sounding_opening(index) for index in range(6)]) == 1.0


def test_the_tone_is_heard_at_about_its_pitch(pocket: Pocket) -> None:
    """A vocoder without phases has whole hundreds of Hz, so that 50 are as near as it comes."""
    scene = draw_scene([21, 1], frame_count=FRAMES, motions=[Motion.DRIFT])
    wave = pocket.wave_of(pocket.sounding_clip(scene, FRAMES))
    assert clicks(wave, AUDIO_RATE) == []
    for seconds in (0.2, 0.35, 0.5):
        expected = float(tone_hertz(scene.state(seconds * FRAME_RATE).y, scene.height))
        assert abs(pitch(wave, AUDIO_RATE, seconds) - expected) < 65
