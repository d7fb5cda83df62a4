"""Recipes: one readable script and one dataclass per experiment."""

from collections.abc import Callable
from typing import Any

from equidial.recipes import (
    beyond,
    cifar,
    imagenet,
    inertia,
    large_angles,
    lorentz,
    mnist,
    mnist6_180,
    nonstationary_cifar,
    o5,
    segmentation,
    thresholds,
    timing,
    trajectories,
)
from equidial.recipes._cifar_networks import cct, resnet20, resnet56
from equidial.recipes._deeplab import DeepLabV3
from equidial.recipes._group_resnet import GroupResNet, GroupResNetConfig
from equidial.recipes._models import SPECIFICATIONS, check_fits, load_model, load_weights
from equidial.recipes._point_network import PointNetwork, point_vectors
from equidial.recipes._study import Study, Training, fit, fit_classifier, study_records
from equidial.recipes._trajectory_transformer import TrajectorySizes, TrajectoryTransformer
from equidial.recipes.adapt import Adapt, Outcome
from equidial.recipes.beyond import Beyond
from equidial.recipes.cifar import Cifar
from equidial.recipes.demo import Demo
from equidial.recipes.imagenet import ImageNet
from equidial.recipes.inertia import Inertia
from equidial.recipes.large_angles import LargeAngles
from equidial.recipes.lorentz import LorentzScattering
from equidial.recipes.mnist import Mnist
from equidial.recipes.mnist6_180 import Mnist6180
from equidial.recipes.nonstationary_cifar import NonstationaryCifar
from equidial.recipes.o5 import O5
from equidial.recipes.segmentation import SegmentationStudy
from equidial.recipes.thresholds import ThresholdStudy
from equidial.recipes.timing import Timing
from equidial.recipes.trajectories import TrajectoriesStudy

STUDIES: dict[str, tuple[type, Callable[..., list[dict[str, Any]]]]] = {
    mnist.NAME: (Mnist, mnist.run),
    cifar.NAME: (Cifar, cifar.run),
    imagenet.NAME: (ImageNet, imagenet.run),
    segmentation.NAME: (SegmentationStudy, segmentation.run),
    thresholds.NAME: (ThresholdStudy, thresholds.run),
    trajectories.NAME: (TrajectoriesStudy, trajectories.run),
    o5.NAME: (O5, o5.run),
    lorentz.NAME: (LorentzScattering, lorentz.run),
    inertia.NAME: (Inertia, inertia.run),
    mnist6_180.NAME: (Mnist6180, mnist6_180.run),
    nonstationary_cifar.NAME: (NonstationaryCifar, nonstationary_cifar.run),
    large_angles.NAME: (LargeAngles, large_angles.run),
    timing.NAME: (Timing, timing.run),
    beyond.NAME: (Beyond, beyond.run),
}
"""Studies by the name on the command line: the dataclass of each, and what runs it."""

__all__ = [
    "O5",
    "SPECIFICATIONS",
    "STUDIES",
    "Adapt",
    "Beyond",
    "Cifar",
    "DeepLabV3",
    "Demo",
    "GroupResNet",
    "GroupResNetConfig",
    "ImageNet",
    "Inertia",
    "LargeAngles",
    "LorentzScattering",
    "Mnist",
    "Mnist6180",
    "NonstationaryCifar",
    "Outcome",
    "PointNetwork",
    "SegmentationStudy",
    "Study",
    "ThresholdStudy",
    "Timing",
    "Training",
    "TrajectoriesStudy",
    "TrajectorySizes",
    "TrajectoryTransformer",
    "cct",
    "check_fits",
    "fit",
    "fit_classifier",
    "load_model",
    "load_weights",
    "point_vectors",
    "resnet20",
    "resnet56",
    "study_records",
]
