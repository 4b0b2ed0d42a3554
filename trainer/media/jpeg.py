"""Find parts of a JPEG that were lost: its decoder takes zeros for a code like any other, and shows grey."""

from collections.abc import Iterator

# A run of zero bytes that is no accident.
HOLE = bytes(64)
START_OF_SCAN, END_OF_IMAGE, LOSSLESS, HUFFMAN_TABLES = b"\xff\xda", b"\xff\xd9", 0xC3, 0xC4
END_OF_BLOCK = 0x00


def jpeg_has_hole(jpeg: bytes) -> bool:
    """Whether zeros stand where the pixels of a picture are.

    Headers may hold any, and so may what follows its end. Inside, flat pictures are long runs of zeros where an empty
    block has a code of zeros alone, as coders choose that make their own tables; so they are in lossless JPEG.
    """
    start = jpeg.find(START_OF_SCAN)
    if start < 0 or HOLE not in jpeg[start:]:
        return False
    segments = list(_segments(jpeg[:start]))
    if any(kind == LOSSLESS for kind, _ in segments):
        return False
    flat = any(kind == HUFFMAN_TABLES and _empty_block_is_zeros(body) for kind, body in segments)
    for scan in jpeg[start:].split(START_OF_SCAN)[1:]:
        pixels, end, _ = scan.partition(END_OF_IMAGE)
        if HOLE in pixels and (not flat or (not end and pixels.endswith(HOLE))):
            return True
    return False


def _segments(header: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of each segment before the first scan."""
    place = 2
    while place + 4 <= len(header) and header[place] == 0xFF:
        length = int.from_bytes(header[place + 2 : place + 4], "big")
        yield header[place + 1], header[place + 4 : place + 2 + length]
        place += 2 + max(length, 2)


def _empty_block_is_zeros(tables: bytes) -> bool:
    """Whether a table for AC gives its shortest code, which is all zeros, to the end of a block."""
    place = 0
    while place + 17 <= len(tables):
        count = sum(tables[place + 1 : place + 17])
        if tables[place] >> 4 == 1 and tables[place + 17 : place + 18] == bytes([END_OF_BLOCK]):
            return True
        place += 17 + count
    return False
