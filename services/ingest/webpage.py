"""Web pages where a file should be: what they look like, and what to do about the link."""

import re
from urllib.parse import urlsplit

_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script)\b", re.S | re.I
)
HEAD_BYTES = 1024

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
    """Whether a file that begins so is an HTML page."""
    return _PAGE.match(head[:HEAD_BYTES]) is not None


def advice(url: str) -> str:
    """What to do about a URL that returned a page instead of a file."""
    host = (urlsplit(url).hostname or "").lower()
    known = next((text for name, text in _DRIVES.items() if host == name or host.endswith(f".{name}")), "")
    return f"{known} Use a link that downloads the file itself, or upload the file.".strip()
