"""Files that were good, damaged by dice: flipped bits, cut ends, pieces of one in another."""

import random

KINDS = ("flip", "cut", "splice")


def damage(data: bytes, other: bytes, seed: int) -> bytes:
    """The same damage for the same seed."""
    dice = random.Random(seed)
    result = bytearray(data)
    match KINDS[seed % len(KINDS)]:
        case "flip":
            for _ in range(dice.choice((1, 3, 30))):
                result[dice.randrange(len(result))] ^= 1 << dice.randrange(8)
        case "cut":
            del result[dice.randrange(len(result)) :]
        case "splice":
            at, start = dice.randrange(len(result)), dice.randrange(len(other))
            piece = other[start : start + dice.randrange(1, 4000)]
            result[at : at + dice.choice((0, len(piece)))] = piece
    return bytes(result)
