"""The official code of paper A, imported from the folder that ``--reference`` names.

Nothing of it is part of this project: it is called where it lies. One of its modules imports
``torchvision.transforms.functional`` and uses nothing of it; where torchvision is absent an empty module stands in.
Its messages to standard output are swallowed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equidial.errors import ArgumentError, explain

CIRCLE = 360
"""The finite rotation group by which the official code stands for SO(2) here; its work does not depend on it."""


class Official:
    """Its public way to an equivariant filter (real Schur form of both generators), and the parts of that way."""

    def __init__(self, folder: Path):
        if not (folder / "softeq" / "equi_utils" / "filter_factory.py").is_file():
            raise ArgumentError(
                explain(
                    "--reference to name the folder of the official code (it holds softeq/)",
                    "a folder without softeq/equi_utils/filter_factory.py",
                    "clone github.com/ashiq24/soft-equivariance and name that folder",
                )
            )
        try:
            self.shimmed = getattr(importlib.import_module("torchvision"), "__file__", None) is None
        except ImportError:
            self.shimmed = True
            self._stand_in("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        self._folder = folder
        self._factory = importlib.import_module("softeq.equi_utils.filter_factory")
        self._projectors = importlib.import_module("softeq.equi_utils.equi_projectors")
        self._decompositions = importlib.import_module("softeq.utils.decompositions")
        self._actions = importlib.import_module("softeq.utils.group_utils")

    @staticmethod
    def _stand_in(*names: str) -> None:
        for name in names:
            sys.modules.setdefault(name, types.ModuleType(name))
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])

    def projector(self, n: int, rotations: int = CIRCLE) -> Any:
        """Its filter ``n x n -> n x n`` at softness 0, as its factory makes it: float32, bilinear rotation."""
        with contextlib.redirect_stdout(io.StringIO()):
            return self._factory.get_equivariant_filter("rotation", rotations, (1, n, n), (1, n, n), 0.0)

    def with_filtered_convolutions(self, model: nn.Module, softness: float) -> nn.Module:
        """``model`` with every convolution of more than one pixel in its wrapper, under C4, as its ResNet does it."""
        # its package imports einops for other layers; the file of this one needs torch alone
        layers = runpy.run_path(str(self._folder / "softeq" / "layers" / "fconv2d.py"))
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d) and child.kernel_size[0] > 1:
                    with contextlib.redirect_stdout(io.StringIO()):
                        window = (1, *child.kernel_size)
                        found = self._factory.get_invariant_filter("rotation", 4, window, softness, "schur")
                    setattr(parent, name, layers["FilteredConv2d"](child, found))
        return model

    def projector_of(self, a: torch.Tensor) -> Any:
        """Its Schur form and its projector at softness 0 for a generator that is given; float32."""
        with contextlib.redirect_stdout(io.StringIO()):
            form, basis = self._decompositions.schur_decomposition(a, return_original=True)
            return self._projectors.EquivariantProjectorviaSchur(basis, basis, form, form, softness=0.0)

    def generator(self, n: int) -> torch.Tensor:
        """Its generator: the forward difference of one step of C(360), divided by the angle, in float64."""
        return (self.rotation(n, 360 / CIRCLE) - torch.eye(n * n, dtype=torch.float64)) * (CIRCLE / (2 * math.pi))

    def rotation(self, n: int, degrees: float) -> torch.Tensor:
        """Its rotation matrix of ``n x n`` pixels, in float64."""
        return self._actions.create_unit_rotation_action_matrix(360.0 / degrees, (1, n, n)).to(torch.float64)


def run(folder: str, n: int) -> None:
    """Build and apply once, for the memory measurement."""
    Official(Path(folder)).projector(n)(torch.ones(n * n, n * n))
