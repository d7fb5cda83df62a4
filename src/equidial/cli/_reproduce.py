"""``equidial reproduce NAME``: one subcommand per study, whose options are the fields of its dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from equidial.recipes import STUDIES

if TYPE_CHECKING:
    Recipe = Any
else:
    Recipe = Union[  # noqa: UP007
        tuple(Annotated[made, tyro.conf.subcommand(name, prefix_name=False)] for name, (made, _) in STUDIES.items())
    ]


@dataclass(frozen=True)
class Reproduce:
    """An experiment of the papers; the same command on the same folder goes on where it was interrupted.

    Started more than once on one folder, the processes share the trainings.
    """

    recipe: Recipe
    """Which one."""
