"""Client of the ltxtrain suite: submit jobs, watch them across reconnects, download the results.

async with connect("127.0.0.1:7003") as channel:
    train = TrainClient(channel)
    sheet = parse_sheet({"training_data_url": "https://example.com/clips.zip", "resolution": "medium"})
    job = await train.submit(sheet.spec, sheet.options)
    async for sequence, event in train.watch_job(job.name):
        print(sequence, event)
    job = await train.get_job(job.name)
    await train.download(job.output.lora_file, Path("lora.safetensors"))
"""

from ltxtrain_client import grpc_log_level  # noqa: F401  isort: skip
from ltxtrain_client.backoff import Backoff
from ltxtrain_client.channel import Channel, ClientSettings, Credentials, connect, read_settings
from ltxtrain_client.check import DataCheck, check_data
from ltxtrain_client.errors import (
    AlreadyExists,
    CallError,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    LibraryMissing,
    LtxtrainError,
    NotFound,
    OutOfRange,
    OutputMissing,
    PermissionDenied,
    ResourceExhausted,
    SettingsInvalid,
    Subject,
    TransferFailed,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    from_status,
)
from ltxtrain_client.ingest import IngestClient, Upload
from ltxtrain_client.local_data import DataInvalid, LocalData, open_local_data
from ltxtrain_client.preprocess import PreprocessClient
from ltxtrain_client.sheet import Problem, Sheet, SheetInvalid, format_sheet, parse_sheet
from ltxtrain_client.sheet_files import SheetFiles
from ltxtrain_client.suite import RemoteFile, Suite, open_suite
from ltxtrain_client.train import TrainClient
from ltxtrain_client.transfer import Transfer
from ltxtrain_client.view import View
from ltxtrain_client.watch import STEADY, Pace, is_terminal, watch

__all__ = [
    "STEADY",
    "AlreadyExists",
    "Backoff",
    "CallError",
    "Channel",
    "ClientSettings",
    "Credentials",
    "DataCheck",
    "DataInvalid",
    "DeadlineExceeded",
    "FailedPrecondition",
    "IngestClient",
    "InternalError",
    "InvalidArgument",
    "LibraryMissing",
    "LocalData",
    "LtxtrainError",
    "NotFound",
    "OutOfRange",
    "OutputMissing",
    "Pace",
    "PermissionDenied",
    "PreprocessClient",
    "Problem",
    "RemoteFile",
    "ResourceExhausted",
    "SettingsInvalid",
    "Sheet",
    "SheetFiles",
    "SheetInvalid",
    "Subject",
    "Suite",
    "TrainClient",
    "Transfer",
    "TransferFailed",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Upload",
    "View",
    "Violation",
    "check_data",
    "connect",
    "format_sheet",
    "from_status",
    "is_terminal",
    "open_local_data",
    "open_suite",
    "parse_sheet",
    "read_settings",
    "watch",
]
