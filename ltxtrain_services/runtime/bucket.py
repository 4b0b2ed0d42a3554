"""One bucket of the object store: its client, uploads in parts, and the store's errors as ours."""

import contextlib
import shutil
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.datatypes import Part
from minio.error import InvalidResponseError, MinioException, S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule

from ltxtrain_services.runtime.object_keys import checked_key
from ltxtrain_services.runtime.object_types import (
    ObjectMissing,
    ObjectStoreFull,
    ObjectStoreUnavailable,
    StoreAddress,
)
from ltxtrain_services.runtime.telemetry import without_secrets

THREADS = 8
# A store that is started again refuses connections for a second or two and may fail for some more: this waits 16 s.
RETRY = urllib3.Retry(
    total=8,
    backoff_factor=0.1,
    backoff_max=5.0,
    status_forcelist=(500, 502, 503, 504),
    raise_on_status=False,  # the last answer says why
    respect_retry_after_header=False,
)
TIMEOUT = urllib3.Timeout(connect=5.0, read=60.0)
MAX_WORDS_CHARS = 500
# Parts of an upload that a killed process left are given up after as long; clients may resume one for days.
STALE_UPLOAD_DAYS = 7
STALE_RULE = "ltxtrain-abort-stale-uploads"
MISSING = {"NoSuchKey", "NoSuchObject", "NoSuchUpload"}
# MinIO's word, those of quotas, and HTTP's own.
FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
INSUFFICIENT_STORAGE = 507
# A store that fails with as little is taken to fail for that: about what one upload has under way.
SHORT_BYTES = 64 * 2**20
REFUSALS = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}


