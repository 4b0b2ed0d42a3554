"""`ltxtrain datasets` and `ltxtrain training-sets`: list, show, report, delete."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, TypeVar

import typer
from ltxtrain.v1.ingest_pb2 import Clip, Dataset
from ltxtrain.v1.preprocess_pb2 import Sample, TrainingSet
from ltxtrain.v1.work_pb2 import Lifecycle

from ltxtrain_client.as_json import as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.help import Command, Group
from ltxtrain_client.cli.jobs import Yes, delete
from ltxtrain_client.cli.report import report
from ltxtrain_client.cli.session import Json, run, settings_of
from ltxtrain_client.cli.show import print_named, print_pairs, print_table, time_text
from ltxtrain_client.errors import from_status
from ltxtrain_client.event_text import describe_error, state_word
from ltxtrain_client.progress import print_json
from ltxtrain_client.quantities import size_text
from ltxtrain_client.sheet import UPLOAD
from ltxtrain_client.suite import open_suite

T = TypeVar("T")

Limit = Annotated[int, typer.Option(help="Maximum number of them.", min=1)]
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="datasets/ID, or the ID alone.")]
TrainingSetName = Annotated[str, typer.Argument(metavar="TRAINING_SET", help="trainingSets/ID, or the ID alone.")]

datasets = typer.Typer(cls=Group, help="Ingested data: list, show, report, delete.", invoke_without_command=True)
training_sets = typer.Typer(
    cls=Group, help="Preprocessed data: list, show, report, delete.", invoke_without_command=True
)


@datasets.callback()
def _datasets(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_datasets(context)


@training_sets.callback()
def _training_sets(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_training_sets(context)


@datasets.command("list", cls=Command)
def list_datasets(context: typer.Context, limit: Limit = 50, json_lines: Json = False) -> None:
    """List datasets, newest first."""
    found = run(_datasets_of(settings_of(context), limit))
    if json_lines:
        for item in found:
            print_json(as_json(item))
        return
    rows = [
        (
            item.name,
            item.display_name,
            state_word(item.lifecycle.state),
            str(item.clip_count),
            *_created(item.lifecycle),
            _source(item),
        )
        for item in found
    ]
    print_named(("DATASET", "NAME", "STATE", "CLIPS", "CREATED", "REASON", "SOURCE"), rows)


@training_sets.command("list", cls=Command)
def list_training_sets(context: typer.Context, limit: Limit = 50, json_lines: Json = False) -> None:
    """List training sets, newest first."""
    found = run(_training_sets_of(settings_of(context), limit))
    if json_lines:
        for item in found:
            print_json(as_json(item))
        return
    rows = [
        (
            item.name,
            item.display_name,
            state_word(item.lifecycle.state),
            str(item.report.samples),
            *_created(item.lifecycle),
            item.dataset,
            _kind(item),
        )
        for item in found
    ]
    print_named(("TRAINING SET", "NAME", "STATE", "SAMPLES", "CREATED", "REASON", "DATASET", "KIND"), rows)


@datasets.command("show", cls=Command)
def show_dataset(context: typer.Context, name: DatasetName, json_lines: Json = False) -> None:
    """Show a dataset and its clips."""
    item, clips = run(_dataset(settings_of(context), _full(name, "datasets")))
    if json_lines:
        print_json(as_json(item) | {"clips": [as_json(clip) for clip in clips]})
        return
    print_pairs(
        [
            ("dataset", item.name),
            ("name", item.display_name),
            *_lifecycle_pairs(item.lifecycle),
            ("source", _source(item)),
            ("clips", f"{item.clip_count}, {item.caption_count} with a caption"),
            ("left out", _left_out(item)),
        ]
    )
    if clips:
        print()
        print_table(
            ("CLIP", "PATH", "SHAPE", "FRAMES", "RATE", "SOUND", "SIZE", "CAPTION"), [_row(clip) for clip in clips]
        )


@training_sets.command("show", cls=Command)
def show_training_set(context: typer.Context, name: TrainingSetName, json_lines: Json = False) -> None:
    """Show a training set and its samples."""
    item, samples = run(_training_set(settings_of(context), _full(name, "trainingSets")))
    if json_lines:
        print_json(as_json(item) | {"samples": [as_json(sample) for sample in samples]})
        return
    shape, made = item.settings.training, item.report
    print_pairs(
        [
            ("training set", item.name),
            ("name", item.display_name),
            *_lifecycle_pairs(item.lifecycle),
            ("kind", _kind(item)),
            ("dataset", item.dataset),
            ("validation", item.validation_dataset),
            ("shape", f"{shape.width}x{shape.height}, {shape.frame_count} frames at {shape.frame_rate} a second"),
            ("clips", f"{made.clips}, {made.samples} samples of them, {made.skipped} left out"),
            ("not looked at", f"{made.not_examined} clips" if made.not_examined else ""),
            ("suggestions", "\n".join(made.suggestions)),
        ]
    )
    if samples:
        rows = [
            (
                sample.name.rpartition("/")[2],
                sample.clip.rpartition("/")[2],
                str(sample.start_frame),
                f"{sample.frame_count} at {sample.frame_rate:g}/s",
                sample.caption,
            )
            for sample in samples
        ]
        print()
        print_table(("SAMPLE", "CLIP", "FROM FRAME", "FRAMES", "CAPTION"), rows)


@datasets.command("report", cls=Command)
def report_dataset(context: typer.Context, name: DatasetName, json_lines: Json = False) -> None:
    """List every file of a dataset with its outcome and the reasons."""
    report(context, _full(name, "datasets"), json_lines)


@training_sets.command("report", cls=Command)
def report_training_set(context: typer.Context, name: TrainingSetName, json_lines: Json = False) -> None:
    """List every clip of a training set with its outcome and the reasons."""
    report(context, _full(name, "trainingSets"), json_lines)


@datasets.command("delete", cls=Command)
def delete_dataset(context: typer.Context, name: DatasetName, yes: Yes = False, json_lines: Json = False) -> None:
    """Delete a dataset that has ended, and the clips that nothing else refers to."""
    delete(context, _full(name, "datasets"), yes, json_lines)


@training_sets.command("delete", cls=Command)
def delete_training_set(
    context: typer.Context, name: TrainingSetName, yes: Yes = False, json_lines: Json = False
) -> None:
    """Delete a training set that has ended, and the samples that nothing else refers to."""
    delete(context, _full(name, "trainingSets"), yes, json_lines)


async def _datasets_of(settings: ClientSettings, limit: int) -> list[Dataset]:
    async with open_suite(settings) as suite:
        return await _first(suite.ingest.list_datasets(min(limit, 500)), limit)


async def _training_sets_of(settings: ClientSettings, limit: int) -> list[TrainingSet]:
    async with open_suite(settings) as suite:
        return await _first(suite.preprocess.list_training_sets(min(limit, 500)), limit)


async def _first(items: AsyncIterator[T], limit: int) -> list[T]:
    found: list[T] = []
    async for item in items:
        found.append(item)
        if len(found) == limit:
            break
    return found


async def _dataset(settings: ClientSettings, name: str) -> tuple[Dataset, list[Clip]]:
    async with open_suite(settings) as suite:
        return await suite.ingest.get_dataset(name), [clip async for clip in suite.ingest.list_clips(name)]


async def _training_set(settings: ClientSettings, name: str) -> tuple[TrainingSet, list[Sample]]:
    async with open_suite(settings) as suite:
        found = await suite.preprocess.get_training_set(name)
        return found, [sample async for sample in suite.preprocess.list_samples(name)]


def _full(name: str, collection: str) -> str:
    """Full name; a bare id is one of the collection. Raises BadParameter when it is of another one."""
    if "/" not in name:
        return f"{collection}/{name}"
    if not name.startswith(f"{collection}/"):
        raise typer.BadParameter(f"{name} is not {collection}/ID")
    return name


def _created(lifecycle: Lifecycle) -> tuple[str, str]:
    reason = from_status(lifecycle.error).reason if lifecycle.HasField("error") else ""
    return time_text(lifecycle.create_time), reason


def _lifecycle_pairs(lifecycle: Lifecycle) -> Sequence[tuple[str, str]]:
    return [
        ("state", state_word(lifecycle.state)),
        ("created", time_text(lifecycle.create_time)),
        ("ended", time_text(lifecycle.end_time)),
        ("error", describe_error(from_status(lifecycle.error)) if lifecycle.HasField("error") else ""),
    ]


def _source(item: Dataset) -> str:
    """Origin of a dataset, files by their names; the query of a URL may hold a secret."""
    sources = [f"{UPLOAD}{item.upload}"] if item.upload else [item.archive_url, *item.videos.urls]
    names = iter(item.file_names)
    # A service of an earlier version tells no names.
    shown = [(text.startswith(UPLOAD) and next(names, "")) or text.partition("?")[0] for text in sources if text]
    return ", ".join(shown)


def _left_out(item: Dataset) -> str:
    unseen = item.not_examined_count
    text = f"{item.skipped_count} skipped, {item.ignored_count - unseen} ignored"
    return f"{text}, {unseen} not looked at" if unseen else text


def _kind(item: TrainingSet) -> str:
    return "check" if item.settings.fit_only else "encoded"


def _row(clip: Clip) -> tuple[str, ...]:
    return (
        clip.name.rpartition("/")[2],
        clip.path,
        f"{clip.width}x{clip.height}",
        str(clip.frame_count),
        f"{clip.frame_rate:.4g}/s",
        "yes" if clip.HasField("audio_sample_rate") else "no",
        size_text(clip.blob.size_bytes),
        clip.caption,
    )
