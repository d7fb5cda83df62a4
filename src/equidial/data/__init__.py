"""Data: images and masks from disk or the Hugging Face hub, scikit-learn's digits, trajectories."""

from equidial.data._images import AUGMENTATIONS, Augmentation, Images, Split, held_out_rows, hold_out, loader
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
    "held_out_rows",
    "hold_out",
    "load_images",
    "load_segmentation",
    "load_trajectories",
    "loader",
]
