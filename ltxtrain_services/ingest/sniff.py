"""File types by their first bytes: web pages, images, other archives."""

from urllib.parse import urlsplit

# First bytes of a file that are looked at.
HEAD_BYTES = 1024

_SPACE = b" \t\r\n\v\f"
_PAGE_TAGS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")
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
    b"{\\rtf": "an RTF document",
    b"{": "JSON text",
}
# Hosts whose share links lead to a page, and what their users can do.
_DRIVES = {
    "drive.google.com": "Google Drive shows a page for share links and for files over 100 MB.",
    "docs.google.com": "Google Drive shows a page for share links and for files over 100 MB.",
    "drive.usercontent.google.com": "Google Drive asks for a confirmation, or the file is not shared with everybody.",
    "dropbox.com": "For Dropbox, end the link with dl=1 instead of dl=0.",
    "1drv.ms": "OneDrive's share links show a page; its direct links end with download=1.",
    "onedrive.live.com": "OneDrive's share links show a page; its direct links end with download=1.",
    "sharepoint.com": "SharePoint's share links show a page; add download=1 to the link.",
    "icloud.com": "iCloud's share links show a page.",
    "wetransfer.com": "WeTransfer's links show a page.",
    "we.tl": "WeTransfer's links show a page.",
    "mega.nz": "MEGA's files are decrypted by its page.",
    "mediafire.com": "MediaFire's links show a page; use the link behind its download button.",
    "box.com": "Box's share links show a page; use its direct link.",
    "github.com": "GitHub shows a page for a file; use the raw or the release download link.",
    "huggingface.co": "Hugging Face shows a page for a file; write resolve instead of blob in the link.",
}


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins with `head` is an HTML page: a declaration and comments may stand before its tag."""
    rest = head[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE).lower()
    if rest.startswith(b"<?xml"):
        rest = rest.partition(b">")[2].lstrip(_SPACE)
    while rest.startswith(b"<!--"):
        rest = rest.partition(b"-->")[2].lstrip(_SPACE)
    if rest.startswith(b"<!doctype"):
        rest = b" ".join(rest.split(maxsplit=2)[:2])
    tag = next((tag for tag in _PAGE_TAGS if rest.startswith(tag)), None)
    return tag is not None and not rest[len(tag) : len(tag) + 1].isalnum() and rest[len(tag) : len(tag) + 1] != b"_"


def is_image(head: bytes) -> bool:
    """Whether a file that begins with `head` is a still image, whatever its name."""
    if head[4:8] == b"ftyp":
        return head[8:12] in _IMAGE_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":  # two letters alone prove nothing; the reserved fields are zero
        return head[6:10] == bytes(4) and len(head) > 14
    return head.startswith(_IMAGES)


def archive_format(head: bytes) -> str:
    """Name the type of a file that is no zip, for people; empty: unknown."""
    if is_web_page(head):
        return "a web page"
    if is_image(head):
        return "an image"
    if head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "a single video, not an archive of videos"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((text for magic, text in _FORMATS.items() if head.startswith(magic)), "")


def link_advice(url: str) -> str:
    """Advice about a URL that returned a page instead of a file."""
    host = (urlsplit(url).hostname or "").lower()
    known = next((text for name, text in _DRIVES.items() if host == name or host.endswith(f".{name}")), "")
    return f"{known} Use a link that downloads the file itself, or upload the file.".strip()
