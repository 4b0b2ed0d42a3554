"""What a file is by its first bytes."""

from services.ingest.webpage import HEAD_BYTES, is_web_page

__all__ = ["HEAD_BYTES", "archive_format", "is_image", "is_web_page"]

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"8BPS", b"\xff\x0a")
_IMAGE_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"jxl ", b"jp2 ", b"jpx "})
_FORMATS = {
    b"Rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x1aE\xdf\xa3": "a single video, not an archive of videos",
    b"%PDF": "a PDF document",
    b"{": "JSON text",
}


def is_image(head: bytes) -> bool:
    """Whether a file that begins so is a still image, whatever its name."""
    if head[4:8] == b"ftyp":
        return head[8:12] in _IMAGE_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":  # two letters alone prove nothing; the reserved fields are zero
        return head[6:10] == bytes(4) and len(head) > 14
    return head.startswith(_IMAGES)


def archive_format(head: bytes) -> str:
    """What a file that is no zip seems to be, for people; empty: unknown."""
    if is_web_page(head):
        return "a web page"
    if is_image(head):
        return "an image"
    if head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "a single video, not an archive of videos"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((text for magic, text in _FORMATS.items() if head.startswith(magic)), "")
