"""Pairing of caption files with clips: by path, never by position."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ltxtrain_services.ingest.directory import Entry
from ltxtrain_services.ingest.names import CAPTION_ORDER, Kind, suffix_of


@dataclass(frozen=True)
class Pairing:
    """The caption files of each clip."""

    # Path of a clip to its caption files; the first that has a caption counts.
    captions: Mapping[str, Sequence[Entry]]
    # Paths of caption files that were paired although not named as documented, with how.
    repaired: Mapping[str, str]


def pair(entries: Sequence[Entry]) -> Pairing:
    """Pair each clip with the caption files of its stem in its folder, exactly spelled or else in another letter case;
    without one, with the file named after the whole file name (name.mp4.txt). One of each extension, .txt first."""
    clips = [entry.path for entry in entries if entry.kind is Kind.VIDEO]
    captions: defaultdict[str, list[Entry]] = defaultdict(list)
    repaired: dict[str, str] = {}
    for suffix in CAPTION_ORDER:
        # In this order .txt comes after .TXT, and counts.
        files = sorted((entry for entry in entries if _is_caption(entry, suffix)), key=lambda entry: entry.path)
        found, how = _pair(clips, files)
        repaired |= how
        for path, entry in found.items():
            captions[path].append(entry)
    return Pairing(captions, repaired)


def _is_caption(entry: Entry, suffix: str) -> bool:
    return entry.kind in (Kind.CAPTION, Kind.JSON) and suffix_of(entry.path) == suffix


def _pair(clips: Sequence[str], files: Sequence[Entry]) -> tuple[dict[str, Entry], dict[str, str]]:
    """The caption file of each clip, and how those were paired that are not named as documented."""
    exact = {_stem(entry.path): entry for entry in files}
    folded: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in files:
        folded[_stem(entry.path).casefold()].append(entry)
    captions = {path: exact[_stem(path)] for path in clips if _stem(path) in exact}
    taken = {entry.path for entry in captions.values()}
    repaired: dict[str, str] = {}
    for stem_of, how in ((str, "named after the whole file name"), (_stem, "spelled in another letter case")):
        found = _alone(clips, captions, folded, taken, stem_of)
        repaired |= dict.fromkeys((entry.path for entry in found.values()), how)
        captions |= found
        taken |= {entry.path for entry in found.values()}
    return captions, repaired


def _alone(
    clips: Sequence[str],
    captions: Mapping[str, Entry],
    folded: Mapping[str, Sequence[Entry]],
    taken: set[str],
    stem_of: Callable[[str], str],
) -> dict[str, Entry]:
    """Clips without a caption, each with the one caption that is left for it in any letter case."""
    # Each group is looked through once: a thousand clips may share one.
    left: dict[str, Entry | None] = {}
    found: dict[str, Entry] = {}
    for path in clips:
        if path in captions:
            continue
        stem = stem_of(path).casefold()
        if stem not in left:
            candidates = [entry for entry in folded.get(stem, ()) if entry.path not in taken]
            left[stem] = candidates[0] if len(candidates) == 1 else None
        if (caption := left[stem]) is not None:
            found[path] = caption
    return found


def _stem(path: str) -> str:
    """The path without its extension."""
    return path[: path.rindex(".")]
