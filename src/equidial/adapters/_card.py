"""The model card of a saved folder: Markdown with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from equidial._version import __version__
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._scores import FeatureScores, Numbers, Scores, SegmentationScores
from equidial.certificates import Certificate, Level
from equidial.errors import ArgumentError, explain

_TASKS: dict[type[Numbers], str] = {
    Scores: "image-classification",
    SegmentationScores: "image-segmentation",
    FeatureScores: "image-feature-extraction",
}
# the hub's names where it has one; the others are this library's
_METRICS = {"Acc": "accuracy", "mIoU": "mean_iou"}
_COUNTS = ("images", "elements")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class CardFacts:
    """What only the user can tell; :meth:`of` checks it. ``name``: what ``load`` is called with."""

    name: str
    scores: dict[str, Numbers]
    base_model: str | None
    license: str | None

    @classmethod
    def of(
        cls,
        name: str,
        scores: Numbers | Mapping[str, Numbers] | None,
        base_model: str | None,
        license: str | None,
    ) -> CardFacts:
        """Raises ``ArgumentError`` for anything that is none of these."""
        many = scores is None or (isinstance(scores, Mapping) and not isinstance(scores, Numbers))
        named: dict[Any, Any] = dict(scores or {}) if many else {"": scores}
        if not all(_is_title(key) and type(value) in _TASKS for key, value in named.items()):
            raise ArgumentError(
                explain(
                    "scores as equidial.measure returns them, or {name of the data: scores}",
                    f"{ {key: type(value).__name__ for key, value in named.items()} }",
                    "pass scores=equidial.measure(...)",
                )
            )
        if base_model is not None and not (isinstance(base_model, str) and _HUB_NAME.fullmatch(base_model)):
            todo = "leave it out where the base model is not on the hub"
            raise ArgumentError(explain("base_model, a name on the hub 'user/name'", repr(base_model), todo))
        if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
            todo = "e.g. license='apache-2.0'; leave it out where it is not known"
            raise ArgumentError(explain("license, an identifier of the hub", repr(license), todo))
        return cls(name, named, base_model, license)


def model_card(base: str, config: SoftEquivarianceConfig, certificate: Certificate, facts: CardFacts) -> str:
    """The card: what was done, how to load it, dial, certificate, scores where given, limits."""
    title = f"Soft-equivariant {base.rpartition('.')[2]}"
    front = "\n".join(_yaml(_metadata(title, config, facts)))
    sections = [
        f"---\n{front}\n---\n\n# {title}\n",
        _what(base, config, certificate, facts),
        _how_to_load(base, facts),
        _dial(certificate),
        _certificate(certificate),
        *([_measured(facts.scores)] if facts.scores else []),
        _LIMITS,
    ]
    return "\n".join(sections)


def _is_title(name: object) -> bool:
    return isinstance(name, str) and name.isprintable() and "|" not in name


def _metadata(title: str, config: SoftEquivarianceConfig, facts: CardFacts) -> dict[str, Any]:
    data: dict[str, Any] = {"library_name": "equidial"}
    if facts.license is not None:
        data["license"] = facts.license
    if facts.base_model is not None:
        data["base_model"] = facts.base_model
    data["tags"] = ["equivariance", "soft-equivariance", f"group-{config.group}"]
    results = [result for name, scores in facts.scores.items() if (result := _result(name, scores))["metrics"]]
    if results:
        data["metrics"] = sorted({m["type"] for r in results for m in r["metrics"] if m["type"] in _METRICS.values()})
        data["model-index"] = [{"name": title, "results": results}]
    return {key: value for key, value in data.items() if value != []}


def _result(name: str, scores: Numbers) -> dict[str, Any]:
    dataset = {"type": name or "unnamed", "name": name or "data without a name"}
    metrics = [
        {"type": _METRICS.get(key, key), "name": key, "value": value}
        for key, value in scores.items()
        if key not in _COUNTS and math.isfinite(value)
    ]
    return {"task": {"type": _TASKS[type(scores)]}, "dataset": dataset, "metrics": metrics}


def _what(base: str, config: SoftEquivarianceConfig, certificate: Certificate, facts: CardFacts) -> str:
    hub = f" ([{facts.base_model}](https://huggingface.co/{facts.base_model}))" if facts.base_model else ""
    return f"""{len(certificate)} tensors of a `{base}` are kept close to exact symmetry under a group. This
