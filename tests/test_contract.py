"""The contract as buf sees it: linted, and compatible with what was released."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from google.api import annotations_pb2, resource_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from google.protobuf.message_factory import GetMessageClass
from ltxtrain.v1 import ingest_pb2, preprocess_pb2, train_pb2
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import Event, EventKind, ReportReason

from tests.messages import every_message

ROOT = Path(__file__).parent.parent
BUF = Path(sys.executable).parent / "buf"
RELEASED = ROOT / "protos/released.binpb"
# Of images, which have no modules.
RULES = yaml.safe_load((ROOT / "buf.yaml").read_text())["breaking"]["use"]
BREAKING = json.dumps({"version": "v2", "breaking": {"use": RULES}})


def buf(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BUF), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_lint() -> None:
    done = buf("lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_generate_makes_code_that_runs(tmp_path: Path) -> None:
    """Out of the box: nothing but buf and grpcio-tools; the rest of the templates name the plugins that they need."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(BUF), "generate", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {str(path.relative_to(tmp_path / "gen/python")) for path in tmp_path.rglob("*_pb2.py")}
    assert {"ltxtrain/v1/train_pb2.py", "google/rpc/error_details_pb2.py", "google/type/money_pb2.py"} <= made
    assert len([*tmp_path.rglob("*_pb2.pyi")]) == len(made)


def message(contract: FileDescriptorSet, name: str) -> DescriptorProto:
    return next(item for file in contract.file for item in file.message_type if item.name == name)


def field(contract: FileDescriptorSet, owner: str, name: str) -> FieldDescriptorProto:
    return next(item for item in message(contract, owner).field if item.name == name)


def enum(contract: FileDescriptorSet, name: str) -> EnumDescriptorProto:
    return next(item for file in contract.file for item in file.enum_type if item.name == name)


def call(contract: FileDescriptorSet, name: str) -> MethodDescriptorProto:
    services = (service for file in contract.file for service in file.service)
    return next(method for service in services for method in service.method if method.name == name)


def renumber_field(contract: FileDescriptorSet) -> None:
    field(contract, "ExtendPrefixSpec", "rank").number = 99


def rename_field(contract: FileDescriptorSet) -> None:
    changed = field(contract, "Job", "training_set")
    changed.name, changed.json_name = "prepared_set", "preparedSet"


def retype_field(contract: FileDescriptorSet) -> None:
    field(contract, "WatchJobRequest", "after_sequence").type = FieldDescriptorProto.TYPE_STRING


def remove_field(contract: FileDescriptorSet) -> None:
    owner = message(contract, "Blob")
    owner.field.remove(field(contract, "Blob", "sha256"))


def repeat_field(contract: FileDescriptorSet) -> None:
    field(contract, "JobOutput", "lora_file").label = FieldDescriptorProto.LABEL_REPEATED


def renumber_value(contract: FileDescriptorSet) -> None:
    values = enum(contract, "ErrorReason").value
    next(item for item in values if item.name == "ERROR_REASON_DRAINING").number = 99


def rename_value(contract: FileDescriptorSet) -> None:
    values = enum(contract, "State").value
    next(item for item in values if item.name == "STATE_SUCCEEDED").name = "STATE_DONE"


def answer_with_a_stream(contract: FileDescriptorSet) -> None:
    call(contract, "GetJob").server_streaming = True


def remove_call(contract: FileDescriptorSet) -> None:
    service = next(item for file in contract.file for item in file.service if item.name == "TrainService")
    service.method.remove(call(contract, "EstimateJob"))


def breaking(contract: FileDescriptorSet, folder: Path) -> subprocess.CompletedProcess[str]:
    changed = folder / "changed.binpb"
    changed.write_bytes(contract.SerializeToString())
    return buf("breaking", changed, "--against", RELEASED, "--config", BREAKING)


def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(RELEASED.read_bytes())


def test_the_contract_is_compatible_with_the_released_one() -> None:
    done = buf("breaking", "protos", "--against", RELEASED)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_released_contract_is_whole_and_bare() -> None:
    """Every file that is needed to read it, and no comments."""
    files = {file.name for file in released().file}
    ours = {f"ltxtrain/v1/{path.name}" for path in (ROOT / "protos/ltxtrain/v1").glob("*.proto")}
    assert ours <= files
    assert {imported for file in released().file for imported in file.dependency} <= files
    assert not any(file.HasField("source_code_info") for file in released().file)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (renumber_field, '"4"'),
        (rename_field, "prepared_set"),
        (retype_field, "after_sequence"),
        (remove_field, "sha256"),
        (repeat_field, "lora_file"),
        (renumber_value, '"46"'),
        (rename_value, "STATE_DONE"),
        (answer_with_a_stream, "GetJob"),
        (remove_call, "EstimateJob"),
    ],
)
def test_a_breaking_change_is_refused(change: Callable[[FileDescriptorSet], None], names: str, tmp_path: Path) -> None:
    contract = released()
    change(contract)
    done = breaking(contract, tmp_path)
    assert done.returncode == 100, done.stdout + done.stderr
    assert names in done.stdout


