"""Seeded random requests from the contract's descriptors: some sane, most a little wrong, some absurd.

They name resources that the caller noted here, or none that exist; URLs never leave loopback.
"""

import base64
import hashlib
import math
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from ltxtrain.v1 import ingest_pb2, preprocess_pb2, train_pb2
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.ingest_pb2 import CreateUploadRequest, WatchDatasetRequest
from ltxtrain.v1.preprocess_pb2 import Geometry, PreprocessSettings, WatchTrainingSetRequest
from ltxtrain.v1.train_pb2 import JobOptions, WatchJobRequest

INT32, INT64 = 2**31 - 1, 2**63 - 1
INTEGERS = (0, 1, -1, 2, 7, 8, 9, 10, 16, 17, 88, 89, 96, 100, 121, 122, 129, 500, 501, 20_000, 20_001, INT32, ~INT32)
REALS = (0.0, -0.0, 0.0002, 0.5, 1.0, 1.1, 3.0, 30.0, 60.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, -1.0)
TEXTS = ("", " ", "\x00", "a\nb", "ÄÖ 車 🎬", "\u202e\ufeff", "'; DROP TABLE resource; --", "%00%2e%2f", "x" * 9_000)
COLLECTIONS = ("jobs", "datasets", "trainingSets", "uploads")
# Collections of the names in a service's requests, where the field does not say it.
COLLECTION_OF = {
    "ltxtrain/v1/ingest.proto": "datasets",
    "ltxtrain/v1/preprocess.proto": "trainingSets",
    "ltxtrain/v1/train.proto": "jobs",
}
ODD_NAMES = ("", "jobs", "jobs/", "/jobs/1", "jobs/1/artifacts/", "datasets/../jobs/1", "jobs/*", "jobs/\x00", "…/…")
ODD_URLS = (
    "http://127.0.0.1:9/clips.zip", "https://localhost/clips.zip", "http://[::1]:80/a.mp4", "http://0x7f000001/",
    "http://2130706433/", "http://127.0.0.1:99999/", "http://[::1", "http://user:word@127.0.0.1/", "http:///", "s3://",
    "s3://no-such-bucket/clips.zip", "file:///etc/hostname", "upload:", "upload:uploads/1", "ftp://127.0.0.1/a",
    "http://127.0.0.1/" + "a" * 9_000,
)  # fmt: skip
# Bodies of uploads, none of which is an archive of videos.
PAYLOADS = (b"PK\x05\x06" + bytes(18), b"<!DOCTYPE html><html></html>", bytes(1000), b"PK\x03\x04" + b"\xff" * 300)


@dataclass(frozen=True)
class Rpc:
    """One call of the contract."""

    method: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def service(self) -> str:
        """ingest, preprocess or train."""
        return self.method.containing_service.name.removesuffix("Service").lower()

    @property
    def request(self) -> type[Message]:
        return GetMessageClass(self.method.input_type)

    @property
    def response(self) -> type[Message]:
        return GetMessageClass(self.method.output_type)

    @property
    def streams(self) -> bool:
        return bool(self.method.server_streaming)


