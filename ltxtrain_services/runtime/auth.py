"""Who calls, and whether a server may listen where it was told to.

Without tokens there is one owner. With tokens every call but health needs one; its subject owns what it makes.
A service calls another with the service token and names the owner it acts for.
"""

import hmac
import ssl
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

import grpc
from ltxtrain_client.channel import OWNER_KEY, is_loopback

from ltxtrain_services.runtime.errors import PermissionDenied, Unauthenticated
from ltxtrain_services.runtime.settings import Settings, SettingsError

LOCAL_OWNER = "local"
SERVICE = "service"

# The owner on whose behalf the present call runs; SERVICE: a service acting for itself, which sees everything.
caller: ContextVar[str] = ContextVar("caller", default=LOCAL_OWNER)


class Tokens:
    """Bearer tokens and their subjects."""

    def __init__(self, subjects: Mapping[str, str], service_token: str) -> None:
        self._subjects = {token.encode(): subject for token, subject in subjects.items()}
        self._service_token = service_token.encode()

    @classmethod
    def read(cls, settings: Settings) -> "Tokens | None":
        """None when authentication is off. Raises SettingsError for a file that is not lines of "subject token"."""
        if settings.tokens_file is None and not settings.service_token:
            return None
        subjects = _read_tokens(settings.tokens_file) if settings.tokens_file else {}
        if settings.service_token in subjects:
            raise SettingsError("LTXTRAIN_TOKENS_FILE holds LTXTRAIN_SERVICE_TOKEN. Make another for the services.")
        return cls(subjects, settings.service_token)

    def owner(self, metadata: Sequence[tuple[str, str | bytes]]) -> str:
        """The owner that a call acts for. Raises Unauthenticated and PermissionDenied."""
        values = {key: value for key, value in metadata if isinstance(value, str)}
        scheme, _, token = values.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("Send the metadata 'authorization: Bearer TOKEN' with every call.")
        shown, named = token.encode(), values.get(OWNER_KEY)
        if self._service_token and hmac.compare_digest(shown, self._service_token):
            return named or SERVICE
        found = [subject for known, subject in self._subjects.items() if hmac.compare_digest(shown, known)]
        if not found:
            raise Unauthenticated("The token is not known here.")
        if named not in (None, found[0]):
            raise PermissionDenied(f"Only a service may act for another owner ({OWNER_KEY}).")
        return found[0]


def _read_tokens(path: Path) -> dict[str, str]:
    subjects: dict[str, str] = {}
    for number, line in enumerate(_read(path, "LTXTRAIN_TOKENS_FILE").decode(errors="replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"LTXTRAIN_TOKENS_FILE line {number}"
        try:
            subject, token = line.split()
        except ValueError:
            raise SettingsError(f"{where}: expected 'subject token'.") from None
        if subject == SERVICE:
            raise SettingsError(f"{where}: the subject {SERVICE!r} is what services are called. Use another.")
        if subjects.setdefault(token, subject) != subject:
            raise SettingsError(f"{where}: {subject} has the token of {subjects[token]}. Give each its own.")
    return subjects


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS, mTLS, or None for plaintext. Raises SettingsError when listening so would be open to everybody."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsError("LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY belong together: set both, or none.")
    if settings.tls_client_root is not None and settings.tls_cert is None:
        raise SettingsError("LTXTRAIN_TLS_CLIENT_ROOT needs LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY.")
    identified = settings.tls_client_root is not None or settings.tokens_file is not None or settings.service_token
    if not is_loopback(settings.bind) and not identified:
        raise SettingsError(
            f"LTXTRAIN_BIND={settings.bind} is open to other machines. Set LTXTRAIN_TLS_CERT, LTXTRAIN_TLS_KEY and "
            "LTXTRAIN_TLS_CLIENT_ROOT for mTLS, or LTXTRAIN_TOKENS_FILE, or bind 127.0.0.1."
        )
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    pair = (_read(settings.tls_key, "LTXTRAIN_TLS_KEY"), _read(settings.tls_cert, "LTXTRAIN_TLS_CERT"))
    root = _read(settings.tls_client_root, "LTXTRAIN_TLS_CLIENT_ROOT") if settings.tls_client_root else None
    _check_pair(settings.tls_cert, settings.tls_key)
    return grpc.ssl_server_credentials([pair], root, require_client_auth=root is not None)


def _check_pair(cert: Path, key: Path) -> None:
    """gRPC would find out with the first caller."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        text = f"LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY are no pair of PEM files ({error.reason or 'not PEM'})."
        raise SettingsError(text) from None


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {error.strerror}: {path}") from None
