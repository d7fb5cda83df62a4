"""Orders of verbs that no row of the matrix shows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import equidial as ed
from tests.adapters.models import TinyCnn, cnn, same_tensors, snapshot
from tests.life.ecosystem import quiet
from tests.life.networks import evaluate, gap, refused

CONFIG = ed.SoftEquivarianceConfig(group="C4", softness=0.3)
X = torch.linspace(-1, 1, 2 * 3 * 9 * 9).reshape(2, 3, 9, 9)


def softened() -> Any:
    return ed.soften(cnn(), CONFIG)


def sharing(model: Any) -> Any:
    """PEFT trains a copy of a layer of its own, ``modules_to_save``."""
    config = peft.LoraConfig(r=2, target_modules=["head"], modules_to_save=["first"])
    with quiet():
        return peft.get_peft_model(model, config)


@pytest.mark.parametrize(
    ("make", "verb", "words"),
    [
        (lambda: nn.DataParallel(softened()), ed.fold, ("fold(model.module)", "DataParallel")),
        (lambda: nn.DataParallel(softened()), ed.unload, ("unload(model.module)", "DataParallel")),
        (lambda: nn.Sequential(nn.DataParallel(softened())), ed.fold, ("fold(0.module)", "0 is a DataParallel")),
        (lambda: sharing(softened()), ed.fold, ("for fold", "base_model.model.first of PEFT around one")),
        (lambda: sharing(softened()), ed.certify, ("for certify", "base_model.model.first of PEFT around one")),
        (lambda: sharing(softened()), lambda m: ed.save(m, "nowhere"), ("for save", "of PEFT around one")),
    ],
)
def test_wrong_orders_are_refused_and_the_model_stays(
    make: Callable[[], Any], verb: Callable[[Any], Any], words: tuple[str, ...]
) -> None:
    model = make()
    before, kinds = snapshot(model), [type(m) for m in model.modules()]
    with refused(*words):
        verb(model)
    assert same_tensors(snapshot(model), before)
    assert [type(m) for m in model.modules()] == kinds


def test_wrappers_that_leave_the_tensors_alone_may_stay() -> None:
    model = softened()
    parallel = nn.DataParallel(model)
    ed.set_softness(parallel, 0.6)
    assert {row.dial for row in ed.status(parallel)} == {"softness=0.6"}
    with ed.disabled(parallel):
        assert torch.equal(evaluate(model, X), evaluate(ed.unload(copy.deepcopy(model)), X))


def test_softening_the_model_inside_a_compiled_one_compiles_it_anew() -> None:
    """The order that nothing can see: no message, and the right outputs."""
    model = cnn()
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    before = evaluate(compiled, X)
    ed.soften(model, CONFIG)
    assert gap(evaluate(compiled, X), evaluate(model, X)) < 1e-5
    assert gap(evaluate(compiled, X), before) > 1e-3
    torch._dynamo.reset()


class Shared(TinyCnn):
    """A class that saves itself, as those of transformers and of the hub's mixin do."""

    def __init__(self) -> None:
        super().__init__()
        self.written: Any = None

    def save_pretrained(self, folder: str, **options: Any) -> str:
        """Keep what would be written."""
        self.written = options.get("state_dict") or dict(self.state_dict())
        return folder


@pytest.mark.parametrize("finish", [ed.fold, ed.unload])
def test_save_pretrained_refuses_while_soft_and_is_itself_again_after(finish) -> None:
    model: Any = ed.soften(Shared().eval(), CONFIG)
    for given in (model, copy.deepcopy(model)):
        with refused("a folded model for save_pretrained", "a softened Shared"):
            given.save_pretrained("folder")
        assert given.written is None
    twin: Any = copy.deepcopy(model)
    assert twin.save_pretrained("folder", state_dict=twin.state_dict()) == "folder"
    assert model.written is None
    assert list(twin.written) == list(model.state_dict()), "the copy wrote itself"
    model = finish(model)
    assert model.save_pretrained("folder") == "folder"
    assert list(model.written) == list(Shared().state_dict())
    with refused("a folded model"):
        twin.save_pretrained("folder")


def test_a_loaded_model_refuses_save_pretrained_too(tmp_path: Path) -> None:
    base = Shared().eval()
    ed.save(ed.soften(copy.deepcopy(base), CONFIG), tmp_path)
    with refused("a folded model for save_pretrained"):
        ed.load(base, tmp_path).save_pretrained("folder")


def test_a_save_pretrained_of_the_instance_is_left_alone() -> None:
    model: Any = Shared().eval()
    model.save_pretrained = lambda folder: folder
    ed.soften(model, CONFIG)
    assert model.save_pretrained("soft") == "soft"
    assert ed.fold(model).save_pretrained("folded") == "folded"
