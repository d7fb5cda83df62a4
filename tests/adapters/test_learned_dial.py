"""The learned dial: its gradient, its ends, where it comes to rest, and that it is a dial to every verb."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from torch import nn
from torch.func import functional_call

import equidial as ed
from equidial.adapters._parametrization import DEAD_ZONE, SoftParametrization, constrained, original_of
from equidial.errors import ArgumentError, FileFormatError, NoMatchingTargetError, StateError
from equidial.filters import MatrixFreeSpectrum
from tests.adapters.models import SPACES, VectorMlp, cnn, logits, relative, same_tensors, snapshot
from tests.adapters.training import batches, kernels, soft_cnn, train

KEYS = [
    "first.parametrizations.weight.0.learned_softness",
    "depthwise.parametrizations.weight.0.learned_softness",
]


def learning(softness: float = 0.5, dtype: torch.dtype = torch.float64) -> Any:
    return ed.learn_dial(soft_cnn(softness, dtype))


def dials(model: Any) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.endswith("learned_softness")]


def links(model: Any) -> list[SoftParametrization]:
    return [link for _, _, link in constrained(model)]


def read(link: SoftParametrization, softness: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """The tensor with a learned dial of any dtype in place of the float32 parameter."""
    return functional_call(link, {"learned_softness": softness}, (original,))


def vector_mlp(softness: float = 0.5) -> Any:
    torch.manual_seed(0)
    config = ed.SoftEquivarianceConfig(group="SO2", softness=softness, representations=SPACES)
    return ed.soften(VectorMlp().double(), config)


@pytest.mark.parametrize("softness", [0.05, 0.4, 0.9])
def test_gradient_in_the_dial_and_the_weight(softness: float) -> None:
    model = learning()
    for module, name, link in constrained(model):
        original = original_of(module, name).detach()[:2].clone().requires_grad_()
        dial = torch.tensor([softness], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda s, w, k=link: read(k, s, w), (dial, original), atol=1e-6)
    mlp = ed.learn_dial(vector_mlp())
    bias = next(link for link in links(mlp) if link.name == "outer.bias")
    assert not bias.has_invariants
    original = torch.randn(6, dtype=torch.float64, requires_grad=True)
    original = (original * 2 * bias.reference / original.norm()).detach().requires_grad_()
    dial = torch.tensor([softness], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, w: read(bias, s, w), (dial, original), atol=1e-6)


def test_gradient_is_zero_where_the_bound_is_not_felt() -> None:
    model = learning(0.9)
    original = original_of(model.first, "weight").detach()
    calm = links(ed.soften(copy.deepcopy(ed.unload(soft_cnn())), ed.SoftEquivarianceConfig("C4", softness=0.5)))[0]
    nearly = calm.filtered(original).detach()  # its defect is half of the reference
    dial = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
    found = read(links(model)[0], dial, nearly)
    assert torch.equal(found, nearly)
    assert float(torch.autograd.grad(found.square().sum(), dial)[0]) == 0.0


def test_gradient_at_zero_is_the_derivative_from_above() -> None:
    for link, original in [(k, original_of(m, n).detach()) for m, n, k in constrained(learning(0.0))]:
        along = torch.randn_like(original)

        def value(s: float, link=link, original=original, along=along) -> torch.Tensor:
            return (read(link, torch.tensor([s], dtype=torch.float64), original) * along).sum()

        dial = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad((read(link, dial, original) * along).sum(), dial)[0]
        first, half = ((value(h) - value(0.0)) / h for h in (1e-5, 5e-6))
        assert float(slope) == pytest.approx(float(2 * half - first), rel=1e-5)
        assert abs(float(slope)) > 1e-3


@pytest.mark.parametrize(
    ("value", "share", "up", "down"),
    [
        (-1.0, 0.0, True, False),
        (-DEAD_ZONE - 0.01, 0.0, True, False),
        (-DEAD_ZONE + 0.01, 0.0, True, True),
        (0.0, 0.0, True, True),
        (0.3, 0.3, True, True),
        (1.0, 1.0, True, True),
        (1 + DEAD_ZONE - 0.01, 1.0, True, True),
        (1 + DEAD_ZONE + 0.01, 1.0, False, True),
        (7.0, 1.0, False, True),
    ],
)
def test_the_share_is_clamped_and_its_gradient_stops_beyond_the_dead_zone(
    value: float, share: float, up: bool, down: bool
) -> None:
    """``up``: whether a gradient that asks for more softness passes."""
    model = learning()
    with torch.no_grad():
        for dial in dials(model):
            dial.fill_(value)
    assert [row.dial for row in ed.status(model)] == [f"softness={share:g}"] * 2
    for sign, passes in ((-1.0, up), (1.0, down)):
        for link in links(model):
            assert float(link.share().detach()) == pytest.approx(share)
            (found,) = torch.autograd.grad(sign * link.share(), [link.learned_softness])  # type: ignore[list-item]
            assert float(found) == (sign if passes else 0.0)


class OneKernel(nn.Module):
    """Its output is its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)

    def forward(self) -> torch.Tensor:
        """``[2, 1, 3, 3]``."""
        return self.conv.weight


