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
# Names a clip of an earlier dataset; accepted where the URL of a single video is, never where an archive's is.
CLIP = re.compile(r"dataset:(datasets/[0-9a-f]{32}/clips/[0-9]{1,9})")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
# What a URL holds between // and the next slash: a name of 253 characters and a port, and room for what is refused by
# its own reason. urlsplit brings it into a normal form, which for long runs of combining marks takes quadratic time.
MAX_AUTHORITY_CHARS = 512
REMEDY = "Upload the file, or have the operator admit the host."
FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")

# Where hosts of the public internet are, and what in there is set aside for another purpose: the blocks of IANA's
# special-purpose registries (tests/data/iana), whether they say "globally reachable" or not.
UNICAST_IPV6 = ipaddress.ip_network("2000::/3")
SPECIAL_IPV4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
SPECIAL_IPV6 = tuple(
    ipaddress.IPv6Network(block)
    # Teredo is in the first, 6to4 the third.
    for block in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
# The one prefix outside of these by which an IPv4 address is dialled (RFC 6052), as DNS64 gives it.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Where the bytes of an IPv4 address are in an IPv6 address behind a network's own NAT64 prefix of 32 to 96 bits
# (RFC 6052, 2.2). Byte 8 is zero then, and so is what follows.
EMBEDDED = ((4, 5, 6, 7), (5, 6, 7, 9), (6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15))
# An interface identifier of ISATAP (RFC 5214, 6.1), which an IPv4 address follows.
ISATAP = (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str, allow: Collection[str], buckets: Collection[str] = (), remedy: str = REMEDY) -> str | None:
    """Why this URL may not be dialled, or None. No connection is made and no name is resolved.

    `allow` holds "host:port" of addresses that are open although private or on another port; `buckets` the buckets
    that s3:// may name. `remedy` is what to do about a private address.
    """
    if len(url) > MAX_URL_CHARS:
        return f"The URL is longer than {MAX_URL_CHARS} characters. Use a shorter one."
    if FORBIDDEN.search(url):
        return "The URL holds spaces, backslashes or control characters. Percent-encode them."
    if url.startswith("upload:"):
        return None if UPLOAD.fullmatch(url) else "An upload is named upload:uploads/ID, as CreateUpload returned it."
    try:
        parts = split_url(url)
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
    return check_host(host, port, parts.scheme, allow, remedy)


def check_host(host: str, port: int, scheme: str, allow: Collection[str], remedy: str = REMEDY) -> str | None:
    """Why this host and port may not be dialled, as far as their text shows, or None."""
    if is_allowed(host, port, allow):
        return None
    if port != PORTS[scheme]:
        return f"Port {port} is not open for fetching, {PORTS[scheme]} is. LTXTRAIN_FETCH_ALLOW admits others."
    # Digits of other scripts and the ideographic dot are plain ones to whoever dials.
    name = unicodedata.normalize("NFKC", host.replace("\u3002", ".")).lower().rstrip(".")
    if name in LOCAL_NAMES or name.endswith(".localhost"):
        return f"{host} is this machine. {remedy}"
    address = literal_address(name)
    if address is not None and not is_public(address):
        return f"{host} is not a public address. {remedy}"
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
    """Whether the address is global unicast, and so is every IPv4 address that it may lead to."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in block for block in SPECIAL_IPV4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in NAT64:
        return is_public(ipaddress.IPv4Address(address.packed[12:]))
    if address not in UNICAST_IPV6 or any(address in block for block in SPECIAL_IPV6):
        return False
    return all(is_public(embedded) for embedded in _embedded(address.packed))


def _embedded(packed: bytes) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses that are in the place where a way of transition would put them.

    What begins with a zero is none: hosts whose address ends in ::1 are many.
    """
    if packed[8:12] in ISATAP:
        yield ipaddress.IPv4Address(packed[12:])
    for places in EMBEDDED:
        found = bytes(packed[place] for place in places)
        if found[0] and packed[8] == 0 and not any(packed[max(places[-1], 8) + 1 :]):
            yield ipaddress.IPv4Address(found)


def split_url(url: str) -> SplitResult:
    """As urlsplit, in linear time. Raises ValueError for what is no URL, or has a host that none can be."""
    authority = re.split(r"[/?#]", url.partition("//")[2][: MAX_AUTHORITY_CHARS + 1], maxsplit=1)[0]
    if len(authority) > MAX_AUTHORITY_CHARS:
        raise ValueError("The host is too long.")
    return urlsplit(url)


def port_of(parts: SplitResult) -> int:
    """The port of a split URL, by its scheme when it names none. Raises ValueError for what is no port."""
    return parts.port if parts.port is not None else PORTS.get(parts.scheme, 0)


def shown(url: str) -> str:
    """The URL without its query, fragment and user part, which may be secrets: for logs, errors and reports."""
    try:
        parts = split_url(url)
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
