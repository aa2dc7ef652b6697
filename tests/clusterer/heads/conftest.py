"""One thread for PyTorch."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The products are small: two threads would only wait for each other."""
    torch.set_num_threads(1)
