"""What people read of a finished training: config.json and the job's page."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import torch

from trainer.lora_file.audit import Audit
from trainer.model.folder import ModelFolder
from trainer.pages.job_page import AuditRow, JobPage, MeasuredPreview, StepPreview, ValidationEntry, render_job_page
from trainer.plan import EarlierPreview, JobPlan, MadeFile, Previewed
from trainer.preview.metrics import formulas
from trainer.recipe import config_content, device_name
from trainer.training.step_log import COLUMNS, Records


@dataclass
class Videos:
    """The plain previews so far, as files' bytes: the page holds them."""

    base: dict[int, bytes] = field(default_factory=dict)
    lora: dict[tuple[int, int], bytes] = field(default_factory=dict)  # by validation entry and step

    @classmethod
    def of(cls, earlier: Iterable[EarlierPreview]) -> Self:
        return cls(lora={(item.index, item.step): item.path.read_bytes() for item in earlier})

    def add(self, preview: Previewed) -> None:
        video = preview.files[0].path.read_bytes()
        if preview.base_model:
            self.base[preview.index] = video
        else:
            self.lora[preview.index, preview.step] = video

    def of_entry(self, index: int) -> list[StepPreview]:
        return [
            StepPreview(step=step, mp4=video) for (entry, step), video in sorted(self.lora.items()) if entry == index
        ]


@dataclass(frozen=True)
class Publication:
    """Everything that the config file and the page are made of."""

    plan: JobPlan
    folder: ModelFolder
    device: torch.device
    precision: str
    records: Records
    audit: Audit
    videos: Videos
    warnings: Sequence[str]

    def write_config(self, path: Path) -> MadeFile:
        plan = self.plan
        content = config_content(
            spec=plan.spec,
            trigger_phrase=plan.trigger_phrase,
            settings=plan.settings,
            geometry=plan.geometry,
            negative_prompt=plan.spec["validation_negative_prompt"],
            stg_scale=plan.spec["stg_scale"],
            folder=self.folder,
            manifest={**plan.manifest, "device": device_name(self.device), "base_precision": self.precision},
            audit=self.audit,
        )
        content["billing"] = dict(plan.billing)
        content["previews"] = {
            "formulas": formulas(),
            "measured": [asdict(preview) for preview in self.records.previews],
        }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return MadeFile(kind="CONFIG", path=path, content_type="application/json")

    def write_page(self, path: Path) -> MadeFile:
        plan = self.plan
        page = JobPage(
            title=str(plan.manifest.get("job", "")),
            state="SUCCEEDED",
            facts=self._facts(),
            warnings=self.warnings,
            entries=self._entries(),
            with_audio=plan.settings.with_audio,
            curves={name: series for name in COLUMNS if (series := self.records.series(name))},
            measured=self.records.previews,
            audit=_audit_rows(self.audit),
            report=plan.report,
            spec=plan.spec,
        )
        path.write_text(render_job_page(page))
        return MadeFile(kind="JOB_PAGE", path=path, content_type="text/html")

    def _facts(self) -> dict[str, str]:
        seconds = sum(seconds for _, seconds in self.records.series("seconds"))
        return {
            "Base model": f"{self.folder.reference} at {self.folder.revision[:19]}, {self.precision}",
            "Device": device_name(self.device),
            "Clips": f"{len(self.plan.samples)}",
            "Steps": f"{self.plan.settings.steps} in {seconds:.0f} s",
            "Units": f"{self.plan.billing['billable_units']} ({self.plan.billing['price_usd']:.2f} USD)",
        }

    def _entries(self) -> list[ValidationEntry]:
        previews = self.plan.previews
        if previews is None:
            return []
        share = self.plan.settings.conditioning_frames / previews.frame_count
        return [
            ValidationEntry(
                prompt=entry.prompt,
                given_share=share,
                base_mp4=self.videos.base.get(entry.index),
                previews=self.videos.of_entry(entry.index),
            )
            for entry in previews.inputs
        ]


def measured_preview(report: Previewed) -> MeasuredPreview:
    return MeasuredPreview(
        step=report.step, validation_index=report.index, base_model=report.base_model, metrics=report.metrics
    )


def _audit_rows(audit: Audit) -> list[AuditRow]:
    rows = [
        AuditRow(name="Modules", value=f"{audit.modules}", passed=True),
        AuditRow(name="Weights, all finite", value=f"{audit.parameters:,}", passed=True),
    ]
    rows += [
        AuditRow(name=f"‖BA‖ / ‖W‖ of {family}", value=f"{size:.3g}", passed=True)
        for family, size in audit.update.items()
    ]
    return rows
