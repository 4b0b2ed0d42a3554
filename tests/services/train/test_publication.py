"""The end of a training as the job tells it: facts that a worker reported, as they come from the database."""

from dataclasses import asdict

import pytest
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_services.pages.job_page import training_facts
from ltxtrain_services.train.publication import facts_message, facts_of, lora_audit, training_summary
from ltxtrain_trainer.lora_file.audit import Audit
from ltxtrain_trainer.model.precision import Precision
from ltxtrain_trainer.reports import TrainingFacts
from ltxtrain_trainer.training.step_log import StepLog


@pytest.mark.parametrize("precision", list(Precision))
def test_a_training_is_summed_up(precision: Precision) -> None:
    facts = TrainingFacts(
        device="cuda: NVIDIA H200",
        precision=precision,
        memory={"streamed_blocks": 3, "workers_per_clip": 4, "total_bytes": 60 * 2**30},
        model="a folder",
        model_revision="r",
        model_digests={},
        layer_count=48,
        clip_count=3,
        libraries={},
        python="3.11",
    )
    summary = training_summary(facts_of(facts_message(facts)), StepLog())
    assert (summary.precision, summary.planned_memory_bytes, summary.streamed_blocks) == (precision, 60 * 2**30, 3)
    assert summary.gpus_per_clip == 4
    assert "3 blocks in host memory, each clip shared by 4 GPUs" in training_facts(Job(), summary, 100, None)["Device"]
    assert (summary.device, summary.model, summary.clip_count, summary.steps) == (facts.device, "a folder", 3, 0)


def test_numbers_of_the_audit() -> None:
    found = lora_audit(asdict(Audit(modules=384, parameters=40_000_000_000, update={"attn1": 0.012})))
    assert (found.modules, found.weights, dict(found.update_ratios)) == (384, 40_000_000_000, {"attn1": 0.012})
