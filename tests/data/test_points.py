"""Point clouds: a small folder in ModelNet's layout, samples against areas, solids against their symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from equidial.data import load_points, read_off, sample_surface, solids, unit_ball
from equidial.data._solids import _SURFACES
from equidial.errors import ArgumentError, EquidialError, FileFormatError

SQUARE = "OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"
TRIANGLE = "OFF3 1 3\n# a comment\n\n0 0 1  # a vertex\n2 0 1\n0 4 3.5e0\n3 0 1 2\n"
QUAD = "OFF\n5 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 9\n4 0 1 2 3 255 0 0\n3 0 1 4\n"


def modelnet(root: Path) -> Path:
    meshes = {"chair": SQUARE, "desk": TRIANGLE, "lamp": QUAD}
    for name, text in meshes.items():
        for part, count in (("train", 3), ("test", 2)):
            folder = root / name / part
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{name}_{k:04d}.off").write_text(text)
    (root / "README.txt").write_text("about")
    return root


def test_a_folder_in_the_layout_of_modelnet(tmp_path: Path) -> None:
    found = load_points(modelnet(tmp_path), points=64)
    assert found.classes == ("chair", "desk", "lamp")
    assert found.x.shape == (9, 64, 3)
    assert found.x_test.shape == (6, 64, 3)
    assert found.y.bincount().tolist() == [3, 3, 3]
    assert found.y_test.bincount().tolist() == [2, 2, 2]
    assert found.x.mean(1).abs().max() < 1e-6
    assert torch.allclose(found.x.norm(dim=-1).amax(1), torch.ones(9))
    assert found.x[found.y == 0][..., 2].abs().max() == 0  # the square lies in a plane
    again = load_points(tmp_path, points=64)
    assert torch.equal(found.x, again.x)
    assert not torch.equal(found.x, load_points(tmp_path, points=64, seed=1).x)
    assert not torch.equal(found.x[0], found.x[1])
    few = load_points(tmp_path, points=8, train=4, test=1)
    assert (len(few.x), len(few.y), len(few.x_test)) == (4, 4, 1)


def test_meshes_are_read(tmp_path: Path) -> None:
    for name, text, vertices, triangles in (
        ("square", SQUARE, 4, [[0, 1, 2], [0, 2, 3]]),
        ("triangle", TRIANGLE, 3, [[0, 1, 2]]),
        ("quad", QUAD, 5, [[0, 1, 2], [0, 2, 3], [0, 1, 4]]),
    ):
        file = tmp_path / f"{name}.off"
        file.write_text(text)
        x, faces = read_off(file)
        assert (x.shape, faces.tolist()) == ((vertices, 3), triangles)
    assert read_off(tmp_path / "triangle.off")[0][2].tolist() == [0, 4, 3.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PLY\n3 1 0\n", "first line OFF"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n", "1 faces"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "3 vertices"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "3 vertices"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1\n", "numbers"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n2 0 1\n", "three corners"),
        ("OFF\n3 1 0\n0 0 0\n1 0 nan\n0 1 0\n3 0 1 2\n", "finite"),
        ("OFF\n3 1 0\n0 0\n1 0\n0 1\n3 0 1 2\n", "three finite"),
        ("OFF\nthree 1 0\n", "numbers"),
        ("OFF\n", "numbers"),
        ("", "first line OFF"),
    ],
)
def test_a_mesh_of_another_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mesh.off"
    file.write_text(text)
    with pytest.raises(FileFormatError, match=rf"(?s)expected .*{words}.*do: "):
        read_off(file)


def test_bytes_are_no_mesh(tmp_path: Path) -> None:
    (tmp_path / "mesh.off").write_bytes(b"OFF \xff\xfe")
    with pytest.raises(FileFormatError, match="text"):
        read_off(tmp_path / "mesh.off")


def test_a_folder_without_meshes_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"ModelNet10\.zip"):
        load_points(tmp_path / "nothing")
    (tmp_path / "chair" / "train").mkdir(parents=True)
    with pytest.raises(ArgumentError, match=r"(?s)chair/train.*ModelNet10\.zip"):
        load_points(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda folder: load_points(folder, points=0),
        lambda folder: load_points(folder, train=0),
        lambda folder: load_points(folder, test=-1),
        lambda folder: load_points(folder, points=True),
        lambda folder: solids(0, 1),
        lambda folder: solids(1, 1, points=0),
        lambda folder: solids(1, 1, noise=-0.1),
        lambda folder: solids(1, 1, noise=math.nan),
        lambda folder: sample_surface(torch.zeros(3, 3).double(), torch.tensor([[0, 1, 2]]), 4, torch.Generator()),
    ],
)
def test_wrong_use_is_refused(tmp_path: Path, wrong: Callable[[Path], object]) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong(modelnet(tmp_path))


def test_points_are_uniform_by_area() -> None:
    """A square of two unequal triangles of three: the share of each triangle, and of the thirds of the square."""
    vertices = torch.tensor([[0, 0, 0], [3, 0, 0], [3, 3, 0], [0, 3, 0], [0, 1, 0]], dtype=torch.float64)
    triangles = torch.tensor([[0, 1, 4], [4, 1, 2], [4, 2, 3]])
    x = sample_surface(vertices, triangles, 9000, torch.Generator().manual_seed(0))
    cells = (x[:, 0].floor() + 3 * x[:, 1].floor()).long().bincount(minlength=9)
    assert len(cells) == 9
    assert chisquare(cells).pvalue > 1e-3
    assert not x[:, 2].any()


def test_a_unit_ball_holds_the_cloud() -> None:
    x = unit_ball(torch.randn(5, 30, 3, dtype=torch.float64) * 7 + 2)
    assert x.mean(1).abs().max() < 1e-12
    assert torch.allclose(x.norm(dim=-1).amax(1), torch.ones(5, dtype=torch.float64))
    assert not unit_ball(torch.ones(4, 3)).any()


def middle(low: float, high: float) -> float:
    return (low + high) / 2


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("box", 2 * 2 * 0.7**2 + 4 * math.sqrt(2) * 0.7**2),
        ("ellipsoid", 4 * math.pi * 0.75**2),
        ("cylinder", 2 * math.pi * 0.375 * (0.375 + 1.25)),
        ("cone", math.pi * 0.55 * (0.55 + math.hypot(0.55, 1.25))),
        ("torus", 4 * math.pi**2 * 0.275),
        ("frustum", math.pi * (0.55**2 + 0.275**2 + 0.825 * math.hypot(0.275, 1.25))),
        ("capsule", 2 * math.pi * 0.375 * 0.7 + 4 * math.pi * 0.375**2),
        ("pyramid", 2 * 0.7**2 + 4 * 0.7 / math.sqrt(2) * math.hypot(0.7 / math.sqrt(2), 1.1)),
        ("spring", 16 * math.sin(math.pi / 8) * 0.09 * 6 * math.pi * math.hypot(0.6, 0.475 / (2 * math.pi))),
    ],
)
def test_solids_have_their_areas(name: str, area: float) -> None:
    """Closed forms at the middle of all proportions; polygons of 32 corners, 8 in the spring, stand for circles."""
    vertices, triangles = _SURFACES[name](middle)
    a, b, c = vertices[triangles].unbind(1)
    found = float(torch.linalg.cross(b - a, c - a).norm(dim=1).sum()) / 2
    assert found == pytest.approx(area, rel=0.012)


@pytest.mark.parametrize("name", sorted(set(_SURFACES) - {"spring"}))
def test_surfaces_are_closed(name: str) -> None:
    """Every edge is shared by two triangles."""
    vertices, triangles = _SURFACES[name](middle)
    edges: dict[frozenset[tuple[float, ...]], int] = {}
    for face in triangles.tolist():
        points = [tuple(round(v, 9) + 0.0 for v in vertices[k].tolist()) for k in face]
        if len(set(points)) == 3:
            for i in range(3):
                edge = frozenset((points[i], points[i - 1]))
                edges[edge] = edges.get(edge, 0) + 1
    assert set(edges.values()) == {2}


def test_poses_are_turned_solids() -> None:
    """The upside-down cone and the lying cylinder are the cone and the cylinder under a proper rotation."""
    half = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    third = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    for name, other, turn in (("cone", "cone upside down", half), ("cylinder", "cylinder lying", third)):
        assert torch.linalg.det(turn) == 1
        assert torch.allclose(_SURFACES[other](middle)[0], _SURFACES[name](middle)[0] @ turn.mT)


def test_solids_are_drawn_from_a_seed_and_stand_upright() -> None:
    data, other = solids(40, 20, points=64), solids(40, 20, points=64, breaking=False)
    assert data.y.bincount().tolist() == [4] * 10
    assert data.y_test.bincount().tolist() == [2] * 10
    assert torch.equal(data.x, solids(40, 20, points=64).x)
    assert not torch.equal(data.x, solids(40, 20, points=64, seed=1).x)
    assert data.classes[:8] == other.classes[:8]
    assert set(other.classes) - set(data.classes) == {"frustum", "capsule"}
    assert torch.allclose(data.x.norm(dim=-1).amax(1), torch.ones(40))

    def skew(name: str) -> torch.Tensor:
        """A cone, its tip up, has more of its points below its middle; a long axis shows in the variances."""
        x = data.x[data.y == data.classes.index(name)]
        return x[..., 2].pow(3).mean(1)

    assert (skew("cone") > 0).all()
    assert (skew("cone upside down") < 0).all()
    spread = data.x.var(1)
    assert (spread[data.y == 2].argmax(1) == 2).all()
    assert (spread[data.y == 9].argmax(1) == 0).all()
