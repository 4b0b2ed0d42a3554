"""Previews of a step: each validation entry continued by base model and LoRA, decoded, measured, written."""

import gc
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltxtrain_trainer.data.dataset import read_files
from ltxtrain_trainer.data.encoded import load_prompt
from ltxtrain_trainer.errors import SamplingFailed, TrainerError
from ltxtrain_trainer.media.video_file import read_lossless
from ltxtrain_trainer.model.device import is_out_of_memory
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.model.loading import compute_dtype, load_audio_vae, load_video_vae, load_vocoder
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.plan import PreviewInput, PreviewSettings
from ltxtrain_trainer.preview.metrics import Preview, measure
from ltxtrain_trainer.preview.reel import Continuation, Frames, Segment, write_preview, write_reel
from ltxtrain_trainer.preview.sampler import Denoised, Sampled, SamplerSettings, continue_clip
from ltxtrain_trainer.reports import LABELLED, FileKind, MadeFile, Previewed, Previewing, PreviewMetrics
from ltxtrain_trainer.training.distributed import ALONE, Worker
from ltxtrain_trainer.training.lora import base_model

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE


AUDIO_CHANNELS = 8  # of a latent, before the 16 mel bands of each are packed beside it


@torch.no_grad()
def decode_video(vae: "AutoencoderKLLTX2Video", latents: Tensor, *, tiling: bool = False) -> NDArray[np.uint8]:
    """Normalised latents [128, F, h, w] -> [T, H, W, 3].

    `tiling` decodes in overlapping parts of 512 pixels and 16 frames: less memory, faint differences at their borders.
    """
    vae.use_tiling = vae.use_framewise_decoding = tiling
    mean, deviation = (x.float().view(-1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
    raw = latents.to(vae.device).float() * deviation / vae.config.scaling_factor + mean
    pictures = vae.decode(raw[None].to(vae.dtype)).sample[0]
    # Frame by frame: a float copy of a whole clip is four times the clip.
    frames = [((frame.float() + 1) * 127.5).round().clamp(0, 255).byte() for frame in pictures.unbind(1)]
    decoded: NDArray[np.uint8] = torch.stack(frames).permute(0, 2, 3, 1).cpu().numpy()
    return decoded


@torch.no_grad()
def decode_audio(
    audio_vae: "AutoencoderKLLTX2Audio", vocoder: "LTX2VocoderWithBWE", latents: Tensor
) -> NDArray[np.float32]:
    """Normalised latents [L, 128] -> [2, S] at 48 kHz, in -1..1; S = 480 (4 L - 3), the mel frames of L latents."""
    raw = latents.to(audio_vae.device).float() * audio_vae.latents_std.float() + audio_vae.latents_mean.float()
    unpacked = raw.unflatten(1, (AUDIO_CHANNELS, -1)).transpose(0, 1)  # [L, 8 * 16] -> [8, L, 16]
    mel = audio_vae.decode(unpacked[None].to(audio_vae.dtype)).sample
    # In float32 whatever it was loaded in, as the reference does: the rounding of bfloat16 adds up to audible noise.
    waveform: NDArray[np.float32] = vocoder.float()(mel.float())[0].cpu().numpy()
    return waveform


BASE, LORA = "Base model", "LoRA"
AUDIO_RATE = 48_000


@dataclass(frozen=True)
class _Result:
    continuation: Continuation
    metrics: PreviewMetrics


@dataclass(frozen=True)
class _Failure:
    """The reason that a worker could not sample a preview."""

    text: str
    out_of_memory: bool


@dataclass
class Previewer:
    """Samples with the transformer as it is; leaves it, and all that training computes, as it was.

    The base model's side, where it is asked for, is computed once: one seed, and weights that do not change.
    `kind`: of the videos with the LoRA: previews of a step, each also beside the base model's, or continued clips.
    """

    folder: ModelFolder
    transformer: Any
    settings: PreviewSettings
    seed: int
    work_dir: Path
    worker: Worker = ALONE
    kind: FileKind = FileKind.VALIDATION_VIDEO
    _base: dict[int, _Result] = field(default_factory=dict)
    _newest: dict[int, _Result] = field(default_factory=dict)

    def run(self, step: int) -> Iterator[Previewing | Previewed]:
        """The previews of a step; each LoRA preview comes after the base model's of the same entry.

        Every worker samples its share; the first decodes, measures and writes all of them, and alone has reports.
        Raises on the first when one could not be sampled, after the others: torch's OutOfMemoryError whichever worker's
        it was, since the caller knows what would need less, and SamplingFailed otherwise.
        """
        entries = {entry.index: entry for entry in self.settings.inputs}
        runs = self.worker.told([(index, base) for index in entries for base in self._sides(index)])
        step_count = self.settings.step_count
        total = len(runs) * step_count
        failures: list[_Failure] = []
        for first in range(0, len(runs), self.worker.count):
            batch = runs[first : first + self.worker.count]
            sampled: Sampled | _Failure | None = None
            if self.worker.rank < len(batch):
                index, is_base = batch[self.worker.rank]
                try:
                    for report in self._sampled(entries[index], is_base):
                        if isinstance(report, Sampled):
                            sampled = report
                        elif self.worker.rank == 0:
                            completed = first * step_count + report.step * len(batch)
                            yield Previewing(completed=completed, total=total)
                except (TrainerError, RuntimeError, OSError) as error:
                    if self.worker.count == 1 and is_out_of_memory(error):
                        # Those after it are as large; the caller knows what would need less.
                        raise
                    # Said to the first worker, which waits for this one.
                    text = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
                    sampled = _Failure(text, is_out_of_memory(error))
                    if sampled.out_of_memory:
                        traceback.clear_frames(error.__traceback__)
            for (index, is_base), found in zip(batch, self.worker.collected(sampled), strict=False):
                if isinstance(found, Sampled):
                    yield self._finished(step, entries[index], is_base, found)
                elif found is not None:
                    failures.append(found)
        if full := [failure for failure in failures if failure.out_of_memory]:
            raise torch.OutOfMemoryError(full[0].text)
        if failures:
            raise SamplingFailed(failures[0].text)

    def _sides(self, index: int) -> tuple[bool, ...]:
        """The sides of an entry to sample, true for the base model's, which comes first."""
        return (True, False) if self.settings.base_model and index not in self._base else (False,)

    def _finished(self, step: int, entry: PreviewInput, is_base: bool, sampled: Sampled) -> Previewed:
        result = self._result(entry, is_base, sampled)
        if not is_base and self.settings.base_model and entry.index not in self._base:
            raise SamplingFailed("its base model's side could not be sampled")
        prefix, frame_rate = self._source(entry)
        written = self._written(step, entry, is_base, result, prefix, frame_rate)
        (self._base if is_base else self._newest)[entry.index] = result
        return written

    @property
    def complete(self) -> bool:
        """Whether every entry has both sides, so that there can be a reel."""
        return all(entry.index in self._base and entry.index in self._newest for entry in self.settings.inputs)

    def write_reel(self, path: Path) -> None:
        """The last previews of every entry, base model and LoRA side by side."""
        segments = []
        frame_rate = 0.0
        for entry in self.settings.inputs:
            prefix, frame_rate = self._source(entry)
            sides = (self._base[entry.index].continuation, self._newest[entry.index].continuation)
            segments.append(Segment(prompt=entry.prompt, prefix=prefix, continuations=sides))
        write_reel(path, segments, frame_rate)

    def _sampled(self, entry: PreviewInput, is_base: bool) -> Iterator[Denoised | Sampled]:
        """Each step, and at the end the latents, in host memory."""
        prefix, prompt = read_files(entry.prefix)
        settings = SamplerSettings(
            frame_count=self.settings.frame_count,
            seed=self.seed,
            index=entry.index,
            stg_scale=self.settings.stg_scale,
            schedule_tokens=self.settings.schedule_tokens,
            step_count=self.settings.step_count,
            text_guidance=self.settings.text_guidance,
            audio_text_guidance=self.settings.audio_text_guidance,
        )
        negative = load_prompt(self.settings.negative.read_bytes())
        reports = continue_clip(
            VelocityModel(self.transformer), self.folder.config("scheduler"), prefix, prompt, negative, settings
        )
        while True:
            # The adapter is switched off for each step alone, so that a caller who stops finds it on.
            if is_base:
                with base_model(self.transformer):
                    report = next(reports)
            else:
                report = next(reports)
            if isinstance(report, Sampled):
                yield Sampled(report.video.cpu(), None if report.audio is None else report.audio.cpu())
                return
            yield report

    def _result(self, entry: PreviewInput, is_base: bool, report: Sampled) -> _Result:
        prefix, _ = read_files(entry.prefix)
        source, frame_rate = self._source(entry)
        given, made = [prefix.video], [report.video[:, : prefix.video.shape[1]]]
        if prefix.audio is not None and report.audio is not None:
            given, made = [*given, prefix.audio], [*made, report.audio[: len(prefix.audio)]]
        pixels, sound = self._decode(report)
        metrics = measure(
            Preview(
                frames=pixels,
                source_prefix=source,
                frame_rate=frame_rate,
                given_latents=[latents.float().cpu().numpy() for latents in given],
                made_latents=[latents.float().cpu().numpy() for latents in made],
                audio=sound,
                sample_rate=AUDIO_RATE,
            )
        )
        return _Result(Continuation(label=BASE if is_base else LORA, frames=pixels, audio=sound), metrics)

    def _decode(self, sampled: Sampled) -> tuple[Frames, Any]:
        """Decoders are loaded for one preview and given back: training needs the memory."""
        device: torch.device = VelocityModel(self.transformer).device
        dtype = compute_dtype(device)
        vae = load_video_vae(self.folder, device, dtype)
        try:
            pixels = decode_video(vae, sampled.video)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            pixels = None
        if pixels is None:
            # Not in the handler: until it is left, the error holds what had been computed.
            torch.cuda.empty_cache()
            pixels = decode_video(vae, sampled.video, tiling=True)
        del vae
        sound = None
        if sampled.audio is not None:
            audio_vae, vocoder = load_audio_vae(self.folder, device, dtype), load_vocoder(self.folder, device, dtype)
            sound = decode_audio(audio_vae, vocoder, sampled.audio)
            del audio_vae, vocoder
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return pixels, sound

    def _source(self, entry: PreviewInput) -> tuple[Frames, float]:
        clip = read_lossless(entry.prefix_frames)
        return clip.frames, clip.frame_rate

    def _written(
        self, step: int, entry: PreviewInput, is_base: bool, result: _Result, prefix: Frames, frame_rate: float
    ) -> Previewed:
        kind = FileKind.BASE_VIDEO if is_base else self.kind
        # Counted from 1, as on pages and in lines of the log.
        clip = f"clip-{entry.index + 1}"
        stems = {FileKind.BASE_VIDEO: "base", FileKind.CONTINUED_VIDEO: "continued"}
        stem = f"{stems.get(kind, f'preview-{step:06}')}-{clip}"
        plain = self.work_dir / f"{stem}.mp4"
        write_preview(plain, result.continuation, prefix, frame_rate)
        files = [MadeFile(kind=kind, path=plain, content_type="video/mp4", step=step, validation_index=entry.index)]
        if kind is FileKind.VALIDATION_VIDEO:
            labelled = self.work_dir / f"{stem}{LABELLED}"
            sides = (self._base[entry.index].continuation, result.continuation)
            write_reel(labelled, [Segment(prompt=entry.prompt, prefix=prefix, continuations=sides)], frame_rate)
            files.append(
                MadeFile(kind=kind, path=labelled, content_type="video/mp4", step=step, validation_index=entry.index)
            )
        return Previewed(step=step, index=entry.index, base_model=is_base, metrics=result.metrics, files=tuple(files))
