"""HTTP/1 as somebody sends it to the gateway who keeps to no rule: one connection each, whatever comes after it."""

import asyncio
from contextlib import suppress

PATIENCE_SECONDS = 20.0
JSON = b'{"training_data_url": "https://example.com/clips.zip"}'
SUBMIT = b"/fal-ai/ltx23-trainer-v2/extend-prefix"
JOB = b"0" * 32


def request(path: bytes, *headers: bytes, method: bytes = b"GET", host: bytes = b"127.0.0.1:80") -> bytes:
    """The head of a request after which the connection is closed."""
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: " + host, *headers, b"Connection: close", b"", b""]
    return b"\r\n".join(lines)


def post(path: bytes, body: bytes, *headers: bytes, host: bytes = b"127.0.0.1:80") -> bytes:
    return request(path, *headers, b"Content-Length: %d" % len(body), method=b"POST", host=host) + body


def chunked(path: bytes, body: bytes) -> bytes:
    return request(path, b"Transfer-Encoding: chunked", method=b"POST") + body


def smuggled(*headers: bytes) -> bytes:
    """Two requests in one whose end is told in two ways; the second answers with a page that has a word of its own."""
    inner = request(b"/sign-in?next=/smuggled")
    return request(b"/sign-out", *headers, method=b"POST").replace(b"Connection: close\r\n", b"") + inner


REQUESTS: dict[str, bytes] = {
    "an origin that is no URL": post(b"/jobs", b"{}", b"Origin: http://["),
    "a host in brackets": request(b"/jobs", host=b"[::1"),
    "a host of two words": request(b"/sign-in", host=b"a b"),
    "an empty host": request(b"/sign-in", host=b""),
    "a port that is none": request(b"/sign-in", host=b"127.0.0.1:99999999"),
    "a port that is text": post(SUBMIT, JSON, host=b"127.0.0.1:x"),
    "a port that is too large": post(SUBMIT, JSON, host=b"127.0.0.1:99999"),
    "an IPv4 address in brackets": post(SUBMIT, JSON, host=b"[127.0.0.1]:80"),
    "no host": b"GET /sign-in HTTP/1.0\r\n\r\n",
    "two hosts": request(b"/sign-in", b"Host: evil"),
    "a length and chunks": smuggled(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "two lengths": smuggled(b"Content-Length: 5", b"Content-Length: 6"),
    "a length with a sign": smuggled(b"Content-Length: +5"),
    "an unknown coding": smuggled(b"Transfer-Encoding: xchunked"),
    "two codings": smuggled(b"Transfer-Encoding: identity, chunked, gzip"),
    "a folded header": smuggled(b"X: y\r\n Transfer-Encoding: chunked"),
    "a space before the colon": smuggled(b"Content-Length : 5"),
    "a bare line feed": b"GET /sign-in HTTP/1.1\nHost: 127.0.0.1\n\n",
    "a long chunk extension": chunked(b"/sign-in", b"1;" + b"a" * 9_000 + b"\r\nx\r\n0\r\n\r\n"),
    "a negative chunk": chunked(b"/sign-in", b"-1\r\nx\r\n0\r\n\r\n"),
    "a chunk of any size": chunked(b"/sign-in", b"f" * 40 + b"\r\nx\r\n0\r\n\r\n"),
    "many small chunks": chunked(b"/sign-in", b"1\r\na\r\n" * 5_000 + b"0\r\n\r\n"),
    "gzip that is none": post(b"/sign-in", b"abcde", b"Content-Encoding: gzip"),
    "an encoding that is no text": post(b"/datasets", JSON, b"Content-Type: application/json; charset=rot13"),
    "a form in no encoding": post(b"/sign-in", b"token=%ff%fe&next=\xff", b"Content-Type: a/b; charset=zip"),
    "a path with NUL": request(b"/jobs%00"),
    "a path in no encoding": request(b"/jobs%ff%fe?job=%ff"),
    "a query in no encoding": request(b"/new?job=%ff%00&dataset=%f0%9f"),
    "a query with half a pair": request(b"/new?job=%ed%a0%80"),
    "a next that is no URL": request(b"/sign-in?next=http://["),
    "a form's next that is no URL": post(b"/sign-in", b"token=a&next=%2F%2F%5B"),
    "another host's URL": request(b"http://evil.example/jobs"),
    "a URL that is none": request(b"http://[/jobs"),
    "CONNECT": request(b"evil:443", method=b"CONNECT"),
    "OPTIONS *": request(b"*", method=b"OPTIONS"),
    "TRACE": request(b"/jobs", method=b"TRACE"),
    "a cookie of backslashes": request(b"/jobs", b'Cookie: ltxtrain-token="' + b"\\" * 7_900 + b'"'),
    "many cookies": request(b"/jobs", b"Cookie: " + b"a=b; " * 1_500),
    "cookies in many lines": request(b"/jobs", *[b"Cookie: " + b"a=b;" * 1_900] * 60),
    "a cookie in no encoding": request(b"/jobs", b"Cookie: ltxtrain-token=\xff\xfe"),
    "many headers": request(b"/jobs", *[b"X%d: y" % index for index in range(5_000)]),
    "a large header": request(b"/jobs", b"X: " + b"y" * 10**6),
    "a key in no encoding": request(SUBMIT + b"/requests/" + JOB + b"/status", b"Authorization: Key \xff"),
    "many ranges": request(b"/static/style.css", b"Range: bytes=0-0," + b"1-2," * 1_500),
    "an idempotency key in no encoding": post(b"/jobs", JSON, b"Idempotency-Key: \xff\xfe"),
    "the endpoint's key in no encoding": post(SUBMIT, JSON, b"Idempotency-Key: \xff\xfe"),
    "a dataset's key in no encoding": post(b"/datasets", JSON, b"Idempotency-Key: \xff"),
    "half a pair in JSON": post(b"/datasets", b'{"training_data_url": "\\ud800"}'),
    "half a pair in a name": post(b"/uploads", b'{"size": 1, "sha256": "\\ud800", "name": "\\udfff"}'),
    "a size that is no number": post(b"/uploads", b'{"size": true, "sha256": "a"}'),
    "a size that is NaN": post(b"/uploads", b'{"size": NaN, "sha256": "a"}'),
    "deep JSON": post(b"/uploads", b"[" * 30_000),
    "a cursor in no encoding": request(b"/jobs/" + JOB + b"/events", b"Last-Event-ID: \xff"),
    "an upgrade": request(b"/jobs", b"Upgrade: websocket", b"Sec-WebSocket-Key: x"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "an expectation": post(b"/sign-in", b"", b"Expect: nonsense"),
    "a method in no encoding": request(b"/jobs", method=b"\xff\xff"),
    "a long method": request(b"/jobs", method=b"G" * 5_000),
    "a path of other bytes": request(b"/\xff\xfe"),
    "a site in no encoding": post(b"/jobs", b"{}", b"Sec-Fetch-Site: \xff"),
    "proxy headers": request(b"/jobs", b"X-Forwarded-Proto: [", b'Forwarded: for="['),
    "a query of many parts": request(b"/new?" + b"a&" * 4_000),
    "many requests at once": request(b"/healthz").replace(b"Connection: close\r\n", b"") * 300 + request(b"/healthz"),
}


async def answer(address: str, sent: bytes) -> bytes:
    """All that comes until the gateway hangs up. Raises TimeoutError when it does not."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    found = b""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            with suppress(ConnectionError):
                writer.write(sent)
                await writer.drain()
            with suppress(ConnectionError):
                while part := await reader.read(65_536):
                    found += part
    finally:
        writer.close()
    return found
