"""Bad input: a clear error, and the model as it was, to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import equidial as ed
from equidial.errors import (
    ArgumentError,
    BudgetError,
    EquidialError,
    NoMatchingTargetError,
    StateError,
    TargetError,
)
from tests.adapters.models import SPACES, VectorMlp, cnn, same_tensors, snapshot

Config = ed.SoftEquivarianceConfig
HOUSE_STYLE = r"(?s)expected .*got: .*do: "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "Q8", "softness": 0.5}, r"C<n> and D<n>.*SO2.*Flip"),
        ({"group": "C4"}, "exactly one dial"),
        ({"group": "C4", "softness": 0.5, "threshold": 0.1}, "softness=0.5 and threshold=0.1"),
        ({"group": "C4", "softness": 0.5, "max_error": 0.1}, "exactly one dial"),
        ({"group": "C4", "softness": 1.5}, r"softness in \[0, 1\]"),
        ({"group": "C4", "softness": -0.01}, r"softness in \[0, 1\]"),
        ({"group": "C4", "softness": float("nan")}, "a number for softness"),
        ({"group": "C4", "softness": True}, "a number for softness"),
        ({"group": "C4", "threshold": -1.0}, "threshold >= 0"),
        ({"group": "C4", "max_error": "small"}, "a number for max_error"),
        ({"group": "C4", "softness": 0.5, "response": "soft"}, "a response out of"),
        ({"group": "C4", "softness": 0.5, "softness_pattern": {"conv": 2.0}}, r"softness_pattern\['conv'\]"),
        ({"group": "C4", "softness": 0.5, "representations": {"fc": ("Vector",)}}, "two texts"),
        ({"group": "C4", "softness": 0.5, "representations": {"fc": ("Vector", "Vektor")}}, r"representations\['fc'\]"),
        ({"group": "C4", "softness": 0.5, "radius": 0.0}, "radius > 0"),
        ({"group": "C4", "softness": 0.5, "image_size": (3, 4, 5)}, "image_size"),
        ({"group": "C4", "softness": 0.5, "image_size": 0}, "image_size"),
    ],
)
def test_the_configuration_checks_itself(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        Config(**arguments)
    assert isinstance(caught.value, ValueError)
    assert "do: " in str(caught.value)


def test_a_good_configuration_round_trips() -> None:
    config = Config(
        group=ed.groups.SO(2),
        softness=0.3,
        target_modules=["a", "b.c"],
        softness_pattern={"b": 0.5},
        representations=SPACES,
        image_size=224,
    )
    assert config.group == "SO2"
    assert config.image_size == (224, 224)
    assert Config.from_dict(config.to_dict()) == config
    with pytest.raises(EquidialError, match="keys out of"):
        Config.from_dict(config.to_dict() | {"strictness": 1})


def rectangular() -> Any:
    return nn.Sequential(nn.Conv2d(3, 4, (3, 5)))


def even_kernel() -> Any:
    return nn.Sequential(nn.Conv2d(2, 3, 4))


def not_a_number() -> Any:
    model = cnn()
    model.depthwise.weight.data[0, 0, 0, 0] = float("nan")
    return model


def tied() -> Any:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    return model


def weight_normed() -> Any:
    model = cnn()
    parametrizations.weight_norm(model.first)
    return model


def old_weight_normed() -> Any:
    model = cnn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.first)
    return model


def quantised() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))


def integer_weight() -> Any:
    model = cnn()
    model.first.weight = nn.Parameter(torch.zeros(8, 3, 3, 3, dtype=torch.int8), requires_grad=False)
    return model


def on_meta() -> Any:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 4, 3))


def adapted_by_peft() -> Any:
    """A layer of an adapter inside, as ``get_peft_model`` puts it there; PEFT itself is not needed to find it."""
    model = cnn()
    layer = type("Linear", (nn.Module,), {"__module__": "peft.tuners.lora.layer"})()
    layer.base_layer = model.head
    model.head = layer
    return model


def peft_model() -> Any:
    wrapper = type("PeftModelForImageClassification", (nn.Module,), {"__module__": "peft.peft_model"})()
    wrapper.base_model = cnn()
    return wrapper


def compiled_inside() -> Any:
    model = cnn()
    model.first = torch.compile(model.first, backend="eager")
    return model


def compiled_in_place() -> Any:
    model = cnn()
    model.compile(backend="eager")
    return model


def wrapped(name: str) -> Any:
    wrapper = type(name, (nn.Module,), {})()
    wrapper.module = cnn()
    return wrapper


def fully_sharded() -> Any:
    """``fully_shard`` changes the class of a module in place: ``FSDPTinyCnn(FSDPModule, TinyCnn)``."""
    model = cnn()
    marker = type("FSDPModule", (), {})
    model.__class__ = type(f"FSDP{type(model).__name__}", (marker, type(model)), {})
    return model


def tensor_subclass(name: str, module: str) -> Any:
    """A weight whose class is another library's, as DTensor or torchao make them."""
    model = cnn()
    copied = {"__deepcopy__": lambda self, memo: self.clone()}
    weight = model.first.weight.detach().as_subclass(type(name, (torch.Tensor,), {"__module__": module, **copied}))
    weight._is_param = True
    model.first._parameters["weight"] = weight
    return model


