"""Who calls, and whether a server may listen where it was told to.

Without tokens there is one owner. With tokens every call but health needs one; its subject owns what it makes.
A service calls another with the service token and names the owner it acts for.
"""

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

import grpc

from services.runtime.errors import PermissionDenied, Unauthenticated
from services.runtime.settings import Settings, SettingsError

OWNER_KEY = "ltxtrain-owner"
LOCAL_OWNER = "local"
SERVICE = "service"

# The owner on whose behalf the present call runs; None: a service acting for itself, which sees everything.
caller: ContextVar[str] = ContextVar("caller", default=LOCAL_OWNER)


class Tokens:
    """Bearer tokens and their subjects."""

    def __init__(self, subjects: Mapping[str, str], service_token: str) -> None:
        self._subjects = dict(subjects)
        self._service_token = service_token

    @classmethod
    def read(cls, settings: Settings) -> "Tokens | None":
        """None when authentication is off. Raises SettingsError for a file that is not lines of "subject token"."""
        if settings.tokens_file is None and not settings.service_token:
            return None
        return cls(_read_tokens(settings.tokens_file), settings.service_token)

    def owner(self, metadata: Sequence[tuple[str, str | bytes]]) -> str:
        """The owner that a call acts for. Raises Unauthenticated and PermissionDenied."""
        values = {key: value for key, value in metadata if isinstance(value, str)}
        scheme, _, token = values.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("Send the metadata 'authorization: Bearer TOKEN' with every call.")
        named = values.get(OWNER_KEY)
        if self._service_token and hmac.compare_digest(token.encode(), self._service_token.encode()):
            return named or SERVICE
        for known, subject in self._subjects.items():
            if hmac.compare_digest(token.encode(), known.encode()):
                if named not in (None, subject):
                    raise PermissionDenied(f"Only a service may act for another owner ({OWNER_KEY}).")
                return subject
        raise Unauthenticated("The token is not known here.")


def _read_tokens(path: Path | None) -> dict[str, str]:
    subjects: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines() if path else (), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            subject, token = line.split()
        except ValueError:
            raise SettingsError(f"LTXTRAIN_TOKENS_FILE line {number}: expected 'subject token'.") from None
        subjects[token] = subject
    return subjects


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS, mTLS, or None for plaintext. Raises SettingsError when listening so would be open to everybody."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        root = settings.tls_client_root.read_bytes() if settings.tls_client_root else None
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        return grpc.ssl_server_credentials([pair], root, require_client_auth=root is not None)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsError("LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY belong together: set both, or none.")
    if not is_loopback(settings.bind) and settings.tokens_file is None:
        raise SettingsError(
            f"LTXTRAIN_BIND={settings.bind} is open to other machines. Set LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY "
            "(with LTXTRAIN_TLS_CLIENT_ROOT for mTLS), or LTXTRAIN_TOKENS_FILE, or bind 127.0.0.1."
        )
    return None


def is_loopback(bind: str) -> bool:
    """Whether host:port, [v6]:port or unix:path is reachable from this machine alone."""
    if bind.startswith("unix:"):
        return True
    host = bind.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