folder holds what differs from the base model, not the base model itself.

| | |
|---|---|
| base model | `{base}`{hub} |
| group | {config.group} |
| dial asked for | {config.dial} |
| response | {config.response} |
| written by | equidial {__version__} |
"""


def _how_to_load(base: str, facts: CardFacts) -> str:
    module, _, name = base.rpartition(".")
    lines = ["import equidial as ed"]
    if module.split(".")[0] == "transformers" and facts.base_model is not None:
        lines += [f"from transformers import {name}", "", f'base = {name}.from_pretrained("{facts.base_model}")']
    else:
        lines += ["", f"base = ...  # the {name} from which this was made, with its weights"]
    lines += [
        f'model = ed.load(base, "{facts.name}")  # refuses another base',
        "model = ed.fold(model)  # a plain model",
    ]
    code = "\n".join(lines)
    return f"## How to load\n\n```python\n{code}\n```\n"


def _dial(certificate: Certificate) -> str:
    settings: dict[tuple[str, str], list[str]] = {}
    for row in certificate:
        settings.setdefault((row.dial, row.response), []).append(f"`{row.name}`")
    rows = "\n".join(
        f"| {dial} | {response} | {len(names)} | {', '.join(names[:3])}{', ..' if len(names) > 3 else ''} |"
        for (dial, response), names in settings.items()
    )
    return f"""## Dial

Softness 0 is exactly symmetric, 1 untouched.

| dial | response | tensors | which |
|---|---|---|---|
{rows}
"""


def _certificate(certificate: Certificate) -> str:
    largest = []
    for level in get_args(Level):
        bounds = [row.bound for row in certificate if row.level == level]
        if bounds:
            largest.append(f"| {level} | {len(bounds)} | {_number(math.nan if _any_nan(bounds) else max(bounds))} |")
    rows = [
        f"| `{row.name}` | {row.representation} | {row.elements} | {_number(row.bound)} | {row.kind} | {row.level} |"
        for row in certificate
    ]
    return f"""## Certificate

Largest relative defect of any constrained tensor: {_number(certificate.bound)}, rounding included.
`certificate.json` holds every row with its notes.

| level | tensors | largest bound |
|---|---|---|
{chr(10).join(largest)}

| tensor | representation | elements | bound | kind | level |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def _measured(scores: Mapping[str, Numbers]) -> str:
    names = list(dict.fromkeys(key for found in scores.values() for key in found))
    head = " | ".join(name or "data without a name" for name in scores)
    rows = [
        f"| {key} | {' | '.join(_number(found[key]) if key in found else '' for found in scores.values())} |"
        for key in names
    ]
    table = "\n".join([f"| | {head} |", "|---" * (len(scores) + 1) + "|", *rows])
    return f"""## Measured

Before this folder was written, by `equidial.measure`; accuracies in [0, 1], iErr and eErr in nats.

{table}
"""


_LIMITS = """## Limits

* A certificate speaks of each tensor, not of the network: level `kernel` of the tensor on its own window, `layer`
  of the linear map, `image` of the map of images or tokens as well. The error of the network is what was measured.
* Scores hold for the data and the elements that were tried.
* The folder fits one base model, tensor for tensor. Its hashes find accidents; they are no signature.
"""


def _any_nan(values: list[float]) -> bool:
    return any(math.isnan(value) for value in values)


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.4g}"


def _yaml(data: Mapping[str, Any] | list[Any], indent: str = "") -> Iterator[str]:
    """The lines of a mapping or a list in block style; every text in double quotes."""
    pairs = data.items() if isinstance(data, Mapping) else ((None, item) for item in data)
    for key, value in pairs:
        lead = f"{indent}-" if key is None else f"{indent}{key}:"
        if not isinstance(value, Mapping | list):
            yield f"{lead} {_scalar(value)}"
        elif key is None:  # an item of a list starts on the line of its dash
            first, *rest = _yaml(value, indent + "  ")
            yield f"{lead} {first.lstrip()}"
            yield from rest
        else:
            yield lead
            yield from _yaml(value, indent + "  ")


def _scalar(value: str | float) -> str:
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    text = repr(value)
    # YAML 1.1 reads 1e-05 as a text and 1.0e-05 as a number
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
