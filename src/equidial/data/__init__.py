"""Data from disk: images as ``.npz`` files or folders, scikit-learn's digits, segmentations, trajectories."""

from equidial.data._images import AUGMENTATIONS, Augmentation, Images, Split, loader
from equidial.data._segmentation import SegmentationPart, Segmentations, load_segmentation
from equidial.data._sources import DEMO_SIZE, demo_digits, load_images
from equidial.data._trajectories import SCENES, Trajectories, load_trajectories

__all__ = [
    "AUGMENTATIONS",
    "DEMO_SIZE",
    "SCENES",
    "Augmentation",
    "Images",
    "SegmentationPart",
    "Segmentations",
    "Split",
    "Trajectories",
    "demo_digits",
    "load_images",
    "load_segmentation",
    "load_trajectories",
    "loader",
]
