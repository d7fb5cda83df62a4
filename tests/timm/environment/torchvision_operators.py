"""Lets torchvision be imported beside a torch that its compiled operators were not built for.

torchvision from a package index is compiled for the CUDA build of torch. Beside the CPU build its library does not
load, and ``import torchvision`` stops at the first operator that it describes and nobody defined. timm needs none of
them: it is enough that the names exist. ``make test`` puts this file into ``.venv-timm``, where it runs when Python
starts, for subprocesses as well; it does nothing until torchvision is imported, and nothing where the library loads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# the operators that ``import torchvision`` describes whether or not its library was loaded
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class OperatorNames(MetaPathFinder):
    """Defines the names just before torchvision is imported, and finds no module itself."""

    def __init__(self) -> None:
        self.library: Any = None  # the definitions live as long as this object

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self.library is None:
            found = PathFinder.find_spec(name)
            folders = (found.submodule_search_locations if found else None) or []
            if not any(_loads(file) for folder in folders for file in Path(folder).glob("_C*.*")):
                import torch

                self.library = torch.library.Library("torchvision", "FRAGMENT")
                for schema in SCHEMAS:
                    self.library.define(schema)
        return None


def _loads(file: Path) -> bool:
    import torch

    try:
        torch.ops.load_library(file)
    except OSError:
        return False
    return True


sys.meta_path.insert(0, OperatorNames())
