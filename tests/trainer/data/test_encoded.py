import os
import subprocess
import sys

import pytest
import torch

from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding, dump_clip, dump_prompt, load_clip, load_prompt
from ltxtrain_trainer.errors import SampleUnreadable


def clip(audio: bool = True) -> EncodedClip:
    generator = torch.Generator().manual_seed(0)
    return EncodedClip(
        video=torch.randn(128, 3, 2, 4, generator=generator).bfloat16(),
        audio=torch.randn(18, 128, generator=generator).bfloat16() if audio else None,
        frame_rate=23.976,
        frame_count=17,
    )


def prompt() -> PromptEmbedding:
    generator = torch.Generator().manual_seed(1)
    return PromptEmbedding(
        video=torch.randn(128, 64, generator=generator).bfloat16(),
        audio=torch.randn(128, 32, generator=generator).bfloat16(),
        token_count=200,
        truncated=True,
    )


@pytest.mark.parametrize("audio", [True, False])
def test_a_clip_survives_its_bytes(audio: bool) -> None:
    before, after = clip(audio), load_clip(dump_clip(clip(audio)))
    assert torch.equal(after.video, before.video)
    if after.audio is None or before.audio is None:
        assert after.audio is before.audio is None and not audio
    else:
        assert torch.equal(after.audio, before.audio)
    assert (after.frame_rate, after.frame_count) == (23.976, 17)
    assert after.video.dtype == torch.bfloat16


def test_a_prompt_survives_its_bytes() -> None:
    after = load_prompt(dump_prompt(prompt()))
    assert torch.equal(after.video, prompt().video) and torch.equal(after.audio, prompt().audio)
    assert (after.token_count, after.truncated) == (200, True)


def test_another_process_writes_the_same_bytes() -> None:
    code = (
        "import hashlib, tests.trainer.data.test_encoded as t\n"
        "print(hashlib.sha256(t.dump_clip(t.clip()) + t.dump_prompt(t.prompt())).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "random"}
    runs = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_a_clip_is_not_read_as_a_prompt() -> None:
    with pytest.raises(SampleUnreadable, match="encoded prompt of format 1"):
        load_prompt(dump_clip(clip()))


@pytest.mark.parametrize("data", [b"", b"no tensors at all", dump_clip(clip())[:-1]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SampleUnreadable, match="not an encoded clip"):
        load_clip(data)


def test_foreign_safetensors_are_refused() -> None:
    import safetensors.torch

    with pytest.raises(SampleUnreadable, match="not an encoded clip"):
        load_clip(safetensors.torch.save({"video": torch.zeros(1)}))


def test_latents_must_fit_the_frame_count() -> None:
    with pytest.raises(SampleUnreadable, match="25 frames"):
        EncodedClip(video=clip().video, audio=None, frame_rate=24, frame_count=25)
