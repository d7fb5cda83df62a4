"""An autoregressive transformer for pedestrians whose every layer can carry a rotation of the plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.errors import ArgumentError, explain
from equidial.groups import Group, as_group
from equidial.nn import NormNonlinearity
from equidial.representations import Representation, Trivial, Vector

_UNITS = 0.5, 0.1, 10.0
"""Of steps, of their changes and of places, in metres: usual ones have about length 1, so that none drowns another."""


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
    """Positions up to now to a distribution of the next step, one token per pedestrian and time.

    A token reads the last step, its change, and the place relative to the others' centre when observation ended, so
    that nothing depends on the origin. Each layer attends to the pedestrian's own past (causal), then to those who walk
    at the same time, then mixes channels. Output at time ``t``: the centre of the step ``x_(t+1) - x_t``, as a change
    of the step before, and the logarithm of its scale ``s``, of a Laplace distribution of the plane:
    ``exp(-|d| / s) / (2 pi s^2)`` at a distance ``d``, whose likelihood asks for what ADE measures. The change starts
    small: an untrained network walks on at nearly constant velocity.

    Shapes: positions ``[N, T, 2]``, ``window [N]`` ascending, the same number for those who walk together, to centre
    ``[N, T, 2]`` and log-scale ``[N, T]``. Features are ``heads * (vectors * Vector + scalars * Trivial)``; all
    norms and non-linearities commute with rotations, so that :meth:`representations` make every linear layer tunable,
    and softness 0 an exactly equivariant network. Time enters through numbers that rotations leave alone: projecting
    does not erase it. Raises ``ArgumentError`` for tracks that do not fit.
    """

    def __init__(self, sizes: TrajectorySizes, group: str | Group = "SO2"):
        super().__init__()
        self.sizes, self.group = sizes, as_group(group)
        self.space: Representation = sizes.heads * (
            sizes.vectors * Vector(self.group) + sizes.scalars * Trivial(self.group)
        )
        width = self.space.dim
        self.embed, self.time = nn.Linear(6, width), nn.Linear(sizes.steps, width, bias=False)
        self.layers = nn.ModuleList(_Layer(self.space, sizes.heads, sizes.expansion) for _ in range(sizes.layers))
        self.norm, self.head = nn.RMSNorm(width, elementwise_affine=False), nn.Linear(width, 3)
        # small, but not 0: a tensor without a defect would have no dial
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(0.1)
            self.head.bias[2] = -3.0  # 10 cm a step in the mean

    def representations(self) -> dict[str, tuple[Representation, Representation]]:
        """Input and output space of every linear layer, for ``SoftEquivarianceConfig(representations=...)``."""
        vector, trivial, space = Vector(self.group), Trivial(self.group), self.space
        hidden = self.sizes.expansion * space
        return {
            "embed": (3 * vector, space),
            "time": (self.sizes.steps * trivial, space),
            r".*\.(q|k|v|out)": (space, space),
            r".*\.mix1": (space, hidden),
            r".*\.mix2": (hidden, space),
            "head": (space, vector + trivial),
        }

    def config(self, softness: float) -> ed.SoftEquivarianceConfig:
        """The whole network at one softness."""
        return ed.SoftEquivarianceConfig(group=self.group, softness=softness, representations=self.representations())

    def forward(
        self, positions: torch.Tensor, window: torch.Tensor, observed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre and log-scale of the next step at every time; ``observed``: steps that fix the centre."""
        company = self._company(positions, window, observed)
        return self._steps(positions, company.centre(positions[:, observed - 1]), company, 0, None)

    def together(self, positions: torch.Tensor, window: torch.Tensor, observed: int) -> torch.Tensor:
        """Rows with equal labels look at one another: they stay on one rank of a launch."""
        return window

    def rollout(
        self, past: torch.Tensor, window: torch.Tensor, steps: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """``[N, steps, 2]``: step by step at the centre, or drawn where a generator is given.

        Keys and values of the past are kept, so that every step costs one token per pedestrian.
        """
        observed = past.shape[1]
        company = self._company(past, window, observed)
        centre = company.centre(past[:, -1])
        kept: list[_Kept] = [{} for _ in self.layers]
        walked, first = past, 0
        for _ in range(steps):
            found, log_scale = self._steps(walked[:, max(first - 2, 0) :], centre, company, first, kept)
            step = found[:, -1]
            if generator is not None:
                step = step + log_scale[:, -1, None].exp() * _laplace(step, generator)
            first = walked.shape[1]
            walked = torch.cat((walked, (walked[:, -1] + step)[:, None]), dim=1)
        return walked[:, observed:]

    def _company(self, positions: torch.Tensor, window: torch.Tensor, observed: int) -> _Company:
        steps = positions.shape[1] if positions.ndim == 3 else 0
        fits = positions.ndim == 3 and positions.shape[-1] == 2 and 0 < observed <= steps <= self.sizes.steps
        if not fits or window.shape != positions.shape[:1] or bool((window.diff() < 0).any()):
            raise ArgumentError(
                explain(
                    f"positions [N, T, 2] with observed <= T <= {self.sizes.steps} and window [N], ascending",
                    f"{tuple(positions.shape)}, observed {observed}, window {tuple(window.shape)}",
                    "cut the tracks, sort them by window, or make a longer model",
                )
            )
        return _Company(window)

    def _steps(
        self,
        positions: torch.Tensor,
        centre: torch.Tensor,
        company: _Company,
        first: int,
        kept: list[_Kept] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next step at times ``first`` and later; ``positions`` begin two steps before, or at 0."""
        step, change = torch.zeros_like(positions), torch.zeros_like(positions)
        step[:, 1:] = positions[:, 1:] - positions[:, :-1]
        change[:, 2:] = step[:, 2:] - step[:, 1:-1]
        if first:
            positions, step, change = (z[:, 2:] for z in (positions, step, change))
        read = (step, change, positions - centre[:, None])
        x = self.embed(torch.cat([z / unit for z, unit in zip(read, _UNITS, strict=True)], dim=-1))
        x = x + self.time(torch.eye(self.sizes.steps, dtype=x.dtype, device=x.device)[first : first + x.shape[1]])
        for i, layer in enumerate(self.layers):
            x = layer(x, company, None if kept is None else kept[i])
        out = self.head(self.norm(x))
        return step + out[..., :2], out[..., 2]


_Kept = dict[str, torch.Tensor]
"""Keys and values of one layer's attention to the past."""


class _Company:
    """Who walks with whom: rows of pedestrians, laid out as ``[windows, places]`` where they look at one another.

    Windows of like size are laid out together, because one crowd would pad all others to its own size.
    """

    def __init__(self, window: torch.Tensor):
        _, self.window, self.count = window.unique_consecutive(return_inverse=True, return_counts=True)
        first = self.count.cumsum(0) - self.count
        self.valid: list[torch.Tensor] = []  # of each group, whether there is one, [windows, places]
        rows, own = [], []
        size = torch.ceil(torch.log2(self.count.double()))
        for one in size.unique():
            chosen = size == one
            place = torch.arange(int(self.count[chosen].max()), device=window.device)
            valid = place < self.count[chosen, None]
            found = first[chosen, None] + torch.where(valid, place, 0)
            self.valid.append(valid)
            rows.append(found.flatten())
            own.append(found[valid])
        self.rows, self.order = torch.cat(rows), torch.cat(own).argsort()

    def meet(self, attend: _Attend, *x: torch.Tensor) -> torch.Tensor:
        """Windows of like size ``attend``: ``[windows, places, ...]`` of every ``x [N, ...]``; in the order of ``x``.

        Empty places hold someone's values and are told by the mask that comes first.
        """
        sizes = [valid.numel() for valid in self.valid]
        spread = [z.index_select(0, self.rows).split(sizes) for z in x]
        found = [
            attend(valid, *(z.unflatten(0, valid.shape) for z in parts))[valid]
            for valid, *parts in zip(self.valid, *spread, strict=True)
        ]
        return torch.cat(found).index_select(0, self.order)

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over those who walk together, ``[N, 2]``."""
        total = x.new_zeros(len(self.count), x.shape[1]).index_add(0, self.window, x)
        return (total / self.count[:, None].to(x.dtype))[self.window]


_Attend = Callable[..., torch.Tensor]


class _Layer(nn.Module):
    def __init__(self, space: Representation, heads: int, expansion: int):
        super().__init__()
        width, hidden = space.dim, expansion * space
        self.past, self.others = _Attention(width, heads), _Attention(width, heads)
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(width, elementwise_affine=False) for _ in range(3))
        self.mix1, self.mix2 = nn.Linear(width, hidden.dim), nn.Linear(hidden.dim, width)
        self.act = NormNonlinearity(hidden, "relu", bias=True)

    def forward(self, x: torch.Tensor, company: _Company, kept: _Kept | None) -> torch.Tensor:
        """``[N, T, width]`` to the same."""
        x = x + self.past.to_past(self.norm1(x), kept)
        x = x + self.others.to_others(self.norm2(x), company)
        return x + self.mix2(self.act(self.mix1(self.norm3(x))))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def _projected(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Queries, keys and values ``[..., heads, depth]``."""
        return (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))

    def to_past(self, x: torch.Tensor, kept: _Kept | None) -> torch.Tensor:
        """Over time, causal; with what is kept ``x`` goes on where it ended."""
        q, k, v = (z.transpose(1, 2) for z in self._projected(x))
        fresh = not kept
        if kept is not None:
            if kept:
                k, v = torch.cat((kept["k"], k), dim=2), torch.cat((kept["v"], v), dim=2)
            kept["k"], kept["v"] = k, v
        # one new token may see all that is kept
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=fresh)
        return self.out(y.transpose(1, 2).flatten(-2))

    def to_others(self, x: torch.Tensor, company: _Company) -> torch.Tensor:
        """Over those who walk together, time by time."""

        def attend(valid: torch.Tensor, *found: torch.Tensor) -> torch.Tensor:
            # [windows, places, T, heads, depth] to [windows, T, heads, places, depth]
            q, k, v = (z.permute(0, 2, 3, 1, 4) for z in found)
            mask = valid[:, None, None, None]
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).permute(0, 3, 1, 2, 4)

        return self.out(company.meet(attend, *self._projected(x)).flatten(-2))


def step_loss(
    model: TrajectoryTransformer, positions: torch.Tensor, window: torch.Tensor, observed: int
) -> torch.Tensor:
    """Negative log-likelihood of the steps to come, per step and pedestrian, in nats: targets are shifted by one.

    Position ``t`` predicts the step to ``t + 1`` from what happened until ``t``.
    """
    centre, log_scale = model(positions[:, :-1], window, observed)
    target = positions[:, 1:] - positions[:, :-1]
    centre, log_scale, target = (z[:, observed - 1 :] for z in (centre, log_scale, target))
    log_scale = log_scale.clamp(-7, 4)
    distance = (target - centre).square().sum(-1).clamp_min(1e-12).sqrt()
    return (distance * torch.exp(-log_scale) + 2 * log_scale + math.log(2 * math.pi)).mean()


def _laplace(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draws ``[N, 2]`` of scale 1: a distance that is the sum of two exponential ones, in any direction."""
    u = torch.rand(3, len(like), generator=generator, dtype=like.dtype).to(like.device)
    distance = -torch.log1p(-u[0]) - torch.log1p(-u[1])
    return distance[:, None] * torch.stack((torch.cos(2 * math.pi * u[2]), torch.sin(2 * math.pi * u[2])), dim=-1)
