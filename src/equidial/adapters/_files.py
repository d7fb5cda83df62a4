"""save and load: a folder from which a base model becomes the softened one again, exactly.

    soft_equivariance_config.json     format version, configuration, per-tensor spaces and constructions, base hashes
    soft_equivariance.safetensors     every tensor that differs from what soften found, dials, images of probes
    certificate.json                  the certificate at the time of saving
    README.md                         model card

Keys of the tensors: plain names of the base model; ``dial/<tensor>/<buffer>``, and ``dial/<tensor>/learned`` where the
dial is trained (the buffers then say where it stood); ``probe/<tensor>``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from equidial._version import __version__
from equidial.adapters._card import model_card
from equidial.adapters._certify import certify
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._life import check_life
from equidial.adapters._parametrization import SoftParametrization, constrained
from equidial.adapters._soften import attach_all, build_parametrizations
from equidial.adapters._state import hashes_of, plain_tensors, require_root, tensor_hash
from equidial.adapters.targets import Target, resolve_targets
from equidial.errors import FileFormatError, explain
from equidial.filters import Dial

Model = TypeVar("Model", bound=nn.Module)

CONFIG_FILE = "soft_equivariance_config.json"
TENSOR_FILE = "soft_equivariance.safetensors"
CERTIFICATE_FILE = "certificate.json"
CARD_FILE = "README.md"
FORMAT_VERSION = 1
DIAL_BUFFERS = ("threshold", "budget", "softness", "reference")

_SEMANTIC_KEYS = {"format_version", "config", "tensors", "base"}
_COSMETIC_KEYS = {"library_version"}
_PROBE_ENTRIES = 256
_PROBE_TOLERANCE = 1e-9
# another order of summation moves the basis of 37x37 pixels by 1e-11, of 53x53 by 1e-8, of 73x73 by 1e-7
_LARGE_SPACE, _LARGE_TOLERANCE = 2048, 1e-6


def save(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write a softened model to ``folder`` (created if need be): no pickle, no code, nothing of the base but hashes.

    Stores every tensor that differs from what ``soften`` found (heads and batch-norm statistics included) and each
    dial. Raises ``StateError`` for a model that is not softened.
    """
    root, state = require_root(model, "save")
    current = plain_tensors(root)
    now = {name: tensor_hash(tensor) for name, tensor in current.items()}
    changed = {name for name, value in now.items() if state.hashes.get(name) != value}
    links = {link.name: link for _, _, link in constrained(root)}
    tensors = {name: current[name].detach().to("cpu").contiguous().clone() for name in sorted(changed)}
    for name, link in links.items():
        for key, value in link.dial_state().items():
            tensors[f"dial/{name}/{key}"] = torch.tensor([value], dtype=torch.float64)
        tensors[f"probe/{name}"] = probe_image(link)
    document = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "config": state.config.to_dict(),
        "tensors": {name: _description(link) for name, link in links.items()},
        "base": {
            "class": _base_class(root),
            "unchanged": {name: value for name, value in sorted(now.items()) if name not in changed},
            "keys": sorted(current),
        },
    }
    certificate = certify(root)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG_FILE).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    save_file(tensors, path / TENSOR_FILE, metadata={"format": "pt"})
    certificate.save(path / CERTIFICATE_FILE)
    (path / CARD_FILE).write_text(model_card(document["base"]["class"], state.config, certificate))


def load(base_model: Model, folder: str | os.PathLike[str]) -> Model:
    """Soften ``base_model`` as the folder says, in place, with exactly the outputs of the saved model.

    The filters are rebuilt and compared with the stored images of their probes; the base model must have, tensor for
    tensor, the hashes that the saved one relied on. Raises ``FileFormatError`` for an unknown semantic key, another
    base, a changed construction or a damaged file; the base model is touched only after all checks.
    """
    check_life(base_model)
    document, tensors = _read(Path(folder))
    config = SoftEquivarianceConfig.from_dict(document["config"])
    base_hashes = hashes_of(base_model)
    changed = {name: t for name, t in tensors.items() if not name.startswith(("dial/", "probe/"))}
    _check_base(base_model, document["base"], base_hashes, changed)
    targets = resolve_targets(base_model, config)
    parametrizations = build_parametrizations(base_model, targets, config)
    _check_tensors(document["tensors"], targets, parametrizations, tensors)
    attach_all(base_model, config, targets, parametrizations, base_hashes)
    with torch.no_grad():
        for name, tensor in plain_tensors(base_model).items():
            if name in changed:
                tensor.copy_(changed[name])
    return base_model


def probe_image(link: SoftParametrization) -> torch.Tensor:
    """Evenly spread entries of ``F(probe)`` and its norm, float64: a fingerprint of the filter as constructed.

    The probe is a fixed weight of two copies, ``sin(1 + 2 i + i^2 / 7)``; ``nearest`` is asked at half its defect.
    """
    constraint = link.constraint
    count = 2 * constraint.dim
    i = torch.arange(count, dtype=torch.float64)
    probe = torch.sin(1 + 2 * i + i.square() / 7).reshape(2, *constraint.shape)
    filter_ = link.filter()
    if link.response == "nearest":
        filter_ = replace(filter_, dial=Dial("softness", 0.5), setting=None)
    image = filter_(probe).flatten()
    picks = torch.linspace(0, count - 1, min(count, _PROBE_ENTRIES), dtype=torch.float64).long()
    return torch.cat([image[picks], image.norm().reshape(1)]).contiguous()


