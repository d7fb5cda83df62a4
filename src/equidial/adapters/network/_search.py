"""The largest equivariance error that can be found: elements applied, then elements and inputs improved locally."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from equidial.adapters.network._actions import Action
from equidial.groups import Group, GroupElement

_SAMPLES = 24
_STARTS = 8
_ASCENT = 30
_IMPROVED = 3  # inputs whose worst element is improved


class ErrorSearch:
    """``||F(rho(g) x) - rho(g) F(x)||`` per input, and where it is large; lower bounds of what is certified."""

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        on_input: Action,
        on_output: Action,
        group: Group,
        radius: float,
        elements: Sequence[GroupElement] | None,
        seed: int = 0,
    ):
        self.function, self.on_input, self.on_output = function, on_input, on_output
        self.group, self.radius = group, radius
        self.generator = torch.Generator().manual_seed(seed)
        self.elements = list(elements) if elements is not None else self._sampled()

    def errors(self, x: torch.Tensor, g: GroupElement) -> torch.Tensor:
        """``[B]``, differentiable in ``x``."""
        moved = self.function(self.on_input.move(g, x))
        return (moved - self.on_output.move(g, self.function(x))).flatten(1).norm(dim=1)

    def of_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """The largest errors at these inputs, ``[B]``; for Lie groups the worst of them are improved."""
        with torch.no_grad():
            found = torch.stack([self.errors(x, g) for g in self.elements])
            best, at = found.max(0)
            if self.group.lie_dim:
                for i in best.argsort(descending=True)[:_IMPROVED].tolist():
                    _, value = self._better_element(x[i : i + 1], self.elements[int(at[i])])
                    best[i] = max(float(best[i]), value)
        return best

    def in_ball(self, shape: Sequence[int], ball: float) -> tuple[float, torch.Tensor]:
        """The largest error found for ``||x|| <= ball``, and that input; random starts, then gradient ascent."""
        x = torch.randn(_STARTS, *shape, generator=self.generator, dtype=torch.float64)
        x = _on_sphere(x, ball)
        best, at = 0.0, x[:1]
        with torch.no_grad():
            found = torch.stack([self.errors(x, g) for g in self.elements]).amax(1)
        for k in found.argsort(descending=True)[:3].tolist():
            g, points = self.elements[k], x
            for round_ in range(2):
                points, values = self._ascend(points, g, ball)
                i = int(values.argmax())
                if float(values[i]) > best:
                    best, at = float(values[i]), points[i : i + 1]
                if not self.group.lie_dim or round_:
                    break
                with torch.no_grad():
                    g, _ = self._better_element(points[i : i + 1], g)
        if self.group.lie_dim:
            with torch.no_grad():
                best = max(best, float(self.of_inputs(at).max()))
        return best, at

    def _ascend(self, x: torch.Tensor, g: GroupElement, ball: float) -> tuple[torch.Tensor, torch.Tensor]:
        points, step = x.clone(), torch.full((len(x),), 0.5 * ball, dtype=x.dtype)
        with torch.no_grad():
            values = self.errors(points, g)
        for _ in range(_ASCENT):
            trial = points.detach().requires_grad_(True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.errors(trial, g).sum(), trial)
            size = slope.flatten(1).norm(dim=1).clamp_min(1e-300)
            moved = points + slope * _like(step / size, slope)
            moved = moved * _like((ball / moved.flatten(1).norm(dim=1).clamp_min(1e-300)).clamp_max(1.0), moved)
            with torch.no_grad():
                found = self.errors(moved, g)
            better = found > values
            points = torch.where(_like(better, points), moved, points)
            values = torch.where(better, found, values)
            step = torch.where(better, step, step / 2)
        return points, values

    def _better_element(self, x: torch.Tensor, g: GroupElement) -> tuple[GroupElement, float]:
        value, step = float(self.errors(x, g).max()), min(0.3, self.radius / 2)
        moves = torch.eye(self.group.lie_dim, dtype=torch.float64)
        while step > 0.04:
            for move in (*moves, *-moves):
                trial = self.group.exp(step * move) @ g
                if self.radius < self.group.radius and trial.distance() > self.radius:
                    continue
                found = float(self.errors(x, trial).max())
                if found > value:
                    g, value = trial, found
                    break
            else:
                step /= 2
        return g, value

    def _sampled(self) -> list[GroupElement]:
        group = self.group
        chosen = [g for g in group.sample(_SAMPLES, self.generator) if g.distance() <= self.radius]
        if group.lie_dim:
            directions = torch.randn(_SAMPLES // 2, group.lie_dim, generator=self.generator, dtype=torch.float64)
            chosen += [group.exp(self.radius * d / d.norm()) for d in directions]
        chosen += [s.element for s in group.discrete_generators() if s.length <= self.radius]
        return chosen or [group.identity()]


def _on_sphere(x: torch.Tensor, ball: float) -> torch.Tensor:
    return x * _like(ball / x.flatten(1).norm(dim=1), x)


def _like(per_input: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return per_input.reshape(-1, *[1] * (x.ndim - 1))
