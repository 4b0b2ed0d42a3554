"""The sampler beside the pipeline of diffusers, and what that cannot do: continue audio, or leave it out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.errors import PrefixCoversClip, SamplingFailed
from ltxtrain_trainer.geometry import audio_latents
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.preview.guidance import Guidance, Predictions, guide
from ltxtrain_trainer.preview.recipe import skipped_block
from ltxtrain_trainer.preview.sampler import (
    Denoised,
    Sampled,
    SamplerSettings,
    continue_clip,
    noise_levels,
    preview_noise,
)

PREFIX_FRAMES, FRAMES, RATE, SIZE = 17, 33, 24.0, 64
PROMPT, NEGATIVE = "A red kite turns over the dunes.", "blurry, still"

Prompts = tuple[PromptEmbedding, PromptEmbedding]


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Iterator[Any]:
    from diffusers import LTX2ConditionPipeline

    loaded = LTX2ConditionPipeline.from_pretrained(tiny_model, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    threads = torch.get_num_threads()
    # Operations this small gain nothing from a second thread and wait for it on a busy machine.
    torch.set_num_threads(1)
    yield loaded
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source_frames() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (PREFIX_FRAMES, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prompts(pipeline: Any) -> Prompts:
    """Embeddings of PROMPT and NEGATIVE in float32, made by the pipeline's own parts."""
    with torch.no_grad():
        embeds, mask, negative, negative_mask = pipeline.encode_prompt(PROMPT, NEGATIVE, max_sequence_length=128)
        video, audio, _ = pipeline.connectors(
            torch.cat([embeds, negative]), torch.cat([mask, negative_mask]), padding_side="left"
        )
    prompt, unwanted = (
        PromptEmbedding(video=video[row], audio=audio[row], token_count=1, truncated=False) for row in range(len(video))
    )
    return prompt, unwanted


