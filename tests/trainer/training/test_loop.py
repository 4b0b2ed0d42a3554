"""The numbers of a training, its reports, and that nothing around it changes either."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_trainer.data.dataset import split_held_out
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.errors import OptimizerUnavailable, PrefixCoversClip, SampleUnreadable, TrainingDiverged
from ltxtrain_trainer.geometry import audio_latents
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.seeds import epoch_order, sample_at
from ltxtrain_trainer.training.distributed import Worker
from ltxtrain_trainer.training.loop import CheckpointDue, PreviewDue, Report, exact, train
from ltxtrain_trainer.training.lora import adapter, add_lora, base_model
from ltxtrain_trainer.training.losses import clip_loss, suggested_stop, training_draw
from ltxtrain_trainer.training.optim import MAX_GRADIENT_NORM, AdapterOptimizer, learning_rate
from tests.trainer.golden import (
    FRAMES,
    IDENTITY,
    LATENT_SHAPE,
    Trained,
    golden_transformer,
    gradient,
    run,
    same,
    sample,
    samples,
    settings,
    weights,
    with_lora,
)

LOSSES = Path(__file__).parents[2] / "data" / "losses.txt"


def steps(reports: Sequence[Report]) -> list[Step]:
    return [report for report in reports if isinstance(report, Step)]


def numbers(reports: Sequence[Report]) -> list[Step]:
    """Everything that must not depend on the clock."""
    return [replace(step, seconds=0.0, tokens_per_second=0.0, data_wait_seconds=0.0) for step in steps(reports)]


@pytest.fixture(scope="module")
def undisturbed() -> Trained:
    return run(settings())


def test_seeded_losses_are_kept() -> None:
    """A change of these is a change of the mathematics: say why they moved, then write the file anew."""
    found = []
    for with_audio in (True, False):
        wanted = settings(steps=20, with_audio=with_audio, checkpoint_interval=0)
        found += [step.loss for step in steps(run(wanted, data=samples(5, with_audio))[0])]
    expected = [float(line) for line in LOSSES.read_text().split()]
    assert found == pytest.approx(expected, rel=1e-3)


def test_equal_runs_are_equal_bit_for_bit(undisturbed: Trained) -> None:
    reports, trained = run(settings())
    assert numbers(reports) == numbers(undisturbed[0])
    assert same(trained, undisturbed[1])


@pytest.mark.parametrize("change", [{"seed": 43}, {"learning_rate": 9e-3}, {"conditioning_frames": 17}])
def test_what_should_matter_matters(undisturbed: Trained, change: dict[str, Any]) -> None:
    assert not same(run(settings(**change))[1], undisturbed[1])


def test_the_loss_on_fixed_noise_falls() -> None:
    wanted = settings(steps=40, batch_size=1, learning_rate=2e-2, schedule="constant")
    data = samples(2)
    transformer = with_lora(wanted)

    def fixed_loss() -> float:
        with torch.no_grad():
            return sum(
                clip_loss(VelocityModel(transformer), clip, prompt, training_draw(clip, 5, 0, index), 9).total.item()
                for index, (clip, prompt) in enumerate(data)
            )

    before = fixed_loss()
    run(wanted, data=data, transformer=transformer)
    assert fixed_loss() < 0.97 * before


def test_gradient_checkpointing_changes_nothing(undisturbed: Trained) -> None:
    assert same(run(settings(gradient_checkpointing=True))[1], undisturbed[1])


@pytest.mark.parametrize("kept", [1, 3])
def test_nor_does_it_of_all_but_some_blocks(undisturbed: Trained, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = with_lora(settings())
    calls = Counter[int]()
    for number, block in enumerate(transformer.transformer_blocks):
        block.register_forward_pre_hook(lambda module, inputs, number=number: calls.update([number]))
    _, found = run(settings(gradient_checkpointing=True, kept_blocks=kept, steps=6), transformer=transformer)
    assert same(undisturbed[1], found)
    # Those that are kept are computed half as often.
    times = [calls[number] for number in range(4)]
    assert times[4 - kept :] == [times[-1]] * kept and times[: 4 - kept] == [2 * times[-1]] * (4 - kept)


def test_previews_in_between_change_nothing(undisturbed: Trained) -> None:
    wanted = settings(preview_interval=2, checkpoint_interval=3, evaluation_interval=1)
    transformer = with_lora(wanted)
    clip, prompt = sample(99)
    for report in train(transformer, samples(), wanted, identity=IDENTITY):
        torch.manual_seed(0)
        if isinstance(report, PreviewDue):
            with torch.no_grad(), base_model(transformer):
                clip_loss(VelocityModel(transformer), clip, prompt, training_draw(clip, 0, 0, 0), 9)
    assert same(weights(transformer), undisturbed[1])


def test_reports_come_at_their_intervals_and_at_the_end() -> None:
    reports, _ = run(settings(steps=5, checkpoint_interval=2, preview_interval=3))
    assert [report.step for report in steps(reports)] == [1, 2, 3, 4, 5]
    assert [report.step for report in reports if isinstance(report, CheckpointDue)] == [2, 4, 5]
    assert [report.step for report in reports if isinstance(report, PreviewDue)] == [3, 5]
    assert [type(report) for report in reports[-3:]] == [Step, CheckpointDue, PreviewDue]


def test_a_step_reports_its_parts(undisturbed: Trained) -> None:
    for step in steps(undisturbed[0]):
        assert step.audio_loss is not None
        assert step.loss == pytest.approx(step.video_loss + step.audio_loss)
        assert step.gradient_norm > 0
        assert step.seconds > step.data_wait_seconds >= 0
        assert step.held_out_loss is None
        found = [loss for loss in step.quarter_losses if loss is not None]
        assert len(step.quarter_losses) == 4 and 1 <= len(found) <= 2, "two clips fall into one or two quarters"
        if len(found) == 2:
            assert sum(found) / 2 == pytest.approx(step.video_loss)
    video_tokens = LATENT_SHAPE[0] * LATENT_SHAPE[1] * LATENT_SHAPE[2]
    tokens = 2 * (video_tokens + audio_latents(FRAMES, 24.0))
    assert steps(undisturbed[0])[0].tokens_per_second * steps(undisturbed[0])[0].seconds == pytest.approx(tokens)


def test_a_video_only_training_does_not_look_at_audio() -> None:
    wanted = settings(with_audio=False)
    reports, trained = run(wanted, data=samples(5, with_audio=True))
    assert same(trained, run(wanted, data=samples_without_audio())[1])
    assert all(step.audio_loss is None for step in steps(reports))


def samples_without_audio() -> list[tuple[EncodedClip, PromptEmbedding]]:
    return [(replace(clip, audio=None), prompt) for clip, prompt in samples(5, with_audio=True)]


def test_audio_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(SampleUnreadable, match="without audio"):
        run(settings(), data=samples_without_audio())


def test_clips_of_different_rates_share_a_batch() -> None:
    reports, _ = run(
        settings(steps=2, batch_size=4), data=[sample(number, rate=20.0 + 4 * number) for number in range(4)]
    )
    assert len(steps(reports)) == 2


def test_a_prefix_as_long_as_the_clip_is_refused() -> None:
    with pytest.raises(PrefixCoversClip):
        run(settings(conditioning_frames=FRAMES))


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own() -> None:
    seen = [[sample_at(42, epoch * 7 + index, 7) for index in range(7)] for epoch in range(20)]
    assert all(sorted(order) == list(range(7)) for order in seen)
    assert len({tuple(order) for order in seen}) > 15
    assert epoch_order(42, 3, 7) == tuple(seen[3])


@pytest.mark.parametrize("poisoned", ["video", "audio"])
def test_a_loss_that_is_not_finite_ends_the_training_before_the_weights(poisoned: str) -> None:
    data = samples(6)
    wanted = settings(batch_size=1, steps=6, checkpoint_interval=1)
    bad_step = 4
    bad = sample_at(wanted.seed, bad_step - 1, len(data))
    clip, prompt = data[bad]
    poison: dict[str, Any] = {poisoned: torch.full_like(getattr(clip, poisoned), torch.nan)}
    data[bad] = replace(clip, **poison), prompt
    transformer = with_lora(wanted)
    good = {}
    with pytest.raises(TrainingDiverged) as caught:
        for report in train(transformer, data, wanted, identity=IDENTITY):
            if isinstance(report, CheckpointDue):
                good = weights(transformer)
    assert caught.value.step == bad_step
    assert same(weights(transformer), good)


def test_the_learning_rate_falls_to_a_tenth_or_stays() -> None:
    wanted = settings(steps=100, learning_rate=2e-4)
    assert learning_rate(wanted, 1) == 2e-4
    assert learning_rate(wanted, 51) == pytest.approx(2e-4 * 0.55)
    assert learning_rate(wanted, 100) == pytest.approx(2e-4 * 0.109)
    constant = settings(steps=100, learning_rate=2e-4, schedule="constant")
    assert learning_rate(constant, 100) == 2e-4


def test_gradients_are_clipped_as_one_vector() -> None:
    parameters = {name: torch.nn.Parameter(torch.zeros(3)) for name in "ab"}
    optimizer = AdapterOptimizer(parameters, "adamw")
    (parameters["a"] * 3 + parameters["b"] * 4).sum().backward()
    assert optimizer.clip().item() == pytest.approx(75**0.5)
    assert torch.cat([gradient(parameter) for parameter in parameters.values()]).norm().item() == pytest.approx(
        MAX_GRADIENT_NORM, rel=1e-5
    )
    optimizer.clear()
    (parameters["a"] * 0.1).sum().backward()
    optimizer.clip()
    assert gradient(parameters["a"]).tolist() == pytest.approx([0.1] * 3), "small gradients stay as they are"


def test_the_flat_optimizer_is_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, generator=generator) for _ in range(2)]
    gradients = [[torch.randn(5, generator=generator) for _ in range(2)] for _ in range(3)]
    ours = {str(index): torch.nn.Parameter(tensor.clone()) for index, tensor in enumerate(start)}
    optimizer = AdapterOptimizer(ours, "adamw")
    plain = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    expected = torch.optim.AdamW(plain, lr=0.05)
    for step in gradients:
        for parameter, other, wanted in zip(ours.values(), plain, step, strict=True):
            gradient(parameter).copy_(wanted)
            other.grad = wanted.clone()
        optimizer.step(0.05)
        expected.step()
    for parameter, other in zip(ours.values(), plain, strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-6)


def test_eight_bit_moments_without_their_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptimizerUnavailable, match="quantized"):
        AdapterOptimizer({"a": torch.nn.Parameter(torch.zeros(3))}, "adamw_8bit")


def test_eight_bit_moments_train_about_as_well(undisturbed: Trained) -> None:
    with torch.compiler.set_stance("force_eager"):
        reports, _ = run(settings(optimizer="adamw_8bit"))
    expected = [step.loss for step in steps(undisturbed[0])]
    found = [step.loss for step in steps(reports)]
    assert found == pytest.approx(expected, rel=1e-3)
    assert found != expected


def test_held_out_clips_are_measured_and_not_trained_on() -> None:
    wanted = settings(holdout_fraction=0.4, evaluation_interval=4, steps=6)
    trained, held_out = split_held_out(5, 0.4, wanted.seed)
    data = samples(5)
    reports, weights_with = run(wanted, data=data)
    assert [step.step for step in steps(reports) if step.held_out_loss is not None] == [4, 6]

    changed = list(data)
    for index in held_out:
        changed[index] = sample(50 + index)
    other_reports, weights_without = run(wanted, data=changed)
    assert same(weights_with, weights_without)
    assert steps(reports)[-1].held_out_loss != steps(other_reports)[-1].held_out_loss
    assert sorted(trained + held_out) == list(range(5)) and len(held_out) == 2


def test_held_out_losses_of_one_model_do_not_depend_on_the_seed_of_the_noise() -> None:
    """With a learning rate of nothing the model stays as it is, so only the measurement could differ."""
    found = []
    for seed in (1, 2):
        wanted = settings(holdout_fraction=0.2, evaluation_interval=1, steps=1, learning_rate=0.0, seed=seed)
        data = [sample(0)] * 5
        found.append(steps(run(wanted, data=data)[0])[0].held_out_loss)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(10, 0.2, 2), (10, 0.0, 0), (10, 0.01, 1), (2, 0.5, 1), (1, 0.5, 0), (3, 0.99, 2)],
)
def test_how_many_are_held_out(count: int, fraction: float, held_out: int) -> None:
    assert len(split_held_out(count, fraction, 42)[1]) == held_out


def test_a_stop_is_suggested_when_the_held_out_loss_only_rose() -> None:
    falling = [(100, 2.0), (200, 1.8), (300, 1.7)]
    assert suggested_stop([]) is None
    assert suggested_stop(falling) is None
    assert suggested_stop([*falling, (400, 1.8), (500, 1.75)]) is None
    assert suggested_stop([*falling, (400, 1.8), (500, 1.75), (600, 1.9)]) == 300


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    assert [list(Worker(rank, 2).share(6)) for rank in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="4 workers cannot share a batch of 6"):
        Worker(0, 4).share(6)


def test_a_transformer_without_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="add_lora"):
        next(iter(train(golden_transformer(), samples(), settings(), identity=IDENTITY)))


def test_parameters_are_views_of_one_vector() -> None:
    transformer = with_lora(settings())
    optimizer = AdapterOptimizer(adapter(transformer), "adamw")
    clip, prompt = sample(0)
    clip_loss(VelocityModel(transformer), clip, prompt, training_draw(clip, 0, 1, 0), 9).total.backward()
    flat = torch.cat([gradient(parameter).flatten() for parameter in adapter(transformer).values()])
    assert torch.equal(optimizer.gradients, flat) and flat.abs().max() > 0


@pytest.mark.soak
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_compiled_blocks_compute_the_same(gradient_checkpointing: bool) -> None:
    plain = settings(steps=3, gradient_checkpointing=gradient_checkpointing)
    expected = [step.loss for step in steps(run(plain)[0])]
    found = [step.loss for step in steps(run(replace(plain, compile_blocks=True))[0])]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("attention", "strict"), [("exact", True), ("fastest", False)])
def test_steps_on_a_card_are_strict_unless_their_attention_is_to_be_the_fastest(attention: str, strict: bool) -> None:
    with exact(torch.device("cuda"), settings(attention=attention)):
        # With warnings alone, attention would take the pass that differs from run to run.
        found = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    assert found == (strict, False) and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_equal_runs_are_equal_and_near_those_of_a_cpu(undisturbed: Trained) -> None:
    wanted = settings(gradient_checkpointing=True)

    def train_on_gpu() -> Trained:
        transformer = golden_transformer(torch.bfloat16).to("cuda")
        add_lora(transformer, rank=wanted.rank, with_audio=True, seed=wanted.seed)
        return run(wanted, transformer=transformer)

    (reports, trained), (_, again) = train_on_gpu(), train_on_gpu()
    assert same(trained, again)
    expected = [step.loss for step in steps(undisturbed[0])]
    assert [step.loss for step in steps(reports)] == pytest.approx(expected, rel=0.02)
