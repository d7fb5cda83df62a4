"""Models by name, as the command line and the recipes take them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from equidial.data import Images
from equidial.errors import ArgumentError, FileFormatError, explain
from equidial.recipes.digits import pretrained_digits_vit

SPECIFICATIONS = "demo | hf:NAME_OR_FOLDER | timm:NAME | FILE.py:function"


def load_model(specification: str, weights: str | Path | None = None, classes: int | None = None) -> nn.Module:
    """The model that a specification names, in evaluation mode.

    ``demo``: the embedded digits transformer. ``hf:NAME_OR_FOLDER``: an image classifier of transformers.
    ``timm:NAME``: a timm model, pretrained unless ``weights`` are given. ``FILE.py:function``: what the function
    returns when called without arguments; this runs the code of that file. ``weights``: a ``.safetensors`` file with
    exactly the model's tensors. ``classes``: outputs of the head, which is drawn anew where the checkpoint has another
    number; of ``hf:`` and ``timm:`` models only, the others keep theirs.

    Raises ``ArgumentError`` for another specification or a missing file or package, ``FileFormatError`` for weights
    that do not fit.
    """
    kind, separator, rest = specification.partition(":")
    if specification == "demo":
        model: nn.Module = pretrained_digits_vit()
    elif kind == "hf" and rest:
        model = _from_transformers(rest, classes)
    elif kind == "timm" and rest:
        model = _from_timm(rest, weights is None, classes)
    elif separator and specification.rpartition(":")[0].endswith(".py"):
        path, _, function = specification.rpartition(":")
        model = _from_file(Path(path), function)
    else:
        raise ArgumentError(
            explain(f"a model as {SPECIFICATIONS}", repr(specification), "name it in one of these ways")
        )
    if weights is not None:
        load_weights(model, Path(weights))
    return model.eval()


def hub_name(specification: str) -> str | None:
    """The hub's name of a model that :func:`load_model` loads from there; ``None`` for folders and other models."""
    kind, _, rest = specification.partition(":")
    return rest if kind == "hf" and not Path(rest).exists() else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` file whose keys and shapes are exactly the model's, in the model's own precision."""
    if not path.is_file():
        raise ArgumentError(explain("an existing .safetensors file", str(path), "check the path"))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise FileFormatError(explain(f"a safetensors file {path.name}", str(error), "convert it first")) from error
    # counters of batches are bookkeeping that converted checkpoints often lack
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked") and k not in tensors}
    try:
        model.load_state_dict(tensors | counters, strict=True)
    except RuntimeError as error:
        raise FileFormatError(
            explain(f"the tensors of {type(model).__name__} in {path.name}", str(error), "choose the matching model")
        ) from error


def check_fits(model: nn.Module, images: Images, classifier: bool = True) -> None:
    """Raise ``ArgumentError`` unless the model reads these images and, a classifier, has an output for each class."""
    try:
        with torch.no_grad():
            output = model(images.test.dataset[0][0][None].to(next(model.parameters()).device))
    except (RuntimeError, ValueError) as error:
        raise ArgumentError(
            explain(
                f"a model that reads images of {images.shape} (channels, height, width)",
                f"{type(model).__name__}: {error}",
                "choose the matching model, or resize the images with image_size",
            )
        ) from error
    if not classifier:
        return
    outputs = getattr(output, "logits", output).shape[-1]
    if outputs < len(images.classes):
        raise ArgumentError(
            explain(
                f"an output for each of the {len(images.classes)} classes of {images.name}",
                f"{outputs} outputs",
                "give the model a head for this data",
            )
        )


def _from_transformers(name: str, classes: int | None) -> nn.Module:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ArgumentError(
            explain("transformers for hf: models", "not installed", "pip install 'equidial[hf]'")
        ) from error
    head = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    try:
        return AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, **head)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            explain(
                "a folder or hub name of an image classifier", f"{name!r}: {error}", "check the name, or the network"
            )
        ) from error


def _from_timm(name: str, pretrained: bool, classes: int | None) -> nn.Module:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ArgumentError(
            explain("timm for timm: models", "not installed", "pip install 'equidial[timm]'")
        ) from error
    if name not in timm.list_models(name):
        raise ArgumentError(explain("a model name of timm", repr(name), "see timm.list_models()"))
    head = {} if classes is None else {"num_classes": classes}
    return timm.create_model(name, pretrained=pretrained, **head)


def _from_file(path: Path, function: str) -> nn.Module:
    if not path.is_file():
        raise ArgumentError(explain("an existing Python file", str(path), "check the path"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        raise ArgumentError(
            explain(f"a function {function!r} in {path.name}", "none of that name", "check its spelling")
        )
    model = build()
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            explain(f"{path.name}:{function} to return a torch.nn.Module", type(model).__name__, "return the model")
        )
    return model
