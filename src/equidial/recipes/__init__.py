"""Recipes: one readable script and one dataclass per experiment."""

from collections.abc import Callable
from typing import Any

from equidial.recipes import inertia, lorentz, mnist6_180, nonstationary_cifar, o5
from equidial.recipes._group_resnet import GroupResNet, GroupResNetConfig
from equidial.recipes._models import SPECIFICATIONS, check_fits, load_model, load_weights
from equidial.recipes._study import Study, Training, fit, fit_classifier, study_records
from equidial.recipes._trajectory_transformer import TrajectorySizes, TrajectoryTransformer
from equidial.recipes.adapt import Adapt, Outcome
from equidial.recipes.demo import Demo
from equidial.recipes.inertia import Inertia
from equidial.recipes.lorentz import LorentzScattering
from equidial.recipes.mnist6_180 import NAME as MNIST6_180
from equidial.recipes.mnist6_180 import Mnist6180
from equidial.recipes.nonstationary_cifar import NAME as NONSTATIONARY_CIFAR
from equidial.recipes.nonstationary_cifar import NonstationaryCifar
from equidial.recipes.o5 import O5

STUDIES: dict[str, tuple[type, Callable[..., list[dict[str, Any]]]]] = {
    MNIST6_180: (Mnist6180, mnist6_180.run),
    NONSTATIONARY_CIFAR: (NonstationaryCifar, nonstationary_cifar.run),
    o5.NAME: (O5, o5.run),
    lorentz.NAME: (LorentzScattering, lorentz.run),
    inertia.NAME: (Inertia, inertia.run),
}
"""Studies by the name on the command line: the dataclass of each, and what runs it."""

__all__ = [
    "MNIST6_180",
    "NONSTATIONARY_CIFAR",
    "O5",
    "SPECIFICATIONS",
    "STUDIES",
    "Adapt",
    "Demo",
    "GroupResNet",
    "GroupResNetConfig",
    "Inertia",
    "LorentzScattering",
    "Mnist6180",
    "NonstationaryCifar",
    "Outcome",
    "Study",
    "Training",
    "TrajectorySizes",
    "TrajectoryTransformer",
    "check_fits",
    "fit",
    "fit_classifier",
    "load_model",
    "load_weights",
    "study_records",
]
