"""The contract of a group, as tests."""

from __future__ import annotations

import math

import torch

from equidial.errors import EquidialError
from equidial.groups import C, Exp, Group, GroupElement, by_name
from equidial.testing._suite import Conformance, difference, refuses, same

_LISTED = 200  # elements of a group that is searched whole


class GroupConformance(Conformance):
    """What every :class:`equidial.groups.Group` keeps.

    ``named``: whether :func:`equidial.groups.by_name` knows the name. ``has_words``: whether every sampled element is
    a word in the generators. Elements are compared by their natural matrices where the group has them (so those must
    be faithful), else by their coordinates.
    """

    named: bool = False
    has_words: bool = True

    def make(self) -> Group:
        """The group under test."""
        raise NotImplementedError("a subclass gives the group")

    def drawn(self, count: int | None = None, offset: int = 0) -> list[GroupElement]:
        """Sampled elements."""
        return self.make().sample(self.samples if count is None else count, self.generator(offset))

    def distance(self, g: GroupElement) -> float | None:
        """``g.distance()``; ``None`` where the group knows no word for ``g``, if that is allowed."""
        try:
            return g.distance()
        except EquidialError:
            if self.has_words:
                raise
            return None

    def test_group_laws(self) -> None:
        """Associativity, identity on both sides, inverses on both sides and of products."""
        e = self.make().identity()
        for a, b, c in zip(self.drawn(), self.drawn(offset=1), self.drawn(offset=2), strict=True):
            for left, right, law in (
                ((a @ b) @ c, a @ (b @ c), "(a b) c = a (b c)"),
                (e @ a, a, "e a = a"),
                (a @ e, a, "a e = a"),
                (a @ a.inverse(), e, "a a^-1 = e"),
                (a.inverse() @ a, e, "a^-1 a = e"),
                ((a @ b).inverse(), b.inverse() @ a.inverse(), "(a b)^-1 = b^-1 a^-1"),
            ):
                error = difference(a.group, left.value, right.value)
                assert error <= self.tolerance, f"{law} fails by {error:.3e} for a = {a}, b = {b}, c = {c}"

    def test_natural_matrices_are_a_representation(self) -> None:
        """``M(a b) = M(a) M(b)``, ``M(e) = I``, and generators of the declared size."""
        group = self.make()
        n = group.natural_dim
        if n is None:
            refuses(lambda: group.natural_matrix(group.identity().value), "a natural matrix of a group without any")
            return
        eye = torch.eye(n, dtype=torch.float64)
        self.assert_close(group.natural_matrix(group.identity().value), eye, "M(e) = I")
        for a, b in zip(self.drawn(), self.drawn(offset=1), strict=True):
            product = group.natural_matrix(a.value) @ group.natural_matrix(b.value)
            self.assert_close(group.natural_matrix((a @ b).value), product, "M(a b) = M(a) M(b)")
        assert group.natural_generators().shape == (group.lie_dim, n, n), "one natural matrix per Lie generator"

    def test_values_are_hashable_and_compare(self) -> None:
        """The group and its elements are values: equal when made alike, and keys of dictionaries."""
        first, second = self.make(), self.make()
        assert first == second, f"two groups {first} made alike differ"
        assert hash(first) == hash(second), f"equal groups {first} hash differently"
        assert first.identity() == second.identity(), "identities of equal groups differ"
        assert first.identity().is_identity, "the identity does not know itself"
        for g in self.drawn():
            assert hash(g) == hash(first.element(g.value)), f"{g} rebuilt from its coordinate hashes differently"
            assert same(g, first.element(g.value), self.tolerance), f"{g} is not its own coordinate's element"
        other = C(97).identity() if first != C(97) else C(89).identity()
        refuses(lambda: first.identity() @ other, "a product across groups")

    def test_distances(self) -> None:
        """0 at the identity, the same for the inverse, never above the radius, and subadditive.

        The triangle inequality is asked of stable, discrete and commuting groups; elsewhere distances are upper bounds.
        """
        group = self.make()
        assert group.identity().distance() == 0, f"the identity is {group.identity().distance()} away from itself"
        brackets = group.structure_constants()
        metric = group.is_stable or group.lie_dim == 0 or float(brackets.abs().sum()) == 0
        for a, b in zip(self.drawn(), self.drawn(offset=1), strict=True):
            far, back, near = self.distance(a), self.distance(a.inverse()), self.distance(b)
            if far is None or back is None or near is None:
                continue
            assert 0 <= far <= group.radius * (1 + 1e-9), f"{a} is {far} away, outside the radius {group.radius}"
            # a logarithm near a half turn loses half of the digits
            assert math.isclose(far, back, rel_tol=1e-6, abs_tol=1e-7), f"|a| = {far}, |a^-1| = {back} for {a}"
            both = self.distance(a @ b) if metric else None
            if both is not None:
                assert both <= far + near + 1e-6, f"|a b| = {both} > {far} + {near} for {a}, {b}"

    def test_samples(self) -> None:
        """As many as asked for, of this group, within ``sample_radius``, the same for one seed, not all alike."""
        group = self.make()
        drawn = self.drawn(16)
        assert len(drawn) == 16, f"asked for 16 samples, got {len(drawn)}"
        assert all(g.group == group for g in drawn), "samples belong to another group"
        again = self.drawn(16)
        assert all(a.value == b.value for a, b in zip(drawn, again, strict=True)), "one seed gave two samples"
        assert group.sample(0) == [], "0 samples are an empty list"
        refuses(lambda: group.sample(-1), "a negative number of samples")
        far = max(self.distance(g) or 0.0 for g in drawn)
        limit = group.sample_radius
        assert far <= limit * (1 + 1e-9) + 1e-12, f"a sample at {far}, outside sample_radius {limit}"
        assert limit <= group.radius, f"sample_radius {limit} above the radius {group.radius}"
        distinct = len({g.value for g in self.drawn(64)})
        assert distinct > 1 or group.order == 1, "64 samples are all the same element"

    def test_words_rebuild_elements(self) -> None:
        """The pieces of a word multiply to the element, and its length is at least the distance."""
        group = self.make()
        letters = group.discrete_generators()
        assert group.word(group.identity().value) == (), "the identity is the empty word"
        for g in self.drawn():
            try:
                word = group.word(g.value)
            except EquidialError:
                if self.has_words:
                    raise
                continue
            built = group.identity()
            for piece in word:
                step = group.exp(piece.t) if isinstance(piece, Exp) else letters[piece.letter].element
                step = step.inverse() if not isinstance(piece, Exp) and piece.exponent < 0 else step
                for _ in range(1 if isinstance(piece, Exp) else abs(piece.exponent)):
                    built = built @ step
            error = difference(group, built.value, g.value)
            assert error <= 1e-7, f"the word {word} misses its element {g} by {error:.3e}"
            length = group.length_of_word(word)
            far = g.distance()
            assert length >= far - 1e-6, f"a word of length {length} for an element at {far}"

    def test_exponentials(self) -> None:
        """One-parameter groups with the declared generators; ``|exp(t)| <= ||t||``; other sizes are refused."""
        group = self.make()
        if group.lie_dim == 0:
            refuses(lambda: group.exp(0.1), "exp on a group without a Lie algebra")
            return
        refuses(lambda: group.exp([0.1] * (group.lie_dim + 1)), "too many Lie coordinates")
        zero = group.exp(torch.zeros(group.lie_dim))
        assert same(zero, group.identity(), self.tolerance), "exp(0) is not the identity"
        for t in self.directions(group):
            both = group.exp(0.3 * t) @ group.exp(0.45 * t)
            assert same(both, group.exp(0.75 * t), self.tolerance), f"exp(s t) exp(u t) is not exp((s + u) t), t = {t}"
            assert same(group.exp(-0.3 * t), group.exp(0.3 * t).inverse(), self.tolerance), "exp(-t) is not exp(t)^-1"
            far = group.exp(0.3 * t).distance()
            assert far <= 0.3 + 1e-7, f"exp(t) with ||t|| = 0.3 is {far} away"
            assert far > 0, f"the generator along {t} does not move"
            if group.natural_dim is not None:
                algebra = torch.tensordot(0.3 * t, group.natural_generators(), dims=1)
                matrix = group.natural_matrix(group.exp(0.3 * t).value)
                self.assert_close(matrix, torch.matrix_exp(algebra), "M(exp t) = exp(sum t_i A_i)")

    def test_structure_constants(self) -> None:
        """``[A_i, A_j] = sum_k f_ijk A_k``, antisymmetric, Jacobi; antisymmetric in all indices where stable."""
        group = self.make()
        f = group.structure_constants()
        n = group.lie_dim
        assert f.shape == (n, n, n), f"structure constants of shape {tuple(f.shape)}, expected {(n, n, n)}"
        self.assert_close(f, -f.transpose(0, 1), "f_ijk = -f_jik")
        cyclic = torch.einsum("ijm,mkl->ijkl", f, f)
        jacobi = cyclic + cyclic.permute(1, 2, 0, 3) + cyclic.permute(2, 0, 1, 3)
        self.assert_close(jacobi, torch.zeros_like(jacobi), "the Jacobi identity")
        if group.is_stable:
            # else the basis is orthonormal for no inner product that the group keeps (theory 1)
            self.assert_close(f, -f.transpose(1, 2), "f_ijk = -f_ikj of a stable group")
        if n and group.natural_dim is not None:
            a = group.natural_generators()
            products = torch.einsum("iab,jbc->ijac", a, a)
            expected = torch.einsum("ijk,kab->ijab", f, a)
            self.assert_close(products - products.transpose(0, 1), expected, "brackets of the natural generators")

    def test_letters_are_closed_under_conjugation(self) -> None:
        """Up to inverses, for stable groups, but for letters that act on invariants only; lengths are positive."""
        group = self.make()
        letters = group.discrete_generators()
        assert all(s.length > 0 for s in letters), f"lengths {[s.length for s in letters]}, expected positive ones"
        if not group.is_stable:
            return
        closed = [x for s in letters for x in ((s.element, s.length), (s.element.inverse(), s.length))]
        moving = group.elements() if group.is_finite and (group.order or 0) <= _LISTED else self.drawn()
        for s in letters:
            for g in () if s.on_invariants else moving:
                moved = g @ s.element @ g.inverse()
                found = [length for x, length in closed if same(moved, x, 1e-8)]
                assert found, (
                    f"{g} carries the letter {s.element} out of the set; a group with such letters is not stable"
                )
                assert math.isclose(found[0], s.length), f"conjugate letters of lengths {found[0]} and {s.length}"

    def test_elements(self) -> None:
        """A finite group lists each element once, the identity first; every product is among them."""
        group = self.make()
        if not group.is_finite:
            refuses(group.elements, "a list of the elements of an infinite group")
            return
        elements = group.elements()
        values = {g.value for g in elements}
        assert len(elements) == len(values) == group.order, f"{len(values)} elements, order {group.order}"
        assert elements[0].is_identity, "the identity is not the first element"
        for a, b in zip(self.drawn(), self.drawn(offset=1), strict=True):
            assert (a @ b).value in values, f"the product of {a} and {b} is not listed"
            assert a.inverse().value in values, f"the inverse of {a} is not listed"

    def test_distance_is_the_shortest_word(self) -> None:
        """Dijkstra over generators and inverses reaches every element of a finite group, at its distance."""
        group = self.make()
        if not group.is_finite or (group.order or 0) > _LISTED:
            return
        letters = [(x, s.length) for s in group.discrete_generators() for x in (s.element, s.element.inverse())]
        best = {group.identity().value: 0.0}
        frontier = [group.identity()]
        while frontier:
            frontier.sort(key=lambda g: -best[g.value])
            g = frontier.pop()
            for s, length in letters:
                h = g @ s
                if best[g.value] + length < best.get(h.value, math.inf) - 1e-12:
                    best[h.value] = best[g.value] + length
                    frontier.append(h)
        assert len(best) == group.order, f"the letters generate {len(best)} of {group.order} elements"
        for g in group.elements():
            shortest, told = best[g.value], g.distance()
            assert math.isclose(told, shortest, abs_tol=1e-12), f"{g} told at {told}, shortest word {shortest}"
        furthest = max(best.values())
        assert math.isclose(group.radius, furthest, abs_tol=1e-12), f"radius {group.radius}, furthest {furthest}"

    def test_isotypic_components(self) -> None:
        """Declared projectors are orthogonal, sum to one, and hold one singular value each (regular representation)."""
        group = self.make()
        components = group.isotypic_components() if group.is_finite else None
        if components is None or (group.order or 0) > 60:
            return
        elements = group.elements()
        position = {g.value: i for i, g in enumerate(elements)}
        size = len(elements)
        moves = torch.zeros(size, size, size, dtype=torch.float64)
        for i, g in enumerate(elements):
            for j, h in enumerate(elements):
                moves[i, position[(g @ h).value], j] = 1.0
        eye = torch.eye(size, dtype=torch.float64)
        gram = torch.zeros_like(eye)
        for s in group.discrete_generators():
            step = (moves[position[s.element.value]] - eye) / s.length
            gram += step.mT @ step
        projectors = [
            torch.tensordot(torch.tensor(part.coefficients, dtype=torch.float64), moves, dims=1) for part in components
        ]
        self.assert_close(torch.stack(projectors).sum(0), eye, "isotypic projectors sum to the identity")
        for part, p in zip(components, projectors, strict=True):
            self.assert_close(p @ p, p, f"P^2 = P of the component {part.label}")
            self.assert_close(gram @ p, part.sigma**2 * p, f"sigma of the component {part.label}")

    def test_tensor_spectrum(self) -> None:
        """Declared eigenvalues on tensors: whole, and those of a dense Gram operator in small cases."""
        group = self.make()
        n = group.natural_dim
        if n is None or group.tensor_spectrum(0) is None:
            return
        for order in range(5):
            found = group.tensor_spectrum(order)
            assert found is not None, f"a spectrum at order 0, none at order {order}"
            assert sum(found.values()) == n**order, f"order {order}: {sum(found.values())} of {n**order} eigenvalues"
            if n**order > 256:
                continue
            listed = [value for value, count in found.items() for _ in range(count)]
            expected = torch.tensor(sorted(listed), dtype=torch.float64)
            self.assert_close(torch.linalg.eigvalsh(_gram(group, order)), expected, f"T({order})", 1e-9)

    def test_connected(self) -> None:
        """The connected part has the same Lie generators and no letters of its own."""
        group = self.make()
        part = group.connected
        assert part.lie_dim == group.lie_dim, f"{part.lie_dim} generators of {part}, {group.lie_dim} of {group}"
        if part != group:
            assert part.discrete_generators() == (), f"{part} has discrete generators"
            assert part.connected == part, f"{part} is not its own connected part"
            self.assert_close(part.natural_generators(), group.natural_generators(), "generators of the connected part")

    def test_name(self) -> None:
        """``by_name`` inverts ``name``, where ``named``."""
        group = self.make()
        assert group.name, "a group without a name"
        if self.named:
            assert by_name(group.name) == group, f"by_name({group.name!r}) is {by_name(group.name)!r}"


def _gram(group: Group, order: int) -> torch.Tensor:
    """``Q`` on ``order``-fold tensors from Kronecker products of natural matrices."""
    n = group.natural_dim or 1
    eye = torch.eye(n**order, dtype=torch.float64)
    total = torch.zeros_like(eye)
    for a in group.natural_generators():
        moved = sum(
            (torch.kron(torch.kron(torch.eye(n**i), a), torch.eye(n ** (order - i - 1))) for i in range(order)),
            torch.zeros_like(eye),
        )
        total += moved.mT @ moved
    values, vectors = torch.linalg.eigh(total)
    kept = vectors[:, values < 1e-9]
    for s in group.discrete_generators():
        moved = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(order):
            moved = torch.kron(moved, group.natural_matrix(s.element.value))
        step = (moved - eye) / s.length
        step = step @ kept @ kept.mT if s.on_invariants else step
        total = total + step.mT @ step
    return total
