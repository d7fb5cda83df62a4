"""The configuration of an adaptation: what to soften, how far, and which representation each tensor carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from equidial.adapters._parameter_rules import ParameterRule
from equidial.errors import ArgumentError, FileFormatError, explain
from equidial.filters import Dial, check_response
from equidial.groups import Group, as_group, by_name
from equidial.representations import Representation, parse


@dataclass(frozen=True)
class SoftEquivarianceConfig:
    """What :func:`equidial.soften` shall do; checks itself when constructed.

    Attributes:
        group: a name (``"C4"``, ``"D4"``, ``"SO2"``, ``"Flip"``, ``"T2"``, ..) or a group; one of your own,
            which no name rebuilds, can be used but not saved.
        softness: 0 exactly symmetric .. 1 untouched.
        threshold: ``b`` of paper A, in 1 / (unit of the group's distance); ``beta`` for ``nearest``.
        max_error: certified relative error that no tensor shall exceed. Give exactly one of the three.
        response: ``nearest`` (default), ``hard``, ``taper`` or ``exponential``.
        target_modules: which modules, as PEFT: a list matches whole names or dotted suffixes, a string is a regular
            expression for the whole name. ``None``: every default target.
        exclude_modules: which modules to leave out, matched alike.
        softness_pattern: softness of single modules, ``{regular expression of a name's end: softness}``.
        representations: spaces of linear layers, ``{pattern: ("8*Vector + 4*Trivial", "16*Vector")}`` (in, out), texts
            or :class:`Representation` objects of the group.
        radius: largest distance of the group elements that ``max_error`` and certificates speak of; ``None``: all.
        image_size: input size of the model in pixels, ``n`` or ``(h, w)``, for checking strides; ``None``: read
            from the model where it tells.
        targets: rules of your own for what parameters carry, :class:`ParameterRule`; the first that matches wins,
            before the row of the architecture and the generic rule. ``target_modules`` and ``exclude_modules`` choose
            among what the rules find; :func:`equidial.describe_targets` shows all of it.

    Raises:
        ArgumentError: an unknown group (with the list of names), not exactly one dial, a value out of range, a
            representation that does not parse.
    """

    group: str | Group
    softness: float | None = None
    threshold: float | None = None
    max_error: float | None = None
    response: str = "nearest"
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    softness_pattern: Mapping[str, float] = field(default_factory=dict)
    representations: Mapping[str, tuple[str | Representation, str | Representation]] = field(default_factory=dict)
    radius: float | None = None
    image_size: int | tuple[int, int] | None = None
    targets: Sequence[ParameterRule] = ()

    def __post_init__(self) -> None:
        group = as_group(self.group)
        object.__setattr__(self, "group", group.name if _has_name(group) else group)
        check_response(self.response)
        Dial.of(self.softness, self.threshold, self.max_error)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "softness_pattern", dict(self.softness_pattern))
        for pattern, value in self.softness_pattern.items():
            _named(f"softness_pattern[{pattern!r}]", lambda value=value: Dial.of(softness=value))
        spaces = {pattern: tuple(pair) for pattern, pair in self.representations.items()}
        for pattern, pair in spaces.items():
            if len(pair) != 2 or not all(isinstance(space, str | Representation) for space in pair):
                raise ArgumentError(
                    explain(
                        f"representations[{pattern!r}] = (input, output), two texts or representations",
                        repr(pair),
                        "e.g. ('8*Vector + 4*Trivial', '16*Vector')",
                    )
                )
            _named(f"representations[{pattern!r}]", lambda pair=pair: [self.space(s) for s in pair])
        object.__setattr__(self, "representations", spaces)
        rules = tuple(self.targets) if isinstance(self.targets, Sequence) else (None,)
        if not all(isinstance(rule, ParameterRule) for rule in rules):
            raise ArgumentError(
                explain(
                    "targets, a list of ParameterRule",
                    repr(self.targets),
                    "e.g. targets=[ed.ParameterRule(r'patch\\.weight', 'kernel', view=(-1, 3, 8, 8))]",
                )
            )
        object.__setattr__(self, "targets", rules)
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.radius is not None and not (isinstance(self.radius, int | float) and self.radius > 0):
            raise ArgumentError(explain("a radius > 0, or None for the whole group", repr(self.radius), "e.g. 0.5"))
        size = self.image_size
        if size is None:
            return
        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pair):
            raise ArgumentError(explain("image_size n or (h, w) in pixels", repr(size), "e.g. image_size=224"))
        object.__setattr__(self, "image_size", pair)

    @property
    def group_object(self) -> Group:
        """The group itself."""
        return as_group(self.group)

    def space(self, given: str | Representation) -> Representation:
        """The representation itself, or the one with this text; raises ``ArgumentError`` for another group's."""
        group = self.group_object
        if isinstance(given, str):
            return parse(given, group)
        if not isinstance(given, Representation) or given.group != group:
            raise ArgumentError(explain(f"a representation of {group.name}", repr(given), "build it on this group"))
        return given

    @property
    def dial(self) -> Dial:
        """The one dial that is set."""
        return Dial.of(self.softness, self.threshold, self.max_error)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; raises ``ArgumentError`` for a group or a space that no text rebuilds."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        if not isinstance(self.group, str):
            raise _unwritable("a group that its name rebuilds", self.group)
        data["representations"] = {
            pattern: tuple(self._text(space) for space in pair) for pattern, pair in self.representations.items()
        }
        # files written before there were rules have no such key, and mean the same
        rules = [rule.to_dict() for rule in data.pop("targets")]
        return json.loads(json.dumps(data | ({"targets": rules} if rules else {}), default=dict))

    def _text(self, space: str | Representation) -> str:
        if isinstance(space, str):
            return space
        try:
            same = parse(space.name, self.group_object) == space
        except ValueError:
            same = False
        if not same:
            raise _unwritable("representations that their text rebuilds", space)
        return space.name

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SoftEquivarianceConfig:
        """The inverse of :meth:`to_dict`; raises ``FileFormatError`` for a key of unknown meaning."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise FileFormatError(
                explain(
                    f"configuration keys out of {sorted(known)}",
                    f"{unknown}, which this version does not know",
                    "use the version that wrote the file: ignoring a key would change the subspace",
                )
            )
        rules = {"targets": [ParameterRule.from_dict(rule) for rule in data["targets"]]} if data.get("targets") else {}
        return cls(**{**data, **rules})


def _has_name(group: Group) -> bool:
    """Whether :func:`equidial.groups.by_name` rebuilds the group from its name."""
    try:
        return by_name(group.name) == group
    except ValueError:
        return False


def _unwritable(expected: str, got: object) -> ArgumentError:
    return ArgumentError(explain(f"{expected}, to write the configuration", repr(got), "fold the model and save that"))


def _named(what: str, build: Any) -> None:
    """Run a check and put the name of the argument before its message."""
    try:
        build()
    except ValueError as error:
        raise ArgumentError(f"{what}: {error}") from error