def every_rpc() -> list[Rpc]:
    files = (ingest_pb2, preprocess_pb2, train_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [Rpc(method) for service in services for method in service.methods]


class RandomRequests:
    """The same seed and the same notes give the same requests."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names: dict[str, list[str]] = {collection: [] for collection in COLLECTIONS}
        self._tokens: list[str] = []
        self._ids: list[str] = []

    def note(self, response: Message) -> None:
        """Later requests may name what this response says was made, and go on where its page ended."""
        for field, value in response.ListFields():
            if field.name == "next_page_token":
                self._tokens.append(value)
            elif field.name == "upload":
                self._names["uploads"].append(value)
            elif field.name in ("job", "dataset", "training_set") and value.name:
                self._names[value.name.split("/")[0]].append(value.name)

    def made(self, collection: str) -> list[str]:
        """Names that were noted."""
        return sorted(set(self._names[collection]))

    def rounds(self) -> Iterator[Rpc]:
        """Every call as often as every other, in random order; those that make something three times as often."""
        rpcs = every_rpc()
        rpcs += [rpc for rpc in rpcs if rpc.method.name.startswith("Create")] * 2
        while True:
            self._random.shuffle(rpcs)
            yield from rpcs

    def request(self, rpc: Rpc) -> Message:
        made = rpc.request()
        self._fill(made, wildness=self._random.choice((0.0, 0.0, 0.0, 0.1, 0.5, 1.0)))
        if isinstance(made, CreateUploadRequest) and self._chance(0.5):
            payload = self._random.choice(PAYLOADS)
            made.size_bytes, made.sha256 = len(payload), hashlib.sha256(payload).hexdigest()
        return made

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _fill(self, message: Message, wildness: float) -> None:
        oneofs: list[Any] = [oneof for oneof in message.DESCRIPTOR.oneofs if len(oneof.fields) > 1]
        chosen = {self._random.choice(oneof.fields).name for oneof in oneofs}
        exclusive = {field.name for oneof in oneofs for field in oneof.fields}
        for field in message.DESCRIPTOR.fields:
            if field.name in exclusive - chosen or self._chance(0.02 + 0.3 * wildness):
                continue
            if field.is_repeated:
                self._fill_list(getattr(message, field.name), field, wildness)
            elif field.message_type is not None:
                part = getattr(message, field.name)
                part.SetInParent()
                self._fill(part, wildness)
            else:
                setattr(message, field.name, self._value(field, wildness))

    def _fill_list(self, items: Any, field: Any, wildness: float) -> None:
        for _ in range(
            self._random.choice((0, 1, 2, 3, 120)) if self._chance(wildness) else self._random.randint(0, 2)
        ):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                key = self._random.choice(TEXTS) if self._chance(wildness) else self._random.choice("abc")
                items[key] = self._random.choice(TEXTS) if self._chance(wildness) else "drifting"
            elif field.message_type is not None:
                self._fill(items.add(), wildness)
            else:
                items.append(self._value(field, wildness))

    def _value(self, field: Any, wildness: float) -> Any:
        wild = self._chance(wildness)
        if field.enum_type is not None:
            known = [value.number for value in field.enum_type.values]
            return self._random.choice((-1, 99, INT32) if wild else known)
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._chance(0.5)
        if kind == FieldDescriptor.CPPTYPE_STRING:
            return self._text(field, wild)
        if not wild and (sane := SANE.get((field.containing_type.full_name, field.name))) is not None:
            return sane(self._random)
        if kind == FieldDescriptor.CPPTYPE_DOUBLE:
            return self._random.choice(REALS) if wild else self._random.uniform(0.0, 1.0)
        if kind == FieldDescriptor.CPPTYPE_INT64:
            return self._random.choice((*INTEGERS, INT64, ~INT64)) if wild else self._random.randint(0, 20)
        return self._random.choice(INTEGERS) if wild else self._random.randint(0, 20)

    def _text(self, field: Any, wild: bool) -> str:
        if field.name in ("name", "parent"):
            return self._resource(COLLECTION_OF[field.file.name], wild)
        if field.name in TEXTS_OF:
            return TEXTS_OF[field.name](self, wild)
        return self._random.choice(TEXTS) if wild else "drifting shapes"

    def _resource(self, collection: str, wild: bool) -> str:
        if wild:
            other = self._random.choice([name for names in self._names.values() for name in names] or [""])
            below = f"{collection}/{self._uuid().hex}/artifacts/lora"
            return self._random.choice((*ODD_NAMES, other, below, f"{collection}/{'x' * 5_000}"))
        known = self._names[collection]
        return self._random.choice(known) if known and self._chance(0.8) else f"{collection}/{self._uuid().hex}"

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._random.getrandbits(128), version=4)

    def _request_id(self, wild: bool) -> str:
        if wild and self._ids:
            # Given to another request before, perhaps to another call.
            return self._random.choice((*TEXTS, self._random.choice(self._ids)))
        self._ids.append(str(self._uuid()))
        return self._ids[-1]

    def _page_token(self, wild: bool) -> str:
        if self._tokens and self._chance(0.3):
            return self._random.choice(self._tokens)
        if not wild:
            return ""
        noise = base64.urlsafe_b64encode(self._random.randbytes(24)).decode()
        inside = base64.urlsafe_b64encode(b"0123456789abcdef|" + self._random.randbytes(8)).decode()
        return self._random.choice((*TEXTS, noise, noise[:-3], inside))

    def _url(self, wild: bool) -> str:
        uploads = self._names["uploads"]
        if uploads and not wild:
            return f"upload:{self._random.choice(uploads)}"
        return self._random.choice(ODD_URLS)

    def _sha256(self, wild: bool) -> str:
        return self._random.choice(TEXTS) if wild else f"{self._random.getrandbits(256):064x}"


TEXTS_OF: dict[str, Callable[[RandomRequests, bool], str]] = {
    "dataset": lambda self, wild: self._resource("datasets", wild),
    "validation_dataset": lambda self, wild: self._resource("datasets", wild),
    "upload": lambda self, wild: self._resource("uploads", wild),
    "request_id": RandomRequests._request_id,
    "page_token": RandomRequests._page_token,
    "training_data_url": RandomRequests._url,
    "archive_url": RandomRequests._url,
    "video_url": RandomRequests._url,
    "urls": RandomRequests._url,
    "sha256": RandomRequests._sha256,
    "model_revision": lambda self, wild: self._random.choice(TEXTS) if wild else "",
}


def _between(low: int, high: int) -> Callable[[random.Random], int]:
    return lambda source: source.randint(low, high)


def _one_of(*values: float) -> Callable[[random.Random], float]:
    return lambda source: source.choice(values)


SPEC, OPTIONS = ExtendPrefixSpec.DESCRIPTOR.full_name, JobOptions.DESCRIPTOR.full_name
GEOMETRY, SETTINGS = Geometry.DESCRIPTOR.full_name, PreprocessSettings.DESCRIPTOR.full_name
# Ranges of the sheet, for the fields whose ranges a small number misses.
SANE: dict[tuple[str, str], Callable[[random.Random], float]] = {
    (SPEC, "rank"): _one_of(8, 16, 32, 64, 128),
    (SPEC, "number_of_steps"): _between(100, 20_000),
    (SPEC, "conditioning_frames"): _one_of(9, 17),
    (SPEC, "number_of_frames"): _between(25, 121),
    (SPEC, "validation_number_of_frames"): _between(25, 121),
    (SPEC, "frame_rate"): _between(8, 60),
    (SPEC, "validation_frame_rate"): _between(8, 60),
    (SPEC, "split_input_duration_threshold"): _one_of(1.0, 30.0, 60.0),
    (OPTIONS, "batch_size"): _between(1, 64),
    (OPTIONS, "gpu_count"): _one_of(0, 1),
    (OPTIONS, "checkpoint_interval"): _between(1, 20_000),
    (OPTIONS, "holdout_fraction"): _one_of(0.0, 0.25, 0.5),
    (OPTIONS, "preview_schedule_tokens"): _one_of(0, 4096, 65_536),
    (GEOMETRY, "width"): _one_of(512, 288),
    (GEOMETRY, "height"): _one_of(288, 512),
    (GEOMETRY, "frame_count"): _one_of(25, 89),
    (GEOMETRY, "frame_rate"): _one_of(8, 24, 60),
    (SETTINGS, "conditioning_frames"): _one_of(9, 17),
    **{
        (watch.DESCRIPTOR.full_name, "after_sequence"): _one_of(0, 0, 1, 2)
        for watch in (WatchDatasetRequest, WatchTrainingSetRequest, WatchJobRequest)
    },
}
