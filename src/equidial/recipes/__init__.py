"""Recipes: one readable script and one dataclass per experiment."""

from collections.abc import Callable
from typing import Any

from equidial.recipes import cifar, imagenet, mnist, mnist6_180, nonstationary_cifar, segmentation, trajectories
from equidial.recipes._cifar_networks import cct, resnet20, resnet56
from equidial.recipes._deeplab import DeepLabV3
from equidial.recipes._group_resnet import GroupResNet, GroupResNetConfig
from equidial.recipes._models import SPECIFICATIONS, check_fits, load_model, load_weights
from equidial.recipes._study import Study, Training, fit, fit_classifier, study_records
from equidial.recipes._trajectory_transformer import TrajectorySizes, TrajectoryTransformer
from equidial.recipes.adapt import Adapt, Outcome
from equidial.recipes.cifar import NAME as CIFAR
from equidial.recipes.cifar import Cifar
from equidial.recipes.demo import Demo
from equidial.recipes.imagenet import NAME as IMAGENET
from equidial.recipes.imagenet import ImageNet
from equidial.recipes.mnist import NAME as MNIST
from equidial.recipes.mnist import Mnist
from equidial.recipes.mnist6_180 import NAME as MNIST6_180
from equidial.recipes.mnist6_180 import Mnist6180
from equidial.recipes.nonstationary_cifar import NAME as NONSTATIONARY_CIFAR
from equidial.recipes.nonstationary_cifar import NonstationaryCifar
from equidial.recipes.segmentation import NAME as SEGMENTATION
from equidial.recipes.segmentation import SegmentationStudy
from equidial.recipes.trajectories import NAME as TRAJECTORIES
from equidial.recipes.trajectories import TrajectoriesStudy

STUDIES: dict[str, tuple[type, Callable[..., list[dict[str, Any]]]]] = {
    CIFAR: (Cifar, cifar.run),
    IMAGENET: (ImageNet, imagenet.run),
    MNIST: (Mnist, mnist.run),
    MNIST6_180: (Mnist6180, mnist6_180.run),
    NONSTATIONARY_CIFAR: (NonstationaryCifar, nonstationary_cifar.run),
    TRAJECTORIES: (TrajectoriesStudy, trajectories.run),
    SEGMENTATION: (SegmentationStudy, segmentation.run),
}
"""Studies by the name on the command line: the dataclass of each, and what runs it."""

__all__ = [
    "CIFAR",
    "IMAGENET",
    "MNIST",
    "MNIST6_180",
    "NONSTATIONARY_CIFAR",
    "SEGMENTATION",
    "SPECIFICATIONS",
    "STUDIES",
    "TRAJECTORIES",
    "Adapt",
    "Cifar",
    "DeepLabV3",
    "Demo",
    "GroupResNet",
    "GroupResNetConfig",
    "ImageNet",
    "Mnist",
    "Mnist6180",
    "NonstationaryCifar",
    "Outcome",
    "SegmentationStudy",
    "Study",
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
    "resnet20",
    "resnet56",
    "study_records",
]
