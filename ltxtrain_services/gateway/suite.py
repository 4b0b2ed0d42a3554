"""The services as one caller sees them: the caller's token goes along with every call, unchanged."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltxtrain_client.channel import Channel, Credentials, connect
from ltxtrain_client.errors import CallError, InvalidArgument, Violation, from_status
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.preprocess import PreprocessClient
from ltxtrain_client.sheet import Sheet, SheetInvalid
from ltxtrain_client.train import TrainClient

from ltxtrain_services.runtime import tracing
from ltxtrain_services.runtime.auth import Tokens
from ltxtrain_services.runtime.errors import ApiError
from ltxtrain_services.runtime.settings import Settings

# Visible ASCII, which is all that gRPC metadata can hold.
TOKEN = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True)
class Caller:
    """Clients of the services that show one caller's token."""

    train: TrainClient
    ingest: IngestClient
    preprocess: PreprocessClient


class Suite:
    """Connections to the services, shared by all callers."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError and SettingsInvalid for tokens, certificates and addresses that cannot be used."""
        self._tokens = Tokens.read(settings)
        credentials = Credentials(
            tls_root=settings.tls_root,
            tls_cert=settings.tls_cert if settings.tls_root else None,
            tls_key=settings.tls_key if settings.tls_root else None,
        )
        self._channels = [
            connect(
                # Without TLS between services their network is a trusted one, as for the services themselves.
                address if "://" in address or settings.tls_root else f"http://{address}",
                credentials,
                interceptors=tracing.client_interceptors(),
            )
            for address in (settings.train, settings.ingest, settings.preprocess)
        ]

    def of(self, token: str) -> Caller:
        """Clients that show this token; empty: none.

        Raises ValueError for what no header can hold. The services check the token; where the gateway has the list as
        well, it does so first: Unauthenticated is raised for one that is not in it.
        """
        if token and not TOKEN.fullmatch(token):
            raise ValueError("A token is visible ASCII without spaces.")
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        if self._tokens is not None:
            try:
                self._tokens.owner(metadata)
            except ApiError as error:
                raise from_status(error.status()) from None
        return self._caller(metadata)

    @property
    def anybody(self) -> Caller:
        """Clients for calls that need no token."""
        return self._caller(())

    def _caller(self, metadata: tuple[tuple[str, str], ...]) -> Caller:
        channels = (Channel(channel.aio, channel.address, metadata) for channel in self._channels)
        train, ingest, preprocess = channels
        return Caller(TrainClient(train), IngestClient(ingest), PreprocessClient(preprocess))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


async def sheet_violations(caller: Caller, error: SheetInvalid, **beside: Any) -> list[Violation]:
    """Violations of a sheet of the wrong form, with those that the service finds in the rest of it.

    Left out is what only follows from a part that could not be sent. beside: what `submit` gets beside the sheet.
    """
    found = [Violation(problem.path, "INVALID_SPEC", problem.description) for problem in error.problems]
    if error.sheet is not None:
        found += await _further(caller, error.sheet, [problem.path for problem in error.problems], beside)
    return found


async def _further(caller: Caller, sheet: Sheet, broken: Sequence[str], beside: Mapping[str, Any]) -> list[Violation]:
    try:
        await caller.train.validate(sheet.spec, sheet.options, **beside)
    except InvalidArgument as more:
        return [
            Violation(path, violation.reason, violation.description)
            for violation in more.violations
            for path in [violation.sheet_path]
            # Comparisons between fields, any of which may be the broken one.
            if violation.reason != "PREFIX_COVERS_CLIP" and path not in ("options.gpu_count", "options.compile_blocks")
            if path not in broken and not path.startswith(tuple(f"{place}{mark}" for place in broken for mark in ".["))
        ]
    except CallError:
        pass  # The caller gets to know the faults that are certain.
    return []
