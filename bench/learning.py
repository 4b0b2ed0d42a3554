"""Learning measured: the pocket model, and a LoRA on it in as many steps as the demo takes.

    bench/learning.py [--quick] [--model FOLDER] [--pictures FILE.png]

Held-out openings of 9 frames at 512x288 are continued to 17 by the base model and by a LoRA of the demo's style (night
falls over the ground), and held against the truth of the world. The last line is one JSON object:

    vae_psnr_db          whole held-out clips through encoder and decoder
    prefix_psnr_db       the decoded opening against its source, mean over openings
    base_position_ok     share of openings whose shape ends within 12 pixels of the truth
    base_colour_ok       share of openings whose shape keeps its colour within 20 levels of each channel
    base_join_jump       median over openings of the largest of the three join jumps, in usual changes
    clicks_heard         share of the clicks of true sound found within 20 ms after audio VAE and vocoder
    clicks_in_sync       share of openings with bounces to come that go on, with sound, with a click within 80 ms of
                         each bounce and no other
    style_with_lora      share of openings over which night has fallen by at least half, with the LoRA
    style_with_base      the same without it
    held_out_loss_ratio  LoRA over base model, on clips in the style that were not trained on
    lora_position_ok     as for the base model, within 18 pixels
    lora_colour_ok       as for the base model, within 30 levels

With --quick there are 4 openings in place of 20, fewer sampling steps and fewer training steps: it says whether things
work, within a minute. --pictures: the frames of some openings, truth, base model and LoRA, below each other.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ltxtrain_pocket.drawing import Frames, render
from ltxtrain_pocket.learning import Extent, Pocket, Verdict, judge, measure_learning, measure_sound, missed
from ltxtrain_pocket.model import build_pocket_model
from ltxtrain_pocket.scenes import FRAMES, PREFIX_FRAMES, STYLE_STEPS, opening

SHOWN = (0, PREFIX_FRAMES - 1, PREFIX_FRAMES + 3, FRAMES - 1)
PICTURES = 4


WHOLE, QUICK = Extent(20, 30, STYLE_STEPS), Extent(4, 8, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer openings and steps, within a minute")
    parser.add_argument("--model", type=Path, help="another pipeline folder than the stored weights make")
    parser.add_argument("--pictures", type=Path, help="PNG file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(prefix="ltxtrain-bench-") as folder:
        model = arguments.model or Path(folder) / "pocket"
        if arguments.model is None:
            build_pocket_model(model)
        pocket, extent = Pocket(model), QUICK if arguments.quick else WHOLE
        sound = measure_sound(pocket, extent)
        measured = measure_learning(pocket, extent)
    print(f"LoRA: {len(measured.losses)} steps, loss {measured.losses[0]:.3f} to {measured.losses[-1]:.3f}")
    for name, made in (("base", measured.with_base), ("LoRA", measured.with_lora)):
        _print_table(name, [judge(index, frames) for index, frames in enumerate(made)])
    if arguments.pictures is not None:
        _write_pictures(arguments.pictures, measured.with_base[:PICTURES], measured.with_lora[:PICTURES])
    figures = measured.figures | sound
    print(f"missed: {', '.join(missed(figures)) or 'nothing'}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def _print_table(name: str, verdicts: list[Verdict]) -> None:
    print(f"{name:8s}" + "".join(f"{key:>16s}" for key in asdict(verdicts[0])))
    for index, verdict in enumerate(verdicts):
        print(f"{index:8d}" + "".join(f"{value:16.2f}" for value in asdict(verdict).values()), opening(index).caption)


def _write_pictures(path: Path, with_base: list[Frames], with_lora: list[Frames]) -> None:
    """Rows: truth, base model, LoRA of each opening; columns: SHOWN, of which the first two are given."""
    from PIL import Image

    rows = []
    for index, (base, lora) in enumerate(zip(with_base, with_lora, strict=True)):
        for frames in (render(opening(index), FRAMES), base, lora):
            rows.append(np.concatenate([frames[number, ::2, ::2] for number in SHOWN], axis=1))
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    main()
