"""An autoregressive transformer for pedestrians whose every layer can carry a rotation of the plane."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.errors import ArgumentError, explain
from equidial.groups import Group, as_group
from equidial.nn import NormNonlinearity
from equidial.representations import Representation, Trivial, Vector


@dataclass(frozen=True)
class TrajectorySizes:
    """Of :class:`TrajectoryTransformer`; the same for every method that is compared.

    ``heads`` of ``vectors`` vectors and ``scalars`` numbers each make the width; ``expansion``: of the hidden layer.
    """

    steps: int = 20
    layers: int = 2
    heads: int = 4
    vectors: int = 6
    scalars: int = 4
    expansion: int = 2


class TrajectoryTransformer(nn.Module):
    """Positions up to now to a normal distribution of the next step, one token per pedestrian and time.

    A token reads the last step and the place relative to the others' centre when observation ended, so that nothing
    depends on the origin. Each layer attends to the pedestrian's own past (causal), then to those who walk at the same
    time (padded places masked), then mixes channels. Output at time ``t``: mean step ``x_(t+1) - x_t`` and the
    logarithm of its standard deviation, alike in both directions.

    Shapes: positions ``[B, P, T, 2]``, ``valid [B, P]`` to mean ``[B, P, T, 2]`` and log-deviation ``[B, P, T]``.
    Features are ``heads * (vectors * Vector + scalars * Trivial)``; all norms and non-linearities commute with
    rotations, so that :meth:`representations` make every linear layer tunable, and softness 0 an exactly equivariant
    network. Time enters through numbers that rotations leave alone: projecting does not erase it.
    """

    def __init__(self, sizes: TrajectorySizes, group: str | Group = "SO2"):
        super().__init__()
        self.sizes, self.group = sizes, as_group(group)
        self.space: Representation = sizes.heads * (
            sizes.vectors * Vector(self.group) + sizes.scalars * Trivial(self.group)
        )
        width = self.space.dim
        self.embed, self.time = nn.Linear(4, width), nn.Linear(sizes.steps, width, bias=False)
        self.layers = nn.ModuleList(_Layer(self.space, sizes.heads, sizes.expansion) for _ in range(sizes.layers))
        self.norm, self.head = nn.RMSNorm(width, elementwise_affine=False), nn.Linear(width, 3)

    def representations(self) -> dict[str, tuple[Representation, Representation]]:
        """Input and output space of every linear layer, for ``SoftEquivarianceConfig(representations=...)``."""
        vector, trivial, space = Vector(self.group), Trivial(self.group), self.space
        hidden = self.sizes.expansion * space
        return {
            "embed": (2 * vector, space),
            "time": (self.sizes.steps * trivial, space),
            r".*\.(q|k|v|out)": (space, space),
            r".*\.mix1": (space, hidden),
            r".*\.mix2": (hidden, space),
            "head": (space, vector + trivial),
        }

    def config(self, softness: float) -> ed.SoftEquivarianceConfig:
        """The whole network at one softness."""
        return ed.SoftEquivarianceConfig(group=self.group, softness=softness, representations=self.representations())

    def forward(self, positions: torch.Tensor, valid: torch.Tensor, observed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-deviation of the next step at every time; ``observed``: steps that fix the centre."""
        steps = positions.shape[2]
        if positions.ndim != 4 or positions.shape[-1] != 2 or steps > self.sizes.steps or observed > steps:
            raise ArgumentError(
                explain(
                    f"positions [B, P, T, 2] with observed <= T <= {self.sizes.steps}",
                    f"{tuple(positions.shape)}, observed {observed}",
                    "cut the tracks, or make a longer model",
                )
            )
        weight = valid[..., None].to(positions.dtype)
        there = positions[:, :, observed - 1]
        centre = (there * weight).sum(1) / weight.sum(1).clamp_min(1)
        step = torch.zeros_like(positions)
        step[:, :, 1:] = positions[:, :, 1:] - positions[:, :, :-1]
        x = self.embed(torch.cat((step, positions - centre[:, None, None]), dim=-1))
        x = x + self.time(torch.eye(self.sizes.steps, dtype=x.dtype, device=x.device)[:steps])
        for layer in self.layers:
            x = layer(x, valid)
        out = self.head(self.norm(x))
        return out[..., :2], out[..., 2]

    def rollout(
        self, past: torch.Tensor, valid: torch.Tensor, steps: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """``[B, P, steps, 2]``: step by step from the mean, or drawn where a generator is given."""
        positions, observed = past, past.shape[2]
        for _ in range(steps):
            mean, log_deviation = self(positions, valid, observed)
            step = mean[:, :, -1]
            if generator is not None:
                noise = torch.randn(step.shape, generator=generator, dtype=step.dtype)
                step = step + log_deviation[:, :, -1, None].exp() * noise.to(step.device)
            positions = torch.cat((positions, (positions[:, :, -1] + step)[:, :, None]), dim=2)
        return positions[:, :, observed:]


class _Layer(nn.Module):
    def __init__(self, space: Representation, heads: int, expansion: int):
        super().__init__()
        width, hidden = space.dim, expansion * space
        self.past, self.others = _Attention(width, heads), _Attention(width, heads)
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(width, elementwise_affine=False) for _ in range(3))
        self.mix1, self.mix2 = nn.Linear(width, hidden.dim), nn.Linear(hidden.dim, width)
        self.act = NormNonlinearity(hidden, "relu", bias=True)

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """``[B, P, T, width]`` to the same."""
        x = x + self.past(self.norm1(x), None)
        # whoever is not there sees only himself: no row of the softmax is empty
        alone = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        seen = (valid[:, None, :] & valid[:, :, None]) | alone
        x = x + self.others(self.norm2(x).transpose(1, 2), seen[:, None, None]).transpose(1, 2)
        return x + self.mix2(self.act(self.mix1(self.norm3(x))))


class _Attention(nn.Module):
    """Over the axis before the last; causal without a mask."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for f in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(-2, -3).flatten(-2))


def step_loss(
    model: TrajectoryTransformer, positions: torch.Tensor, valid: torch.Tensor, observed: int
) -> torch.Tensor:
    """Negative log-likelihood of the steps to come, per step and pedestrian, in nats: targets are shifted by one.

    Position ``t`` predicts the step to ``t + 1`` from what happened until ``t``; padded places do not count.
    """
    mean, log_deviation = model(positions[:, :, :-1], valid, observed)
    target = positions[:, :, 1:] - positions[:, :, :-1]
    mean, log_deviation, target = (z[:, :, observed - 1 :] for z in (mean, log_deviation, target))
    log_deviation = log_deviation.clamp(-7, 4)
    square = (target - mean).square().sum(-1) * torch.exp(-2 * log_deviation)
    nats = 0.5 * square + 2 * log_deviation + math.log(2 * math.pi)
    weight = valid[..., None].to(nats.dtype).expand_as(nats)
    return (nats * weight).sum() / weight.sum().clamp_min(1)
