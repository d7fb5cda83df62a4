"""Networks that are exactly C4- and D4-symmetric, but for one thing that is planted in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import equidial as ed

SIZE = 17


class Plain(nn.Module):
    """Symmetric convolutions around something planted; pooled to five numbers."""

    def __init__(self, plant: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.before = before or nn.Identity()
        self.plant = plant
        self.after = after or nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Numbers ``[n, 5]``."""
        x = functional.gelu(self.before(self.first(x)))
        x = functional.gelu(self.after(self.plant(x)))
        return self.head(x.mean((2, 3)))


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the function says."""
        return self.run(x)


class Table(nn.Module):
    """Adds a table of places; ``name`` as the user called it."""

    def __init__(self, name: str = "places", buffer: bool = False):
        super().__init__()
        self.name = name
        value = torch.randn(1, 6, SIZE, SIZE)
        if buffer:
            self.register_buffer(name, value)
        else:
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x + table``."""
        return x + getattr(self, self.name)


class Tokens(nn.Module):
    """A small transformer over a grid of places: attention with a class token, a table or not."""

    def __init__(self, table: bool = True, rotary: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 8) * table)
        self.qkv, self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)
        self.rope = RotaryTable() if rotary else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Numbers ``[n, 5]``."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        q, k, v = self.qkv(x).reshape(len(x), 17, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.project((weights @ v).transpose(1, 2).flatten(2))
        return self.head(x[:, 0])


class RotaryTable(nn.Module):
    """Turns pairs of features by angles that grow with the row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows are those of a 4x4 grid after one class token."""
        rows = torch.cat([torch.zeros(1), torch.arange(16).div(4, rounding_mode="floor") + 1.0])[:, None]
        cos, sin = rows.cos(), rows.sin()
        turned = torch.cat([-x[..., 2:], x[..., :2]], dim=-1)
        return x * cos + turned * sin


class Windows(nn.Module):
    """Attention within windows of a grid that is first shifted cyclically, as Swin does (without the mask)."""

    def __init__(self, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to the same."""
        b, c, h, w = x.shape
        s = self.window
        x = torch.roll(x.permute(0, 2, 3, 1), (-self.shift, -self.shift), (1, 2))
        x = x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = functional.scaled_dot_product_attention(q, k, v)
        x = x.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)).permute(0, 3, 1, 2)


class Flat(nn.Module):
    """A head that reads the flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * SIZE * SIZE, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Numbers ``[n, 5]``."""
        return self.head(functional.gelu(self.first(x)).flatten(1))


def symmetric(model: Any, group: str = "D4", **more: Any) -> Any:
    """The model in evaluation mode, every target that a rule finds exactly symmetric."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return ed.fold(ed.soften(model.eval(), ed.SoftEquivarianceConfig(group=group, softness=0.0, **more)))
