"""Filters of many small kernels, in pieces, against the components written out."""

from __future__ import annotations

import pytest
import torch

import equidial as ed
from equidial.filters import build_spectrum
from equidial.filters._constraint import Constraint
from equidial.filters._products import energies, recombined
from equidial.filters._spectrum import BasisSpectrum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("copies", "side"), [((40, 12), 3), ((7, 97), 3), ((900,), 5), ((48, 41), 3)])
@pytest.mark.parametrize("group", ["C4", "D4", "SO2"])
def test_pieces_are_the_components_written_out(
    group: str, copies: tuple[int, ...], side: int, dtype: torch.dtype
) -> None:
    rep = ed.representations.Pixels(ed.groups.by_name(group), (side, side))
    spectrum = build_spectrum(Constraint.invariants(rep))
    assert isinstance(spectrum, BasisSpectrum)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*copies, rep.dim, generator=generator, dtype=dtype, requires_grad=True)
    factors = torch.rand(len(spectrum.sigma), generator=generator, dtype=dtype, requires_grad=True)
    probe = torch.randn_like(weight)

    def results(split: object) -> list[torch.Tensor]:
        found, recombine = split(weight)  # pyright: ignore[reportCallIssue]
        power = found()
        out = recombine(factors * power / power.sum())
        grads = torch.autograd.grad((out * probe).sum(), [weight, factors])
        return [power, out, *grads]

    pieces, whole = results(spectrum.split), results(super(BasisSpectrum, spectrum).split)
    for one, other in zip(pieces, whole, strict=True):
        close = 1e-12 if dtype == torch.float64 else 2e-5
        assert (one - other).norm() <= close * other.norm()


def test_gradients_of_first_and_second_order() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    rows = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    factors = torch.rand(3, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 1, 2, 1])

    def power(x: torch.Tensor) -> torch.Tensor:
        return energies(x, basis, index, 3)

    def filtered(x: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        return recombined(x, basis, index, f)

    assert torch.autograd.gradcheck(power, rows)
    assert torch.autograd.gradgradcheck(power, rows)
    assert torch.autograd.gradcheck(filtered, (rows, factors))
    assert torch.autograd.gradgradcheck(filtered, (rows, factors))
