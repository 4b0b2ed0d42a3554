"""A receiver of webhooks on loopback, and a check of their signatures that shares no code with what makes them."""

import asyncio
import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDictProxy

# Safety alone: a message comes when it comes.
SECONDS = 120.0


@dataclass(frozen=True)
class Message:
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    def is_signed_by(self, keys: Mapping[str, Any]) -> bool:
        """Whether a key of a JSON Web Key Set made the signature, by RFC 8032."""
        request, user, time = (self.headers[f"X-Fal-Webhook-{name}"] for name in ("Request-Id", "User-Id", "Timestamp"))
        signed = "\n".join((request, user, time, hashlib.sha256(self.body).hexdigest())).encode()
        signature = bytes.fromhex(self.headers["X-Fal-Webhook-Signature"])
        return any(verified(_bytes(key["x"]), signed, signature) for key in keys["keys"] if key["crv"] == "Ed25519")


@dataclass
class Receiver:
    """Takes every message, unless `answers` has other statuses for its path, one each time."""

    host: str = ""
    answers: dict[str, list[int]] = field(default_factory=dict)
    _came: defaultdict[str, asyncio.Queue[Message]] = field(default_factory=lambda: defaultdict(asyncio.Queue))

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    async def message(self, path: str) -> Message:
        """The next message to a path."""
        async with asyncio.timeout(SECONDS):
            return await self._came[path].get()

    def is_empty(self, path: str) -> bool:
        return self._came[path].empty()

    async def take(self, request: web.Request) -> web.Response:
        await self._came[request.path].put(Message(request.headers, await request.read()))
        waiting = self.answers.get(request.path, [])
        status = waiting.pop(0) if waiting else 200
        return web.Response(status=status, headers={"Location": self.url("/elsewhere")} if status // 100 == 3 else {})


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver, app = Receiver(), web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.host = f"127.0.0.1:{runner.addresses[0][1]}"
        yield receiver
    finally:
        await runner.cleanup()


# The curve of RFC 8032, 5.1, in affine coordinates: slow, and short enough to be compared with the text.
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def verified(public: bytes, message: bytes, signature: bytes) -> bool:
    a, r, s = _point(public), _point(signature[:32]), int.from_bytes(signature[32:], "little")
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little")
    return _times(s, _point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))) == _sum(r, _times(k, a))


def _sum(one: Point, two: Point) -> Point:
    (a, b), (c, d) = one, two
    product = D * a * b * c * d % P
    return (a * d + c * b) * pow(1 + product, -1, P) % P, (b * d + a * c) * pow(1 - product, -1, P) % P


def _times(count: int, point: Point) -> Point:
    total = (0, 1)
    while count:
        if count & 1:
            total = _sum(total, point)
        point, count = _sum(point, point), count >> 1
    return total


def _point(encoded: bytes) -> Point:
    number = int.from_bytes(encoded, "little")
    y, sign = number & (2**255 - 1), number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (P - x if x & 1 != sign else x), y


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