def lazy() -> Any:
    return nn.Sequential(nn.LazyConv2d(4, 3))


def softened() -> Any:
    return ed.soften(cnn(), Config(group="C4", softness=0.5))


CASES: list[tuple[str, Callable[[], nn.Module], dict, type[EquidialError], str]] = [
    ("pattern matches nothing", cnn, {"target_modules": ["frist"]}, NoMatchingTargetError, "'first'"),
    ("regex matches nothing", cnn, {"target_modules": r"dept.*x"}, NoMatchingTargetError, "nearest names"),
    ("exclusion matches nothing", cnn, {"exclude_modules": ["firsst"]}, NoMatchingTargetError, "'first'"),
    ("softness pattern matches nothing", cnn, {"softness_pattern": {"frist": 0.1}}, NoMatchingTargetError, "'first'"),
    ("everything excluded", cnn, {"exclude_modules": ["first", "depthwise"]}, NoMatchingTargetError, "nothing is left"),
    ("nothing to soften", VectorMlp, {}, NoMatchingTargetError, "representations="),
    ("1x1 convolution asked for", cnn, {"target_modules": ["mix"]}, TargetError, "1x1 convolution"),
    ("linear without representation", cnn, {"target_modules": ["head"]}, TargetError, "representation for the linear"),
    ("batch norm asked for", cnn, {"target_modules": ["norm"]}, NoMatchingTargetError, "name the layers that hold"),
    ("rectangular kernel, quarter turn", rectangular, {}, TargetError, r"0\.weight.*square grid"),
    ("unsuitable dihedral group", even_kernel, {"group": "D3"}, TargetError, "dihedral group that permutes"),
    ("NaN weights", not_a_number, {}, TargetError, r"depthwise\.weight.*(?s:.*)NaN"),
    ("tied weights", tied, {}, TargetError, r"tied to 1\.weight"),
    ("parametrized by others", weight_normed, {"target_modules": ["first"]}, StateError, "parametrized already"),
    ("computed by a hook", old_weight_normed, {"target_modules": ["first"]}, TargetError, "something else computes"),
    ("quantised layer", quantised, {}, TargetError, "quantised layer Conv2d"),
    ("integer weights", integer_weight, {}, TargetError, "int8"),
    ("meta tensors", on_meta, {}, TargetError, "meta tensor"),
    ("softened twice", softened, {}, StateError, "softened already"),
    ("compiled", lambda: torch.compile(cnn(), backend="eager"), {}, StateError, "before torch.compile"),  # type: ignore[return-value]
    ("compiled inside", compiled_inside, {}, StateError, "(?s)before torch.compile.*first is a OptimizedModule"),
    ("compiled in place", compiled_in_place, {}, StateError, "before torch.compile"),
    ("DDP", lambda: wrapped("DistributedDataParallel"), {}, StateError, r"(?s)before Distributed.*\.module"),
    ("DataParallel", lambda: nn.DataParallel(cnn()), {}, StateError, r"(?s)before Distributed.*\.module"),
    ("FSDP", lambda: wrapped("FullyShardedDataParallel"), {}, StateError, "before DistributedDataParallel and Fully"),
    ("fully_shard", fully_sharded, {}, StateError, "(?s)before fully_shard.*FSDPTinyCnn"),
    (
        "a shard",
        lambda: tensor_subclass("DTensor", "torch.distributed.tensor"),
        {},
        StateError,
        r"(?s)a whole tensor in first\.weight.*then shard it",
    ),
    (
        "LoRA inside",
        adapted_by_peft,
        {},
        StateError,
        "(?s)head is a Linear.*merge or unload the LoRA",
    ),
    (
        "PEFT around",
        peft_model,
        {},
        StateError,
        "(?s)PeftModel.*soften the base, fold, then add LoRA",
    ),
    ("lazy layer", lazy, {}, StateError, r"(?s)weights in 0\.weight.*before its first call"),
    (
        "quantised tensor",
        lambda: tensor_subclass("AffineQuantizedTensor", "torchao.dtypes"),
        {},
        TargetError,
        r"(?s)floating-point weights in first\.weight.*AffineQuantizedTensor.*before quantising",
    ),
    (
        "wrapped tensor",
        lambda: tensor_subclass("TwoTensor", "elsewhere"),
        {},
        TargetError,
        r"(?s)a plain parameter first\.weight.*TwoTensor.*another library",
    ),
    (
        "impossible threshold",
        VectorMlp,
        {
            "softness": None,
            "threshold": 0.1,
            "group": "SO2",
            "representations": {"outer": ("8*Vector + 5*Trivial", "3*Vector")},
        },
        BudgetError,
        r"outer\.bias: .*threshold >= 1",
    ),
    (
        "impossible max_error",
        VectorMlp,
        {
            "softness": None,
            "max_error": 0.1,
            "group": "SO2",
            "representations": {"outer": ("8*Vector + 5*Trivial", "3*Vector")},
        },
        BudgetError,
        r"outer\.bias: .*max_error >= 3\.14",
    ),
    (
        "max_error of a response without bound",
        cnn,
        {"softness": None, "max_error": 0.1, "response": "exponential"},
        ArgumentError,
        "a priori bound",
    ),
    (
        "representation of the wrong size",
        VectorMlp,
        {"representations": {"outer": ("8*Vector", "3*Vector")}},
        TargetError,
        r"size 21 -> 6 for outer",
    ),
    (
        "representation for no layer",
        VectorMlp,
        {"representations": {"outter": ("Vector", "Vector")}},
        NoMatchingTargetError,
        "'outer'",
    ),
]


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(("make", "arguments", "error", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_soften_refuses_and_leaves_the_model_whole(
    make: Callable[[], nn.Module], arguments: dict, error: type[EquidialError], message: str
) -> None:
    model = make()
    concrete = not any(p.is_meta or nn.parameter.is_lazy(p) for p in model.parameters())
    before = snapshot(model) if concrete else {}
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message) as caught:
        ed.soften(model, Config(**({"group": "C4", "softness": 0.5} | arguments)))
    assert "do: " in str(caught.value)
    assert [type(m) for m in model.modules()] == kinds
    if concrete:
        assert same_tensors(snapshot(model), before)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_quantised_layers_may_be_excluded() -> None:
    model = quantised()
    ed.soften(model, Config(group="C4", softness=0.5, exclude_modules=["0"]))
    assert [row.name for row in ed.status(model)] == ["1.weight"]


def test_a_failure_while_attaching_takes_everything_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from equidial.adapters import _soften

    model = cnn()
    before, kinds = snapshot(model), [type(m) for m in model.modules()]
    real, calls = _soften.attach, []

    def failing(module: nn.Module, name: str, link: nn.Module) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise RuntimeError("no")
        real(module, name, link)

    monkeypatch.setattr(_soften, "attach", failing)
    with pytest.raises(RuntimeError, match="no"):
        ed.soften(model, Config(group="C4", softness=0.5))
    assert same_tensors(snapshot(model), before)
    assert [type(m) for m in model.modules()] == kinds
    assert len(ed.status(model)) == 0


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        (ed.fold, StateError),
        (ed.unload, StateError),
        (lambda m: ed.set_softness(m, 0.5), StateError),
        (lambda m: ed.set_dial(m, threshold=0.5), StateError),
        (lambda m: ed.disabled(m).__enter__(), StateError),
        (lambda m: ed.save(m, "nowhere"), StateError),
        (ed.certify, ArgumentError),
    ],
)
def test_verbs_of_softened_models_refuse_plain_ones(verb, error: type[EquidialError]) -> None:
    model = cnn()
    with pytest.raises(error, match=HOUSE_STYLE):
        verb(model)
    part = softened().first
    if error is StateError:
        with pytest.raises(StateError, match="a part of one"):
            verb(part)


