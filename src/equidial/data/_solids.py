"""Clouds of points on ten kinds of solids, drawn from a seed; z is up."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from equidial.data._points import PointClouds, sample_surface, unit_ball
from equidial.errors import ArgumentError, explain

Mesh = tuple[torch.Tensor, torch.Tensor]
Draw = Callable[[float, float], float]
_SEGMENTS = 32

_SHAPES = ("box", "ellipsoid", "cylinder", "cone", "torus", "pyramid", "tetrahedron", "spring")
_POSES = ("cone upside down", "cylinder lying")
_MORE = ("frustum", "capsule")


def solids(
    train: int, test: int, points: int = 256, seed: int = 0, breaking: bool = True, noise: float = 0.02
) -> PointClouds:
    """Clouds on the surfaces of solids with random proportions, each standing in one way: z up, never turned.

    Ten kinds, equally many of each up to one. Eight differ by shape: box, ellipsoid, cylinder, cone, torus, pyramid,
    tetrahedron, spring. ``breaking``: the other two, a cone upside down and a cylinder that lies, differ from the cone
    and the cylinder only by how they stand, so that no function invariant to rotations tells them apart. Without it
    they are a frustum and a capsule. ``noise``: standard deviation of every coordinate, in radii of the unit ball.

    Raises ``ArgumentError`` for counts below 1 and negative noise. Cost: about a millisecond a cloud.
    """
    if min(train, test, points) < 1 or not 0 <= noise < math.inf:
        got = f"train={train}, test={test}, points={points}, noise={noise}"
        raise ArgumentError(explain("counts of at least 1 and noise >= 0", got, "mend them"))
    classes = (*_SHAPES, *(_POSES if breaking else _MORE))
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for place, count in enumerate((train, test)):
        generator = torch.Generator().manual_seed(2 * seed + place)
        labels = torch.arange(count) % len(classes)
        clouds = [_cloud(classes[k], points, noise, generator) for k in labels.tolist()]
        parts.append((torch.stack(clouds).float(), labels))
    return PointClouds(*parts[0], *parts[1], classes)


def _cloud(name: str, points: int, noise: float, generator: torch.Generator) -> torch.Tensor:
    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    vertices, triangles = _SURFACES[name](draw)
    x = unit_ball(sample_surface(vertices, triangles, points, generator))
    return unit_ball(x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype))


def _revolved(profile: list[tuple[float, float]]) -> Mesh:
    """The surface that a line of points ``(r, z)`` sweeps about the z axis."""
    r, z = torch.tensor(profile, dtype=torch.float64).unbind(1)
    angle = torch.arange(_SEGMENTS, dtype=torch.float64) * 2 * math.pi / _SEGMENTS
    x, y = torch.outer(r, angle.cos()), torch.outer(r, angle.sin())
    return torch.stack((x, y, z[:, None].expand_as(x)), -1).flatten(0, 1), _strips(len(profile), _SEGMENTS)


def _strips(rows: int, columns: int) -> torch.Tensor:
    """Triangles of a grid of points, row-major, whose columns close up."""
    i, j = torch.meshgrid(torch.arange(rows - 1), torch.arange(columns), indexing="ij")
    a, b = i * columns + j, i * columns + (j + 1) % columns
    c, d = a + columns, b + columns
    return torch.stack((torch.stack((a, b, c), -1), torch.stack((b, d, c), -1)), -2).flatten(0, -2)


def _arc(radius: float, low: float, high: float, across: float = 0.0, up: float = 0.0) -> list[tuple[float, float]]:
    """Points ``(r, z)`` of a circle between two angles, its centre ``across`` and ``up``."""
    steps = [low + (high - low) * k / _SEGMENTS for k in range(_SEGMENTS + 1)]
    return [(across + radius * math.cos(t), up + radius * math.sin(t)) for t in steps]


def _scaled(mesh: Mesh, *factors: float) -> Mesh:
    return mesh[0] * torch.tensor(factors, dtype=torch.float64), mesh[1]


def _box(draw: Draw) -> Mesh:
    square = [math.pi / 4 + k * math.pi / 2 for k in range(4)]
    return _scaled(_prism(square, 1.0), draw(0.4, 1), draw(0.4, 1), draw(0.4, 1))


def _prism(angles: list[float], top: float) -> Mesh:
    """From a polygon at z = 0 to the same, times ``top``, at z = 1; closed."""
    n, x = len(angles), [(0.0, 0.0, 0.0)]
    x += [(s * math.cos(t), s * math.sin(t), z) for s, z in ((1.0, 0.0), (top, 1.0)) for t in angles]
    x.append((0.0, 0.0, 1.0))
    walls = _strips(2, n) + 1
    ends = [(end, side + k, side + (k + 1) % n) for end, side in ((0, 1), (2 * n + 1, n + 1)) for k in range(n)]
    return torch.tensor(x, dtype=torch.float64), torch.cat((walls, torch.tensor(ends)))


def _pyramid(draw: Draw) -> Mesh:
    side = draw(0.5, 0.9)
    return _scaled(_prism([math.pi / 4 + k * math.pi / 2 for k in range(4)], 0.0), side, side, draw(0.8, 1.4))


def _tetrahedron(draw: Draw) -> Mesh:
    side = draw(0.6, 0.9)
    return _scaled(_prism([2 * k * math.pi / 3 for k in range(3)], 0.0), side, side, draw(0.8, 1.4))


def _ellipsoid(draw: Draw) -> Mesh:
    return _scaled(_revolved(_arc(1.0, -math.pi / 2, math.pi / 2)), draw(0.5, 1), draw(0.5, 1), draw(0.5, 1))


def _cylinder(draw: Draw) -> Mesh:
    r, h = draw(0.25, 0.5), draw(0.9, 1.6)
    return _revolved([(0, 0), (r, 0), (r, h), (0, h)])


def _capsule(draw: Draw) -> Mesh:
    r, h = draw(0.25, 0.5), draw(0.4, 1.0)
    return _revolved([*_arc(r, -math.pi / 2, 0), *_arc(r, 0, math.pi / 2, up=h)])


def _cone(draw: Draw) -> Mesh:
    r, h = draw(0.4, 0.7), draw(0.9, 1.6)
    return _revolved([(0, 0), (r, 0), (0, h)])


def _frustum(draw: Draw) -> Mesh:
    r, h = draw(0.4, 0.7), draw(0.9, 1.6)
    return _revolved([(0, 0), (r, 0), (r * draw(0.4, 0.6), h), (0, h)])


def _torus(draw: Draw) -> Mesh:
    return _revolved(_arc(draw(0.15, 0.4), 0, 2 * math.pi, across=1.0))


def _spring(draw: Draw) -> Mesh:
    """A tube about a right-handed helix; its cross-section lies in the plane of radius and axis."""
    turns, pitch, thick = draw(2, 4), draw(0.35, 0.6), draw(0.06, 0.12)
    t = torch.linspace(0, 2 * math.pi * turns, round(24 * turns), dtype=torch.float64)[:, None]
    section = torch.arange(8, dtype=torch.float64) * math.pi / 4
    r = 0.6 + thick * section.cos()
    z = pitch * t / (2 * math.pi) + thick * section.sin()
    x = torch.stack((r * t.cos(), r * t.sin(), z), -1).flatten(0, 1)
    return x, _strips(len(t), 8)


def _upside_down(draw: Draw) -> Mesh:
    return _scaled(_cone(draw), 1.0, -1.0, -1.0)  # half a turn about x


def _lying(draw: Draw) -> Mesh:
    x, triangles = _cylinder(draw)
    return x[:, [2, 0, 1]], triangles  # a third of a turn about the diagonal: z to x


_SURFACES: dict[str, Callable[[Draw], Mesh]] = {
    "box": _box,
    "ellipsoid": _ellipsoid,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "pyramid": _pyramid,
    "tetrahedron": _tetrahedron,
    "spring": _spring,
    "cone upside down": _upside_down,
    "cylinder lying": _lying,
    "frustum": _frustum,
    "capsule": _capsule,
}
