"""verify: does a certificate hold for the weights that are presented with it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from equidial.adapters._certify import certified_rows
from equidial.adapters._certify_layers import is_layer_row, layer_row_names, layer_rows
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._geometry import sizes_at
from equidial.adapters._layouts import Layout
from equidial.adapters._state import find_root, tensor_hash
from equidial.certificates import Certificate, LayerCertificate, certify_weight, splits_by_spectrum
from equidial.errors import CertificateError, EquidialError, explain
from equidial.filters import Constraint, Spectrum, build_spectrum
from equidial.groups import by_name
from equidial.representations import parse

_TOLERANCE = 1e-6  # relative: other machines sum in another order


def verify(
    certificate: Certificate,
    weights: nn.Module | Mapping[str, torch.Tensor],
    config: SoftEquivarianceConfig | None = None,
) -> None:
    """Recompute every row from the weights alone; returns in silence where each stands.

    Args:
        certificate: what is claimed.
        weights: a plain (folded) model together with ``config``, a softened model, or the tensors of a folded one by
            name, e.g. ``safetensors.torch.load_file(...)``. Tensors tell no strides and paddings: from them the levels
            are not checked, and rows of norm ``"jacobian"`` and of continuous kernels cannot be.
        config: the configuration that the model was softened with; not for tensors, whose spaces the rows name.

    Raises ``CertificateError`` naming every row that does not stand: other weights (by hash), another dtype, a bound
    smaller than what the weights give, another level, radius or set of elements, a missing or an abstaining row.
    """
    recomputed = _of_model(certificate, weights, config) if isinstance(weights, nn.Module) else None
    problems: list[str] = []
    for row in certificate:
        try:
            if recomputed is not None:
                problems += [f"{row.name}: {text}" for text in _against_row(row, recomputed)]
            else:
                assert not isinstance(weights, nn.Module)
                problems += [f"{row.name}: {text}" for text in _against_tensor(row, weights)]
        except EquidialError as error:
            problems.append(f"{row.name}: {error}")
    for name in recomputed or ():
        if name not in {row.name for row in certificate}:
            problems.append(f"{name}: constrained in the model, without a row")
    if problems:
        raise CertificateError(
            explain(
                f"the {len(certificate)} rows of the certificate to stand for these weights",
                "\n    ".join([f"{len(problems)} that do not:", *problems]),
                "certify these weights anew, or present the ones that were certified",
            )
        )


def _of_model(
    certificate: Certificate, model: nn.Module, config: SoftEquivarianceConfig | None
) -> dict[str, LayerCertificate]:
    of_tensors = [row for row in certificate if not is_layer_row(row)]
    radius = max((row.radius for row in of_tensors), default=None)
    norms = {row.norm for row in of_tensors if row.kind != "abstained"}
    norm = "spectral" if "spectral" in norms else "jacobian" if "jacobian" in norms else "frobenius"
    size = None if certificate.image_size is None else (certificate.image_size[0], certificate.image_size[-1])
    found = {row.name: row for row in certified_rows(model, config, radius, norm, None, size, layers=False)[0]}
    root = find_root(model)
    plain = model if root is None else root[0]
    size = size if size is not None or config is None else config.image_size
    sizes = {id(plain.get_submodule(name)): given for name, given in sizes_at(plain, size).items()}
    stated = {row.name: row for row in certificate if is_layer_row(row)}
    for name in layer_row_names(plain):
        # each row has a radius of its own: radians on a group axis, places along translations
        radius = stated[name].radius if name in stated else None
        found |= {row.name: row for row in layer_rows(plain, sizes, radius, only=name)}
    return found


def _against_row(row: LayerCertificate, recomputed: Mapping[str, LayerCertificate]) -> Iterator[str]:
    found = recomputed.get(row.name)
    if found is None:
        yield "not constrained in this model"
        return
    for key in ("dtype", "weights", "level", "norm", "group", "representation", "elements"):
        if key == "level" and row.kind == "abstained":
            continue
        stated, got = getattr(row, key), getattr(found, key)
        if stated != got:
            yield f"{key} is {_short(got)}, certified was {_short(stated)}"
    yield from _bounds(row, found.bound, found.absolute)


def _against_tensor(row: LayerCertificate, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    if is_layer_row(row):
        yield "it speaks of a layer whose kernel is computed from several tensors: pass the model"
        return
    stored = tensors.get(row.name)
    if stored is None:
        yield "no tensor of this name"
        return
    dtype = str(stored.dtype).removeprefix("torch.")
    if dtype != row.dtype:
        yield f"dtype is {dtype}, certified was {row.dtype}"
    if tensor_hash(stored) != row.weights:
        yield f"weights is {_short(tensor_hash(stored))}, certified was {_short(row.weights)}"
    if row.norm != "frobenius":
        yield f"norm '{row.norm}' needs the model: pass it with its configuration"
        return
    layout = Layout.from_tuple(row.layout)
    group = by_name(row.group)
    given, _, output = row.representation.partition(" -> ")
    rep = parse(given, group)
    constraint = Constraint.equivariants(rep, parse(output, group)) if output else Constraint.invariants(rep)
    built = build_spectrum(constraint) if splits_by_spectrum(constraint) else None
    found = certify_weight(
        constraint, layout.weights(stored), row.radius, built if isinstance(built, Spectrum) else None
    )
    if found.elements != row.elements:
        yield f"elements is {found.elements}, certified was {row.elements}"
    yield from _bounds(row, found.bound, found.absolute)


def _bounds(row: LayerCertificate, bound: float, absolute: float) -> Iterator[str]:
    if row.kind == "abstained":
        yield "the row abstains: nothing is certified"
        return
    for key, got in (("bound", bound), ("absolute", absolute)):
        stated = getattr(row, key)
        if not got * (1 - _TOLERANCE) <= stated:
            yield f"{key} is {got:.6g}, certified was {stated:.6g}"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + ".." if len(text) == 64 else text
