"""Which addresses a caller may name: what the URL alone shows, and what its name resolves to."""

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Collection, Iterator
from urllib.parse import SplitResult, urlsplit

MAX_URL_CHARS = 8192
PORTS = {"http": 80, "https": 443}
# Names an upload made by CreateUpload; accepted wherever a URL is.
UPLOAD = re.compile(r"upload:(uploads/[0-9a-f]{32})")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
# Forms in which one address carries another that is dialled in the end.
NAT64 = ipaddress.ip_network("64:ff9b::/96")
COMPATIBLE = ipaddress.ip_network("::/96")
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str, allow: Collection[str], buckets: Collection[str] = ()) -> str | None:
    """Why this URL may not be fetched, or None. No connection is made and no name is resolved.

    `allow` holds "host:port" of addresses that are open although private or on another port; `buckets` the buckets
    that s3:// may name.
    """
    if len(url) > MAX_URL_CHARS:
        return f"The URL is longer than {MAX_URL_CHARS} characters. Use a shorter one."
    if any(ord(character) <= 32 or ord(character) == 127 for character in url) or "\\" in url:
        return "The URL holds spaces, backslashes or control characters. Percent-encode them."
    if url.startswith("upload:"):
        return None if UPLOAD.fullmatch(url) else "An upload is named upload:uploads/ID, as CreateUpload returned it."
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", port_of(parts)
    except ValueError:
        return "This is not a URL."
    if parts.scheme == "s3":
        return _check_bucket(parts, buckets)
    if parts.scheme not in PORTS:
        return f"URLs of {parts.scheme or 'no'} scheme are not fetched. Use https, http, s3 or an upload."
    if parts.username is not None or parts.password is not None:
        return "A user name or password in a URL is not allowed. Use a signed URL or an upload."
    if not host:
        return "The URL names no host."
    return check_host(host, port, parts.scheme, allow)


def check_host(host: str, port: int, scheme: str, allow: Collection[str]) -> str | None:
    """Why this host and port may not be dialled, as far as their text shows, or None."""
    if is_allowed(host, port, allow):
        return None
    if port != PORTS[scheme]:
        return f"Port {port} is not open for fetching, {PORTS[scheme]} is. LTXTRAIN_FETCH_ALLOW admits others."
    # Digits of other scripts and the ideographic dot are plain ones to whoever dials.
    name = unicodedata.normalize("NFKC", host.replace("\u3002", ".")).lower().rstrip(".")
    if name in LOCAL_NAMES or name.endswith(".localhost"):
        return f"{host} is this machine. Upload the file instead."
    address = literal_address(name)
    if address is not None and not is_public(address):
        return f"{host} is not a public address. Upload the file, or have the operator admit the host."
    return None


def is_allowed(host: str, port: int, allow: Collection[str]) -> bool:
    """Whether the operator's list admits this host and port."""
    name = f"[{host}]" if ":" in host else host
    return f"{name.lower()}:{port}" in {item.lower() for item in allow}


def literal_address(host: str) -> Address | None:
    """The address that a host is written as, also in the old forms 127.1, 0x7f000001 and 2130706433."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fx.]+", host):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def is_public(address: Address) -> bool:
    """Whether the address and every address that it carries inside are on the public internet."""
    return all(_is_public(item) for item in _carried(address))


def _is_public(address: Address) -> bool:
    if address.is_multicast or not address.is_global:
        return False
    return address.version == 4 or address in GLOBAL_IPV6 or address in NAT64


def _carried(address: Address) -> Iterator[Address]:
    """The address that is dialled in the end: itself, unless it is an IPv6 form of an IPv4 address."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if (mapped := address.ipv4_mapped) is not None:
        yield mapped
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in NAT64 or address in COMPATIBLE:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def port_of(parts: SplitResult) -> int:
    """The port of a split URL, by its scheme when it names none. Raises ValueError for what is no port."""
    return parts.port if parts.port is not None else PORTS.get(parts.scheme, 0)


def shown(url: str) -> str:
    """The URL without its query, fragment and user part, which may be secrets: for logs, errors and reports."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(not a URL)"
    return SplitResult(parts.scheme, host, parts.path, "", "").geturl()[:MAX_URL_CHARS]


def _check_bucket(parts: SplitResult, buckets: Collection[str]) -> str | None:
    if parts.netloc not in buckets or not BUCKET.fullmatch(parts.netloc):
        return f"The bucket {parts.netloc!r} is not one that the operator lists in LTXTRAIN_FETCH_BUCKETS."
    if not parts.path.strip("/"):
        return "The URL names a bucket but no object in it."
    if parts.query or parts.fragment:
        return "An s3:// URL has no query and no fragment."
    return None
