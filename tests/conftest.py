"""What every test may use. Expensive things are made once a session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole LTX-2.3 pipeline folder with small random weights (trainer.tiny). Read only."""
    import torch

    from trainer.tiny import build_tiny_model

    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_tiny_model(folder)
    return folder