def _description(link: SoftParametrization) -> dict[str, Any]:
    constraint = link.constraint
    reps = (constraint.rep_in, constraint.rep_out)
    return {
        "input": constraint.rep_in.name,
        "output": None if constraint.invariant else constraint.rep_out.name,
        "layout": link.layout.kind,
        **({"view": list(link.layout.view), "axes": list(link.layout.axes)} if link.layout.view else {}),
        "response": link.response,
        "construction": sorted(frozenset().union(*(rep.constructions for rep in reps))),
    }


def _base_class(model: nn.Module) -> str:
    cls = type(model)
    if cls.__name__.startswith("Parametrized"):
        cls = cls.__bases__[0]
    return f"{cls.__module__}.{cls.__qualname__}"


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise FileFormatError(
                explain(
                    f"a folder written by equidial.save, with {name}",
                    f"{folder} without it",
                    "check the path",
                )
            )
    try:
        document = json.loads((folder / CONFIG_FILE).read_text())
        tensors = load_file(folder / TENSOR_FILE)
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise FileFormatError(
            explain(f"readable files in {folder}", str(error), "copy the folder again: it is damaged")
        ) from error
    if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
        got = document.get("format_version") if isinstance(document, dict) else type(document).__name__
        raise FileFormatError(
            explain(f"format version {FORMAT_VERSION}", repr(got), "use the version of equidial that wrote it")
        )
    unknown = sorted(set(document) - _SEMANTIC_KEYS - _COSMETIC_KEYS)
    missing = sorted(_SEMANTIC_KEYS - set(document))
    if unknown or missing:
        raise FileFormatError(
            explain(
                f"the keys {sorted(_SEMANTIC_KEYS)}",
                f"unknown {unknown}, missing {missing}",
                "use the version that wrote the file: ignoring a key would change the model",
            )
        )
    return document, tensors


def _check_base(
    model: nn.Module, base: Mapping[str, Any], hashes: Mapping[str, str], changed: Mapping[str, torch.Tensor]
) -> None:
    have = plain_tensors(model)
    if sorted(have) != base["keys"]:
        lacking = sorted(set(base["keys"]) - set(have))[:4]
        extra = sorted(set(have) - set(base["keys"]))[:4]
        raise FileFormatError(
            explain(
                f"the base model of the folder, {base['class']}",
                f"{type(model).__name__} (lacks {lacking or 'nothing'}, has besides {extra or 'nothing'})",
                "build the base model as it was before soften",
            )
        )
    for name, tensor in changed.items():
        if name not in have or have[name].shape != tensor.shape or have[name].dtype != tensor.dtype:
            got = f"{tuple(have[name].shape)} {have[name].dtype}" if name in have else "nothing"
            raise FileFormatError(
                explain(
                    f"{name} of shape {tuple(tensor.shape)} {tensor.dtype} in the base model",
                    got,
                    "give the base model the same heads and dtype",
                )
            )
    different = [name for name, value in base["unchanged"].items() if hashes.get(name) != value]
    if different:
        raise FileFormatError(
            explain(
                "the base weights that the folder relies on",
                f"{len(different)} tensors with other contents, e.g. {', '.join(different[:3])}",
                "load the checkpoint from which the softened model was made",
            )
        )


def _check_tensors(
    described: Mapping[str, Any],
    targets: list[Target],
    links: list[SoftParametrization],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    names = {target.name for target in targets}
    if names != set(described):
        raise FileFormatError(
            explain(
                f"the constrained tensors {sorted(described)[:6]}",
                f"{sorted(names)[:6]} in this base model",
                "use the version of equidial and of the model library that wrote the folder",
            )
        )
    for link in links:
        wanted = [f"probe/{link.name}", *(f"dial/{link.name}/{buffer}" for buffer in DIAL_BUFFERS)]
        missing = [key for key in wanted if key not in tensors]
        if missing or described[link.name] != _description(link):
            raise FileFormatError(
                explain(
                    f"{link.name} as {described[link.name]}",
                    f"missing {missing}" if missing else f"{_description(link)}",
                    "use the version of equidial that wrote the folder",
                )
            )
        for buffer in DIAL_BUFFERS:
            getattr(link, buffer).fill_(float(tensors[f"dial/{link.name}/{buffer}"]))
        learned = tensors.get(f"dial/{link.name}/learned")
        if learned is not None:
            if link.response != "nearest" or not bool(torch.isfinite(learned).all()):
                raise FileFormatError(
                    explain(
                        f"a finite learned dial of response 'nearest' for {link.name}",
                        f"{learned.tolist()} of response {link.response!r}",
                        "copy the folder again: it is damaged",
                    )
                )
            link.learn(float(learned))
        stored, rebuilt = tensors[f"probe/{link.name}"], probe_image(link)
        large = max(link.constraint.rep_in.dim, link.constraint.rep_out.dim) > _LARGE_SPACE
        tolerance = _LARGE_TOLERANCE if large else _PROBE_TOLERANCE
        if stored.shape != rebuilt.shape or not torch.allclose(stored, rebuilt, rtol=tolerance, atol=tolerance):
            raise FileFormatError(
                explain(
                    f"the filter of {link.name} as it was constructed when saved",
                    "another image of its probe: the construction changed",
                    "use the version of equidial that wrote the folder",
                )
            )
