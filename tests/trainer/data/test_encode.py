from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltxtrain_trainer.data.encode import ClipEncoder, PromptEncoder, encode_audio, encode_video
from ltxtrain_trainer.data.encoded import dump_clip, dump_prompt
from ltxtrain_trainer.geometry import audio_latents, latent_frames
from ltxtrain_trainer.model.folder import ModelFolder, resolve_model
from ltxtrain_trainer.model.loading import load_audio_vae, load_video_vae, load_vocoder
from ltxtrain_trainer.preview.previewer import decode_audio, decode_video

FRAMES, HEIGHT, WIDTH = 25, 64, 96


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> ModelFolder:
    return resolve_model(str(tiny_model))


@pytest.fixture(scope="module")
def encoder(folder: ModelFolder) -> ClipEncoder:
    return ClipEncoder(folder, "cpu", with_audio=True)


@pytest.fixture(scope="module")
def prompts(folder: ModelFolder) -> PromptEncoder:
    return PromptEncoder(folder, "cpu")


def frames(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A bright square that moves over noise."""
    pixels = np.random.default_rng(0).integers(0, 128, (count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        pixels[index, 8:24, index : index + 16] = 255
    return pixels


def sound(seconds: float) -> np.ndarray:
    times = np.arange(int(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(1).normal(0, 0.05, (len(times), 2)).T
    return (np.stack([np.sin(2760 * times), np.sin(6280 * times)]) * 0.4 + noise).astype(np.float32)


def test_a_clip_becomes_latents_of_its_geometry(encoder: ClipEncoder) -> None:
    clip = encoder.encode(frames(), 24, sound(FRAMES / 24))
    assert clip.video.shape == (128, latent_frames(FRAMES), HEIGHT // 32, WIDTH // 32)
    assert clip.audio is not None and clip.audio.shape == (audio_latents(FRAMES, 24), 128)
    assert clip.video.dtype == clip.audio.dtype == torch.bfloat16
    assert (clip.frame_count, clip.frame_rate) == (FRAMES, 24)
    assert 0.5 < clip.video.float().std() < 2 and 0.5 < clip.audio.float().std() < 2


@pytest.mark.parametrize(("rate", "count"), [(24, 9), (25, 25), (30, 57), (50, 25), (60, 9), (8, 121), (23.976, 89)])
def test_audio_latents_are_as_many_as_sampling_uses(encoder: ClipEncoder, rate: float, count: int) -> None:
    assert encoder.audio_vae is not None
    whole = encode_audio(encoder.audio_vae, sound(count / rate))
    assert 0 <= len(whole) - audio_latents(count, rate) <= 1


def test_the_prefix_alone_gives_the_first_latents_of_the_whole(encoder: ClipEncoder) -> None:
    whole = encode_video(encoder.vae, frames())
    for prefix in (9, 17):
        alone = encode_video(encoder.vae, frames()[:prefix])
        assert (alone - whole[:, : latent_frames(prefix)]).abs().max() < 1e-5


def test_only_the_last_audio_latent_of_a_prefix_hears_past_it(encoder: ClipEncoder) -> None:
    # The transform looks 512 samples ahead, less than one latent of 640.
    assert encoder.audio_vae is not None
    whole = encode_audio(encoder.audio_vae, sound(2))
    alone = encode_audio(encoder.audio_vae, sound(2)[:, :16_000])
    difference = (alone - whole[: len(alone)]).abs().amax(1)
    assert difference[:-1].max() < 1e-5 < difference[-1]


def test_latents_equal_the_pipeline_of_diffusers(folder: ModelFolder, encoder: ClipEncoder) -> None:
    from diffusers import LTX2ConditionPipeline

    pipeline = LTX2ConditionPipeline.from_pretrained(folder.path, local_files_only=True)
    with torch.no_grad():
        pictures = [Image.fromarray(frame) for frame in frames()]
        pixels = pipeline.video_processor.preprocess_video(pictures, HEIGHT, WIDTH)
        raw = pipeline.vae.encode(pixels).latent_dist.mode()
        expected = pipeline._normalize_latents(raw, pipeline.vae.latents_mean, pipeline.vae.latents_std)[0]
    assert (encode_video(encoder.vae, frames()) - expected).abs().max() < 1e-5


def test_short_audio_ends_in_silence_and_long_audio_is_cut(encoder: ClipEncoder) -> None:
    exact, short, long = (encoder.encode(frames(9, 32, 32), 24, sound(seconds)) for seconds in (9 / 24, 0.2, 3.0))
    assert exact.audio is not None and short.audio is not None and long.audio is not None
    assert torch.equal(exact.audio, long.audio)
    assert short.audio.shape == exact.audio.shape
    assert torch.equal(short.audio[:4], exact.audio[:4]) and not torch.equal(short.audio, exact.audio)


def test_encoding_is_repeatable(folder: ModelFolder) -> None:
    first, second = (
        dump_clip(ClipEncoder(folder, "cpu", with_audio=True).encode(frames(), 24, sound(2))) for _ in range(2)
    )
    assert first == second


def test_without_audio_none_is_loaded_or_made(folder: ModelFolder) -> None:
    silent = ClipEncoder(folder, "cpu", with_audio=False)
    assert silent.audio_vae is None
    assert silent.encode(frames(9, 32, 32), 24, sound(1)).audio is None


@pytest.mark.parametrize("shape", [(8, 32, 32), (9, 33, 32), (9, 32, 48)])
def test_frames_that_do_not_fit_are_refused(encoder: ClipEncoder, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="1 modulo 8"):
        encoder.encode(np.zeros((*shape, 3), np.uint8), 24, sound(1))


def test_tiling_changes_no_shape_and_little_else(folder: ModelFolder, encoder: ClipEncoder) -> None:
    wide = frames(9, 32, 544)
    in_tiles = ClipEncoder(folder, "cpu", with_audio=False)
    in_tiles.use_tiling()
    tiled = in_tiles.encode(wide, 24).video.float()
    whole = encode_video(encoder.vae, wide)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole.bfloat16().float())
    assert torch.nn.functional.cosine_similarity(tiled.flatten(), whole.flatten(), dim=0) > 0.9


def test_prompts_equal_the_pipeline_of_diffusers(folder: ModelFolder, prompts: PromptEncoder) -> None:
    from diffusers import LTX2Pipeline

    pipeline = LTX2Pipeline.from_pretrained(folder.path, local_files_only=True)
    texts = ["  a red ball rolls over a table\n", "", "ein Hund bellt 🐕"]
    with torch.no_grad():
        layers, mask = pipeline._get_gemma_prompt_embeds(texts, max_sequence_length=folder.prompt_tokens)
        video, audio, _ = pipeline.connectors(layers, mask, padding_side="left")
    for index, embedding in enumerate(prompts.encode(texts)):
        assert embedding.video.shape == (128, 64) and embedding.audio.shape == (128, 32)
        # Stored with 8 bits of mantissa.
        assert torch.allclose(embedding.video.float(), video[index], rtol=2**-8, atol=1e-5)
        assert torch.allclose(embedding.audio.float(), audio[index], rtol=2**-8, atol=1e-5)


def test_a_prompt_does_not_depend_on_its_neighbours(prompts: PromptEncoder) -> None:
    alone = prompts.encode(["a red ball"])[0]
    beside = prompts.encode(["something else", "a red ball"])[1]
    assert dump_prompt(alone) == dump_prompt(beside)


@pytest.mark.parametrize(("letters", "truncated"), [(127, False), (128, True)])
def test_long_prompts_are_cut_and_say_so(prompts: PromptEncoder, letters: int, truncated: bool) -> None:
    embedding = prompts.encode(["x" * letters])[0]
    assert (embedding.token_count, embedding.truncated) == (letters + 1, truncated)


def test_latents_decode_to_pictures(folder: ModelFolder, encoder: ClipEncoder) -> None:
    from diffusers import LTX2Pipeline

    vae = load_video_vae(folder, "cpu", torch.float32)
    latents = encode_video(encoder.vae, frames(17))
    pictures = decode_video(vae, latents)
    assert pictures.shape == (17, HEIGHT, WIDTH, 3) and pictures.dtype == np.uint8

    pipeline = LTX2Pipeline.from_pretrained(folder.path, local_files_only=True)
    with torch.no_grad():
        raw = pipeline._denormalize_latents(latents[None], vae.latents_mean, vae.latents_std)
        expected = pipeline.video_processor.postprocess_video(vae.decode(raw).sample, output_type="np")[0]
    assert np.abs(pictures - expected * 255).max() <= 0.51


def test_tiled_decoding_keeps_the_shape(folder: ModelFolder) -> None:
    vae = load_video_vae(folder, "cpu", torch.float32)
    latents = torch.randn(128, 4, 1, 17, generator=torch.Generator().manual_seed(0))
    whole, tiled = decode_video(vae, latents), decode_video(vae, latents, tiling=True)
    assert whole.shape == tiled.shape == (25, 32, 544, 3)
    assert not np.array_equal(whole, tiled)
    assert np.corrcoef(whole.ravel(), tiled.ravel())[0, 1] > 0.5
    assert np.array_equal(decode_video(vae, latents), whole)


def test_latents_decode_to_sound(folder: ModelFolder, encoder: ClipEncoder) -> None:
    assert encoder.audio_vae is not None
    audio_vae = load_audio_vae(folder, "cpu", torch.float32)
    vocoder = load_vocoder(folder, "cpu", torch.float32)
    latents = encode_audio(encoder.audio_vae, sound(0.3))
    waveform = decode_audio(audio_vae, vocoder, latents)
    assert waveform.shape == (2, 480 * (4 * len(latents) - 3)) and waveform.dtype == np.float32
    assert waveform.std() > 0.01 and np.abs(waveform).max() < 1


def test_the_vocoder_computes_in_float32_whatever_it_is_held_in(folder: ModelFolder) -> None:
    audio_vae = load_audio_vae(folder, "cpu", torch.float32)
    latents = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    held, expected = load_vocoder(folder, "cpu", torch.bfloat16), load_vocoder(folder, "cpu", torch.bfloat16).float()
    assert np.array_equal(decode_audio(audio_vae, held, latents), decode_audio(audio_vae, expected, latents))
