"""save and load: a folder from which a base model becomes the softened one again, exactly.

    soft_equivariance_config.json     format version, configuration, per-tensor spaces and constructions, hashes
    soft_equivariance.safetensors     every tensor that differs from what soften found, dials, images of probes
    certificate.json                  the certificate at the time of saving
    README.md                         model card

Keys of the tensors: plain names of the base model; ``dial/<tensor>/<buffer>``, and ``dial/<tensor>/learned`` where the
dial is trained (the buffers then say where it stood); ``probe/<tensor>``. docs/files.md is the specification.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from equidial._version import __version__
from equidial.adapters._card import CardFacts, model_card
from equidial.adapters._certify import certify
from equidial.adapters._folder import (
    CARD_FILE,
    CERTIFICATE_FILE,
    DIAL_BUFFERS,
    FORMAT_VERSION,
    read_folder,
    write_folder,
)
from equidial.adapters._hub import find_folder
from equidial.adapters._life import check_adapters, check_life, check_tensors
from equidial.adapters._parametrization import SoftParametrization, constrained
from equidial.adapters._scores import Numbers
from equidial.adapters._soften import attach_all, build_parametrizations
from equidial.adapters._state import hashes_of, plain_tensors, require_root, tensor_hash
from equidial.adapters.targets import Target, resolve_targets
from equidial.errors import FileFormatError, explain
from equidial.filters import Dial

Model = TypeVar("Model", bound=nn.Module)

_PLACE_OF_ROWS = ("axis", "start")  # missing in folders written before rows said it
_PROBE_ENTRIES = 256
_PROBE_TOLERANCE = 1e-9
# another order of summation moves the basis of 37x37 pixels by 1e-11, of 53x53 by 1e-8, of 73x73 by 1e-7
_LARGE_SPACE, _LARGE_TOLERANCE = 2048, 1e-6


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    scores: Numbers | Mapping[str, Numbers] | None = None,
    base_model: str | None = None,
    *,
    license: str | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> None:
    """Write a softened model to ``folder`` (created if need be): no pickle, no code, nothing of the base but hashes.

    Stores every tensor that differs from what ``soften`` found (heads and batch-norm statistics included), each dial,
    the certificate and a model card.

    Args:
        model: a softened model.
        folder: where; files of an earlier save are replaced.
        scores: for the card, what :func:`equidial.measure` returned, or ``{name of the data: scores}``.
        base_model: for the card, the base model's name on the hub, ``"user/name"``.
        license: for the card, its identifier, e.g. ``"apache-2.0"``; without it the card states none.
        image_size: for the certificate, as in :func:`equidial.certify`.

    Raises ``StateError`` for a model that is not softened, is sharded or has adapters of PEFT, ``ArgumentError`` for a
    group that no name rebuilds and for scores, names or licences of another form; nothing is written then. Cost: that
    of :func:`equidial.certify`.
    """
    save_as(model, Path(folder), CardFacts.of("this-folder", scores, base_model, license), image_size)


def save_as(model: nn.Module, folder: Path, facts: CardFacts, image_size: int | tuple[int, int] | None = None) -> None:
    """:func:`save` with the facts of the card as an object."""
    root, state = require_root(model, "save")
    check_adapters(model, "save", anywhere=True)
    check_tensors(model, "save")
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
    certificate = certify(root, image_size=image_size)
    write_folder(folder, document, tensors)
    certificate.save(folder / CERTIFICATE_FILE)
    card = model_card(document["base"]["class"], state.config, certificate, facts)
    (folder / CARD_FILE).write_bytes(card.encode())


def load(
    base_model: Model,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Model:
    """Soften ``base_model`` as the folder says, in place, with exactly the outputs of the saved model.

    The filters are rebuilt and compared with the stored images of their probes; the base model must have, tensor for
    tensor, the hashes that the saved one relied on.

    Args:
        base_model: the model from which the saved one was made, as it was before ``soften``.
        folder: what :func:`save` wrote; the folder of one repository in the hub's cache (``models--user--name``); or
            ``"user/name"`` on the hub, where no such folder exists here. Only the four files of the format are fetched.
        revision: branch, tag or commit on the hub or in its cache.
        token: of the hub; ``None``: the one that huggingface_hub knows.

    Raises ``FileFormatError`` for an unknown key, another format or base, a changed construction, a damaged or edited
    file, ``HubError`` where the hub cannot give the folder, ``ArgumentError`` for a revision of a plain folder and
    where huggingface_hub is missing, ``StateError`` for a base model that is softened or wrapped. The base model is
    touched only after all checks. Cost: hashing the base, one spectrum per distinct representation.
    """
    check_life(base_model)
    saved = read_folder(find_folder(folder, revision, token))
    base_hashes, changed = hashes_of(base_model), saved.changed
    _check_base(base_model, saved.base, base_hashes, changed)
    targets = resolve_targets(base_model, saved.config)
    parametrizations = build_parametrizations(base_model, targets, saved.config)
    _check_tensors(saved.rows, targets, parametrizations, saved.tensors)
    saved.check_contents()
    attach_all(base_model, saved.config, targets, parametrizations, base_hashes)
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
    constraint, layout = link.constraint, link.layout
    reps = (constraint.rep_in, constraint.rep_out)
    if layout.view:
        where: dict[str, Any] = {"view": list(layout.view), "axes": list(layout.axes)}
    else:
        where = {"axis": layout.axis, "start": layout.start} if layout.kind == "table" else {}
    return {
        "input": constraint.rep_in.name,
        "output": None if constraint.invariant else constraint.rep_out.name,
        "layout": layout.kind,
        **where,
        "response": link.response,
        "construction": sorted(frozenset().union(*(rep.constructions for rep in reps))),
    }


def _base_class(model: nn.Module) -> str:
    cls = type(model)
    if cls.__name__.startswith("Parametrized"):
        cls = cls.__bases__[0]
    return f"{cls.__module__}.{cls.__qualname__}"


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
        if have[name].shape != tensor.shape or have[name].dtype != tensor.dtype:
            got = f"{tuple(have[name].shape)} {have[name].dtype}"
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


def _check_stand(link: SoftParametrization) -> None:
    """The buffers say where the learned dial stands, for readers that know no learned dials."""
    for buffer, stands in (("threshold", link.setting.threshold), ("budget", link.setting.budget)):
        stored = float(getattr(link, buffer))
        if not math.isclose(stored, stands, rel_tol=1e-9):
            raise FileFormatError(
                explain(
                    f"the {buffer} {stands:g} at which the learned dial of {link.name} stands",
                    f"{stored:g}",
                    "copy the folder again: it was edited",
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
        row, own = described[link.name], _description(link)
        if row != {key: value for key, value in own.items() if key in row or key not in _PLACE_OF_ROWS}:
            raise FileFormatError(
                explain(
                    f"{link.name} as {row}",
                    f"{own}",
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
            _check_stand(link)
        stored, rebuilt = tensors[f"probe/{link.name}"], probe_image(link)
        large = max(link.constraint.rep_in.dim, link.constraint.rep_out.dim) > _LARGE_SPACE
        tolerance = _LARGE_TOLERANCE if large else _PROBE_TOLERANCE
        if stored.shape != rebuilt.shape or not torch.allclose(stored, rebuilt, rtol=tolerance, atol=tolerance):
            raise FileFormatError(
                explain(
                    f"the filter of {link.name} as it was constructed when saved",
                    "another image of its probe: the construction changed, or group or dial were edited",
                    "use the version of equidial that wrote the folder, or copy the folder again",
                )
            )