def test_an_added_field_is_welcome(tmp_path: Path) -> None:
    contract = released()
    added = message(contract, "JobOptions").field.add(name="colour", json_name="colour", number=1000)
    added.type, added.label = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.LABEL_OPTIONAL
    done = breaking(contract, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def recipes() -> list[tuple[str, str, str]]:
    """Service, method and request of every call in docs/grpcurl.md; a request from a file or stdin is empty."""
    text = (ROOT / "docs/grpcurl.md").read_text()
    written = r"""(?: '(?P<plain>\{.*?\})'| "(?P<quoted>\{.*?\})")?(?=[ )\n|])"""
    found = re.finditer(rf"\b(?P<service>train|ingest|preprocess) (?P<method>[A-Z]\w+){written}", text)
    return [
        (match["service"], match["method"], match["plain"] or (match["quoted"] or "").replace('\\"', '"'))
        for match in found
    ]


@pytest.mark.parametrize(("service", "method", "request_text"), recipes())
def test_the_shell_recipes_name_what_there_is(service: str, method: str, request_text: str) -> None:
    file = {"train": train_pb2, "ingest": ingest_pb2, "preprocess": preprocess_pb2}[service]
    described = file.DESCRIPTOR.services_by_name[f"{service.capitalize()}Service"].methods_by_name[method]
    # A number stands for what the shell puts in, as it is a text and a number alike.
    filled = re.sub(r"\$\(.*?\)(?=[,\"}])|\$\{.*?\}|\$\w+", "1", request_text or "{}")
    json_format.ParseDict(json.loads(filled), GetMessageClass(described.input_type)())


def every_call() -> list[MethodDescriptor]:
    files = (ingest_pb2, preprocess_pb2, train_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


@pytest.mark.parametrize("method", every_call(), ids=lambda method: method.name)
def test_a_call_has_an_address_whose_parts_are_its_fields(method: MethodDescriptor) -> None:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    kind = rule.WhichOneof("pattern")
    path = getattr(rule, kind)
    assert path.startswith("/v1/")
    for name in re.findall(r"{(\w+)=", path):
        named = method.input_type.fields_by_name[name]
        # A file of a training set is no resource.
        if method.name != "GetTrainingSetFile":
            assert named.GetOptions().Extensions[resource_pb2.resource_reference].type
    reads = method.name.startswith(("Get", "List", "Watch"))
    assert kind == ("get" if reads else "delete" if method.name.startswith("Delete") else "post")
    assert rule.body == ("*" if kind == "post" else "")
    # What is left of a GET goes into its query, which holds neither maps nor messages.
    for field in method.input_type.fields if kind == "get" else ():
        assert field.message_type is None


def test_no_two_calls_have_one_address() -> None:
    rules = [method.GetOptions().Extensions[annotations_pb2.http] for method in every_call()]
    addresses = [(kind, getattr(rule, kind)) for rule in rules for kind in [rule.WhichOneof("pattern")]]
    assert len(set(addresses)) == len(addresses)


def test_resources_and_references_name_each_other() -> None:
    """Every reference is to a type that the contract defines, with the pattern of its names."""
    files = {item.file.name: item.file for item in (kind.DESCRIPTOR for kind in every_message())}
    messages = [message for file in files.values() for message in file.message_types_by_name.values()]
    resources = [message.GetOptions().Extensions[resource_pb2.resource] for message in messages]
    types = {found.type for found in resources if found.type}
    assert types == {
        f"ltxtrain/{name}" for name in ["Artifact", "Clip", "Dataset", "Job", "Sample", "TrainingSet", "Upload"]
    }
    fields = [field for message in messages for field in message.fields]
    references = {field.GetOptions().Extensions[resource_pb2.resource_reference].type for field in fields} - {""}
    assert references <= types and references


def test_kinds_of_events_are_the_members_of_an_event() -> None:
    members = {f"EVENT_KIND_{field.name.upper()}": field.number for field in Event.DESCRIPTOR.oneofs[0].fields}
    assert dict(EventKind.items()) == members | {"EVENT_KIND_UNSPECIFIED": 0}


def test_the_page_about_errors_has_every_reason_in_the_order_of_the_contract() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert rows == [value.name.removeprefix("ERROR_REASON_") for value in ErrorReason.DESCRIPTOR.values if value.number]


def test_the_page_about_reports_has_every_reason() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/report.md").read_text(), re.MULTILINE)
    named = [name.removeprefix("REPORT_REASON_") for name, number in ReportReason.items() if number]
    assert sorted(rows) == sorted(named)