@pytest.mark.parametrize("weight", [0.02, 0.1, 0.4, 3.0])
def test_it_rests_where_the_penalty_balances_the_loss(weight: float) -> None:
    """min over W and s of ||F_s(W) - T||^2 / 2 + weight s is min over s of dist(T, cone_s)^2 / 2 + weight s."""
    torch.manual_seed(3)
    model = ed.soften(OneKernel().double(), ed.SoftEquivarianceConfig(group="C4", softness=0.5))
    target = original_of(model.conv, "weight").detach() + 0.3 * torch.randn(2, 1, 3, 3).double()
    ed.learn_dial(model)
    (link,) = links(model)

    def objective(s: float) -> float:
        dial = torch.tensor([s], dtype=torch.float64)
        return float((read(link, dial, target) - target).square().sum()) / 2 + weight * s

    best: Any = minimize_scalar(objective, bounds=(0, 1), method="bounded", options={"xatol": 1e-8})
    expected = 0.0 if objective(0.0) <= float(best.fun) else float(best.x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for _ in range(600):
        optimizer.zero_grad()
        loss = (model() - target).square().sum() / 2 + weight * ed.relaxation_penalty(model)
        loss.backward()
        optimizer.step()
    assert float(link.share().detach()) == pytest.approx(expected, abs=2e-3)
    assert (expected == 0.0) == (weight == 3.0)
    assert (float(link.share().detach()) == 0.0) == (expected == 0.0), "zero is reached exactly"


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.02)],
    ids=["SGD", "AdamW"],
)
def test_it_reaches_zero_on_a_symmetric_target_and_leaves_it_again(make) -> None:
    torch.manual_seed(3)
    model = ed.learn_dial(ed.soften(OneKernel(), ed.SoftEquivarianceConfig(group="C4", softness=0.8)))
    lopsided = 3 * original_of(model.conv, "weight").detach().clone()  # it leaves 0 towards its own asymmetric part
    symmetric = torch.stack([torch.rot90(lopsided, k, (-2, -1)) for k in range(4)]).mean(0)
    optimizer = make(model.parameters())

    def fit(target: torch.Tensor, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model() - target).square().sum() + 0.05 * ed.relaxation_penalty(model)
            loss.backward()
            optimizer.step()
            assert 0 <= float(links(model)[0].share().detach()) <= 1

    fit(symmetric, 250)
    assert float(links(model)[0].share().detach()) == 0.0
    assert ed.certify(model).bound == 0.0
    fit(lopsided, 150)
    assert float(links(model)[0].share().detach()) > 0.2, "what rests at 0 can leave"
    fit(symmetric, 350)
    weight = ed.fold(model).conv.weight
    assert torch.equal(torch.rot90(weight, 1, (-2, -1)), weight)


