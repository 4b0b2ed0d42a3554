"""The papers of a job: config.json, job.html and a ComfyUI workflow.

They are made of the job's row, its artifacts and what its training reported.

They are written here and not where the GPUs are; a job that ends as SUCCEEDED, CANCELLED or FAILED gets them alike.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job, LoraAudit, TrainingSummary
from ltxtrain.v1.work_pb2 import Outcome, PreviewMetrics, ReportLine, ReportReason, State
from ltxtrain_client.as_json import as_json
from ltxtrain_client.enum_words import word
from ltxtrain_client.event_text import title
from ltxtrain_client.report_summary import data_summary, joined, path_text

from ltxtrain_services.pages.job_page import (
    JobPage,
    MeasuredPreview,
    ReportRow,
    StepPreview,
    ValidationEntry,
    audit_rows,
    render_job_page,
    shown_spec,
    training_facts,
)
from ltxtrain_services.runtime.extend_prefix import billable_units, price, training_geometry
from ltxtrain_services.runtime.objects import Objects
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import UnitPrice
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.artifacts import artifact, artifacts, object_key
from ltxtrain_services.train.comfy_workflow import comfy_workflow
from ltxtrain_services.train.config_file import config_content, prompt_form
from ltxtrain_services.train.job_plan import train_settings
from ltxtrain_trainer.model.folder import public_name
from ltxtrain_trainer.reports import LABELLED, TrainingFacts
from ltxtrain_trainer.reports import PreviewMetrics as Numbers
from ltxtrain_trainer.training.step_log import COLUMNS, StepLog

# Collections of a job's children that training reports are kept in until the papers are written.
FACTS, MEASURED, WARNINGS = "facts", "previewMetrics", "warnings"
# ListDatasetReport and ListTrainingSetReport have all of them.
MAX_REPORT_ROWS = 1000
# The published single file, which ComfyUI loads whatever form this suite trained on.
COMFY_CHECKPOINT = "ltx-2.3-22b-dev.safetensors"


@dataclass(frozen=True, kw_only=True)
class Papers:
    """Everything that the papers are made of."""

    job: Job
    state: "State"
    facts: TrainingFacts
    artifacts: Sequence[Artifact]
    measured: Sequence[PreviewMetrics]
    warnings: Sequence[str]
    # Lines of the dataset, and of the training set.
    found: Sequence[ReportLine]
    fitted: Sequence[ReportLine]
    preprocess_report: Mapping[str, Any]
    # Numbers of the LoRA's audit; empty without a LoRA that passed.
    audit: Mapping[str, Any]
    unit_price: UnitPrice | None

    @property
    def units(self) -> int:
        succeeded = self.state == State.STATE_SUCCEEDED
        if not succeeded:
            return 0
        steps = self.job.effective_spec.extend_prefix.number_of_steps
        return billable_units(steps - self.job.continue_from.billed_steps)

    def write(self, objects: Objects) -> "Published":
        """All papers, in the object store; blocking."""
        with tempfile.TemporaryDirectory(prefix="ltxtrain-papers-") as folder:
            steps = self._steps(objects, Path(folder))
        summary = training_summary(self.facts, steps)
        page = self._page(objects, steps, summary)
        papers = [
            self._put(objects, "config.json", Artifact.KIND_CONFIG, _document(self._config()), "application/json"),
            self._put(objects, "job.html", Artifact.KIND_JOB_PAGE, page, "text/html"),
        ]
        if self.audit:  # there is a sound LoRA
            flow = _document(self._workflow())
            kind = Artifact.KIND_COMFYUI_WORKFLOW
            papers.append(self._put(objects, "comfyui-workflow.json", kind, flow, "application/json"))
        return Published(artifacts=papers, summary=summary)

    def _put(self, objects: Objects, name: str, kind: "Artifact.Kind", text: str, content_type: str) -> Artifact:
        stored = objects.put_bytes(object_key(self.job.name, name), text.encode(), content_type)
        return artifact(self.job.name, name, kind, stored)

    def _config(self) -> dict[str, Any]:
        # With NumPy, which a process at rest is spared.
        from ltxtrain_trainer.preview.metrics import formulas

        job = self.job
        content = config_content(
            spec=shown_spec(job),
            settings=train_settings(job),
            geometry=training_geometry(job.effective_spec.extend_prefix),
            facts=self.facts,
            manifest={
                "job": job.name,
                "display_name": job.display_name,
                "labels": dict(job.labels),
                "dataset": job.dataset,
                "validation_dataset": job.validation_dataset,
                "training_set": job.training_set,
                "preprocess_report": self.preprocess_report,
                "options": as_json(job.options),
                **({"continue_from": as_json(job.continue_from)} if job.HasField("continue_from") else {}),
            },
            audit=self.audit,
            schedule_tokens=job.options.preview_schedule_tokens,
        )
        content["state"] = word(State.DESCRIPTOR, self.state)
        content["billing"] = {"billable_units": self.units}
        if (unit := self.unit_price) is not None:
            content["billing"] |= {
                "currency": unit.currency,
                "unit_price": str(unit.amount),
                "price": str(self.units * unit.amount),
            }
        content["previews"] = {
            "formulas": formulas(),
            "measured": [asdict(_measured(item)) for item in self.measured],
        }
        return content

    def _workflow(self) -> dict[str, Any]:
        spec, options = self.job.effective_spec.extend_prefix, self.job.options
        _, _, original = self.facts.model.partition("#")
        return comfy_workflow(
            checkpoint=Path(original).name or COMFY_CHECKPOINT,
            lora="lora.safetensors",
            prompt=prompt_form(spec.trigger_phrase),
            negative_prompt=spec.validation_negative_prompt,
            geometry=training_geometry(spec),
            conditioning_frames=spec.conditioning_frames,
            schedule_tokens=options.preview_schedule_tokens,
            with_audio=spec.with_audio,
            seed=options.seed,
        )

    def _page(self, objects: Objects, steps: StepLog, summary: TrainingSummary) -> str:
        spec = self.job.effective_spec.extend_prefix
        return render_job_page(
            JobPage(
                title=title(self.job.name, self.job.display_name),
                state=State.Name(self.state).removeprefix("STATE_"),
                facts=training_facts(self.job, summary, self.units, price(self.units, self.unit_price)),
                warnings=self.warnings,
                entries=[self._entry(objects, index) for index in range(len(spec.validation))],
                with_audio=spec.with_audio,
                curves={name: series for name in COLUMNS if (series := steps.series(name))},
                measured=[_measured(item) for item in self.measured],
                audit=audit_rows(lora_audit(self.audit)) if self.audit else (),
                data_summary=data_summary(self.found, self.fitted) if self.found or self.fitted else (),
                report=report_rows(joined(self.found, self.fitted)),
                spec=shown_spec(self.job),
            )
        )

    def _steps(self, objects: Objects, folder: Path) -> StepLog:
        logs = [item for item in self.artifacts if item.kind == Artifact.KIND_METRICS]
        if not logs:
            return StepLog()
        # The finished training's log has no step: it goes to the end.
        newest = max(logs, key=lambda item: item.step if item.HasField("step") else float("inf"))
        path = folder / "metrics.parquet"
        objects.get_file(newest.blob.key, path, sha256=newest.blob.sha256)
        return StepLog.read(path)

    def _entry(self, objects: Objects, index: int) -> ValidationEntry:
        spec = self.job.effective_spec.extend_prefix
        videos = [item for item in self.artifacts if item.HasField("validation_index")]
        own = [item for item in videos if item.validation_index == index and not item.name.endswith(LABELLED)]
        base = [item for item in own if item.kind == Artifact.KIND_BASE_VIDEO]
        lora = sorted((item for item in own if item.kind == Artifact.KIND_VALIDATION_VIDEO), key=lambda item: item.step)
        return ValidationEntry(
            prompt=spec.validation[index].prompt,
            given_share=spec.conditioning_frames / spec.validation_number_of_frames,
            base_mp4=_bytes(objects, base[-1]) if base else None,
            previews=[StepPreview(step=item.step, mp4=_bytes(objects, item)) for item in lora],
        )


@dataclass(frozen=True, kw_only=True)
class Published:
    """The papers of a job, and what they say of its training; neither, when it never began."""

    artifacts: Sequence[Artifact] = ()
    summary: TrainingSummary | None = None


async def publish_papers(
    runtime: Runtime,
    attempt: Attempt[Job],
    state: "State",
    *,
    audit: Mapping[str, Any],
    found: Sequence[ReportLine],
    fitted: Sequence[ReportLine],
    preprocess_report: Mapping[str, Any],
    made: Sequence[Artifact] = (),
) -> Published:
    """Write the papers of a job that ends in `state`, with artifacts that are not recorded yet."""
    known = await attempt.children(FACTS, Struct)
    if not known:
        return Published()
    newer = {item.name: item for item in [*await artifacts(attempt), *made]}
    papers = Papers(
        job=await attempt.get(),
        state=state,
        facts=facts_of(known[0]),
        artifacts=list(newer.values()),
        measured=await attempt.children(MEASURED, PreviewMetrics),
        warnings=[warning.message for warning in await attempt.children(WARNINGS, Status)],
        found=found,
        fitted=fitted,
        preprocess_report=preprocess_report,
        audit=audit,
        unit_price=runtime.settings.unit_price,
    )
    return await runtime.objects.run(lambda: papers.write(runtime.objects.objects))


def training_summary(facts: TrainingFacts, steps: StepLog) -> TrainingSummary:
    return TrainingSummary(
        model=public_name(facts.model, facts.model_revision),
        model_revision=facts.model_revision,
        precision=facts.precision,
        device=facts.device,
        planned_memory_bytes=int(facts.memory["total_bytes"]),
        streamed_blocks=int(facts.memory["streamed_blocks"]),
        # Facts of a training that began under an earlier version lack it.
        gpus_per_clip=int(facts.memory.get("workers_per_clip", 1)),
        clip_count=facts.clip_count,
        steps=int(steps.rows[-1]["step"]) if steps.rows else 0,
        step_seconds=sum(seconds for _, seconds in steps.series("seconds")),
    )


def lora_audit(audit: Mapping[str, Any]) -> LoraAudit:
    """The numbers of ltxtrain_trainer.lora_file.audit."""
    return LoraAudit(modules=audit["modules"], weights=audit["parameters"], update_ratios=audit["update"])


def facts_message(facts: TrainingFacts) -> Struct:
    """The facts as a child of the job."""
    message = Struct()
    message.update(asdict(facts))
    return message


def facts_of(message: Struct) -> TrainingFacts:
    """The facts that facts_message was given."""
    return TrainingFacts(**_integers(MessageToDict(message)))


def report_rows(lines: Sequence[ReportLine]) -> list[ReportRow]:
    """Rows for the job's page: clips left out or changed first, and no more than a person reads."""
    ordered = sorted(lines, key=lambda line: (-line.outcome, line.path))
    return [
        ReportRow(
            path=path_text(line.path),
            outcome=word(Outcome.DESCRIPTOR, line.outcome).upper(),
            reasons=[word(ReportReason.DESCRIPTOR, reason) for reason in line.reasons],
            description=line.description,
        )
        for line in ordered[:MAX_REPORT_ROWS]
    ]


def measured_key(measured: PreviewMetrics) -> str:
    """The name of a preview's numbers among the children of its job; a preview that is made again replaces them."""
    side = "base" if measured.base_model else f"{measured.step:06}"
    return f"{measured.validation_index}-{side}"


def _measured(item: PreviewMetrics) -> MeasuredPreview:
    known = item.DESCRIPTOR.fields_by_name
    numbers: dict[str, Any] = {
        name: None if known[name].has_presence and not item.HasField(name) else getattr(item, name)
        for name in (field.name for field in fields(Numbers))
    }
    return MeasuredPreview(
        step=item.step,
        validation_index=item.validation_index,
        base_model=item.base_model,
        metrics=Numbers(**numbers),
    )


def _document(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _bytes(objects: Objects, item: Artifact) -> bytes:
    return objects.get_bytes(item.blob.key, sha256=item.blob.sha256)


def _integers(facts: dict[str, Any]) -> dict[str, Any]:
    """Struct has no integers."""
    return {name: int(value) if isinstance(value, float) else value for name, value in facts.items()}
