"""Webhooks: the message that a job has ended, signed, and sent until its receiver has taken it.

The address is kept with the job, apart from what callers see of it, until then: a message is delivered at least once,
whatever restarts in between. Form, headers and signature are the hosted endpoint's.
"""

import asyncio
import base64
import hashlib
import json
import logging
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job, Webhook, WebhookKey
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.backoff import Backoff
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.runtime.addresses import check_url, is_allowed, port_of, split_url
from ltxtrain_services.runtime.database import DatabaseUnavailable
from ltxtrain_services.runtime.dial import Dialler, Lookup, Refused, system_lookup
from ltxtrain_services.runtime.errors import NotFound
from ltxtrain_services.runtime.hosted_form import (
    ended_problem,
    file_document,
    output_document,
    output_names,
    request_id,
)
from ltxtrain_services.runtime.objects import ObjectStore
from ltxtrain_services.runtime.requests import sign_download
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.train.artifacts import COLLECTION

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

# The first, and ten more within two hours.
TRIES = 11
PAUSE = Backoff(first_seconds=10.0, last_seconds=3600.0)
ANSWER_SECONDS = 15.0
# Messages under way.
AT_ONCE = 8
# Between looks at a database that does not answer.
OUTAGE = Backoff(first_seconds=1.0, last_seconds=60.0)
KEYS, CURRENT = "webhookKeys", "current"


def webhook_refusal(url: str, allow: Collection[str]) -> str | None:
    """Why no message may be sent to this address, or None. Nothing is resolved yet; see also Dialler.

    A message holds signed URLs of files, and an address may hold a token: neither goes in the clear, but to hosts that
    the operator lists, and then without a query.
    """
    if url.startswith(("upload:", "s3:")):
        return "A webhook is called by https."
    if (refusal := check_url(url, allow, remedy="Have the operator admit the host.")) is not None:
        return refusal
    parts = split_url(url)
    if parts.scheme == "https":
        return None
    if not is_allowed(parts.hostname or "", port_of(parts), allow):
        return "A webhook is called by https: its message holds addresses that open files of the job."
    return "A query may hold a token, which goes by https alone." if parts.query else None


