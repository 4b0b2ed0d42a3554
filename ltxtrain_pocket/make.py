"""Make the pocket model's weights: hours on two cores, stopped and resumed at any time.

    python -m ltxtrain_pocket.make [--work FOLDER] [--threads N] [STAGE ...]

Stages, in their order: video-vae, latents, transformer, audio-vae, vocoder, sound, weights. What a stage has done stays
in FOLDER; the last writes the package's weights, of what FOLDER has. The decoder and the transformer need only the
encoder, so that `video-vae` and then `latents transformer` may run at the same time once the encoder is there. `sound`
needs latents, and a video half: that of FOLDER, or else the package's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ltxtrain_pocket import audio_vae, sound, transformer, vocoder
from ltxtrain_pocket.model import TRANSFORMER_CONFIG, build_untrained, load_weights, store_weights
from ltxtrain_pocket.pretraining import average_of
from ltxtrain_pocket.video_vae import PLAN as VIDEO_VAE_PLAN
from ltxtrain_pocket.video_vae import started_video_vae, train_video_vae
from ltxtrain_trainer.data.encode import PromptEncoder
from ltxtrain_trainer.data.encoded import PromptEmbedding
from ltxtrain_trainer.data.prompt_text import NEGATIVE_PROMPT
from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.model.loading import hush_imports
from ltxtrain_trainer.model.video_half import is_audio

STAGES = ("video-vae", "latents", "transformer", "audio-vae", "vocoder", "sound", "weights")
SOUNDING = (transformer.SMALL, transformer.LARGE)  # worlds that the sound is trained on
CAPTIONS = 12  # of each world, that the video half reads while the sound is trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", choices=[[], *STAGES], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=Path(".pocket"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    hush_imports()
    torch.set_num_threads(arguments.threads)
    # Small averages of gradients otherwise become numbers that the processor is slow with.
    torch.set_flush_denormal(True)
    run: dict[str, Callable[[], object]] = {
        "video-vae": lambda: train_video_vae(arguments.work),
        "latents": lambda: encode_worlds(arguments.work),
        "transformer": lambda: train_transformer(arguments.work),
        "audio-vae": lambda: audio_vae.solved_audio_vae(arguments.work),
        "vocoder": lambda: vocoder.solve_vocoder(arguments.work),
        "sound": lambda: train_sound(arguments.work),
        "weights": lambda: write_weights(arguments.work),
    }
    for stage in arguments.stages or STAGES:
        run[stage]()


def encode_worlds(work: Path) -> None:
    vae = started_video_vae(work)
    for pictures in transformer.WORLDS:
        transformer.encode_world(vae, work, pictures)


def train_transformer(work: Path) -> None:
    vae = started_video_vae(work)
    mean, deviation = (value.view(-1, 1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
    worlds = []
    for pictures in transformer.WORLDS:
        latents = transformer.read_latents(work, pictures)
        for clip in latents:  # in place, clip by clip: the whole in float32 would be twice as large
            clip.copy_((clip.float() - mean) / deviation)
        scenes = [pictures.scene(index) for index in range(len(latents))]
        worlds.append(transformer.World(pictures, latents, scenes, transformer.chances(scenes)))
    prompts = prompt_embeddings(work, [scene.caption for world in worlds for scene in world.scenes])
    weights = transformer.channel_weights(vae.latents_std)
    transformer.train_transformer(untrained_transformer(), worlds, weights, prompts, work)


def untrained_transformer() -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(transformer.SEED)
        model = LTX2VideoTransformer3DModel(**TRANSFORMER_CONFIG)
    transformer.point_heads(model)
    return model


def prompt_embeddings(work: Path, captions: list[str]) -> dict[str, PromptEmbedding]:
    """Embeddings of every caption, plain and led, and of the texts that stand for none."""
    folder = work / "untrained"
    if not (folder / "model_index.json").exists():
        build_untrained(folder)
    encoder = PromptEncoder(resolve_model(str(folder)), "cpu")
    plain = sorted(set(captions))
    texts = ["", NEGATIVE_PROMPT, *plain, *(text for caption in plain for text in transformer.led(caption))]
    return dict(zip(texts, encoder.encode(texts), strict=True))


def train_sound(work: Path) -> None:
    vae = audio_vae.solved_audio_vae(work)
    video_vae = started_video_vae(work)
    model = untrained_transformer()
    model.load_state_dict(video_half(work), strict=False)
    sound.start_sound(model)
    heard = [sound.read_heard(work, pictures, video_vae, vae) for pictures in SOUNDING]
    captions = [pictures.scene(index).caption for pictures in SOUNDING for index in range(CAPTIONS)]
    prompts = prompt_embeddings(work, captions)
    contexts = [prompts[text].video.float() for text in ("", NEGATIVE_PROMPT, *captions)]
    sound.train_sound(model, heard, sound.latent_weights(vae), contexts, work)


def video_half(work: Path) -> dict[str, Tensor]:
    """The transformer's video half that was trained here, or else the package's."""
    if not (work / f"{transformer.PLAN.name}.pt").exists():
        return load_weights("transformer")
    trained = average_of(transformer.PLAN, work)
    return {name: weight for name, weight in trained.items() if not is_audio(name)}


def write_weights(work: Path) -> None:
    """Each of what the folder has: video and sound can be made at different times."""
    if (work / f"{VIDEO_VAE_PLAN.name}.pt").exists():
        vae = safetensors.torch.load_file(work / "video-vae-start.safetensors")
        store_weights("vae", vae | average_of(VIDEO_VAE_PLAN, work))
    if (work / f"{transformer.PLAN.name}.pt").exists():
        store_weights("transformer", video_half(work))
    store_weights("audio_vae", audio_vae.solved_audio_vae(work).state_dict())
    store_weights("vocoder", vocoder.solve_vocoder(work))
    model = untrained_transformer()
    sound.start_sound(model)
    silent = {name: weight for name, weight in model.state_dict().items() if sound.is_silent(name)}
    learned = average_of(sound.PLAN, work) if (work / f"{sound.PLAN.name}.pt").exists() else {}
    store_weights("sound", silent | sound.hearing(learned))


if __name__ == "__main__":
    main()
