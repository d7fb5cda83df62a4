"""Faults that a reviewer would plant: each is caught, by an error, by a suite or by a bound that grows."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import equidial as ed
from equidial.certificates import certify_weight
from equidial.errors import CertificateError, EquidialWarning, GroupActionError
from equidial.filters import Constraint
from equidial.groups import SO, SO2, D, GeneratedGroup
from equidial.representations import LinearMap, Pixels, Vector
from tests.adapters.models import cnn

VectorOfRotations: type = type(Vector(SO(3)))


class WrongSign(VectorOfRotations):
    """Vectors of SO(3) one of whose generators has the other sign."""

    def generators(self) -> tuple[LinearMap, ...]:
        first, *others = super().generators()
        return first.T, *others


class WrongScale(VectorOfRotations):
    """Vectors of SO(3) whose generators are half of what they should be: every bound would be half."""

    def generators(self) -> tuple[LinearMap, ...]:
        from equidial.representations._maps import ScaledMap

        return tuple(ScaledMap(a, 0.5) for a in super().generators())


class WrongElements(VectorOfRotations):
    """Vectors of SO(3) whose elements act by their inverses: no homomorphism."""

    def map_of(self, g):
        return super().map_of(g.inverse())


@pytest.mark.parametrize("wrong", [WrongSign, WrongScale, WrongElements])
def test_generators_that_are_not_those_of_the_elements(wrong: type) -> None:
    right = Vector(SO(3))
    weight = torch.eye(3, dtype=torch.float64)
    assert certify_weight(Constraint.equivariants(right, right), weight).bound < 1e-12
    with pytest.raises(GroupActionError, match=r"(?s)expected a representation in which .*got: .*do: "):
        certify_weight(Constraint.equivariants(wrong(SO(3)), right), weight)


def test_a_split_eigenspace_is_no_stable_filter() -> None:
    """Part of an eigenspace kept: still bounded by what it is, but no longer stable, as the suite sees."""
    rep = Pixels(SO2(), (5, 5))
    f = ed.invariant_filter(rep, threshold=1.0, response="hard")
    whole = f.decomposition
    flat = torch.eye(25, dtype=torch.float64)
    projector = f(flat)
    split = projector - torch.outer(*2 * (projector[0] / projector[0].norm(),))
    g = rep.group.exp(0.7)
    moved = rep.matrix(g)
    assert float((projector @ moved - moved @ projector).norm()) < 1e-12
    assert float((split @ moved - moved @ split).norm()) > 0.1
    weight = split @ torch.randn(25, dtype=torch.float64)
    assert certify_weight(whole.constraint, weight).bound <= f.bound() + 1e-9


def test_a_set_of_letters_that_is_not_closed_under_conjugation() -> None:
    """D4 from one turn and one mirror: a warning, no claim of stability, and bounds that still hold."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    mirror = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    with pytest.warns(EquidialWarning, match="conjugation"):
        group = GeneratedGroup("r and f", torch.zeros(0, 2, 2), [turn, mirror], lengths=[math.pi / 2, math.pi])
    assert not group.is_stable
    assert D(4).is_stable
    rep = Vector(group)
    weight = torch.tensor([0.6, 0.8], dtype=torch.float64)
    found = certify_weight(Constraint.invariants(rep), weight, math.pi)
    assert found.bound >= 2 * 0.6 * (1 - 1e-12), "the mirror alone moves the first coordinate to its negative"


@pytest.fixture
def certified() -> tuple[nn.Module, ed.Certificate, ed.SoftEquivarianceConfig]:
    """A folded network at softness 0.3 with its certificate, read for images of 16 pixels."""
    config = ed.SoftEquivarianceConfig("C4", softness=0.3)
    model = ed.soften(cnn(), config)
    certificate = ed.certify(model, image_size=16)
    return ed.fold(model), certificate, config


def test_an_honest_certificate_stands(certified) -> None:
    model, certificate, config = certified
    ed.verify(certificate, model, config)
    ed.verify(certificate, dict(model.state_dict()))
    ed.verify(ed.Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))), model, config)