class Bucket:
    """A bucket without its objects; see ltxtrain_services.runtime.objects."""

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        self._bucket = address.bucket
        self._client = _client(address, address.endpoint)
        self._signer = _client(address, address.public_endpoint)
        self._prober = _client(address, address.endpoint, RETRY.new(total=0))

    def __reduce__(self) -> tuple[type["Bucket"], tuple[StoreAddress]]:
        return type(self), (self.address,)

    def ensure_bucket(self) -> None:
        """Make the bucket unless it exists."""
        with self._translated(""):
            if not self._client.bucket_exists(self._bucket):
                try:
                    self._client.make_bucket(self._bucket)
                except S3Error as error:
                    if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                        raise

    def ping(self) -> None:
        """Return when the store answers at once and has the bucket."""
        with self._translated(""):
            exists = self._prober.bucket_exists(self._bucket)
        if not exists:
            raise ObjectStoreUnavailable(f"The bucket {self._bucket} does not exist at {self.address.endpoint}.")

    def start_multipart(self, key: str) -> str:
        """Begin an upload in parts; returns the id that the methods below take."""
        with self._translated(key):
            return self._client._create_multipart_upload(self._bucket, checked_key(key), {})

    def presign_part(self, key: str, multipart_id: str, number: int, expires: timedelta) -> str:
        """A URL that anybody may PUT part `number` (from 1) by. Offline."""
        query: dict[str, str | list[str] | tuple[str]] = {"uploadId": multipart_id, "partNumber": str(number)}
        return self._signer.get_presigned_url("PUT", self._bucket, checked_key(key), expires, extra_query_params=query)

    def list_parts(self, key: str, multipart_id: str) -> dict[int, int]:
        """Size of each part that arrived, by its number. Raises ObjectMissing when there is no such upload."""
        return {part.part_number: part.size or 0 for part in self._parts(key, multipart_id)}

    def complete_multipart(self, key: str, multipart_id: str) -> None:
        """Join the parts that arrived. Raises ObjectMissing when there is no such upload."""
        parts = self._parts(key, multipart_id)
        with self._translated(key):
            self._client._complete_multipart_upload(self._bucket, checked_key(key), multipart_id, parts)

    def abort_multipart(self, key: str, multipart_id: str) -> None:
        """Delete the parts; an upload that is missing is success."""
        with contextlib.suppress(ObjectMissing), self._translated(key):
            self._client._abort_multipart_upload(self._bucket, checked_key(key), multipart_id)

    def _parts(self, key: str, multipart_id: str) -> list[Part]:
        parts: list[Part] = []
        marker = None
        with self._translated(key):
            while True:
                found = self._client._list_parts(
                    self._bucket, checked_key(key), multipart_id, part_number_marker=marker
                )
                parts += found.parts
                if not found.is_truncated or not found.parts:
                    return parts
                marker = str(found.parts[-1].part_number)

    def expire_stale_uploads(self) -> None:
        """Have the store give up the parts of unfinished uploads after a week, if it takes a lifecycle rule.

        A bucket that has rules is left alone: they are the operator's, and can only be replaced all at once.
        """
        rule = Rule(
            ENABLED,
            rule_filter=Filter(prefix=""),
            rule_id=STALE_RULE,
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(STALE_UPLOAD_DAYS),
        )
        with contextlib.suppress(ObjectStoreUnavailable), self._translated(""):
            if self._client.get_bucket_lifecycle(self._bucket) is None:
                self._client.set_bucket_lifecycle(self._bucket, LifecycleConfig([rule]))

    def abort_stale_uploads(self, before: datetime) -> int:
        """Give up uploads in parts that began before then and did not end; how many, 0 where the store lists none."""
        aborted, marker = 0, None
        with contextlib.suppress(ObjectStoreUnavailable), self._translated(""):
            while True:
                # The library has no public call for it; its own put_object uses this one.
                page = self._client._list_multipart_uploads(self._bucket, key_marker=marker)
                for upload in page.uploads:
                    if upload.initiated_time is not None and upload.initiated_time <= before:
                        name, upload_id = upload.object_name, upload.upload_id or ""
                        self._client._abort_multipart_upload(self._bucket, name, upload_id)
                        aborted += 1
                marker = page.next_key_marker
                if not page.is_truncated or not marker:
                    return aborted
        return aborted

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Around every call of the client: its errors become ours."""
        where = f"The object store at {self.address.endpoint}"
        try:
            yield
        except S3Error as error:
            if error.code in MISSING:
                raise ObjectMissing(f"There is no object {key} in the bucket {self._bucket}.") from error
            hint = " Check LTXTRAIN_S3_ACCESS_KEY and LTXTRAIN_S3_SECRET_KEY." if error.code in REFUSALS else ""
            told = f"{error.code}: {self._words(error.message)}"
            if error.code in FULL or error.response.status == INSUFFICIENT_STORAGE:
                raise ObjectStoreFull(f"{where} has no space left: {told}.") from error
            if error.response.status >= 500 and self._is_short_of_space():
                raise ObjectStoreFull(f"{where} has no space left in {self.address.folder}: {told}.") from error
            raise ObjectStoreUnavailable(f"{where} refused: {told}.{hint}") from error
        except InvalidResponseError as error:
            if error._code == INSUFFICIENT_STORAGE:
                raise ObjectStoreFull(f"{where} has no space left: {self._words(error)}.") from error
            raise ObjectStoreUnavailable(f"{where} gave an answer that is not S3: {self._words(error)}.") from error
        except MinioException as error:
            raise ObjectStoreUnavailable(f"{where} gave an answer that is not S3: {self._words(error)}.") from error
        except urllib3.exceptions.HTTPError as error:
            cause = getattr(error, "reason", None) or error
            name = type(cause).__name__
            raise ObjectStoreUnavailable(f"{where} does not answer: {name}: {self._words(cause)}.") from error

    def _is_short_of_space(self) -> bool:
        try:
            return self.address.folder is not None and shutil.disk_usage(self.address.folder).free < SHORT_BYTES
        except OSError:
            return False

    def _words(self, error: object) -> str:
        """An error's own text for people: bounded, in one line, without secrets."""
        text = " ".join(str(error)[:MAX_WORDS_CHARS].split())
        for secret in filter(None, (self.address.secret_key, self.address.access_key)):
            text = text.replace(secret, "…")
        return without_secrets(text).rstrip(".")


def _client(address: StoreAddress, endpoint: str, retry: urllib3.Retry = RETRY) -> Minio:
    scheme, _, host = endpoint.rpartition("://")
    context = None
    if address.tls_root:
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=address.tls_root)
    return Minio(
        host,
        access_key=address.access_key,
        secret_key=address.secret_key,
        secure=scheme == "https" if scheme else address.secure,
        # Without it the client would ask the store for the region before it can sign anything.
        region=address.region,
        http_client=urllib3.PoolManager(maxsize=4 * THREADS, retries=retry, timeout=TIMEOUT, ssl_context=context),
    )
