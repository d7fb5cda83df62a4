"""Certificates of layers with a continuous kernel, against dense matrices, naive kernels and extended precision."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import equidial as ed
from equidial.errors import CertificateError
from equidial.metrics import transform_images
from equidial.nn import (
    GroupConv2d,
    GroupPool2d,
    LiftingConv2d,
    PointwiseGroupConv2d,
    SoftConv1d,
    SoftConv2d,
    group_defect,
    kernel_error,
    translation_defect,
)

SIZE = 5
LAYERS = {"lift": LiftingConv2d, "group": GroupConv2d, "pointwise": PointwiseGroupConv2d}
quiet = pytest.mark.filterwarnings("ignore:.*frequencies (fold|alias):equidial.EquidialWarning")


def make(kind: str, group: str, omega_prime: dict[str, float], **more: Any) -> Any:
    window = () if kind == "pointwise" else (3,)
    if kind != "pointwise":
        more = {"padding": 1, "padding_mode": "circular"} | more
    return LAYERS[kind](2, 3, *window, group=group, omega_prime=omega_prime, **more).double()


def dense(layer: Any, size: int) -> torch.Tensor:
    """The matrix of a layer without its bias, by applying it to all unit inputs: ``[out U h w, in V h w]``."""
    shape = (layer.in_channels, *(() if layer.coordinates.lifts else (layer.coordinates.inputs,)), size, size)
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return (layer(units) - layer(torch.zeros_like(units[:1]))).flatten(1).T


def act(layer: Any, g: Any, x: torch.Tensor, lifted: bool) -> torch.Tensor:
    """``(g f)[.., u, p] = f[.., g^-1 u, g^-1 p]`` by its definition."""
    if lifted:
        elements = layer.samples.group.elements()
        x = torch.stack([x[..., elements.index(g.inverse() @ u), :, :] for u in elements], dim=-3)
    return transform_images(x, g)


def dense_defect(layer: Any, g: Any, size: int) -> float:
    """``||K rho - rho K||_F / ||K||_F`` of the matrices."""
    matrix = dense(layer, size).detach()
    lifts, u = layer.coordinates.lifts, layer.coordinates.outputs
    into = (layer.in_channels, size, size) if lifts else (layer.in_channels, u, size, size)
    moved_input = act(layer, g.inverse(), matrix.view(-1, *into), not lifts).reshape(matrix.shape)  # K rho
    out = matrix.T.reshape(-1, layer.out_channels, u, size, size)
    moved_output = act(layer, g, out, True).reshape(matrix.T.shape).T
    return float((moved_input - moved_output).norm() / matrix.norm())


@quiet
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("group", ["C4", "C8", "D4", "D8", "C6"])
@pytest.mark.parametrize("axes", ["rotation", "all", "strict"])
def test_the_certificate_is_the_defect_of_the_matrix(kind: str, group: str, axes: str) -> None:
    drawn = torch.rand(4, generator=torch.Generator().manual_seed(len(kind + group)), dtype=torch.float64)
    amounts = dict(zip(("x", "y", "rotation", "flip"), (2 * drawn).tolist(), strict=True))
    amounts = {axis: v for axis, v in amounts.items() if axes == "all" or axis in (axes, "flip")}
    amounts = {} if axes == "strict" else amounts
    if group.startswith("C"):
        amounts.pop("flip", None)
    layer = make(kind, group, amounts)
    samples = layer.samples.group
    found = group_defect(layer, (SIZE, SIZE))
    values = dict(zip(found.elements, found.values, strict=True))
    lattice = [
        g for g in samples.elements() if samples.quarter_turns_and_mirror(g) is not None and g != samples.identity()
    ]
    for g in lattice:
        assert values[str(g)] == pytest.approx(dense_defect(layer, g, SIZE), abs=1e-12), g
    row = ed.certify(layer, image_size=SIZE).layers[0]
    assert row.measured == max(values.values())
    assert row.bound >= row.measured
    assert row.bound - row.measured <= 1e-10
    assert (row.level == "image") == (samples.n in (1, 2, 4) or "x" in amounts)
    assert (row.bound == 0) == (axes == "strict" or not amounts)
    if "x" not in amounts:
        assert row.absolute == pytest.approx(row.bound * float(layer.kernel().detach().norm()), rel=1e-9)
        for g in samples.elements():
            if g != samples.identity():
                naive = naive_defect(layer, g)
                assert values[str(g)] == pytest.approx(naive, abs=1e-12), g


def naive_defect(layer: Any, g: Any) -> float:
    """Kernels at ``u`` and with the absolute element ``g^-1 u``, sample by sample."""
    samples = layer.samples.group.elements()
    kernel, total = layer.kernel().detach(), 0.0
    for i, u in enumerate(samples):
        order = torch.full((len(samples),), samples.index(g.inverse() @ u))
        other = layer.kernel(order=order).detach()[:, i]
        total += float((kernel[:, i] - other).square().sum())
    return math.sqrt(total) / float(kernel.norm())


@pytest.mark.parametrize("layer", [SoftConv2d, SoftConv1d])
@pytest.mark.parametrize("along", [{"x": 1.3}, {"translation": 0.7}, {"x": 0.0, "y": 2.0}])
def test_shifts_are_judged_on_the_places_that_stay(layer: type, along: dict[str, float]) -> None:
    if layer is SoftConv1d:
        along = {"x": along.get("x") or 0.4}
    made = layer(2, 3, 3, omega_prime=along, padding=1).double()
    sizes = (6,) if layer is SoftConv1d else (5, 6)
    kernels = made.kernel(made.coordinates.places(sizes)).detach().unflatten(0, sizes)
    found = translation_defect(made, sizes)
    for word, value in zip(found.elements, found.values, strict=True):
        step, name = word.split()
        axis = 0 if name == "rows" or len(sizes) == 1 else 1
        n = sizes[axis] - int(step)
        a, b = kernels.narrow(axis, int(step), n), kernels.narrow(axis, 0, n)
        shared = math.sqrt(float(a.square().sum() + b.square().sum()) / 2)
        assert value == pytest.approx(float((a - b).norm()) / shared, abs=1e-12), word
    certificate = ed.certify(made, image_size=sizes if len(sizes) == 2 else (1, 6))
    (row,) = certificate
    assert (row.name, row.group, row.kind, row.level) == ("(the model):shifts", f"T{len(sizes)}", "exact", "kernel")
    assert row.measured == found.supremum
    ed.verify(certificate, made)


def test_what_is_held_at_once_and_what_is_computed_again_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make("group", "C4", {"translation": 1.0, "rotation": 0.3})
    expected = translation_defect(layer, (7, 6)), group_defect(layer, (6, 6))
    monkeypatch.setattr("equidial.nn._defects._HELD", 0)
    monkeypatch.setattr("equidial.nn._defects._CHUNK", 1)
    found = translation_defect(layer, (7, 6)), group_defect(layer, (6, 6))
    for a, b in zip(expected, found, strict=True):
        assert a.elements == b.elements
        assert a.values == pytest.approx(b.values, rel=1e-12)


@quiet
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("group", ["C4", "C6", "C8", "D4"])
def test_a_harmonic_keeps_its_subgroup_exact_and_breaks_the_rest(kind: str, group: str) -> None:
    n = int(group[1:])
    for k in range(n + 1):
        layer = make(kind, group, {"rotation": float(k)}, harmonics=True)
        kept = math.gcd(k, n)
        found = group_defect(layer)

        def steps(g: Any) -> int:
            return g.value[0] if group[0] == "D" else g.value

        for word, value, error in zip(found.elements, found.values, found.errors, strict=True):
            g = next(g for g in layer.samples.group.elements() if str(g) == word)
            exact = all(k * (steps(g.inverse() @ u) - steps(u)) % n == 0 for u in layer.samples.group.elements())
            if group[0] == "C":
                assert exact == (g.value % (n // kept) == 0)  # C(gcd(k, n))
            assert (value == 0 and error == 0) == exact, (k, word, value)
            assert exact or value > 1e-3
        row = ed.certify(layer).layers[0]
        assert (row.bound == 0) == (not any(found.values))
        assert k % n or row.bound == 0
        told = [note for note in row.notes if "exact" in note]
        assert bool(told) == (k > 0)
        assert not told or f"harmonic {k} keeps the rotations of C{kept} exact" in told
        assert any("fold" in note or "alias" in note for note in row.notes) == (2 * k >= n)


@quiet
@pytest.mark.parametrize("harmonics", [True, False])
def test_the_certificate_follows_the_defect_up_to_the_fold(harmonics: bool) -> None:
    """Theory 7: for one step of C8 it rises from 0 to harmonic N/2; harmonics fall again to 0 at N."""
    n = 8
    bounds = []
    for k in range(n + 1):
        drawn = []
        for seed in range(4):
            torch.manual_seed(seed)
            layer = make("lift", f"C{n}", {"rotation": float(k)}, harmonics=harmonics)
            certificate = ed.certify(layer, radius=2 * math.pi / n)
            ed.verify(certificate, layer)
            drawn.append(certificate.bound)
            assert drawn[-1] == pytest.approx(group_defect(layer).within(2 * math.pi / n).supremum, abs=1e-10)
        bounds.append(sum(drawn) / len(drawn))
    assert bounds[0] == 0
    rising = bounds[: n // 2 + 1]
    assert all(a < b for a, b in itertools.pairwise(rising)), bounds
    if harmonics:
        falling = bounds[n // 2 :]
        assert all(a > b for a, b in itertools.pairwise(falling)), bounds
        assert bounds[n] == 0


def test_a_tiny_amount_is_never_called_exact() -> None:
    layer = make("group", "C8", {"rotation": 1e-300})
    found = group_defect(layer)
    assert found.supremum < 1e-13
    assert found.bound > 0


@pytest.mark.parametrize("omega_prime", [0.3, 1e-9])
def test_a_weight_that_hides_the_relaxation_keeps_its_digits(omega_prime: float) -> None:
    """Defects far below the root of the unit roundoff: not through squares of the weight."""
    layer = make("lift", "C4", {"rotation": omega_prime})
    found, scale = group_defect(layer).values, group_defect(make("lift", "C4", {"rotation": 0.3})).supremum
    exact = [naive_defect(layer, g) for g in layer.samples.group.elements()[1:]]
    assert found == pytest.approx(exact, rel=1e-5, abs=1e-15)
    assert max(found) < 10 * scale


@quiet
@pytest.mark.skipif(bool(numpy.finfo(numpy.longdouble).eps > 1e-18), reason="no extended precision here")
@pytest.mark.parametrize("omega_prime", [1.0, 30.0, 1000.0])
def test_the_rounding_that_is_added_covers_what_was_lost(omega_prime: float) -> None:
    """The kernel in extended precision, from the same stored weights."""
    lost, allowed = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        layer = make("group", "C8", {"rotation": omega_prime, "x": 0.0})
        phi = layer.sampled_features()[0].detach().numpy()
        given, f = layer.coordinates, layer.features

        def wide(tensor: torch.Tensor) -> numpy.ndarray:
            return tensor.detach().double().numpy().astype(numpy.longdouble)

        table, pi = layer.samples.table, numpy.longdouble("3.14159265358979323846264338327950288")
        turn = numpy.round(wide(table.relative_angle) * 8 / (2 * pi)) * (2 * pi / 8)
        angle = numpy.round(wide(table.angle) * 8 / (2 * pi)) * (2 * pi / 8)
        grid = wide(given.grid()[given.taps()])
        cos, sin = numpy.cos(angle), numpy.sin(angle)
        x = cos[:, None] * grid[:, 0] + sin[:, None] * grid[:, 1]
        y = -sin[:, None] * grid[:, 0] + cos[:, None] * grid[:, 1]
        shape = (8, 8, len(grid))
        scale = [numpy.longdouble(layer.omega.value(axis)) for axis in given.relative_axes]
        assert given.relative_axes == ("x", "y", "rotation")
        columns = (x[:, None, :], y[:, None, :], turn[:, :, None])
        a = numpy.stack([s * numpy.broadcast_to(c, shape) for s, c in zip(scale, columns, strict=True)], axis=-1)
        assert layer.omega_prime.axes == ("x", "rotation")
        b = numpy.stack([0 * angle, numpy.longdouble(omega_prime) * angle], axis=-1)[:, None, None]
        z = a @ wide(f.relative.weight).T + wide(f.relative.bias) + b @ wide(f.absolute.weight).T
        z = numpy.sin(z)
        for hidden in f.hidden:
            z = numpy.sin(z @ wide(hidden.weight).T + wide(hidden.bias))
        weight = wide(layer.weight)
        apart = numpy.einsum("uvtm,ocm->oucvt", phi.astype(numpy.longdouble) - z, weight) / 8
        lost.append(float(numpy.sqrt((apart**2).sum())))
        allowed.append(kernel_error(layer))
    assert max(a / b for a, b in zip(lost, allowed, strict=True)) < 0.1, (lost, allowed)


class Net(nn.Module):
    """A softened convolution behind layers born soft."""

    def __init__(self, group: str = "C4", omega_prime: dict[str, float] | None = None):
        super().__init__()
        self.lift = LiftingConv2d(1, 3, 3, padding=1, group=group, omega_prime=omega_prime)
        self.conv = GroupConv2d(3, 4, 3, stride=2, padding=1, group=group, omega_prime=omega_prime)
        self.pool = GroupPool2d()
        self.plain = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.pool(torch.relu(self.conv(torch.relu(self.lift(x)))))).mean((2, 3))


CONFIG = ed.SoftEquivarianceConfig(group="C4", softness=0.5)


def certified(how: str) -> tuple[ed.Certificate, Any, Any]:
    amount = {"rotation": 0.7, "translation": 0.2} if "space" in how else {"rotation": 0.7}
    model = Net("C8" if "C8" in how else "C4", amount)
    config = CONFIG if "config" in how else None
    if "softened" in how:
        ed.soften(model, CONFIG)
    return ed.certify(model, config, image_size=9), model, config


@pytest.mark.parametrize("how", ["plain", "plain C8", "in space", "config", "softened", "softened in space C8"])
def test_it_verifies_with_the_model_and_as_a_file(how: str, tmp_path: Any) -> None:
    certificate, model, config = certified(how)
    names = [row.name for row in certificate]
    soft = ["plain.weight"] if "config" in how or "softened" in how else []
    layers = [n for name in ("lift", "conv") for n in ([name, f"{name}:shifts"] if "space" in how else [name])]
    assert names == soft + layers
    ed.verify(certificate, model, config)
    certificate.save(tmp_path / "c.json")
    read = ed.Certificate.load(tmp_path / "c.json")
    assert read == certificate
    ed.verify(read, model, config)
    assert "lift" in str(certificate)
    assert certificate["lift"].dial.endswith("rotation 0.7")
    certificate.plot()


def change(model: Any, what: str) -> None:
    with torch.no_grad():
        if what == "weight":
            model.lift.weight[0, 0, 0] += 1e-6
        elif what == "feature":
            model.conv.features.relative.weight[0, 0] += 1e-6
        elif what == "omega'":
            model.lift.omega_prime.set("rotation", 0.8)
        elif what == "samples":
            ed.nn.set_samples(model, 8)
        elif what == "dtype":
            model.double()


@pytest.mark.parametrize(
    ("row", "edit", "model_edit", "message"),
    [
        ("lift", {}, "weight", "weights is"),
        ("conv", {}, "feature", "weights is"),
        ("lift", {}, "omega'", "weights is"),
        ("lift", {}, "samples", "group is C8"),
        ("conv", {}, "dtype", "dtype is float64"),
        ("lift", {"bound": 0.5}, "", "certified was 0.5"),
        ("conv:shifts", {"bound": 0.0}, "", "certified was 0"),
        ("lift", {"absolute": 1e-3}, "", "absolute is"),
        ("conv", {"group": "C8"}, "", "group is C4"),
        ("lift", {"elements": "all of D4"}, "", "elements is"),
        ("lift:shifts", {"level": "image"}, "", "level is kernel"),
        ("lift:shifts", {"radius": 2.0}, "", "elements is"),
        ("lift", {"kind": "abstained"}, "", "abstains"),
        ("conv", {"name": "gone"}, "", "conv: constrained in the model, without a row"),
        ("lift:shifts", {"name": "other:shifts"}, "", "other:shifts: not constrained"),
        ("lift", {"bound": 3.0}, "", None),
    ],
)
def test_planted_faults_are_refused(row: str, edit: dict[str, Any], model_edit: str, message: str | None) -> None:
    certificate, model, _ = certified("in space")
    rows = tuple(replace(r, **edit) if r.name == row else r for r in certificate)
    change(model, model_edit)
    if message is None:
        ed.verify(replace(certificate, layers=rows), model)  # a larger bound is a weaker claim
        return
    with pytest.raises(CertificateError, match=message):
        ed.verify(replace(certificate, layers=rows), model)


@pytest.mark.parametrize(
    ("build", "given", "expected"),
    [
        # right: the level, the kind and the elements of the first row
        (lambda: Net("C4"), {}, ("lift", "exact", "image", "all of C4")),
        (lambda: Net("C8"), {}, ("lift", "exact", "kernel", "all of C8")),
        (lambda: Net("C8"), {"radius": 1.0}, ("lift", "exact", "kernel", "C8 within 1 rad")),
        (lambda: Net("D4"), {"radius": 0}, ("lift", "exact", "image", "D4 within 0 rad")),
        (lambda: Net("C4", {"translation": 1.0}), {}, ("lift", "abstained", "kernel", "all of C4")),
        (lambda: Net("C4", {"translation": 1.0}), {"image_size": 8}, ("lift", "exact", "image", "all of C4")),
        (lambda: Net("C4", {"translation": 0.0}), {}, ("lift", "exact", "image", "all of C4")),
        (
            lambda: Net("C8", {"translation": 1.0}),
            {"image_size": 8},
            ("lift", "exact", "image", "3 of 7 in all of C8: those that permute 8x8 places"),
        ),
        (lambda: Net("C3", {"translation": 1.0}), {"image_size": 8}, ("lift", "abstained", "kernel", "all of C3")),
        (
            lambda: Net("C4", {"translation": 1.0}),
            {"image_size": (8, 6)},
            ("lift", "exact", "kernel", "1 of 3 in all of C4: those that permute 8x6 places"),
        ),
        (
            lambda: LiftingConv2d(1, 2, 3, omega_prime={"translation": 1.0}, group="C4", domain_size=7),
            {},
            ("(the model)", "exact", "image", "all of C4"),
        ),
        (lambda: Net("C4"), {"dtype": torch.bfloat16}, ("lift", "exact", "image", "all of C4")),
        (lambda: Net("C4"), {"norm": "spectral"}, ("lift", "exact", "image", "all of C4")),
        (lambda: GroupConv2d(1, 2, 3, group="C4"), {"image_size": 8}, ("(the model)", "exact", "image", "all of C4")),
        # wrong
        (lambda: Net("C4"), {"radius": -1.0}, "radius >= 0"),
        (lambda: Net("C4"), {"radius": "all"}, "radius >= 0"),
        (lambda: Net("C4"), {"norm": "max"}, "norm out of"),
        (lambda: Net("C4"), {"dtype": torch.int8}, "floating-point dtype"),
        (lambda: nn.Conv2d(1, 2, 3), {}, "plain Conv2d without config"),
        (lambda: Net("C4").to("meta"), {}, "meta tensors"),
        (lambda: GroupConv2d(1, 2, 3, group="C4"), {"image_size": 2}, "reads images"),
        (lambda: Net("C4"), {"config": ed.SoftEquivarianceConfig("C4", softness=0.1, target_modules=["no"])}, "'no'"),
    ],
)
def test_right_and_wrong_input(build: Any, given: dict[str, Any], expected: Any) -> None:
    model = build()
    if isinstance(expected, str):
        with pytest.raises(ed.EquidialError, match=rf"(?s){expected}.*do: |expected.*{expected}.*do: "):
            ed.certify(model, **given)
        return
    row = ed.certify(model, **given).layers[0]
    assert (row.name, row.kind, row.level, row.elements) == expected
    if row.kind == "abstained":
        assert math.isnan(row.bound)
        assert "image_size=" in row.notes[0] or "permutes" in row.notes[0]
    if "norm" in given:
        assert any("keeps the Frobenius norm" in note for note in row.notes)
    assert row.dtype == ("bfloat16" if "dtype" in given else "float32")


def test_the_kernel_level_of_windows_that_no_turn_keeps() -> None:
    cases = [
        ({"kernel_size": 3, "padding": 1, "stride": 2}, 8, "does not fit"),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, 9, None),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, None, "image_size="),
        ({"kernel_size": 2, "padding": "same"}, 8, "does not fit"),
        ({"kernel_size": (3, 5), "padding": (1, 2)}, 8, "does not fit"),
        ({"kernel_size": 4, "padding": 1}, 8, None),
    ]
    for arguments, size, reason in cases:
        with (
            pytest.warns(ed.EquidialWarning)
            if "same" in arguments.values() or isinstance(arguments["kernel_size"], tuple)
            else _nothing()
        ):
            layer = LiftingConv2d(1, 2, group="C4", **arguments)
        (row,) = ed.certify(layer, image_size=size)
        assert (row.level, row.bound) == ("image" if reason is None else "kernel", 0.0)
        assert reason is None or any(reason in note for note in row.notes), (arguments, row.notes)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_learned_shift_at_0_is_exact_and_on_a_torus_an_image_row() -> None:
    for mode, level in (("circular", "image"), ("zeros", "kernel")):
        layer = SoftConv2d(1, 2, 3, padding=1, padding_mode=mode, omega_prime=0.0, learn_omega_prime=True)
        certificate = ed.certify(layer)
        (row,) = certificate
        assert (row.bound, row.level, row.elements) == (0.0, level, "all shifts by whole places")
        ed.verify(certificate, layer)


def test_rows_that_say_nothing_of_the_image_abstain_at_its_level() -> None:
    certificate = ed.certify(Net("C8", {"rotation": 0.5})).at("image")
    assert all(row.kind == "abstained" for row in certificate)
    assert math.isnan(certificate.bound)


def test_weights_that_are_not_finite_get_no_number() -> None:
    model: Any = Net("C4", {"rotation": 0.5})
    with torch.no_grad():
        model.lift.features.hidden[0].weight[0, 0] = math.nan
    row = ed.certify(model)["lift"]
    assert (row.kind, row.notes[0]) == ("abstained", "abstained: its weights are not finite")


def test_a_certificate_of_tensors_alone_asks_for_the_model() -> None:
    certificate, model, _ = certified("plain")
    with pytest.raises(CertificateError, match="pass the model"):
        ed.verify(certificate, dict(model.state_dict()))


def test_the_radius_of_a_configuration_is_none_of_the_layers(tmp_path: Any) -> None:
    """It is in the unit of its own group: a small one must not make the rows of layers speak of no element."""
    model = ed.soften(
        Net("C4", {"rotation": 0.5, "translation": 0.1}),
        ed.SoftEquivarianceConfig(group="C4", softness=0.5, radius=0.5, image_size=9),
    )
    certificate = ed.certify(model)
    assert [row.elements for row in certificate][:3] == [
        "C4 within 0.5 rad",
        "all of C4",
        "shifts by 1 to 4 places, by rows or by columns",
    ]
    assert all(row.bound > 0.01 for row in certificate if row.name != "plain.weight")
    ed.verify(certificate, model)
    ed.save(model, tmp_path / "saved")
    assert ed.Certificate.load(tmp_path / "saved" / "certificate.json") == certificate
