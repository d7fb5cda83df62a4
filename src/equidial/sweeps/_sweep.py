"""What a sweep is: one frozen dataclass, checked before a storage is opened or a folder made."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from equidial._version import __version__
from equidial.errors import ArgumentError, explain
from equidial.sweeps._front import Select
from equidial.sweeps._recipes import SweepRecipe, source_of, sweep_recipe
from equidial.sweeps._space import Choice, Range, build, check_space, field_kind, read_fixed, read_space


@dataclass(frozen=True)
class Sweep:
    """Search a recipe's settings for accuracy and error at once, by any number of workers on one storage."""

    recipe: str
    """demo | adapt | mnist | FILE.py:NAME, a SweepRecipe (runs the code of that file)."""
    name: str | None = None
    """Of the sweep in its storage; workers with the same name and storage share its trials. Default: the recipe's."""
    storage: str | None = None
    """A journal file, or a database URL: postgresql://user:password@host/name. Default: journal.log in the output."""
    output: Path | None = None
    """Folder of this machine's trials, pictures and tables. Default: runs/sweep-NAME."""
    trials: int = 100
    """Of the whole sweep, over all workers; given larger later, the sweep goes on."""
    workers: int = 1
    """Processes on this machine; the same command elsewhere adds more."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each trial is trained once for each; the objectives are means over them."""
    space: tuple[str, ...] = ()
    """What varies, beside or in place of the recipe's own: softness=0:1 learning_rate=1e-5:1e-3:log response=a,b."""
    fixed: tuple[str, ...] = ()
    """What does not: data=mnist.npz epochs=3; a name of the space is taken out of it."""
    seed: int = 0
    """Of the sampler."""
    prune: float = 2.0
    """A trial stops after a seed if a finished one is better in both objectives by so many spreads; inf: never."""
    startup: int = 10
    """Trials drawn at random, and finished, before any is modelled or stopped."""
    retries: int = 3
    """How often a trial is begun anew whose worker died."""
    heartbeat: float = 15.0
    """Seconds between signs of life; a worker on another machine is lost after four times as long without one."""
    select: Select = "knee"
    """The best trial: knee of the front, or the highest accuracy."""
    max_error: float | None = None
    """The best trial: the highest accuracy with an error up to this."""

    @cached_property
    def made_of(self) -> SweepRecipe:
        """The recipe itself. Raises ``ArgumentError`` for an unknown one."""
        return sweep_recipe(self.recipe)

    @property
    def title(self) -> str:
        """The name in the storage."""
        return self.name or self.made_of.name

    @property
    def folder(self) -> Path:
        """The folder of this machine."""
        return self.output or Path("runs") / f"sweep-{self.title}"

    @property
    def where(self) -> str:
        """The storage."""
        return self.storage or str(self.folder / "journal.log")

    @cached_property
    def varied(self) -> dict[str, Range | Choice]:
        """The space: the recipe's, without what is fixed, with what was asked for. Raises ``ArgumentError``."""
        recipe = self.made_of
        asked, fixed = read_space(self.space, recipe.made), read_fixed(self.fixed, recipe.made)
        both = sorted(set(asked) & set(fixed))
        if both:
            raise ArgumentError(explain("a name in --space or in --fixed", f"{both[0]} in both", "leave one out"))
        space = {name: part for name, part in {**recipe.space, **asked}.items() if name not in fixed}
        check_space(space, recipe.made)
        return space

    @cached_property
    def constant(self) -> dict[str, Any]:
        """What every trial shares: the recipe's own values and those asked for."""
        asked = read_fixed(self.fixed, self.made_of.made)
        return {k: v for k, v in {**self.made_of.fixed, **asked}.items() if k not in self.varied}

    def configuration(self, values: Mapping[str, Any], seed: int, folder: Path) -> Any:
        """The recipe's dataclass for one seed of a trial."""
        whole = {k: int(v) if field_kind(self.made_of.made, k) is int else v for k, v in values.items()}
        return build(self.made_of.made, {**self.constant, **whole}, seed, folder)

    def check(self) -> None:
        """Raise ``ArgumentError`` for values that cannot work; the ends of the space are tried on the dataclass."""
        counts = {"trials": self.trials, "workers": self.workers}
        for name, value in counts.items():
            if value < 1:
                raise ArgumentError(explain(f"{name} >= 1", repr(value), "give a positive number"))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ArgumentError(explain("different seeds, at least one", repr(self.seeds), "e.g. --seeds 0 1 2"))
        if not (self.prune >= 0 and self.heartbeat > 0 and self.startup >= 1 and self.retries >= 0):
            got = f"prune={self.prune}, heartbeat={self.heartbeat}, startup={self.startup}, retries={self.retries}"
            todo = "prune and retries from 0, heartbeat above 0, startup from 1"
            raise ArgumentError(explain("values that can be", got, todo))
        if self.select not in get_args(Select) or (self.max_error is not None and math.isnan(self.max_error)):
            got = f"select={self.select!r}, max_error={self.max_error}"
            raise ArgumentError(explain(f"select out of {get_args(Select)}, a number as max_error", got, "mend it"))
        if not self.title.strip() or os.sep in self.title:
            raise ArgumentError(explain("a name without slashes", repr(self.title), "choose another --name"))
        for place in (0, 1):
            values = {name: part.ends[place] for name, part in self.varied.items()}
            made = self.configuration(values, self.seeds[0], self.folder / "trials" / "check")
            check = getattr(made, "check_values", None) or getattr(made, "check", None)
            if check is not None:
                check()

    def settings(self) -> dict[str, Any]:
        """What every worker must agree on, as plain JSON; data stand there by their contents, not by their path."""
        constant = {name: str(value) if isinstance(value, Path) else value for name, value in self.constant.items()}
        for name in ("data", "weights"):
            if isinstance(constant.get(name), str):
                constant[name] = fingerprint(constant[name])
        settings = {
            "equidial": __version__,
            "recipe": self.made_of.name,
            "source": source_of(self.recipe),
            "objectives": list(self.made_of.objectives),
            "space": {name: str(part) for name, part in self.varied.items()},
            "fixed": constant,
            "seeds": list(self.seeds),
            "prune": str(self.prune),
            "startup": self.startup,
        }
        return json.loads(json.dumps(settings))


def fingerprint(path: str) -> str:
    """What tells one set of data from another: of a file its size and ends, of a folder its names and sizes."""
    place, digest = Path(path), hashlib.sha256()
    if place.is_file():
        size = place.stat().st_size
        digest.update(str(size).encode())
        with place.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    elif place.is_dir():
        for file in sorted(p for p in place.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(place)} {file.stat().st_size}\n".encode())
    else:
        return path
    return f"{place.name} {digest.hexdigest()[:16]}"


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What two settings differ in, one line each."""
    lines = []
    for key in sorted(set(wanted) | set(found)):
        mine, theirs = wanted.get(key), found.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            for name in sorted(set(mine) | set(theirs)):
                if mine.get(name) != theirs.get(name):
                    lines.append(f"{key} {name}: {_show(theirs, name)} there, {_show(mine, name)} here")
        elif mine != theirs:
            lines.append(f"{key}: {_show(found, key)} there, {_show(wanted, key)} here")
    return lines


def _show(settings: Mapping[str, Any], name: str) -> str:
    return str(settings[name]) if name in settings else "absent"
