"""Point clouds: ModelNet's folders of triangle meshes, sampled by area, in the unit ball."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from equidial.errors import ArgumentError, FileFormatError, explain

_WHERE = (
    "ModelNet10.zip or ModelNet40.zip of modelnet.cs.princeton.edu, unpacked: <class>/train/*.off, <class>/test/*.off"
)


@dataclass(frozen=True)
class PointClouds:
    """Clouds ``[n, points, 3]`` in the unit ball, centroid at 0, float32, and labels ``[n]``, for training and test."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]


def load_points(
    folder: str | Path, points: int = 1024, train: int | None = None, test: int | None = None, seed: int = 0
) -> PointClouds:
    """ModelNet, or any folder in its layout: ``<class>/train/*.off`` and ``<class>/test/*.off``.

    Classes are the folders, in alphabetical order; axes stand as in the files (ModelNet: z up). ``points`` are drawn
    from each mesh, uniformly by area, and brought into the unit ball. ``train``, ``test``: how many meshes to read,
    chosen at random; default all. Deterministic under ``seed``, which draws meshes and points.

    Raises ``ArgumentError`` for a folder that is not there or lacks a part, or counts below 1, ``FileFormatError`` for
    a mesh of another form (counts are checked). Cost: reading text, up to a second for the largest meshes.
    """
    for name, value in (("points", points), ("train", train), ("test", test)):
        wrong = isinstance(value, bool) or (value is not None and value < 1)
        if wrong:
            raise ArgumentError(explain(f"{name} >= 1", repr(value), "leave it out for the default"))
    root = Path(folder)
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir())) if root.is_dir() else ()
    if not classes:
        raise ArgumentError(explain("a folder of classes", str(root), f"get {_WHERE}"))
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for place, (part, count) in enumerate((("train", train), ("test", test))):
        files = [(f, label) for label, name in enumerate(classes) for f in _meshes(root / name / part)]
        draw = torch.Generator().manual_seed(2 * seed + place)
        kept = sorted(torch.randperm(len(files), generator=draw)[:count].tolist())
        clouds = []
        for k in kept:
            vertices, triangles = read_off(files[k][0])
            clouds.append(unit_ball(sample_surface(vertices, triangles, points, draw)).float())
        found.append((torch.stack(clouds), torch.tensor([files[k][1] for k in kept])))
    return PointClouds(*found[0], *found[1], classes)


def _meshes(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.off"))
    if not files:
        raise ArgumentError(explain(f"*.off in {folder.parent.name}/{folder.name}", "none", f"get {_WHERE}"))
    return files


def read_off(file: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices ``[n, 3]`` float64 and triangles ``[m, 3]`` of a mesh in the Object File Format.

    Polygons become fans of triangles. The counts may stand in the line of the keyword, as in some of ModelNet's files.
    Raises ``FileFormatError`` for another form, rows that are missing and vertices that are not there.
    """
    path = Path(file)
    lines = _lines(path)
    head = next(lines, "")
    if not head.startswith("OFF"):
        raise _broken(path, "a first line OFF", repr(head[:20]))
    try:
        vertices, faces = (int(word) for word in (head[3:].strip() or next(lines, "")).split()[:2])
        rows = list(lines)
        if len(rows) < vertices + faces or min(vertices, faces) < 1:
            raise _broken(path, f"{vertices} vertices and {faces} faces", f"{len(rows)} rows")
        x = torch.tensor([[float(word) for word in row.split()[:3]] for row in rows[:vertices]], dtype=torch.float64)
        polygons = (_polygon(row) for row in rows[vertices : vertices + faces])
        fans = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
        triangles = torch.tensor(fans, dtype=torch.int64).reshape(-1, 3)
    except ValueError as error:
        if isinstance(error, FileFormatError):
            raise
        raise _broken(path, "numbers", str(error)) from error
    if x.shape != (vertices, 3) or not torch.isfinite(x).all():
        raise _broken(path, "three finite coordinates a vertex", f"shape {tuple(x.shape)}")
    if not len(triangles) or int(triangles.min()) < 0 or int(triangles.max()) >= vertices:
        raise _broken(path, f"faces of three corners or more, out of {vertices} vertices", "others")
    return x, triangles


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise _broken(path, "text", "other bytes") from error
    return (line for raw in text.splitlines() if (line := raw.partition("#")[0].strip()))


def _polygon(row: str) -> Sequence[int]:
    count, *corners = row.split()
    if len(corners) < int(count):
        raise ValueError(f"{count} corners announced in {row!r}")
    return [int(corner) for corner in corners[: int(count)]]


def _broken(path: Path, expected: str, got: str) -> FileFormatError:
    return FileFormatError(explain(f"{expected} in {path.name}", got, "write it as OFF: counts, vertices, faces"))


def sample_surface(
    vertices: torch.Tensor, triangles: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    """``[count, 3]`` independent points, uniform by area over the triangles ``[m, 3]`` of vertices ``[n, 3]``.

    Raises ``ArgumentError`` for a mesh without area.
    """
    a, b, c = vertices[triangles].unbind(1)
    ends = torch.linalg.cross(b - a, c - a).norm(dim=1).cumsum(0)
    if not (len(ends) and float(ends[-1]) > 0):
        raise ArgumentError(explain("a mesh with an area", f"{len(triangles)} triangles without", "leave it out"))
    u, v, w = torch.rand(3, count, dtype=torch.float64, generator=generator)
    place = torch.searchsorted(ends, w * ends[-1], right=True).clamp_max(len(ends) - 1)
    side, along = u.sqrt()[:, None], v[:, None]  # the density of sqrt(u) grows as the width of the triangle
    return (1 - side) * a[place] + side * (1 - along) * b[place] + side * along * c[place]


def unit_ball(x: torch.Tensor) -> torch.Tensor:
    """Clouds ``[..., n, 3]``, each shifted to centroid 0 and divided by its largest norm."""
    x = x - x.mean(-2, keepdim=True)
    return x / x.norm(dim=-1, keepdim=True).amax(-2, keepdim=True).clamp_min(
        1e-300 if x.dtype == torch.float64 else 1e-37
    )
