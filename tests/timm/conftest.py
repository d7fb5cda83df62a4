"""These tests run in ``.venv-timm`` (``make test``); elsewhere each file says so in one skip."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# in their own environment a timm that cannot be imported is a failure, never a skip
ELSEWHERE = importlib.util.find_spec("timm") is None and Path(sys.prefix).name != ".venv-timm"


class NotHere(pytest.Module):
    """A file of tests that is not imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("timm is not installed here: these tests run in .venv-timm", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return NotHere.from_parent(parent, path=module_path) if ELSEWHERE else None
