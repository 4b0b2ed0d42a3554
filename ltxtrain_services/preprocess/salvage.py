"""Papers of a training set that failed or was cancelled: its report, and a contact sheet of the samples so far."""

from dataclasses import replace

from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.work_pb2 import ReportReason, Stage, State

from ltxtrain_services.preprocess.context import Context
from ltxtrain_services.preprocess.outcome import SampleFile
from ltxtrain_services.preprocess.plan import Item, Plan
from ltxtrain_services.preprocess.report import not_examined_line
from ltxtrain_services.preprocess.results import ClipResult, Results, find_cached
from ltxtrain_services.preprocess.source import Source
from ltxtrain_services.runtime.report import add_missing
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.work import Ending


async def salvage(context: Context, plan: Plan, source: Source) -> Ending[TrainingSet]:
    """Complete the report and store the sheet. What was made is found in the cache, as another run would find it."""
    results = Results(plan=plan, settings=context.settings, duplicates=source.duplicates)
    results.made = {item.key: ClipResult(item=item, outcome=item.outcome) for item in plan.items if item.outcome}
    wanted = [replace(item, wanted_files=_shown(item)) for item in plan.items if not item.outcome]
    found, _ = await find_cached(context, wanted)
    results.made |= {made.item.key: made for made in found}
    cancelled = context.training_set.lifecycle.state == State.STATE_CANCELLING
    lines = []
    for item in plan.items:
        unseen = [(item.name, not_examined_line(item.clip, cancelled=cancelled))]
        lines += results.lines(item) if item.key in results.made else unseen
    report = await add_missing(context.attempt, Stage.STAGE_PREPROCESS, lines)
    not_examined = sum(ReportReason.REPORT_REASON_NOT_EXAMINED in line.reasons for line in report)
    samples = results.samples(context.name)
    sheet = None
    if any(results.sheets(samples)):
        # Needed only now: it brings picture libraries into the service.
        from ltxtrain_services.preprocess.publish import store_sheet

        sheet = await store_sheet(context, results, samples)

    def ending(edit: Edit[TrainingSet]) -> None:
        if not edit.body.HasField("report"):
            edit.body.report.CopyFrom(results.report())
        edit.body.report.not_examined = not_examined
        if sheet is not None:
            edit.body.contact_sheet.CopyFrom(sheet)

    return ending


def _shown(item: Item) -> frozenset[SampleFile]:
    """The files without which a clip is no part of the papers."""
    return frozenset({SampleFile.SHEET}) if item.validation_index is None else frozenset()
