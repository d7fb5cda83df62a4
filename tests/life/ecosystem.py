"""The rows of the compatibility matrix that other libraries take part in: export, ONNX, PEFT, transformers."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import equidial as ed
from equidial.adapters._parametrization import constrained
from tests.adapters.models import same_tensors, snapshot
from tests.life.features import ROUNDING
from tests.life.networks import Network, NotApplicable, TensorOut, build, evaluate, gap, refused

Feature = Callable[[Network], str | None]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and the progress of exporters and PEFT, which are not ours."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def unless_untouched_fails(attempt: Callable[[Network], None]) -> Callable[[Feature], Feature]:
    """A feature that the untouched network does not have either is not applicable; ``attempt`` tries it there."""

    def decorate(feature: Feature) -> Feature:
        @functools.wraps(feature)
        def either(net: Network) -> str | None:
            try:
                return feature(net)
            except (NotApplicable, KeyboardInterrupt):
                raise
            except Exception:
                try:
                    attempt(build(net.name))
                except Exception as error:
                    reason = str(error).splitlines()[0].split(". ")[0]
                    raise NotApplicable(f"the untouched network fails too: {reason}") from error
                raise

        return either

    return decorate


# -- Export


def exported_after_fold(net: Network) -> None:
    """``torch.export`` of the folded model: the same outputs, and plain keys."""
    model = TensorOut(ed.fold(net.softened()))
    program = _export(model, net.x)
    assert gap(program.module()(net.x), evaluate(model, net.x)) < ROUNDING
    assert not any("parametrizations" in key for key in program.state_dict)


def exported_while_soft(net: Network) -> None:
    """``torch.export`` of the softened model: the same outputs, the filter and the dial inside."""
    model = TensorOut(net.softened())
    program = _export(model, net.x)
    traced = program.module()
    assert gap(traced(net.x), evaluate(model, net.x)) < ROUNDING
    dials = [key for key in program.state_dict if key.endswith(".threshold")]
    assert len(dials) == len(list(constrained(model)))
    ed.set_softness(model, 1.0)
    traced.load_state_dict(model.state_dict(), strict=False)
    assert gap(traced(net.x), evaluate(model, net.x)) < ROUNDING, "the dial of the exported program turns"


def _plain_onnx(net: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _onnx(TensorOut(net.model), net.x, Path(folder) / "model.onnx")


@unless_untouched_fails(_plain_onnx)
def onnx_after_fold(net: Network) -> None:
    """The folded model in ONNX gives the same outputs in onnxruntime."""
    model = TensorOut(ed.fold(net.softened()))
    with tempfile.TemporaryDirectory() as folder:
        found = _onnx(model, net.x, Path(folder) / "model.onnx")
    assert gap(found, evaluate(model, net.x)) < ROUNDING


def onnx_while_soft(net: Network) -> str:
    """Refused within the exporter, and the model stays as it is."""
    model = TensorOut(net.softened())
    y = evaluate(model, net.x)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _onnx(model, net.x, Path(folder) / "model.onnx")
        except torch.onnx.errors.OnnxExporterError as error:
            text = str(error)
        else:
            raise AssertionError("not refused")
    assert torch.equal(evaluate(model, net.x), y)
    return "\n".join(text[text.index("expected a folded model for ONNX") :].splitlines()[:3])


def _export(model: nn.Module, x: torch.Tensor) -> Any:
    with quiet():
        return torch.export.export(model.eval(), (x,))


def _onnx(model: nn.Module, x: torch.Tensor, path: Path) -> torch.Tensor:
    import onnxruntime

    with quiet():
        torch.onnx.export(model.eval(), (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.as_tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


# -- PEFT


def _plain_lora(net: Network, softened: bool) -> None:
    names = _adaptable(copy.deepcopy(net).softened(), softened)
    adapted = _lora(net.model, names)
    y = evaluate(adapted, net.x)
    assert gap(evaluate(adapted.merge_and_unload(), net.x), y) < ROUNDING, "PEFT's merge changes the outputs"


@unless_untouched_fails(functools.partial(_plain_lora, softened=True))
def lora_after_fold(net: Network) -> None:
    """LoRA on layers that were folded: it counts, merges exactly, and leaves the class of the model."""
    kind = type(net.model)
    model = net.softened()
    names = _adaptable(model, True)
    model = ed.fold(model)
    y = evaluate(model, net.x)
    adapted = _lora(model, names)
    z = evaluate(adapted, net.x)
    assert gap(z, y) > 1e-3
    merged = adapted.merge_and_unload()
    assert type(merged) is kind
    assert gap(evaluate(merged, net.x), z) < ROUNDING


@unless_untouched_fails(functools.partial(_plain_lora, softened=False))
def lora_beside(net: Network) -> None:
    """LoRA on other layers of a softened model: dial, merge and fold in any order; ``save`` wants the merge first."""
    model = net.softened()
    adapted = _lora(model, _adaptable(model, False))
    ed.set_softness(adapted, 0.6)
    y = evaluate(adapted, net.x)
    ed.set_softness(adapted, 0.0)
    assert gap(evaluate(adapted, net.x), y) > 1e-3
    ed.set_softness(adapted, 0.6)
    with tempfile.TemporaryDirectory() as folder, refused("without adapters, for save", "merge_and_unload"):
        ed.save(adapted, folder)
    twin = copy.deepcopy(adapted)
    merged = ed.fold(twin.merge_and_unload())
    later = ed.fold(adapted).merge_and_unload()
    for plain in (merged, later):
        assert not list(constrained(plain))
        assert gap(evaluate(plain, net.x), y) < ROUNDING


@unless_untouched_fails(functools.partial(_plain_lora, softened=True))
def lora_before_fold(net: Network) -> str:
    """LoRA over softened layers: every verb refuses, the model stays, and the way out that they name is exact."""
    import peft

    model = net.softened()
    base, y = copy.deepcopy(model), evaluate(model, net.x)
    names = _adaptable(model, True)
    adapted = _lora(model, names)
    z = evaluate(adapted, net.x)
    assert gap(z, y) > 1e-3
    before = snapshot(adapted)
    said: list[str] = []
    verbs = {
        "fold": ed.fold,
        "unload": ed.unload,
        "certify": ed.certify,
        "set_dial": lambda m: ed.set_softness(m, 0.5),
        "disabled": lambda m: ed.disabled(m).__enter__(),
        "save": lambda m: ed.save(m, "nowhere"),
        "set_network_error": lambda m: ed.set_network_error(m, 0.1, ball=1.0),
    }
    for verb, call in verbs.items():
        for given in (adapted, model):
            with refused(f"for {verb}", "of PEFT around one", "fold, then add LoRA") as message:
                call(given)
            said = said or message
    assert same_tensors(snapshot(adapted), before)
    with tempfile.TemporaryDirectory() as folder, quiet():
        adapted.save_pretrained(folder)
        assert adapted.unload() is model
        assert torch.equal(evaluate(model, net.x), y)
        again = peft.PeftModel.from_pretrained(ed.fold(model), folder)
        assert gap(evaluate(again, net.x), z) < ROUNDING
    # what the verbs protect from: PEFT merges into a temporary tensor
    lost = _lora(base, names)
    assert torch.equal(evaluate(lost.merge_and_unload(), net.x), y)
    return said[0]


def softened_after_lora(net: Network) -> str:
    """Refused, and the model stays as it is."""
    names = _adaptable(copy.deepcopy(net).softened(), True)
    adapted = _lora(net.model, names)
    before = snapshot(adapted)
    for model in (adapted, net.model):
        with refused("without adapters", "soften the base, fold, then add LoRA") as said:
            ed.soften(model, net.config)
    assert same_tensors(snapshot(adapted), before)
    return said[0]


def _adaptable(model: nn.Module, softened: bool) -> list[str]:
    """Convolutions without groups and linear layers, those that are softened or two that are not."""
    soft = {row.name.rpartition(".")[0] for row in ed.status(model)}
    fit = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    found = [name for name in fit if (name in soft) is softened]
    if not found:
        raise NotApplicable("every layer that LoRA could wrap is softened" if fit else "no layer that LoRA can wrap")
    return found if softened else [found[0], found[-1]]


def _lora(model: nn.Module, names: list[str]) -> Any:
    import peft

    with quiet():
        config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
        return peft.get_peft_model(model, config).eval()


# -- transformers


def pretrained_after_fold(net: Network) -> None:
    """``save_pretrained`` and ``from_pretrained`` after fold: the same class and outputs, bit for bit."""
    _needs_transformers(net)
    model = ed.fold(net.softened())
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.save_pretrained(folder)
        again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(evaluate(again.eval(), net.x), evaluate(model, net.x))


def pretrained_while_soft(net: Network) -> str:
    """Refused before anything is written, also by a copy; a state dict given explicitly is written."""
    _needs_transformers(net)
    model = net.softened()
    twin = copy.deepcopy(model)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for given in (model, twin):
            with refused("a folded model for save_pretrained", "fold(copy.deepcopy(model))") as said:
                given.save_pretrained(folder)
        assert not list(Path(folder).iterdir())
        ed.set_softness(twin, 0.9)
        with quiet():
            twin.save_pretrained(folder, state_dict=None, save_original_format=False)
            model.load_state_dict(_read(Path(folder)))
        assert torch.equal(evaluate(model, net.x), evaluate(twin, net.x))
        with quiet():
            ed.fold(model).save_pretrained(folder)
    assert "save_pretrained" not in vars(model)
    return said[0]


def _read(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _needs_transformers(net: Network) -> None:
    if not hasattr(type(net.model), "from_pretrained"):
        raise NotApplicable("no model of transformers")
