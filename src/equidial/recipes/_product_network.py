"""A network for vectors and numbers whose every linear layer can carry the group, with products in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.errors import ArgumentError, explain
from equidial.groups import Group, Lorentz
from equidial.representations import Representation, Tensor, Trivial, Vector


@dataclass(frozen=True)
class ProductSizes:
    """Of :class:`ProductNetwork`: pairs of vectors, numbers of each kind, layers before the head."""

    pairs: int = 16
    numbers: int = 32
    layers: int = 2


class ProductNetwork(nn.Module):
    """Linear layers between spaces ``m * Vector + n * Trivial``, products that commute with the group between them.

    A linear layer makes ``m`` pairs of vectors ``u, v``, gates ``c``, pairs of numbers ``a, b`` and numbers ``s``. Out
    of them come the vectors ``c u`` and the numbers

        q = <u, v> / sqrt(d),     a b,     silu(s),     q / (q^2 + 1/100)^(1/4),

    ``<u, v>`` the invariant form of the group, Euclidean or Minkowski's. A linear map from vectors to numbers that
    commutes with O(n) or the Lorentz group is 0: products alone carry vectors into numbers. Two layers span the
    polynomials of degree two in the scalar products of the input; silu and the root reach what is no polynomial. For
    Lorentz groups, whose invariants are no lengths, there is no root, and silu counts a tenth (found on the unbroken
    problems). The head is linear; a tensor of order 2 is read from ``c u v^T``.

    Args:
        group: of matrices, O(n) or Lorentz.
        vectors, numbers: how many of each come in; vectors stand first.
        output: ``Trivial``, ``n * Trivial`` or ``Tensor`` of order 2.
        sizes: of all layers.

    Shapes: ``[..., vectors * d + numbers]`` to ``[..., output.dim]``. There are no biases: each linear layer reads a
    constant 1 beside its input. :meth:`representations` make each linear layer tunable; softness 0 is an exactly
    equivariant network, softness 1 the plain one. Weights start as normal ones, with as much again that is equivariant
    on the vectors, so that a network of any softness starts on the scale of its input.
    """

    form: torch.Tensor

    def __init__(self, group: Group, vectors: int, numbers: int, output: Representation, sizes: ProductSizes):
        super().__init__()
        order = 2 if isinstance(output, Tensor) else 0
        numbers_out = (Trivial(group), output.dim * Trivial(group))
        if group.natural_dim is None or output not in (*numbers_out, Tensor(group, 2)):
            wanted = "a group of matrices and Trivial, n * Trivial or Tensor(group, 2)"
            raise ArgumentError(explain(wanted, f"{group}, {output}", "use one of them"))
        self.group, self.sizes, self.output, self.size = group, sizes, output, group.natural_dim
        self.inputs = vectors * self.size + numbers
        self.has_norm = not isinstance(group, Lorentz)
        signs = torch.ones(self.size)
        signs[1:] = 1.0 if self.has_norm else -1.0
        self.register_buffer("form", signs / math.sqrt(self.size), persistent=False)
        vector, number = Vector(group), Trivial(group)
        m, n = sizes.pairs, sizes.numbers
        made = 2 * m * vector + (m + 3 * n) * number
        told = ((1 + self.has_norm) * m + 2 * n + 1) * number
        self.spaces: list[tuple[Representation, Representation]] = []
        space: Representation = vectors * vector + (numbers + 1) * number
        for _ in range(sizes.layers):
            self.spaces.append((space, made))
            space = m * vector + told
        self.spaces.append((m * Tensor(group, 2) + told if order else space, output))
        self.layers = nn.ModuleList(nn.Linear(a.dim, b.dim, bias=False) for a, b in self.spaces)
        self._start(vectors)

    def _start(self, vectors: int) -> None:
        """Normal weights of half the variance that keeps sizes, an equivariant part on vectors that adds the same."""
        *layers, head = (layer.weight for layer in self.layers if isinstance(layer, nn.Linear))
        unit, pairs = torch.eye(self.size), 2 * self.sizes.pairs
        with torch.no_grad():
            for weight in (*layers, head):
                weight.normal_().div_(2 * math.sqrt(weight.shape[1]))
            for weight in layers:
                mixed = torch.randn(pairs, vectors) / (2 * math.sqrt(vectors))
                block = torch.einsum("ab,ij->aibj", mixed, unit).flatten(2).flatten(0, 1)
                weight[: pairs * self.size, : vectors * self.size] += block
                vectors = self.sizes.pairs

    def representations(self) -> dict[str, tuple[Representation, Representation]]:
        """Input and output space of every linear layer, for ``SoftEquivarianceConfig(representations=...)``."""
        return {rf"layers\.{i}": pair for i, pair in enumerate(self.spaces)}

    def config(self, softness: float) -> ed.SoftEquivarianceConfig:
        """The whole network at one softness."""
        return ed.SoftEquivarianceConfig(group=self.group, softness=softness, representations=self.representations())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output in the dtype of ``x``."""
        if x.shape[-1:] != (self.inputs,):
            raise ArgumentError(explain(f"a last axis of {self.inputs}", f"shape {tuple(x.shape)}", "reshape it"))
        m, n, d = self.sizes.pairs, self.sizes.numbers, self.size
        one = torch.ones_like(x[..., :1])
        *layers, head = self.layers
        u = v = gate = x
        for layer in layers:
            y = layer(torch.cat((x, one), dim=-1))
            u, v, gate, a, b, s = y.split((m * d, m * d, m, n, n, n), dim=-1)
            u, v = u.unflatten(-1, (m, d)), v.unflatten(-1, (m, d))
            q = (u * v * self.form).sum(-1)
            numbers = [q, a * b, functional.silu(s) if self.has_norm else functional.silu(s) / 10]
            if self.has_norm:
                numbers.append(q * (q.square() + 0.01).pow(-0.25))
            u = gate[..., None] * u
            x = torch.cat((u.flatten(-2), *numbers), dim=-1)
        if isinstance(self.output, Tensor):
            outer = u[..., :, None] * v[..., None, :]
            x = torch.cat((outer.flatten(-3), x[..., m * d :]), dim=-1)
        return head(torch.cat((x, one), dim=-1))
