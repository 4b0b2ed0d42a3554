"""Every error of the trainer crosses processes as itself and has one status."""

import inspect
import pickle
import re
from collections.abc import Iterator
from types import ModuleType

import grpc
import pytest
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.runtime import errors as runtime
from ltxtrain_services.runtime import trainer_errors
from ltxtrain_services.runtime.trainer_errors import HANDLED, REASONS, api_error, translated
from ltxtrain_trainer import errors as trainer

EXAMPLES: dict[type[trainer.TrainerError], trainer.TrainerError] = {
    trainer.ClipTooShort: trainer.ClipTooShort("61 frames", frame_count=61, needed_frames=89),
    trainer.ClipDamaged: trainer.ClipDamaged("grey from 1.2 s on", frame_count=28, needed_frames=89),
    trainer.TrainingDiverged: trainer.TrainingDiverged(7),
    trainer.AuditFailed: trainer.AuditFailed("ZERO", "nothing was learned"),
}


def kinds(base: type[BaseException]) -> Iterator[type[BaseException]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


ALL = sorted(
    (kind for kind in kinds(trainer.TrainerError) if kind is not trainer.TrainerError), key=lambda kind: kind.__name__
)


def example(kind: type[trainer.TrainerError]) -> trainer.TrainerError:
    return EXAMPLES.get(kind) or kind("a text")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_crosses_processes_as_itself(kind: type[trainer.TrainerError]) -> None:
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), vars(copy)) == (str(error), vars(error))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_has_one_status(kind: type[trainer.TrainerError]) -> None:
    special = (trainer.DeviceMemoryExhausted, trainer.AuditFailed)
    assert (kind in REASONS) + issubclass(kind, HANDLED) + issubclass(kind, special) == 1
    status = api_error(example(kind))
    assert (status.reason == ErrorReason.ERROR_REASON_INTERNAL) is issubclass(kind, HANDLED)


def test_out_of_memory_has_one_name() -> None:
    with pytest.raises(trainer_errors.GpuOutOfMemory, match="a lower rank") as caught, translated():
        raise trainer.DeviceMemoryExhausted("a lower rank helps")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("module", "base"), [(trainer, trainer.TrainerError), (runtime, runtime.ApiError)])
def test_the_tree_at_the_top_is_that_of_the_classes(module: ModuleType, base: type[BaseException]) -> None:
    drawn = re.findall(r"^[│ ]*[├└]── (\w+)", inspect.getdoc(module) or "", re.MULTILINE)
    defined = {kind.__name__ for kind in kinds(base) if kind.__module__ == module.__name__ and kind is not base}
    assert set(drawn) == defined and len(drawn) == len(defined)
