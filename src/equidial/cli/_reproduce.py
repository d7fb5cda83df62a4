"""``equidial reproduce NAME``: one subcommand per study, whose options are the fields of its dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from equidial.recipes import MNIST6_180, NONSTATIONARY_CIFAR, Mnist6180, NonstationaryCifar

Recipe = (
    Annotated[Mnist6180, tyro.conf.subcommand(MNIST6_180, prefix_name=False)]
    | Annotated[NonstationaryCifar, tyro.conf.subcommand(NONSTATIONARY_CIFAR, prefix_name=False)]
)


@dataclass(frozen=True)
class Reproduce:
    """An experiment of the papers; the same command on the same folder goes on where it was interrupted."""

    recipe: Recipe
    """Which one."""
