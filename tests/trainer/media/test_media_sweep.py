"""Every combination that the bundled FFmpeg writes ends in the right frames and sides, or in a true reason."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# Reasons that are true of what FFmpeg writes and does not read.
TRUE = re.compile(
    r"refused: (Undecodable: The (file cannot be opened|video cannot be decoded)|"
    r"AudioUndecodable: The audio track cannot be decoded): "
    r"(Invalid data found when processing input|Not yet implemented in FFmpeg, patches welcome)\.$"
)


def sweep(folder: Path, kind: str, first: int, step: int, timeout: float) -> Counter[str]:
    """Outcomes of every `step`-th combination, each looked at; in a process of its own, which none of them may end."""
    command = [sys.executable, "-m", "tests.trainer.media.sweep", str(folder), str(first), str(step), kind]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=root, errors="replace")
    assert done.returncode == 0, (done.stdout[-300:], done.stderr[-2000:])
    outcomes: Counter[str] = Counter()
    for row in done.stdout.splitlines():
        combination, _, outcome = row.partition(": ")
        kept = outcome.startswith("kept")
        assert kept or outcome.startswith("unwritable") or TRUE.match(outcome), f"{combination}: {outcome}"
        outcomes["kept" if kept else outcome.split()[0]] += 1
    return outcomes


@pytest.mark.parametrize(("kind", "step"), [("video", 43), ("audio", 211)])
def test_some_combinations_are_kept_or_refused_for_a_reason(tmp_path: Path, kind: str, step: int) -> None:
    assert sweep(tmp_path, kind, 5, step, 300)["kept"] >= 5


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize(("kind", "kept"), [("video", 1000), ("audio", 2000)])
def test_every_combination_is_kept_or_refused_for_a_reason(tmp_path: Path, kind: str, kept: int) -> None:
    outcomes = sweep(tmp_path, kind, 0, 1, 2.5 * 3600)
    print(kind, dict(outcomes))
    assert outcomes["kept"] >= kept
