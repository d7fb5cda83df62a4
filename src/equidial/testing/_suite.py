"""What the suites share: seeds, tolerances, comparisons, and a runner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from equidial.groups import Group, GroupElement, Product


class Conformance:
    """Base of the suites. A subclass says what is tested in ``make`` and inherits every ``test_*`` method.

    ``tolerance``: of float64 comparisons, relative to the size of what is compared (at least 1). ``samples``: random
    elements, weights or directions per test. ``seed``: of all of them; tests are deterministic.
    """

    tolerance: float = 1e-10
    samples: int = 6
    seed: int = 0

    def generator(self, offset: int = 0) -> torch.Generator:
        """A seeded source of random numbers; another ``offset``, another stream."""
        return torch.Generator().manual_seed(self.seed + offset)

    def normal(self, *shape: int, offset: int = 0) -> torch.Tensor:
        """Independent standard normal numbers, float64."""
        return torch.randn(*shape, generator=self.generator(offset), dtype=torch.float64)

    def assert_close(
        self, got: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float | None = None
    ) -> None:
        """Fail with ``what`` unless both have one shape and agree to the tolerance."""
        assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        if got.numel() == 0:
            return
        limit = (self.tolerance if tolerance is None else tolerance) * max(1.0, float(expected.abs().max()))
        error = float((got - expected).abs().max())
        assert error <= limit, f"{what}: off by {error:.3e}, tolerance {limit:.1e}"

    def directions(self, group: Group, offset: int = 0) -> list[torch.Tensor]:
        """Lie coordinates of norm 1: every axis, then ``samples`` random ones; empty for a discrete group."""
        n = group.lie_dim
        if n == 0:
            return []
        drawn = self.normal(self.samples, n, offset=offset)
        return [*torch.eye(n, dtype=torch.float64), *(drawn / drawn.norm(dim=1, keepdim=True))]


def failures(suite: type[Conformance] | Conformance) -> dict[str, str]:
    """Run every test of a suite and return the messages of those that fail, by name; empty where all hold."""
    instance = suite() if isinstance(suite, type) else suite
    found: dict[str, str] = {}
    for name in sorted(dir(instance)):
        if name.startswith("test_"):
            try:
                getattr(instance, name)()
            except Exception as error:  # a suite reports, whatever the class under test raises
                found[name] = f"{type(error).__name__}: {error}"
    return found


def refuses(call: Callable[[], Any], what: str) -> None:
    """Fail unless ``call`` raises a ``ValueError`` (every error of a wrong argument derives from it)."""
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} was accepted; expected a ValueError that says what to do")


def difference(group: Group, a: Any, b: Any) -> float:
    """How far two coordinates are apart: by natural matrices where there are any, else number by number."""
    if isinstance(group, Product):
        return max(difference(f, x, y) for f, x, y in zip(group.factors, a, b, strict=True))
    if group.natural_dim is not None:
        first, second = group.natural_matrix(a), group.natural_matrix(b)
        return float((first - second).abs().max()) / max(1.0, float(first.abs().max()))
    first, second = list(_numbers(a)), list(_numbers(b))
    if len(first) != len(second):
        return math.inf
    return max((abs(x - y) / max(1.0, abs(x)) for x, y in zip(first, second, strict=True)), default=0.0)


def same(a: GroupElement, b: GroupElement, tolerance: float) -> bool:
    """Whether two elements of one group agree to the tolerance."""
    return a.group == b.group and difference(a.group, a.value, b.value) <= tolerance


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    else:
        yield float(value)