def _changed_weight(model, certificate):
    with torch.no_grad():
        model.depthwise.weight[0, 0, 0, 0] += 1e-6
    return certificate


def _rounded_weights(model, certificate):
    model.to(torch.bfloat16)
    return certificate


def _image_for_kernel(model, certificate):
    rows = [replace(row, level="image" if row.level == "kernel" else "kernel") for row in certificate]
    return replace(certificate, layers=tuple(rows))


def _smaller_bound(model, certificate):
    return replace(certificate, layers=tuple(replace(row, bound=row.bound / 2) for row in certificate))


def _smaller_absolute(model, certificate):
    return replace(certificate, layers=tuple(replace(row, absolute=row.absolute / 2) for row in certificate))


def _missing_row(model, certificate):
    return replace(certificate, layers=certificate.layers[1:])


def _another_group(model, certificate):
    return replace(certificate, layers=tuple(replace(row, group="C2") for row in certificate))


def _unknown_tensor(model, certificate):
    return replace(certificate, layers=tuple(replace(row, name="x." + row.name) for row in certificate))


@pytest.mark.parametrize(
    ("fault", "words", "from_tensors"),
    [
        (_changed_weight, "depthwise.weight: weights is", True),
        (_rounded_weights, "dtype is bfloat16, certified was float32", True),
        (_image_for_kernel, "level is", False),
        (_smaller_bound, "bound is", True),
        (_smaller_absolute, "absolute is", True),
        (_missing_row, "without a row", False),
        (_another_group, "certified was", True),
        (_unknown_tensor, "no tensor of this name", True),
    ],
)
def test_planted_certificates_are_refused(certified, fault, words: str, from_tensors: bool) -> None:
    model, certificate, config = certified
    planted = fault(model, certificate)
    with pytest.raises(CertificateError, match=r"(?s)expected .*got: .*do: ") as caught:
        ed.verify(planted, model, config)
    if from_tensors:
        with pytest.raises(CertificateError, match=words):
            ed.verify(planted, dict(model.state_dict()))
    else:
        assert words in str(caught.value)


def test_bf16_weights_have_a_certificate_of_their_own(certified) -> None:
    """fp32 rows are refused for them; those made with dtype= stand for the cast model."""
    model, _, config = certified
    bf16 = ed.certify(model, config, dtype=torch.bfloat16, image_size=16)
    ed.verify(bf16, copy.deepcopy(model).to(torch.bfloat16), config)
    with pytest.raises(CertificateError, match="dtype"):
        ed.verify(bf16, model, config)


def test_a_kernel_row_read_as_image_level_abstains() -> None:
    model = ed.soften(cnn(), ed.SoftEquivarianceConfig("SO2", softness=0.3))
    certificate = ed.certify(model)
    assert {row.level for row in certificate} == {"kernel"}
    read = certificate.at("image")
    assert math.isnan(read.bound)
    assert all(row.kind == "abstained" and math.isnan(row.bound) and math.isnan(row.slack) for row in read)
    assert "speaks of the kernel, not of the image" in str(read)
    assert math.isfinite(certificate.at("kernel").bound)
    data = json.loads(json.dumps(read.to_dict(), allow_nan=False))
    assert str(ed.Certificate.from_dict(data)) == str(read)
    with pytest.raises(CertificateError, match="abstains"):
        ed.verify(read, model)
    with pytest.raises(ed.EquidialError, match="level"):
        certificate.at("network")  # pyright: ignore[reportArgumentType]


def test_verify_on_the_command_line(certified, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from equidial.cli import main

    model, certificate, _ = certified
    certificate.save(tmp_path / "certificate.json")
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    assert main(["certify", "--verify", str(tmp_path)]) == 0
    assert "2 rows stand" in capsys.readouterr().out
    replace(certificate, layers=tuple(replace(r, bound=0.0) for r in certificate)).save(tmp_path / "certificate.json")
    assert main(["certify", "--verify", str(tmp_path)]) == 2
    assert "first.weight: bound is" in capsys.readouterr().err
    (tmp_path / "model.safetensors").unlink()
    assert main(["certify", "--verify", str(tmp_path)]) == 2
    assert "model.safetensors" in capsys.readouterr().err
