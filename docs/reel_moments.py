"""Four moments of a demo's reel below each other, as the README shows them.

    docs/reel_moments.py demo-out/reel.mp4 docs/reel.jpg

The moments are the last frame of the opening, the first that is generated, one in the middle, and the last.
"""

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ltxtrain_pocket.scenes import FRAMES, PREFIX_FRAMES

MOMENTS = (PREFIX_FRAMES - 1, PREFIX_FRAMES, (PREFIX_FRAMES + FRAMES) // 2, FRAMES - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reel", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    with av.open(str(arguments.reel)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    picture = Image.fromarray(np.concatenate([frames[moment] for moment in MOMENTS]))
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(arguments.picture, quality=85)


if __name__ == "__main__":
    main()
