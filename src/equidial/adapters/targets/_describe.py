"""describe_targets: what every parameter of a model carries, or why it is left alone, as a table to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._matching import pattern_for
from equidial.adapters.targets._architectures import Architecture, architectures_of
from equidial.adapters.targets._generic import is_rotary
from equidial.adapters.targets._reasons import ROPE
from equidial.adapters.targets._resolve import ARCHITECTURES, GENERIC, Decision, decide
from equidial.errors import ArgumentError, explain
from equidial.groups import Group

_WIDEST = 64


@dataclass(frozen=True)
class TargetRow:
    """One parameter, or one module without parameters that breaks a symmetry.

    Attributes:
        name: full name.
        shape: of the parameter; empty for a module.
        representation: the space of its weights, e.g. ``"Pixels(8,8)"``; ``None``: left alone.
        role: ``"kernel"``, ``"table"``, ``"offsets"``, ``"linear"``, ``"bias"``, ``"leave"``, or ``"abstain"`` for a
            module.
        reason: what it is, or why it is left alone.
        rule: who says so: a row of the tables such as ``"transformers vit"``, ``"user"``, ``"declared representation"``
            or ``"generic"``.
    """

    name: str
    shape: tuple[int, ...]
    representation: str | None
    role: str
    reason: str
    rule: str


@dataclass(frozen=True)
class TargetTable:
    """The rows of :func:`describe_targets` in the model's order; prints as a table, repeated blocks in one row.

    Attributes:
        rows: one per parameter.
        architecture: the rows of the tables that speak of the model, e.g. ``"transformers vit"``; ``"generic"`` where
            none does.
        group: name of the group.
        model: name of the model's class.
    """

    rows: tuple[TargetRow, ...]
    architecture: str
    group: str
    model: str

    def __iter__(self) -> Iterator[TargetRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> TargetRow:
        """The row of the parameter or module with this full name; raises ``KeyError``."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def headline(self) -> str:
        """Which rows of the tables were used, or that the generic rule was."""
        generic = [row.name for row in self.rows if row.rule == GENERIC]
        if self.architecture == GENERIC:
            return (
                f"architecture: no row of the tables knows {self.model}, so the GENERIC rule was used "
                "(types of layers, names of parameters)"
            )
        if not generic:
            return f"architecture: {self.architecture}"
        more = f", e.g. {generic[0]}" if len(generic) > 1 else f", {generic[0]}"
        return f"architecture: {self.architecture}; the GENERIC rule for {len(generic)} parameters of none{more}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rows = [{**asdict(row), "shape": list(row.shape)} for row in self.rows]
        return {"model": self.model, "group": self.group, "architecture": self.architecture, "rows": rows}

    def __str__(self) -> str:
        lines = [("parameter", "shape", "representation", "role", "rule", "reason")]
        lines += [
            (name, "x".join(map(str, row.shape)) or "-", row.representation or "-", row.role, row.rule, row.reason)
            for name, row in _collapsed(self.rows)
        ]
        widths = [min(max(len(line[i]) for line in lines), _WIDEST) for i in range(5)]
        body = ["  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[5]]) for line in lines]
        constrained = sum(row.representation is not None for row in self.rows)
        parameters = sum(row.role != "abstain" for row in self.rows)
        summary = f"{self.model} under {self.group}: {constrained} of {parameters} parameters are constrained"
        return "\n".join([self.headline, summary, *(line.rstrip() for line in body)])


def describe_targets(model: nn.Module, config: SoftEquivarianceConfig | Group | str) -> TargetTable:
    """What every parameter carries under this configuration, or under this group; the model is only read.

    Plain and softened models alike. A tensor that :func:`equidial.soften` would refuse, because the group cannot act on
    its grid or a rule of the configuration does not fit, has no representation and that message as its reason.

    Raises ``ArgumentError`` for something else than a module and a configuration or group, ``NoMatchingTargetError``
    and ``TargetError`` as ``soften`` for rules and representations that match nothing or contradict each other.
    Cost: that of reading the parameters' names; no weight is touched.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(explain("a torch.nn.Module", type(model).__name__, "pass the model itself"))
    if not isinstance(config, SoftEquivarianceConfig):
        config = SoftEquivarianceConfig(group=config, softness=0.0)
    decisions = _parameters(decide(model, config))
    rows = architectures_of(model, ARCHITECTURES)
    used = dict.fromkeys(_label(rows[d.module_name]) for d in decisions)
    labels = ", ".join(label for label in used if label is not None)
    table = [_row(decision) for decision in decisions]
    abstaining = [*_abstaining(model, rows)]
    ordered = _in_order(model, table, abstaining)
    return TargetTable(tuple(ordered), labels or GENERIC, config.group_object.name, _class_name(model))


def _parameters(decisions: Iterable[Decision]) -> list[Decision]:
    """Without what is no parameter, and tied parameters once, as ``named_parameters`` has them."""
    seen: set[int] = set()
    kept = []
    for decision in decisions:
        if decision.tensor is not None and id(decision.tensor) not in seen:
            seen.add(id(decision.tensor))
            kept.append(decision)
    return kept


def _row(decision: Decision) -> TargetRow:
    assert decision.tensor is not None
    space = None
    if decision.target is not None:
        constraint = decision.target.constraint
        space = constraint.rep_in.name
        space = space if constraint.invariant else f"{space} -> {constraint.rep_out.name}"
    reason = " ".join(decision.reason.split())
    return TargetRow(decision.name, tuple(decision.tensor.shape), space, decision.role, reason, decision.rule)


def _label(row: Architecture | None) -> str | None:
    return None if row is None else row.label


def _abstaining(model: nn.Module, rows: dict[str, Architecture | None]) -> Iterator[TargetRow]:
    """Modules without parameters of their own that a row names, or whose class says that they rotate."""
    for name, module in model.named_modules():
        row = rows[name]
        for pattern, reason in row.abstains if row is not None else ():
            if pattern_for([pattern], name) is not None:
                yield TargetRow(name, (), None, "abstain", reason, row.label if row is not None else GENERIC)
                break
        else:
            if name and is_rotary(module) and not any(True for _ in module.parameters()):
                yield TargetRow(name, (), None, "abstain", ROPE, GENERIC)


def _in_order(model: nn.Module, table: Sequence[TargetRow], modules: Sequence[TargetRow]) -> list[TargetRow]:
    """Parameters in the model's order; a module stands where its parameters would."""
    place = {name: i for i, (name, _) in enumerate(model.named_modules())}
    order = {row.name: place.get(row.name.rpartition(".")[0], 0) for row in table}
    order |= {row.name: place[row.name] for row in modules}
    return sorted([*table, *modules], key=lambda row: order[row.name])


def _class_name(model: nn.Module) -> str:
    cls = type(model)
    return (cls.__bases__[0] if cls.__name__.startswith("Parametrized") else cls).__name__


def _collapsed(rows: Sequence[TargetRow]) -> Iterator[tuple[str, TargetRow]]:
    """One row for all that differ in the numbers of their names alone, where the first of them stands."""
    alike: dict[tuple[object, ...], list[TargetRow]] = {}
    for row in rows:
        stem = re.sub(r"(?<![^.])\d+(?![^.])", "#", row.name)
        alike.setdefault((stem, row.shape, row.representation, row.role, row.reason, row.rule), []).append(row)
    for key, members in alike.items():
        yield _common_name(str(key[0]), [row.name for row in members]), members[0]


def _common_name(stem: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = [[int(part) for part in name.split(".") if part.isdigit()] for name in names]
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    whole = 1
    for column in columns:
        whole *= len(column)
    texts = iter([_span(column) for column in columns])
    name = ".".join(next(texts) if part == "#" else part for part in stem.split("."))
    return name if whole == len(names) else f"{name} ({len(names)} of them)"


def _span(values: Sequence[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if list(values) == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(map(str, values)) + "}"