def test_penalty_in_closed_form() -> None:
    model = learning(0.5)
    with torch.no_grad():
        for dial, value in zip(dials(model), (0.25, 0.5), strict=True):
            dial.fill_(value)
    delta = [row.reference for row in ed.status(model)]
    for power, of, expected, slopes in (
        (1, "softness", 0.75, (1.0, 1.0)),
        (2, "softness", 0.3125, (0.5, 1.0)),
        (1, "beta", 0.25 * delta[0] + 0.5 * delta[1], delta),
        (
            2,
            "beta",
            (0.25 * delta[0]) ** 2 + (0.5 * delta[1]) ** 2,
            (0.5 * delta[0] ** 2, 1.0 * delta[1] ** 2),
        ),
    ):
        found = ed.relaxation_penalty(model, power, of)  # type: ignore[arg-type]
        assert float(found.detach()) == pytest.approx(expected)
        grads = torch.autograd.grad(found, dials(model))
        assert [float(g) for g in grads] == pytest.approx(list(slopes), rel=1e-6)
    for power, of in ((0.5, "softness"), (math.nan, "softness"), (True, "softness"), (1, "size")):
        with pytest.raises(ArgumentError, match="do: "):
            ed.relaxation_penalty(model, power, of)  # type: ignore[arg-type]
    with pytest.raises(StateError, match="call learn_dial, or make layers"):
        ed.relaxation_penalty(soft_cnn())
    link = links(model)[0]
    shard = type("DTensor", (torch.Tensor,), {"__module__": "torch.distributed.tensor"})
    link._parameters["learned_softness"] = torch.zeros(1).as_subclass(shard)  # type: ignore[assignment]
    with pytest.raises(StateError, match="a DTensor, of which each process holds a shard"):
        ed.relaxation_penalty(model)


@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
def test_learning_and_fixing_change_nothing_by_themselves(softness: float) -> None:
    model, x = soft_cnn(softness, torch.float32), torch.randn(2, 3, 9, 9)
    keys, y = list(model.state_dict()), logits(model, x)
    assert ed.learn_dial(model) is model
    assert torch.allclose(logits(model, x), y, atol=1e-6)
    if softness in (0.0, 1.0):
        assert torch.equal(logits(model, x), y), "the ends bit for bit"
    assert [k for k in model.state_dict() if k not in keys] == KEYS
    assert [name for name, _ in model.named_parameters() if name.endswith("softness")] == KEYS
    assert [d.dtype for d in dials(model)] == [torch.float32] * 2
    ed.learn_dial(model)
    rows = list(ed.status(model))
    assert all(row.learned for row in rows)
    assert "(learned)" in str(ed.status(model))
    assert "(learned)" in repr(model)
    assert ed.fix_dial(model) is model
    assert list(model.state_dict()) == keys
    assert torch.allclose(logits(model, x), y, atol=1e-6)
    assert [row.threshold for row in ed.status(model)] == [row.threshold for row in rows]


def test_only_some_modules_learn() -> None:
    model = ed.learn_dial(soft_cnn(0.4), target_modules=["depthwise"])
    assert [row.learned for row in ed.status(model)] == [False, True]
    before = model.first.parametrizations.weight[0].dial
    train(model, torch.optim.Adam(model.parameters(), lr=0.05), batches(3), penalty=1.0)
    first, second = ed.status(model)
    assert first.dial == str(before)
    assert float(second.dial.removeprefix("softness=")) < 0.3
    ed.fix_dial(model, ["depthwise"])
    assert not any(row.learned for row in ed.status(model))


def test_at_one_a_trained_tensor_is_no_more_asymmetric_than_it_was_found() -> None:
    model = learning(1.0)
    with torch.no_grad():
        original_of(model.first, "weight").add_(torch.randn(8, 3, 3, 3))
    row = ed.status(model).tensors[0]
    assert row.dial == "softness=1"
    assert links(model)[0].constraint.defect(model.first.weight.detach().flatten(2)) <= row.reference * (1 + 2e-5)
    y = kernels(model)
    ed.fix_dial(model)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(kernels(model), y, strict=True)), "the function stays"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_leave_learned_dials_alone(dtype: torch.dtype) -> None:
    model = learning(0.3, torch.float32)
    before = [row.threshold for row in ed.status(model)]
    model.to(dtype)
    assert [d.dtype for d in dials(model)] == [torch.float32] * 2
    assert [row.threshold for row in ed.status(model)] == before
    model(torch.randn(1, 3, 9, 9, dtype=dtype)).sum().backward()
    assert all(d.grad is not None for d in dials(model))


