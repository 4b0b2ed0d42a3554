"""The only code that connects to an address that a caller named.

A name is resolved once, every address of it is checked, and one of those very addresses is dialled: there is no
second look-up between check and connection that could answer something else. Where the operator names a proxy, it
resolves the names: URLs are checked by their text, and what a name leads to is the proxy's to decide.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ltxtrain_services.runtime.addresses import REMEDY, check_host, check_url, is_allowed, is_public, shown
from ltxtrain_services.runtime.settings import Settings, SettingsError

MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONNECT_SECONDS = 30.0
READ_BUFFER_BYTES = 1 << 18
_RAW_BYTE = re.compile("[\udc80-\udcff]")

# Addresses of a host and port, as text.
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]


class Refused(Exception):
    """The address, or where it redirects to, may not be dialled; the text says why."""


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """Every address of a name, as the operating system resolves it. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


class Gate(AbstractResolver):
    """Lets one host and port through: checks what its name resolves to, then each address that is dialled."""

    def __init__(self, host: str, port: int, allow: Sequence[str], lookup: Lookup) -> None:
        self._open = is_allowed(host, port, allow)
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            addresses = [address.partition("%")[0] for address in await self._lookup(host, port)]
        except UnicodeError:
            addresses = []  # no name that DNS could hold
        if not addresses:
            raise OSError(f"{host} has no address")
        for address in addresses:
            self._check(address, f"{host} resolves to {address}, which is not a public address.")
        return [_resolved(host, port, address) for address in addresses]

    def connect(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for one address of the look-up, or for an address that the URL holds literally."""
        family, kind, protocol, _, peer = info
        self._check(str(peer[0]).partition("%")[0], f"{peer[0]} is not a public address.")
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        """Nothing is held."""

    def _check(self, address: str, text: str) -> None:
        if not self._open and not is_public(ipaddress.ip_address(address)):
            raise Refused(f"{text} {REMEDY}")


class Dialler:
    """Sends requests within the operator's rules.

    Proxies of the environment are not used, only LTXTRAIN_FETCH_PROXY, and hosts of LTXTRAIN_FETCH_ALLOW past it.
    """

    def __init__(self, settings: Settings, lookup: Lookup) -> None:
        """Raises SettingsError for a proxy that is no HTTP proxy."""
        if settings.fetch_proxy and urlsplit(settings.fetch_proxy).scheme not in ("http", "https"):
            raise SettingsError("LTXTRAIN_FETCH_PROXY: not a URL like http://host:port")
        self._allow = settings.fetch_allow
        self._proxy = settings.fetch_proxy
        self._lookup = lookup
        self._idle_seconds = settings.fetch_idle_seconds

    @asynccontextmanager
    async def dial(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The first response that is no redirect. Raises Refused, aiohttp.ClientError, OSError and TimeoutError."""
        for hop in range(MAX_REDIRECTS + 1):
            async with self._request("GET", self._checked(url, hop), headers) as response:
                target = location(response.headers)
                if response.status not in REDIRECTS or target is None:
                    yield response
                    return
                url = _joined(url, target)
        raise Refused(f"More than {MAX_REDIRECTS} redirects, the last one to {shown(url)}. Use the URL they lead to.")

    @asynccontextmanager
    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to one POST request, a redirect being one, too: the body goes nowhere else. Raises as `dial`."""
        async with self._request("POST", self._checked(url, 0), headers, body) as response:
            yield response

    def _checked(self, url: str, hop: int) -> URL:
        refusal = check_url(url, self._allow)
        try:
            target = URL(url, encoded=url.isascii())
        except ValueError:
            raise Refused("this is not a URL that can be dialled.") from None
        # yarl's reading of the URL is the one that is dialled, so it is checked, too.
        if refusal is None and target.scheme in ("http", "https"):
            refusal = check_host(target.raw_host or "", target.port or 0, target.scheme, self._allow)
        elif refusal is None:
            refusal = f"{target.scheme} is not a scheme to dial."
        if refusal is not None:
            raise Refused(f"it redirects to {shown(url)}. {refusal}" if hop else refusal)
        return target

    @asynccontextmanager
    async def _request(
        self, method: str, target: URL, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        host, port = target.raw_host or "", target.port or 0
        proxy = None if is_allowed(host, port, self._allow) else self._proxy or None
        if proxy is None:
            gate = Gate(host, port, self._allow, self._lookup)
            connector = aiohttp.TCPConnector(
                resolver=gate, use_dns_cache=False, socket_factory=gate.connect, limit=1, force_close=True
            )
        else:
            connector = aiohttp.TCPConnector(limit=1, force_close=True)
        connect_seconds = min(self._idle_seconds, CONNECT_SECONDS)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=self._idle_seconds)
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=timeout,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                    read_bufsize=READ_BUFFER_BYTES,
                    requote_redirect_url=False,
                )
            )
            # Headers that drip are never idle: they get as long as a host may be silent.
            async with asyncio.timeout(connect_seconds + self._idle_seconds):
                request = session.request(
                    method, target, headers=headers, data=body, allow_redirects=False, proxy=proxy
                )
                response = await stack.enter_async_context(request)
            yield response


def location(headers: Mapping[str, str]) -> str | None:
    """The target of a redirect; bytes that are not UTF-8 are percent-encoded, as browsers do."""
    text = headers.get("Location")
    return None if text is None else _RAW_BYTE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise Refused("it redirects to what is not a URL.") from None


def _resolved(host: str, port: int, address: str) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=0, flags=int(socket.AI_NUMERICHOST)
    )
