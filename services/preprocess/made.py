"""What clips came to, and how it is found again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.preprocess.attempt import Attempt
from services.preprocess.cache import Entry
from services.preprocess.keys import piece_key
from services.preprocess.outcome import Outcome
from services.preprocess.pieces import Piece
from services.preprocess.plan import Item


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a clip came to, and the files of its scenes."""

    item: Item
    outcome: Outcome
    files: Mapping[tuple[int, Piece], Entry] = field(default_factory=dict)
    # Samples that were there already, and those that were made.
    hits: int = 0
    misses: int = 0


async def find_made(attempt: Attempt, items: Sequence[Item]) -> tuple[list[Made], dict[str, Entry]]:
    """Items of which everything is there already, and whatever is there of the others, by its key."""
    outcomes = await attempt.cache.find([item.key for item in items], attempt.name)
    known = {item.key: Outcome.load(outcomes[item.key].facts) for item in items if item.key in outcomes}
    wanted = {
        item_key(attempt, item, scene, piece)
        for item in items
        if item.key in known
        for scene in known[item.key].kept
        for piece in item.pieces
    }
    found = await attempt.cache.find(sorted(wanted), attempt.name)
    whole = []
    for item in items:
        if item.key not in known:
            continue
        outcome = known[item.key]
        files = item_files(attempt, item, outcome, found)
        if files is not None:
            whole.append(Made(item=item, outcome=outcome, files=files, hits=len(outcome.kept)))
    return whole, found


def item_key(attempt: Attempt, item: Item, scene: int, piece: Piece) -> str:
    """The cache's key of one file of a scene."""
    if piece is Piece.SHEET:
        # It shows the frames on both sides of the end of the prefix.
        return piece_key(item.key, scene, f"{piece} {attempt.settings.conditioning_frames}")
    return piece_key(item.key, scene, piece, attempt.model_revision if piece is Piece.LATENTS else "")


def item_files(
    attempt: Attempt, item: Item, outcome: Outcome, found: Mapping[str, Entry]
) -> dict[tuple[int, Piece], Entry] | None:
    """The files of all kept scenes, or None when one is not there."""
    keys = {(scene, piece): item_key(attempt, item, scene, piece) for scene in outcome.kept for piece in item.pieces}
    if any(key not in found for key in keys.values()):
        return None
    return {place: found[key] for place, key in keys.items()}
