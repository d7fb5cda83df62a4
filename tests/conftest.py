"""Shared set-up: deterministic torch, hypothesis profiles, the data folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "seeded",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile("whole", parent=settings.get_profile("seeded"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("EQUIDIAL_HYPOTHESIS", "seeded"))


@pytest.fixture(scope="session")
def draws() -> int:
    """How many times the usual number of random draws a property loop makes; 1 in CI, 20 in ``make test-all``."""
    return int(os.environ.get("EQUIDIAL_DRAWS", "1"))


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data; tests that need it skip where it is absent, and fail where CI promises it."""
    name = os.environ.get("EQUIDIAL_DATA")
    if name is None:
        assert "CI" not in os.environ, "CI sets EQUIDIAL_DATA"
        pytest.skip("EQUIDIAL_DATA does not name the data folder")
    folder = Path(name)
    assert folder.is_dir(), f"EQUIDIAL_DATA={name} is no folder"
    return folder