@pytest.mark.parametrize(
    "turn",
    [
        lambda m: ed.set_softness(m, 1.1),
        lambda m: ed.set_dial(m),
        lambda m: ed.set_dial(m, softness=0.5, threshold=0.5),
        lambda m: ed.set_dial(m, softness=0.5, target_modules=["secnd"]),
        lambda m: ed.set_softness(m, 0.5, target_modules="x.*"),
    ],
)
def test_a_refused_turn_leaves_every_dial_where_it_was(turn) -> None:
    model = softened()
    before = str(ed.status(model))
    with pytest.raises(EquidialError, match=HOUSE_STYLE):
        turn(model)
    assert str(ed.status(model)) == before


def test_folding_refuses_weights_that_are_not_finite() -> None:
    model = softened()
    with torch.no_grad():
        model.first.parametrizations.weight.original[0, 0, 0, 0] = float("inf")
    with pytest.raises(StateError, match=r"finite weights in first\.weight"):
        ed.fold(model)
    assert parametrize.is_parametrized(model.first)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: ed.certify(m, norm="l1"),  # pyright: ignore[reportArgumentType]
        lambda m: ed.certify(m, dtype=torch.int8),
        lambda m: ed.certify(m, radius=-0.5),
        lambda m: ed.measure(m, [torch.zeros(1, 3, 9, 9)], "C5x"),
        lambda m: ed.measure(m, [torch.zeros(1, 3, 9, 9)], "C4", task="tracking"),
        lambda m: ed.measure(m, [], "C4"),
        lambda m: ed.measure(m, ["picture"], "C4"),
        lambda m: ed.measure(m, [torch.zeros(1, 3, 9, 9)], "C4", radius=1.0, elements=[ed.groups.C(4).element(1)]),
        lambda m: ed.measure(m, [torch.zeros(1, 3, 9, 9)], "C4", elements=[]),
        lambda m: ed.measure(m, [torch.zeros(1, 3, 9, 11)], "C4"),
        lambda m: ed.recalibrate(m, []),
        lambda m: ed.soften("model", Config(group="C4", softness=0.5)),  # type: ignore[arg-type]
    ],
)
def test_other_verbs_refuse_wrong_arguments(call) -> None:
    model = softened()
    before = snapshot(model)
    with pytest.raises(EquidialError, match=HOUSE_STYLE):
        call(model)
    assert same_tensors(snapshot(model), before)


def test_outputs_that_are_no_logits_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self, output: object) -> None:
            super().__init__()
            self.weight, self.output = nn.Parameter(torch.zeros(1)), output

        def forward(self, x: torch.Tensor) -> object:
            return self.output

    for output in ("text", SimpleNamespace(features=1), {"scores": torch.zeros(1, 2)}):
        with pytest.raises(ArgumentError, match=r"\.logits"):
            ed.measure(Odd(output), [torch.zeros(1, 3, 4, 4)], "C4", epsilon_images=0)
