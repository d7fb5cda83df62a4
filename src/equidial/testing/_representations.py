"""The contract of a representation, as tests."""

from __future__ import annotations

import math

import torch

from equidial.groups import C, GroupElement
from equidial.representations import LinearMap, Representation, Vector, parse
from equidial.testing._suite import Conformance, refuses

_U = torch.finfo(torch.float64).eps


class RepresentationConformance(Conformance):
    """What every :class:`equidial.representations.Representation` keeps.

    ``named``: whether :func:`equidial.representations.parse` reads the name back.
    """

    named: bool = False

    def make(self) -> Representation:
        """The representation under test."""
        raise NotImplementedError("a subclass gives the representation")

    def drawn(self, offset: int = 0) -> list[GroupElement]:
        """Sampled elements of the group that acts."""
        return self.make().effective_group.sample(self.samples, self.generator(offset))

    def test_homomorphism(self) -> None:
        """``rho(g h) = rho(g) rho(h)``, ``rho(e) = I``, ``rho(g^-1) = rho(g)^-1``."""
        rep = self.make()
        eye = torch.eye(rep.dim, dtype=torch.float64)
        self.assert_close(rep.matrix(rep.effective_group.identity()), eye, "rho(e) = I")
        for g, h in zip(self.drawn(), self.drawn(offset=1), strict=True):
            product = rep.matrix(g) @ rep.matrix(h)
            self.assert_close(rep.matrix(g @ h), product, f"rho(g h) = rho(g) rho(h) for g = {g}, h = {h}")
            self.assert_close(rep.matrix(g) @ rep.matrix(g.inverse()), eye, f"rho(g) rho(g^-1) = I for g = {g}")

    def test_orthogonality(self) -> None:
        """Where declared: generators skew bit for bit, elements orthogonal to ``rounding``, no growth, its own dual."""
        rep = self.make()
        if not rep.is_orthogonal:
            return
        for i, a in enumerate(rep.generators()):
            dense = a.to_dense()
            assert torch.equal(dense, -dense.mT), f"generator {i + 1} is not stored exactly skew"
        for g in self.drawn():
            sizes = torch.linalg.svdvals(rep.matrix(g))
            error = float((sizes - 1).abs().max())
            limit = rep.rounding + 16 * rep.dim * _U
            assert error <= limit, f"rho({g}) is {error:.2e} away from orthogonal, told {rep.rounding:.2e}"
        assert rep.growth == 0.0, f"growth {rep.growth} of an orthogonal representation"
        assert rep.dual == rep, "an orthogonal representation is its own dual"

    def test_generators(self) -> None:
        """One per Lie generator of the group, and ``exp(sum_i t_i A_i)`` is the matrix of ``group.exp(t)``."""
        rep = self.make()
        group = rep.group
        maps = rep.generators()
        assert len(maps) == group.lie_dim, f"{len(maps)} generators, {group.lie_dim} of {group}"
        if not maps:
            return
        dense = torch.stack([a.to_dense() for a in maps])
        size = min(0.7, group.sample_radius)
        for t in self.directions(group):
            combined = torch.tensordot(size * t, dense, dims=1)
            self.assert_close(rep.matrix(group.exp(size * t)), torch.matrix_exp(combined), f"rho(exp t) at {size * t}")

    def test_brackets(self) -> None:
        """Generators have the brackets of the Lie algebra."""
        rep = self.make()
        if rep.group.lie_dim < 2:
            return
        f = rep.group.structure_constants()
        dense = torch.stack([a.to_dense() for a in rep.generators()])
        for i in range(len(dense)):
            for j in range(i):
                bracket = dense[i] @ dense[j] - dense[j] @ dense[i]
                expected = torch.tensordot(f[i, j], dense, dims=1)
                self.assert_close(bracket, expected, f"[A_{i + 1}, A_{j + 1}]")

    def test_letters(self) -> None:
        """One map per discrete generator of the group, that of its element."""
        rep = self.make()
        letters = rep.group.discrete_generators()
        maps = rep.discrete_generators()
        assert len(maps) == len(letters), f"{len(maps)} letters, {len(letters)} of {rep.group}"
        for s, mapped in zip(letters, maps, strict=True):
            self.assert_close(mapped.to_dense(), rep.matrix(s.element), f"the letter {s.element}")

    def test_linear_maps(self) -> None:
        """``@``, the last axis, transpose, trace and the bound of the norm agree with the matrix, for all maps."""
        rep = self.make()
        maps: list[tuple[str, LinearMap]] = [(f"generator {i + 1}", a) for i, a in enumerate(rep.generators())]
        maps += [(f"letter {i + 1}", a) for i, a in enumerate(rep.discrete_generators())]
        maps += [(f"residual {r.name}", r.map) for r in rep.residual_generators()]
        maps += [(f"rho({g})", rep.map_of(g)) for g in self.drawn()[:2]]
        x = self.normal(rep.dim, 3)
        for name, mapped in maps:
            dense = mapped.to_dense()
            assert mapped.dim == rep.dim, f"{name}: dimension {mapped.dim}, expected {rep.dim}"
            assert dense.dtype == torch.float64, f"{name}: {dense.dtype}, expected float64"
            self.assert_close(mapped @ x, dense @ x, f"{name} @ matrix")
            self.assert_close(mapped @ x[:, 0], dense @ x[:, 0], f"{name} @ vector")
            self.assert_close(mapped.on_last_axis(x.mT[:, None]), (dense @ x).mT[:, None], f"{name} on the last axis")
            self.assert_close(mapped.T.to_dense(), dense.mT, f"{name}: transpose")
            trace = float(dense.trace())
            assert math.isclose(mapped.trace(), trace, abs_tol=1e-10), f"{name}: trace {mapped.trace()}, not {trace}"
            norm = float(torch.linalg.matrix_norm(dense, ord=2))
            assert mapped.norm_bound() >= norm * (1 - 1e-12), (
                f"{name}: norm {norm} above its bound {mapped.norm_bound()}"
            )

    def test_trace_is_the_character(self) -> None:
        """``character(g) = tr rho(g)``; sums of tensor powers have the sums of powers of the natural one."""
        rep = self.make()
        orders = rep.tensor_orders()
        for g in self.drawn():
            trace = float(rep.matrix(g).trace())
            assert math.isclose(rep.character(g), trace, abs_tol=1e-9), f"character {rep.character(g)}, trace {trace}"
            if orders is not None:
                one = Vector(rep.group).character(g) if max(orders) else 1.0
                expected = sum(copies * one**order for order, copies in orders.items())
                assert math.isclose(trace, expected, rel_tol=1e-9, abs_tol=1e-9), f"trace {trace}, not that of {orders}"

    def test_growth(self) -> None:
        """``||exp(sum_i t_i A_i)|| <= e^(growth ||t||)``."""
        rep = self.make()
        maps = rep.generators()
        if not maps:
            return
        dense = torch.stack([a.to_dense() for a in maps])
        for t in self.directions(rep.group):
            for size in (0.1, 1.0, 2.5):
                norm = float(
                    torch.linalg.matrix_norm(torch.matrix_exp(torch.tensordot(size * t, dense, dims=1)), ord=2)
                )
                limit = math.exp(rep.growth * size)
                assert norm <= limit * (1 + 1e-10), (
                    f"||exp(t A)|| = {norm} > e^(growth ||t||) = {limit}, t = {size * t}"
                )

    def test_dual(self) -> None:
        """``rho*(g) = rho(g^-1)^T``, and the dual of the dual acts as before."""
        rep = self.make()
        for g in self.drawn()[:3]:
            self.assert_close(rep.dual.matrix(g), rep.matrix(g.inverse()).mT, f"the dual at {g}")
            self.assert_close(rep.dual.dual.matrix(g), rep.matrix(g), f"the dual of the dual at {g}")

    def test_eigenbasis(self) -> None:
        """Where declared: unitary, every generator diagonal with the declared values, errors within those declared."""
        rep = self.make()
        basis = rep.eigenbasis()
        if basis is None:
            return
        u = basis.to_dense()
        eye = torch.eye(rep.dim, dtype=u.dtype)
        self.assert_close(torch.view_as_real(u.mH @ u), torch.view_as_real(eye), "U^* U = I")
        maps = [*rep.generators(), *rep.discrete_generators()]
        assert basis.values.shape == (len(maps), rep.dim), f"eigenvalues of shape {tuple(basis.values.shape)}"
        pairs = list(zip(maps, basis.values, strict=True))
        pairs += [(r.map, basis.residuals[r.name]) for r in rep.residual_generators()]
        for i, (mapped, values) in enumerate(pairs):
            image = mapped.to_dense().to(u.dtype) @ u
            self.assert_close(torch.view_as_real(image), torch.view_as_real(u * values), f"A U = U diag, map {i + 1}")
        if len(rep.generators()) == 1:
            residue, loss = rep.eigenbasis_error()
            lost = float((u.mH @ u - eye).norm())
            missed = float((rep.generators()[0].to_dense().to(u.dtype) @ u - u * basis.values[0]).norm())
            slack = 1e-13 * rep.dim  # of these norms themselves
            assert lost <= loss + slack, f"||U^* U - I|| = {lost:.2e}, told {loss:.2e}"
            assert missed <= residue + slack, f"||A U - U diag|| = {missed:.2e}, told {residue:.2e}"

    def test_permutations_are_exact(self) -> None:
        """Where declared: entries are moved, never changed, in bfloat16, float16 and integers."""
        rep = self.make()
        if not rep.is_permutation:
            return
        for g in self.drawn():
            matrix = rep.matrix(g)
            sources = matrix.argmax(1)
            assert torch.equal(matrix, torch.eye(rep.dim, dtype=matrix.dtype)[sources]), f"rho({g}) is no permutation"
            for dtype in (torch.bfloat16, torch.float16, torch.int32):
                x = (100 * self.normal(2, rep.dim)).to(dtype)
                assert torch.equal(rep.act(g, x), x[:, sources]), f"rho({g}) changes values of {dtype}"
        assert rep.rounding == 0.0, f"a permutation does not round; told {rep.rounding}"

    def test_act(self) -> None:
        """Acts on the last axis whatever stands before, keeps the dtype, and refuses other sizes and other groups."""
        rep = self.make()
        g = self.drawn()[0]
        x = self.normal(2, 3, rep.dim)
        moved = rep.act(g, x)
        self.assert_close(moved, x @ rep.matrix(g).mT, "act is x rho(g)^T")
        self.assert_close(rep.act(g, x[0, 0]), moved[0, 0], "act on one vector")
        self.assert_close(rep.act(g, x[:0]), moved[:0], "act on no vector")
        for dtype in (torch.float32, torch.bfloat16):
            got = rep.act(g, x.to(dtype)).dtype
            assert got == dtype, f"act turned {dtype} into {got}"
        refuses(lambda: rep.act(g, self.normal(2, rep.dim + 1)), f"a last axis of {rep.dim + 1} for {rep}")
        refuses(lambda: rep.act(g, torch.tensor(1.0)), "a number without axes")
        other = C(97) if rep.group != C(97) else C(89)
        refuses(lambda: rep.act(other.identity(), x), f"an element of {other}")
        refuses(lambda: rep.matrix(other.identity()), f"an element of {other}")

    def test_residual_generators(self) -> None:
        """Letters that the action misses: orthogonal involutions that commute with it, of positive length."""
        rep = self.make()
        eye = torch.eye(rep.dim, dtype=torch.float64)
        for residual in rep.residual_generators():
            dense = residual.map.to_dense()
            self.assert_close(dense @ dense, eye, f"{residual.name} twice is the identity")
            self.assert_close(dense, dense.mT, f"{residual.name} is orthogonal")
            assert residual.length > 0, f"{residual.name} of length {residual.length}"
            for other in (*rep.generators(), *rep.discrete_generators()):
                moved = other.to_dense()
                self.assert_close(dense @ moved, moved @ dense, f"{residual.name} commutes with the action")

    def test_connected(self) -> None:
        """The restriction to the connected part has the same generators on the same space."""
        rep = self.make()
        if rep.group.connected == rep.group:
            assert rep.connected == rep, "a representation of a connected group is its own restriction"
            return
        part = rep.connected
        assert part.group == rep.group.connected, f"restricted to {part.group}, expected {rep.group.connected}"
        assert part.dim == rep.dim, f"restricted to dimension {part.dim}, expected {rep.dim}"
        for a, b in zip(part.generators(), rep.generators(), strict=True):
            self.assert_close(a.to_dense(), b.to_dense(), "generators of the restriction")

    def test_values_compare(self) -> None:
        """Representations made alike are equal, hash alike, and have a name that ``parse`` reads where ``named``."""
        first, second = self.make(), self.make()
        assert first == second, f"two representations {first} made alike differ"
        assert hash(first) == hash(second), f"equal representations {first} hash differently"
        assert first.name, "a representation without a name"
        if self.named:
            assert parse(first.name, first.group) == first, f"parse({first.name!r}) is another representation"

    def test_sums_and_products(self) -> None:
        """Copies stand side by side, copies outermost; tensor products are Kronecker products, row-major."""
        rep = self.make()
        g = self.drawn()[0]
        matrix = rep.matrix(g)
        self.assert_close((2 * rep).matrix(g), torch.block_diag(matrix, matrix), "2 * rep")
        self.assert_close((rep + 2 * rep).matrix(g), torch.block_diag(matrix, matrix, matrix), "rep + 2 * rep")
        if rep.dim <= 12 and not rep.residual_generators():
            self.assert_close((rep @ rep).matrix(g), torch.kron(matrix, matrix), "rep @ rep")
