"""Encodings of text that is not Unicode: which one the bytes plausibly have, or none.

A wrong guess puts Latin letters in place of Chinese characters into a training prompt, so each encoding has to show
what its languages look like, and text that two of them explain is read as neither. Every check is linear.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

# Letters with marks of one language each, or of one that takes words from many. Text of other encodings mixes them: in
# place of the Turkish ş, ğ and ı stand þ, ð and ý, of the Czech č, ř and ů stand è, ø and ù.
_ALPHABETS = [
    *map(
        frozenset,
        (
            "äöüßéàè",
            "àâæçèéêëîïôœùûü",
            "áéíñóúüç",
            "àáâãçéêíóôõúü",
            "àçèéíïòóúü",
            "àèéìíîòóùú",
            "åæøéèêóòôäöü",
            "áéíóúýþæöðø",
            "áèéêëíïóöüç",
            "äöõü",
            "áàâäãåæçéèêëíïîñóôöøü",
        ),
    )
]
# Characters of Windows-1252 that captions do not hold, and that many Chinese and Japanese characters begin with.
_ODD = frozenset("ƒˆ˜†‡‰‹›¤¦¨¬\u00ad¯¶¸")
# Words, with the letters that bear marks.
_WORD = re.compile("[A-Za-zÀ-ÖØ-öø-ÿŠšŽžŒœŸ]+")
# A marked capital inside of a word; quotes that open or close in the wrong place; symbols beside marked letters or
# other symbols; Icelandic letters where Icelandic has none. Each alternative is of bounded length: matching is linear.
_SYMBOLS = "¢£¥§©ª®°±²³´µ·¹º¼½¾€™•×÷"
_MISPLACED = re.compile(
    "[a-zß-öø-ÿšžœ][À-ÖØ-ÞŠŽŒŸ]"
    r"|\w[„‚]|\w[“”]\w|\A”|\s”"
    f"|[{_SYMBOLS}](?=[^\\x00-\\xa0…‘’“”–—«»])|[À-ÖØ-öø-ÿŠšŽžŒœŸ][{_SYMBOLS}]"
    r"|þ\b|\b[ðÐ]|\w{3}ý\b"
)
_ORDINALS = frozenset("ªºµ")
# Marks that come in pairs.
_PAIRS = (("«", "»"), ("¿", "?"), ("¡", "!"))
# Characters of Chinese and Japanese that most text is made of, as the common part of their national standards.
_COMMON_SHARE = 0.9
_HANGUL_LEADS = range(0xB0, 0xC9)


@dataclass(frozen=True)
class _Legacy:
    """An encoding and whether text that was decoded by it looks like its language."""

    codec: str
    name: str
    is_plausible: Callable[[str], bool]


def decode_legacy(data: bytes) -> tuple[str, str, str] | None:
    """The text, and the name and the codec of its encoding; None when no encoding explains the bytes, or more than
    one does."""
    readings = [
        (text, legacy.name, legacy.codec)
        for legacy in _LEGACY
        if (text := _decoded(data, legacy.codec)) is not None and legacy.is_plausible(text)
    ]
    return readings[0] if len(readings) == 1 else None


def _decoded(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        return None


def _is_western(text: str) -> bool:
    """Words of Latin letters of which some bear the marks of one language, and symbols where writers put them."""
    if not _ODD.isdisjoint(text) or _MISPLACED.search(text):
        return False
    if any(text.count(first) > text.count(second) for first, second in _PAIRS) or text.count("«") != text.count("»"):
        return False
    marked = {letter for letter in text.lower() if letter.isalpha() and not letter.isascii()} - _ORDINALS
    if not any(marked <= alphabet for alphabet in _ALPHABETS):
        return False
    marks = [sum(not letter.isascii() for letter in word) - len(word) / 2 for word in _WORD.findall(text)]
    return max(marks, default=0.0) <= 0.5


def _is_chinese(text: str) -> bool:
    """Frequent characters of GB 2312, and not only from its first third, which are the bytes of Korean syllables."""
    wide = [character for character in text if not character.isascii()]
    ideographs = [code for character in wide if len(code := _bytes(character, "gb2312")) == 2 and code[0] >= 0xB0]
    common = sum(0xB0 <= code[0] <= 0xD7 for code in ideographs) + sum(_is_east_asian_mark(one) for one in wide)
    korean = all(code[0] in _HANGUL_LEADS for code in ideographs)
    return bool(ideographs) and not korean and common >= _COMMON_SHARE * len(wide)


def _is_japanese(text: str) -> bool:
    """Kana, and the characters of level 1 of JIS X 0208."""
    wide = [character for character in text if not character.isascii()]
    kana = sum("\u3041" <= one <= "\u30fe" for one in wide)
    codes = [_bytes(one, "shift_jis") for one in wide if not "\u3041" <= one <= "\u30fe"]
    common = kana + sum(len(code) == 2 and (code[0] == 0x81 or 0x88 <= code[0] <= 0x98) for code in codes)
    return kana > 0 and common >= _COMMON_SHARE * len(wide)


def _is_east_asian_mark(character: str) -> bool:
    return "\u3000" <= character <= "\u3020" or "\uff01" <= character <= "\uff5e" or character in "“”‘’…—·×℃"


def _bytes(character: str, codec: str) -> bytes:
    return character.encode(codec, "ignore")


_LEGACY = (
    _Legacy("cp1252", "Windows-1252", _is_western),
    _Legacy("gb18030", "GB18030", _is_chinese),
    _Legacy("cp932", "Shift-JIS", _is_japanese),
)