def test_copies_learn_apart_and_fold_and_unload_take_the_parameters_away() -> None:
    model = learning(0.5)
    keys, x = list(cnn().state_dict()), batches(1)[0][0]
    twin = copy.deepcopy(model)
    train(twin, torch.optim.Adam(twin.parameters(), lr=0.05), batches(3), penalty=1.0)
    assert [row.dial for row in ed.status(model)] == ["softness=0.5"] * 2
    assert all(float(d.detach()) < 0.5 for d in dials(twin))
    y = logits(twin, x)
    ed.fold(twin)
    assert list(twin.state_dict()) == keys
    assert torch.allclose(logits(twin, x), y, atol=1e-12)
    ed.unload(model)
    assert list(model.state_dict()) == keys
    assert len(list(model.parameters())) == len(list(cnn().parameters()))


def test_saved_loaded_certified_and_trained_on(tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = cnn()
    model = learning(0.6, torch.float32)
    train(model, torch.optim.Adam(model.parameters(), lr=0.05), batches(4, torch.float32), penalty=0.5)
    with torch.no_grad():
        dials(model)[0].fill_(-0.03)
    x = batches(1, torch.float32)[0][0]
    ed.save(model, tmp_path)
    stored = load_file(tmp_path / "soft_equivariance.safetensors")
    for row in ed.status(model):  # what a reader without learned dials finds
        assert float(stored[f"dial/{row.name}/threshold"]) == row.threshold
        assert f"softness={float(stored[f'dial/{row.name}/softness']):g}" == row.dial
    loaded = ed.load(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(loaded, x), logits(model, x))
    assert list(ed.status(loaded)) == list(ed.status(model))
    assert [float(d.detach()) for d in dials(loaded)] == [float(d.detach()) for d in dials(model)]
    assert [r.bound for r in ed.certify(loaded)] == [r.bound for r in ed.certify(model)]
    assert ed.certify(loaded).layers[0].bound == 0.0
    assert "softness=0" in (tmp_path / "README.md").read_text()
    a, b = (train(m, torch.optim.SGD(m.parameters(), lr=0.1), batches(2, torch.float32), 0.1) for m in (loaded, model))
    assert a == b
    for value in (math.nan, math.inf):
        save_file(
            stored | {"dial/first.weight/learned": torch.tensor([value])}, tmp_path / "soft_equivariance.safetensors"
        )
        with pytest.raises(FileFormatError, match="one finite float64 number"):
            ed.load(copy.deepcopy(base), tmp_path)


def test_a_learned_dial_that_stands_elsewhere_is_refused(tmp_path: Path) -> None:
    """With hashes left out, so that nothing else finds the edit: two readers would see two models."""
    torch.manual_seed(1)
    base = cnn()
    ed.save(learning(0.6, torch.float32), tmp_path)
    document = json.loads((tmp_path / "soft_equivariance_config.json").read_text())
    del document["stored"]
    (tmp_path / "soft_equivariance_config.json").write_text(json.dumps(document))
    ed.load(copy.deepcopy(base), tmp_path)
    stored = load_file(tmp_path / "soft_equivariance.safetensors")
    for key, value in (("learned", 0.5), ("threshold", 0.1), ("budget", 0.1)):
        edited = stored | {f"dial/first.weight/{key}": torch.tensor([value], dtype=torch.float64)}
        save_file(edited, tmp_path / "soft_equivariance.safetensors")
        with pytest.raises(FileFormatError, match=r"at which the learned dial of first\.weight stands"):
            ed.load(copy.deepcopy(base), tmp_path)


def test_a_state_dict_carries_the_learned_dial() -> None:
    model, other = learning(0.2), learning(0.9)
    other.load_state_dict(model.state_dict())
    assert list(ed.status(other)) == list(ed.status(model))
    with pytest.raises(RuntimeError, match="learned_softness"):
        soft_cnn().load_state_dict(model.state_dict())


def test_set_dial_moves_a_learned_dial_and_it_learns_on() -> None:
    model = learning(0.5, torch.float32)
    ed.set_softness(model, 0.3)
    assert [float(d.detach()) for d in dials(model)] == pytest.approx([0.3, 0.3])
    ed.set_dial(model, threshold=0.1)
    assert all(0.1 * (1 - 1e-6) < row.threshold <= 0.1 for row in ed.status(model)), "rounded down, never up"
    ed.set_dial(model, max_error=0.05)
    assert ed.certify(model).bound <= 0.05
    ed.set_dial(model, max_error=1.9)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(1, torch.float32), penalty=1.0)
    before = snapshot(model)
    wrongs: list[dict[str, Any]] = [{"threshold": 5.0}, {"softness": 1.5}]
    for wrong in wrongs:
        with pytest.raises(ArgumentError, match="do: "):
            ed.set_dial(model, **wrong)
    assert same_tensors(snapshot(model), before)
    mlp = ed.learn_dial(vector_mlp())
    with pytest.raises(ArgumentError, match=r"learned dial of outer\.bias"):
        ed.set_dial(mlp, max_error=1.0, target_modules=["outer"])
    with pytest.raises(StateError, match="call fix_dial first"):
        ed.set_network_error(mlp, 1.0, ball=1.0, input_shape=(11,))


