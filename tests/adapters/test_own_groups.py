"""Groups and representations beyond the plane in a model: by name, as objects, saved where a text rebuilds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.errors import ArgumentError
from equidial.groups import SO, GeneratedGroup, by_name
from equidial.representations import MatrixRepresentation, Representation, Tensor, Vector, parse

SPIN = GeneratedGroup("spin", [torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])], radius=3.2)


def spaces(first: str | Representation, last: str | Representation) -> dict[str, tuple]:
    return {"0": (first, "4*Vector + 2*Trivial"), "1": ("4*Vector + 2*Trivial", last)}


@pytest.mark.parametrize("name", ["SO3", "O(4)", "O2", "Lorentz", "SO+(1,3)", "S4", "SE2", "SO3 x S3", "D5"])
def test_linear_layers_of_any_group(name: str, tmp_path: Path) -> None:
    """Exactly equivariant at softness 0, certified above what is measured, the same after a round trip."""
    group = by_name(name)
    if group.natural_dim is None:
        return
    first, last = parse("2*Vector", group), parse("Vector + Trivial", group)
    hidden = parse("4*Vector + 2*Trivial", group)

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(first.dim, hidden.dim), nn.Linear(hidden.dim, last.dim)).double()

    config = ed.SoftEquivarianceConfig(
        group=group, softness=0.0, representations=spaces("2*Vector", "Vector + Trivial")
    )
    model = ed.soften(build(), config)
    x = torch.randn(5, first.dim, dtype=torch.float64)
    for g in group.sample(4, torch.Generator().manual_seed(1)):
        moved, expected = model(first.act(g, x)), last.act(g, model(x))
        assert torch.allclose(moved, expected, atol=1e-8 * float(1 + expected.detach().abs().max()))
    ed.set_softness(model, 0.5)
    for row in ed.certify(model):
        assert row.measured <= row.bound
    ed.save(model, tmp_path / "soft")
    again = ed.load(build(), tmp_path / "soft")
    assert torch.equal(again(x), model(x))


def test_own_groups_and_matrices_are_used_but_not_saved(tmp_path: Path) -> None:
    turns = MatrixRepresentation(SPIN, [2 * torch.tensor([[0.0, -1], [1, 0]], dtype=torch.float64)])
    for pair in (("Vector", "2*Vector"), (Vector(SPIN), 3 * turns)):
        config = ed.SoftEquivarianceConfig(group=SPIN, softness=0.3, representations={"0": pair})
        model = ed.soften(nn.Sequential(nn.Linear(3, 6)), config)
        assert all(row.measured <= row.bound for row in ed.certify(model))
        with pytest.raises(ArgumentError, match="a group that its name rebuilds"):
            ed.save(model, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        assert type(ed.fold(model)[0].weight) is nn.Parameter


def test_representations_as_objects_are_written_as_text(tmp_path: Path) -> None:
    pair = (Tensor(SO(3), 2), 2 * Vector(SO(3)))
    config = ed.SoftEquivarianceConfig(group="SO3", softness=0.3, representations={"0": pair})
    assert config.to_dict()["representations"] == {"0": ["Tensor(2)", "2*Vector"]}
    model = ed.soften(nn.Sequential(nn.Linear(9, 6)), config)
    ed.save(model, tmp_path / "soft")
    fresh = nn.Sequential(nn.Linear(9, 6))
    fresh.load_state_dict(ed.unload(model).state_dict())
    ed.load(fresh, tmp_path / "soft")


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (("Vector", 3), "two texts or representations"),
        ((Vector(SO(4)), "Vector"), "a representation of SO3"),
        (("Vector", "Tensor(-1)"), "Tensor"),
    ],
)
def test_wrong_spaces_are_refused(pair: tuple, why: str) -> None:
    with pytest.raises(ArgumentError, match=why):
        ed.SoftEquivarianceConfig(group="SO3", softness=0.3, representations={"0": pair})


def test_one_construction_serves_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 convolutions of one kernel size share one spectrum, held by the model and by nothing else."""
    from equidial.adapters import _soften
    from equidial.adapters._parametrization import constrained

    built = []
    original = _soften.build_spectrum
    monkeypatch.setattr(_soften, "build_spectrum", lambda constraint: built.append(constraint) or original(constraint))
    model = ed.soften(
        nn.Sequential(*(nn.Conv2d(2, 2, 5, padding=2) for _ in range(48))),
        ed.SoftEquivarianceConfig(group="SO2", softness=0.5),
    )
    assert len(built) == 1
    assert len({id(link.spectrum) for _, _, link in constrained(model)}) == 1