@pytest.fixture(scope="module")
def video_prefix(pipeline: Any, source_frames: NDArray[np.uint8]) -> torch.Tensor:
    """Normalised latents [128, F, h, w] of the source frames, in float32 as the pipeline makes them."""
    pixels = torch.from_numpy(source_frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode()
    mean, deviation = (buffer.view(-1, 1, 1, 1) for buffer in (pipeline.vae.latents_mean, pipeline.vae.latents_std))
    normalised: torch.Tensor = (latents[0] - mean) / deviation
    return normalised


@pytest.fixture(scope="module")
def audio_prefix() -> torch.Tensor:
    return torch.randn(audio_latents(PREFIX_FRAMES, RATE), 128, generator=torch.Generator().manual_seed(3))


def clip(video: torch.Tensor, audio: torch.Tensor | None) -> EncodedClip:
    return EncodedClip(video=video, audio=audio, frame_rate=RATE, frame_count=PREFIX_FRAMES)


def settings(**changes: Any) -> SamplerSettings:
    return SamplerSettings(**{"frame_count": FRAMES, "seed": 42, "index": 0, "step_count": 2, **changes})


def sample(
    pipeline: Any,
    prefix: EncodedClip,
    prompts: Prompts,
    wanted: SamplerSettings | None = None,
    model: Callable[[Any], VelocityModel] = VelocityModel,
) -> Sampled:
    *steps, result = continue_clip(
        model(pipeline.transformer), pipeline.scheduler.config, prefix, *prompts, wanted or settings()
    )
    count = (wanted or settings()).step_count
    assert steps == [Denoised(step + 1, count) for step in range(count)]
    assert isinstance(result, Sampled)
    return result


class StockGates(VelocityModel):
    """With the gates of diffusers' pipelines: everything between the modalities follows the other one's noise level."""

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)

        def other_modality(
            module: torch.nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            return inputs, {**keywords, "use_cross_timestep": True}

        self.hook = transformer.register_forward_pre_hook(other_modality, with_kwargs=True)

    @contextmanager
    def _gates_follow_other_modality(self, video_sigma: torch.Tensor, audio_sigma: torch.Tensor) -> Iterator[None]:
        yield


def pipeline_sample(
    pipeline: Any, source_frames: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised latents of the pipeline, started from the sampler's noise."""
    from diffusers.pipelines.ltx2 import LTX2VideoCondition, pipeline_ltx2_condition

    noises = iter(["video", "audio"])

    def same_noise(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        return preview_noise(next(noises), shape[1], 42, 0)

    monkeypatch.setattr(pipeline_ltx2_condition, "randn_tensor", same_noise)
    video, audio = pipeline(
        conditions=[LTX2VideoCondition(frames=source_frames, index=0, strength=1.0)],
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=SIZE,
        height=SIZE,
        num_frames=FRAMES,
        frame_rate=RATE,
        num_inference_steps=8,
        spatio_temporal_guidance_blocks=[1],
        max_sequence_length=128,
        output_type="latent",
        return_dict=False,
        **changes,
    )
    vae, audio_vae = pipeline.vae, pipeline.audio_vae
    video = pipeline._normalize_latents(video, vae.latents_mean, vae.latents_std)[0]
    audio = pipeline._normalize_audio_latents(
        pipeline._pack_audio_latents(audio), audio_vae.latents_mean, audio_vae.latents_std
    )[0]
    return video, audio


def test_it_computes_what_the_pipeline_computes(
    pipeline: Any,
    source_frames: NDArray[np.uint8],
    video_prefix: torch.Tensor,
    prompts: Prompts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = pipeline_sample(pipeline, source_frames, monkeypatch, stg_scale=1.5, audio_stg_scale=1.5)
    # The pipeline has no audio prefix: an empty one is the same.
    monkeypatch.setattr(
        "ltxtrain_trainer.preview.sampler.prefix_mask", lambda count, prefix, device: torch.arange(count) < prefix
    )
    wanted = settings(step_count=8, stg_scale=1.5, skip_block=1)
    try:
        stock = StockGates(pipeline.transformer)
        ours = sample(pipeline, clip(video_prefix, torch.zeros(0, 128)), prompts, wanted, lambda _: stock)
    finally:
        stock.hook.remove()
    assert torch.isfinite(ours.video).all()
    assert (ours.video - theirs[0]).abs().max() < 5e-5
    assert ours.audio is not None
    assert (ours.audio - theirs[1]).abs().max() < 5e-5
    # ... while the published model's gates give something else, or the comparison would prove nothing about them.
    exact = sample(pipeline, clip(video_prefix, torch.zeros(0, 128)), prompts, wanted)
    assert (exact.video - theirs[0]).abs().max() > 1e-3


def test_prefixes_come_out_as_they_went_in(
    pipeline: Any, video_prefix: torch.Tensor, audio_prefix: torch.Tensor, prompts: Prompts
) -> None:
    stored = clip(video_prefix.bfloat16(), audio_prefix.bfloat16())
    result = sample(pipeline, stored, prompts, settings(step_count=5))
    assert result.video.shape == (128, 5, 2, 2)
    assert result.audio is not None and stored.audio is not None
    assert result.audio.shape == (audio_latents(FRAMES, RATE), 128)
    assert result.video.dtype == result.audio.dtype == torch.float32
    assert torch.equal(result.video[:, :3], stored.video.float())
    assert torch.equal(result.audio[: len(stored.audio)], stored.audio.float())
    generated = result.video[:, 3:]
    assert torch.isfinite(generated).all()
    assert not torch.equal(generated[:, 0], generated[:, 1])


def test_the_audio_prefix_is_heard(
    pipeline: Any, video_prefix: torch.Tensor, audio_prefix: torch.Tensor, prompts: Prompts
) -> None:
    one = sample(pipeline, clip(video_prefix, audio_prefix), prompts)
    other = sample(pipeline, clip(video_prefix, -audio_prefix), prompts)
    tail = slice(len(audio_prefix), None)
    assert one.audio is not None and other.audio is not None
    assert (one.audio[tail] - other.audio[tail]).abs().max() > 1e-3
    assert (one.video - other.video).abs().max() > 1e-5


def test_without_audio_there_is_none_and_the_video_does_not_need_it(
    pipeline: Any, video_prefix: torch.Tensor, prompts: Prompts
) -> None:
    result = sample(pipeline, clip(video_prefix, None), prompts)
    assert result.audio is None
    assert torch.equal(result.video[:, :3], video_prefix)
    prompt, unwanted = (replace(embedding, audio=embedding.audio * 0 + 9) for embedding in prompts)
    assert torch.equal(sample(pipeline, clip(video_prefix, None), (prompt, unwanted)).video, result.video)


def test_noise_is_a_function_of_seed_and_index_and_global_randomness_is_left_alone(
    pipeline: Any, video_prefix: torch.Tensor, prompts: Prompts
) -> None:
    prefix = clip(video_prefix, None)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = sample(pipeline, prefix, prompts).video
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(sample(pipeline, prefix, prompts).video, first)
    assert not torch.equal(sample(pipeline, prefix, prompts, settings(index=1)).video, first)
    assert not torch.equal(sample(pipeline, prefix, prompts, settings(seed=43)).video, first)


def test_between_steps_gradients_are_on_and_weights_untouched(
    pipeline: Any, video_prefix: torch.Tensor, prompts: Prompts
) -> None:
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    for _ in continue_clip(
        VelocityModel(pipeline.transformer), pipeline.scheduler.config, clip(video_prefix, None), *prompts, settings()
    ):
        assert torch.is_grad_enabled()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.transformer.state_dict().items())


@pytest.mark.parametrize("audio", [False, True], ids=["video", "joint"])
def test_every_guidance_has_a_say(
    pipeline: Any, video_prefix: torch.Tensor, audio_prefix: torch.Tensor, prompts: Prompts, audio: bool
) -> None:
    prefix = clip(video_prefix, audio_prefix if audio else None)
    with_stg = sample(pipeline, prefix, prompts)
    without = sample(pipeline, prefix, prompts, settings(stg_scale=0.0))
    assert (with_stg.video - without.video).abs().max() > 1e-4
    swapped = sample(pipeline, prefix, (prompts[1], prompts[0]))
    assert (with_stg.video - swapped.video).abs().max() > 1e-4
    if audio:
        assert with_stg.audio is not None and without.audio is not None
        assert (with_stg.audio - without.audio).abs().max() > 1e-4


def test_skip_guidance_that_would_do_nothing_is_refused(
    pipeline: Any, video_prefix: torch.Tensor, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="4 blocks"):
        sample(pipeline, clip(video_prefix, None), prompts, settings(skip_block=28))
    config = pipeline.transformer.config
    monkeypatch.setattr(pipeline.transformer, "_internal_dict", type(config)({**config, "perturbed_attn": False}))
    with pytest.raises(SamplingFailed, match="stg_scale"):
        sample(pipeline, clip(video_prefix, None), prompts)


def test_a_prefix_that_covers_the_clip_is_refused(pipeline: Any, video_prefix: torch.Tensor, prompts: Prompts) -> None:
    with pytest.raises(PrefixCoversClip):
        sample(pipeline, clip(video_prefix, None), prompts, settings(frame_count=PREFIX_FRAMES))


def test_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        settings(step_count=1)


def test_damaged_weights_are_not_shown_as_a_preview(
    pipeline: Any, video_prefix: torch.Tensor, prompts: Prompts
) -> None:
    damaged = clip(torch.full_like(video_prefix, float("nan")), None)
    with pytest.raises(SamplingFailed, match="finite"):
        sample(pipeline, damaged, prompts)


@pytest.mark.parametrize(
    ("tokens", "levels"),
    [
        (4096, {0: 1, 1: 0.99496, 10: 0.93099, 15: 0.86986, 20: 0.76636, 28: 0.26612, 29: 0.1, 30: 0}),
        (1024, {0: 1, 1: 0.98710, 10: 0.84116, 15: 0.72662, 20: 0.57248, 28: 0.17257, 29: 0.1, 30: 0}),
    ],
)
def test_noise_levels_are_those_of_the_published_recipe(pipeline: Any, tokens: int, levels: dict[int, float]) -> None:
    ours = noise_levels(pipeline.scheduler.config, tokens, 30)
    assert len(ours) == 31
    for index, level in levels.items():
        assert float(ours[index]) == pytest.approx(level, abs=1e-5)


def test_the_shift_goes_on_beyond_the_longest_sequence_of_the_config(pipeline: Any) -> None:
    short, long = (noise_levels(pipeline.scheduler.config, tokens, 30)[10] for tokens in (4096, 6912))
    # mu(6912) = 3.058333: exp(mu) / (exp(mu) + 1 / t - 1), stretched so that the last level is 0.1.
    t = 1 - 10 / 30
    level, last = (float(np.exp(3.0583333) / (np.exp(3.0583333) + 1 / x - 1)) for x in (t, 1 / 30))
    assert float(long) == pytest.approx(1 - (1 - level) * 0.9 / (1 - last), abs=1e-5)
    assert long > short


@pytest.mark.parametrize(("layers", "block"), [(48, 28), (4, 2), (1, 0)])
def test_the_skipped_block_is_in_proportion(layers: int, block: int) -> None:
    assert skipped_block(layers) == block


def test_guidance_by_hand() -> None:
    prompted = torch.tensor([[[1.0, -1.0]]])
    predictions = Predictions(
        prompt=prompted, negative=torch.zeros(1, 1, 2), skipped=prompted / 2, isolated=prompted + 0.25
    )
    plain = guide(predictions, Guidance(text=3.0, skip=1.0, modality=3.0, rescale=0.0))
    # 1 + 2 (1 - 0) + 1 (1 - 0.5) + 2 (-0.25) = 3, and -1 - 2 - 0.5 - 0.5 = -4
    assert plain.tolist() == [[[3.0, -4.0]]]
    rescaled = guide(predictions, Guidance(text=3.0, skip=1.0, modality=3.0, rescale=1.0))
    assert float(rescaled.std()) == pytest.approx(float(prompted.std()))
    assert torch.allclose(rescaled / plain, torch.full((1, 1, 2), 2 / 7))