def test_compiled_it_equals_eager_and_moving_it_does_not_recompile() -> None:
    model, x = learning(0.4, torch.float32), batches(1, torch.float32)[0][0]
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled, frames = torch.compile(twin, backend=count, fullgraph=True), set()
    for softness in (0.4, 0.0, 0.8, 1.0):
        for m in (model, twin):
            ed.set_softness(m, softness)
            m.zero_grad()
        model(x).square().sum().backward()
        compiled(x).square().sum().backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)
        frames.add(count.frame_count)
    assert len(frames) == 1
    torch._dynamo.reset()


def test_tensors_that_are_symmetric_already_keep_their_dial() -> None:
    model = cnn()
    with torch.no_grad():
        model.first.weight.fill_(1.0)
    with pytest.warns(ed.EquidialWarning):
        ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.5))
    with pytest.warns(ed.EquidialWarning, match=re.escape("first.weight: exactly symmetric as found")):
        ed.learn_dial(model)
    assert [row.learned for row in ed.status(model)] == [False, True]


def matrix_free() -> Any:
    model = soft_cnn()
    link = links(model)[0]
    link.spectrum = MatrixFreeSpectrum(link.constraint)
    return model


def retracted() -> Any:
    model = soft_cnn()
    ed.retract(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return model


def absolute_threshold() -> Any:
    model = vector_mlp()
    ed.set_dial(model, threshold=2.0)
    return model


BAD = {
    "plain": (cnn, {}, StateError, "softened model for learn_dial"),
    "no match": (soft_cnn, {"target_modules": ["frist"]}, NoMatchingTargetError, "first"),
    "hard": (lambda: soft_cnn(response="hard"), {}, ArgumentError, "response='nearest'"),
    "matrix-free": (matrix_free, {}, ArgumentError, "known spectrum"),
    "retracted": (retracted, {}, StateError, "retract mode"),
    "wrapped": (lambda: nn.DataParallel(soft_cnn()), {}, StateError, "then wrap it"),
    "absolute threshold": (absolute_threshold, {}, ArgumentError, "call set_softness first"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_models_are_refused_whole(case: str) -> None:
    make, arguments, error, message = BAD[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=message) as caught:
        ed.learn_dial(model, **arguments)
    assert "do: " in str(caught.value)
    assert same_tensors(snapshot(model), before)


def test_fix_dial_wants_a_softened_model() -> None:
    with pytest.raises(StateError, match="softened model for fix_dial"):
        ed.fix_dial(cnn())
    model = soft_cnn(0.3)
    assert relative(ed.fix_dial(model).first.weight, model.first.weight) == 0