def origin(url: str) -> str:
    """Scheme and host of an address. Raises ValueError for what is no URL."""
    parts = split_url(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class Webhooks:
    """Delivers the messages of ended jobs; an Aftermath of their work."""

    def __init__(
        self, jobs: Store[Job], objects: ObjectStore, settings: Settings, lookup: Lookup = system_lookup
    ) -> None:
        """Raises SettingsError for a proxy that is no HTTP proxy."""
        self.pause = PAUSE
        self._jobs = jobs
        self._objects = objects
        self._dialler = Dialler(settings, lookup)
        self._signer: Ed25519PrivateKey | None = None
        self._places = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False

    async def resume(self) -> None:
        """Go on with every message that its receiver has not taken."""
        for name in await self._jobs.outbox(StringValue):
            if (await self._jobs.get(name)).lifecycle.state in TERMINAL:
                self.start(name)

    def start(self, name: str) -> None:
        """Send the message of a job that has ended, if there is one; nothing happens while it is being sent."""
        if self._draining or name in self._tasks:
            return
        self._tasks[name] = task = asyncio.create_task(self._deliver(name), name=f"webhook of {name}")
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def drain(self) -> None:
        """Stop: the next start of the process goes on."""
        self._draining = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def keys(self) -> list[WebhookKey]:
        """Public keys that signatures are made with."""
        public = (await self._key()).public_key().public_bytes_raw()
        return [WebhookKey(key_id=_thumbprint(public), public_key=public)]

    async def _key(self) -> "Ed25519PrivateKey":
        """The key of this installation, made when it is first asked for."""
        if self._signer is None:
            # Hardly any job has a webhook, and it takes 12 MB.
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

            fresh = BytesValue(value=Ed25519PrivateKey.generate().private_bytes_raw())
            kept = await self._jobs.keep(KEYS, CURRENT, fresh)
            self._signer = Ed25519PrivateKey.from_private_bytes(kept.value)
        return self._signer

    async def _deliver(self, name: str) -> None:
        outages = 0
        while True:
            try:
                await self._deliver_once(name)
                return
            except DatabaseUnavailable as error:
                outages += 1
                log.warning("the webhook waits: %s", error, extra={"resource": name})
                await asyncio.sleep(OUTAGE.seconds(outages))
            except NotFound:
                return  # the job is deleted
            except Exception:
                log.exception("the webhook waits for the next start", extra={"resource": name})
                return

    async def _deliver_once(self, name: str) -> None:
        """Send until the message is taken or given up. Raises NotFound and DatabaseUnavailable."""
        while (url := await self._jobs.outgoing(name, StringValue)) is not None:
            job = await self._jobs.get(name)
            if job.webhook.HasField("next_try_time"):
                wait = job.webhook.next_try_time.ToNanoseconds() / 1e9 - time.time()
                # Whatever became of the clock meanwhile.
                await asyncio.sleep(min(max(wait, 0.0), self.pause.last_seconds))
            async with self._places:
                failure = await self._send(job, url.value)
            tries = job.webhook.tries + 1
            ended = not failure or tries >= TRIES
            again = None if ended else self.pause.seconds(tries)

            def change(job: Job, failure: str = failure, tries: int = tries, again: float | None = again) -> None:
                _tell(job.webhook, tries, failure, again)

            await self._jobs.settle(name, change, sent=ended)
            if failure:
                log.warning(
                    "webhook: %s; %s", failure, "given up" if again is None else f"again in {again:.0f} s",
                    extra={"resource": name},
                )  # fmt: skip

    async def _send(self, job: Job, url: str) -> str:
        """Why the receiver has not taken the message; empty: it has. No text holds a part of the address."""
        owner = await self._jobs.owner(job.name)
        body = await self._message(job)
        headers = await self._headers(job, owner, body)
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._dialler.post(url, headers, body) as answer:
                status = answer.status
        except Refused:
            return "Its address is not a public one."
        except TimeoutError:
            return f"No answer within {ANSWER_SECONDS:.0f} s."
        except aiohttp.ClientConnectorCertificateError:
            return "Its certificate is not valid for its name."
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"It could not be reached ({type(error).__name__})."
        if 300 <= status < 400:
            return f"HTTP {status}. Redirects are not followed: name the address that they lead to."
        return "" if 200 <= status < 300 else f"HTTP {status}."

    async def _message(self, job: Job) -> bytes:
        """The message, whose URLs are signed anew for each try."""
        document: dict[str, Any] = {"request_id": request_id(job.name), "gateway_request_id": request_id(job.name)}
        if job.lifecycle.state == State.STATE_SUCCEEDED:
            document |= {"status": "OK", "error": None, "payload": None}
            try:
                document["payload"] = await self._output(job)
            except NotFound as error:
                document["payload_error"] = str(error)
        else:
            _, problem = ended_problem(job)
            document |= {"status": "ERROR", "error": problem["message"], "payload": problem}
        return json.dumps(document, ensure_ascii=False).encode()

    async def _output(self, job: Job) -> dict[str, Any]:
        files = {}
        for field, name in output_names(job).items():
            artifact = await self._jobs.child(job.name, COLLECTION, name.rpartition("/")[2], Artifact)
            if artifact is None:
                raise NotFound(name)
            url, _ = await sign_download(self._objects, artifact.blob)
            files[field] = file_document(artifact, url)
        return output_document(files)

    async def _headers(self, job: Job, owner: str, body: bytes) -> dict[str, str]:
        # An owner is whatever the operator called somebody.
        request, user, now = request_id(job.name), quote(owner, safe="@.-_+"), str(int(time.time()))
        signed = "\n".join((request, user, now, hashlib.sha256(body).hexdigest()))
        return {
            "Content-Type": "application/json",
            "User-Agent": "ltxtrain",
            "X-Fal-Webhook-Request-Id": request,
            "X-Fal-Webhook-User-Id": user,
            "X-Fal-Webhook-Timestamp": now,
            "X-Fal-Webhook-Signature": (await self._key()).sign(signed.encode()).hex(),
        }


def _tell(webhook: Webhook, tries: int, failure: str, again_seconds: float | None) -> None:
    """How a message fares, for whoever looks at the job."""
    webhook.tries, webhook.failure = tries, failure
    webhook.ClearField("next_try_time")
    if not failure:
        webhook.delivery_time.GetCurrentTime()
    if again_seconds is not None:
        webhook.next_try_time.FromDatetime(datetime.fromtimestamp(time.time() + again_seconds, UTC))


def _thumbprint(public: bytes) -> str:
    """RFC 7638 of an Ed25519 key."""
    x = base64.urlsafe_b64encode(public).decode().rstrip("=")
    canonical = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).decode().rstrip("=")
