"""The networks behind the golden folders. Never change a case: the folders of a format are kept for ever.

Every number comes from a closed formula, rounded to a multiple of 1 / 1024, so that it is the same on every machine, in
every version of Python and torch: no generator, and no last bits of a sine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import equidial as ed


def waves(shape: tuple[int, ...], start: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """``round(1024 sin(start + 1 + i)) / 1024`` for the i-th entry, row-major."""
    numbers = [round(1024 * math.sin(start + 1 + i)) / 1024 for i in range(math.prod(shape))]
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape).to(dtype)


def fill(model: nn.Module) -> None:
    """Every tensor of the state dict by formula, the k-th from ``sin(7 k + 1)`` on; variances are 1 to 2."""
    with torch.no_grad():
        for k, (name, tensor) in enumerate(model.state_dict().items()):
            if tensor.is_floating_point():
                values = waves(tuple(tensor.shape), 7 * k)
                tensor.copy_(1 + values.abs() if name.endswith("running_var") else values / 2)


def touch(model: nn.Module, names: tuple[str, ...]) -> None:
    """What training would do: these tensors move by a formula."""
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for k, name in enumerate(names):
            tensor = state[name]
            tensor.add_(waves(tuple(tensor.shape), 100 + k).to(tensor.dtype) / 4)


class Cnn(nn.Module):
    """Convolutions with a window, in groups and without, and a batch norm."""

    def __init__(self, kernel: int = 3):
        super().__init__()
        self.first = nn.Conv2d(2, 4, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, 3]``."""
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.depthwise(x)).mean((2, 3)))


class Vit(nn.Module):
    """A patch embedding, a class token, a table of positions with an extra row, one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(2, 4, 3, stride=3)
        self.cls_token = nn.Parameter(torch.empty(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.empty(1, 26, 4))
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, 3]`` of images ``[n, 2, 15, 15]``."""
        tokens = self.patch_embed(x).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + torch.softmax(q @ k.mT / 2, dim=-1) @ v
        return self.head(tokens[:, 0])


class Mlp(nn.Module):
    """Linear layers with declared representations; the last bias has no invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * 2 + 1, 2 * 3 + 2)
        self.outer = nn.Linear(2 * 3 + 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``2*Vector + Trivial`` to ``Vector``."""
        return self.outer(torch.tanh(self.inner(x)))


class LinearPatches(nn.Module):
    """Patches cut by hand and embedded by a linear layer; a table of positions as ``[h, w, channels]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * 3 * 3, 4)
        self.places = nn.Parameter(torch.empty(3, 3, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, 3]`` of images ``[n, 2, 9, 9]``."""
        patches = x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).flatten(3)
        return self.head(torch.relu(self.embed(patches) + self.places).mean((1, 2)))


def stack() -> nn.Module:
    """Three convolutions."""
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))


RULES = (
    ed.ParameterRule(r"embed\.weight", "kernel", view=(-1, 2, 3, 3)),
    ed.ParameterRule(r"places", "table", view=(3, 3, 4)),
)
DECLARED = {
    "inner": ("2*Vector + Trivial", "3*Vector + 2*Trivial"),
    "outer": ("3*Vector + 2*Trivial", "Vector"),
}


@dataclass(frozen=True)
class Case:
    """One golden folder: the base, how it is softened, what moves afterwards, and the shape of the input."""

    build: Callable[[], nn.Module]
    config: dict[str, Any]
    shape: tuple[int, ...]
    moved: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    dials: tuple[tuple[str, dict[str, float]], ...] = ()
    learned: tuple[tuple[str, float], ...] = ()
    """Layers whose dial is trained, and the number that training brought it to."""

    def base(self) -> Any:
        """The base model, by formula, in evaluation mode."""
        model = self.build().to(self.dtype).eval()
        fill(model)
        return model

    def input(self) -> torch.Tensor:
        """The fixed input."""
        return waves(self.shape, 3, self.dtype)

    def softened(self) -> Any:
        """The model that the folder holds."""
        model = ed.soften(self.base(), ed.SoftEquivarianceConfig(**self.config))
        for name, dial in self.dials:
            ed.set_dial(model, target_modules=[name], **dial)
        touch(model, self.moved)
        for name, value in self.learned:
            ed.learn_dial(model, [name])
            with torch.no_grad():
                model.get_parameter(f"{name}.parametrizations.weight.0.learned_softness").fill_(value)
        return model


MOVED = ("first.parametrizations.weight.original", "norm.running_mean", "head.bias")
CASES = {
    "cnn-nearest-c4": Case(Cnn, {"group": "C4", "softness": 0.4}, (2, 2, 9, 9), MOVED),
    "cnn-hard-so2": Case(Cnn, {"group": "SO2", "softness": 0.5, "response": "hard"}, (2, 2, 9, 9)),
    "cnn-nearest-so2-large": Case(lambda: Cnn(81), {"group": "SO2", "softness": 0.3}, (1, 2, 9, 9)),
    "vit-taper-o2": Case(Vit, {"group": "O2", "softness": 0.5, "response": "taper"}, (2, 2, 15, 15), ("cls_token",)),
    "vit-exponential-c8": Case(Vit, {"group": "C8", "threshold": 0.7, "response": "exponential"}, (2, 2, 15, 15)),
    "vit-nearest-translations": Case(Vit, {"group": "R2", "softness": 0.5, "radius": 2.0}, (2, 2, 15, 15)),
    "mlp-nearest-so2": Case(
        Mlp,
        {"group": "SO2", "softness": 0.5, "softness_pattern": {"outer": 0.2}, "representations": DECLARED},
        (4, 5),
        ("inner.parametrizations.bias.original",),
        torch.float64,
        (("inner", {"threshold": 0.4}),),
    ),
    "patches-nearest-d4": Case(
        LinearPatches,
        {"group": "D4", "softness": 0.3, "targets": RULES, "image_size": 9},
        (2, 2, 9, 9),
        (),
        torch.float64,
    ),
    "stack-learned-c4": Case(
        stack,
        {"group": "C4", "softness": 0.4},
        (1, 2, 9, 9),
        tuple(f"{layer}.parametrizations.weight.original" for layer in "40"),
        learned=(("0", 0.28125), ("2", -0.03125), ("4", 1.03125)),  # inside, below 0, above 1
    ),
}
