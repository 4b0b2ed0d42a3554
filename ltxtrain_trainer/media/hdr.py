"""Map pictures with more light or more colour than BT.709 has into it, by a table.

Letters: N steps of the table along each of its axes red, green and blue.

Light is in nits as a reference display shows it: PQ and HLG by BT.2100, everything else by BT.1886 with white at
SDR_WHITE, which is what BT.2408 takes for the white of SDR inside HDR. So what SDR could have shown comes out as SDR
would have shown it; brighter light is rolled off by the curve of BT.2390, and colours out of reach lose saturation, not
hue or lightness.
"""

import struct
from functools import cache

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ltxtrain_trainer.media.color import Colors, Transfer
from ltxtrain_trainer.media.presentation import side_data_of

Numbers = NDArray[np.float64]

STEPS = 33
SDR_WHITE = 203.0
SDR_GAMMA = 2.4
HLG_PEAK = 1000.0
HLG_GAMMA = 1.2
# Where a file does not say how bright it becomes: what most of them are graded for.
USUAL_PEAK = 1000.0
BRIGHTEST = 10_000.0

# Chromaticities x, y of red, green, blue; all with the white of D65 but the cinema's P3.
RED_GREEN_BLUE = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
D65 = (0.3127, 0.3290)


def peak_of(frame: VideoFrame) -> float:
    """Return the brightest light of a PQ clip in nits, as its metadata say."""
    found = side_data_of(frame)
    # AVContentLightMetadata: MaxCLL, MaxFALL.
    brightest = struct.unpack("=I", found[Type.CONTENT_LIGHT_LEVEL][:4])[0] if Type.CONTENT_LIGHT_LEVEL in found else 0
    if not brightest and Type.MASTERING_DISPLAY_METADATA in found:
        # AVMasteringDisplayMetadata: ten rationals, the last of them the maximum, then which of them are set.
        numerator, denominator, _, has_luminance = struct.unpack("=4i", found[Type.MASTERING_DISPLAY_METADATA][72:88])
        brightest = numerator / denominator if has_luminance and denominator > 0 else 0
    return float(min(max(brightest, SDR_WHITE), BRIGHTEST)) if brightest else USUAL_PEAK


def cube_file(colors: Colors, peak: float) -> str:
    """Return the table as the text of a .cube file, from coded RGB of these colours to BT.709 RGB, all 0..1."""
    return _cube_file(colors.transfer if colors.hdr else 0, colors.wide_primaries, round(peak))


@cache
def _cube_file(transfer: int, primaries: int, peak: int) -> str:
    steps = np.linspace(0, 1, STEPS)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    mapped = map_colors(np.stack([red, green, blue], axis=-1).reshape(-1, 3), transfer, primaries, peak)
    lines = (f"{red:.6f} {green:.6f} {blue:.6f}" for red, green, blue in mapped.tolist())
    return "\n".join([f"LUT_3D_SIZE {STEPS}", *lines, ""])


def map_colors(coded: Numbers, transfer: int, primaries: int, peak: float) -> Numbers:
    """Map coded RGB [..., 3] in 0..1 to BT.709 RGB; transfer 0 is SDR. peak: of PQ, in nits."""
    weights = luminance_weights(primaries)
    if transfer == Transfer.PQ:
        light = roll_off(pq_light(coded), peak)
    elif transfer == Transfer.HLG:
        light = roll_off(hlg_light(coded, weights), HLG_PEAK)
    else:
        light = SDR_WHITE * coded**SDR_GAMMA
    shown = light / SDR_WHITE @ conversion(primaries).T
    clipped: Numbers = np.clip(into_gamut(shown), 0, 1) ** (1 / SDR_GAMMA)
    return clipped


def pq_light(coded: Numbers) -> Numbers:
    """Nits of PQ (BT.2100)."""
    power = np.clip(coded, 0, 1) ** (1 / 78.84375)
    light: Numbers = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    return BRIGHTEST * light


def pq_code(light: Numbers) -> Numbers:
    """The inverse of pq_light."""
    power = np.clip(light / BRIGHTEST, 0, 1) ** 0.1593017578125
    coded: Numbers = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return coded


def hlg_light(coded: Numbers, weights: Numbers) -> Numbers:
    """Nits of HLG on a display of HLG_PEAK (BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luminance = scene @ weights
    light: Numbers = HLG_PEAK * scene * (np.maximum(luminance, 1e-9) ** (HLG_GAMMA - 1))[..., None]
    return light


def roll_off(light: Numbers, peak: float) -> Numbers:
    """Light up to peak brought under SDR_WHITE by the curve of BT.2390, the largest of the three channels leading."""
    largest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    top = float(pq_code(np.array(peak)))
    limit = float(pq_code(np.array(SDR_WHITE))) / top
    knee = 1.5 * limit - 0.5
    level = np.minimum(pq_code(largest) / top, 1.0)
    t = np.clip((level - knee) / max(1 - knee, 1e-9), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * limit
    rolled: Numbers = light * pq_light(np.where(level < knee, level, spline) * top) / largest
    return rolled


def into_gamut(linear: Numbers) -> Numbers:
    """BT.709 light [..., 3], where one channel is below 0 moved towards the grey of its luminance until none is."""
    grey = np.clip(linear @ luminance_weights(1), 0, 1)[..., None]
    lowest = linear.min(axis=-1, keepdims=True)
    highest = linear.max(axis=-1, keepdims=True)
    below = np.where(lowest < 0, grey / np.maximum(grey - lowest, 1e-9), 1)
    above = np.where(highest > 1, (1 - grey) / np.maximum(highest - grey, 1e-9), 1)
    moved: Numbers = grey + (linear - grey) * np.minimum(below, above)
    return moved


def conversion(primaries: int) -> Numbers:
    """From light of these primaries to that of BT.709; white stays white."""
    matrix: Numbers = np.linalg.inv(_to_xyz(1)) @ _to_xyz(primaries)
    return matrix


def luminance_weights(primaries: int) -> Numbers:
    """How much of the luminance is red, green and blue."""
    weights: Numbers = _to_xyz(primaries)[1]
    return weights


def _to_xyz(primaries: int) -> Numbers:
    corners = np.array([(x / y, 1, (1 - x - y) / y) for x, y in RED_GREEN_BLUE[primaries]]).T
    white = np.array((D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]))
    matrix: Numbers = corners * np.linalg.solve(corners, white)
    return matrix
