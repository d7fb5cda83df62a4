"""Data: images and masks from disk or the Hugging Face hub, digits of scikit-learn, trajectories, point clouds."""

from equidial.data._images import AUGMENTATIONS, Augmentation, Images, Split, held_out_rows, hold_out, loader
from equidial.data._points import PointClouds, load_points, read_off, sample_surface, unit_ball
from equidial.data._segmentation import SegmentationPart, Segmentations, load_segmentation
from equidial.data._solids import solids
from equidial.data._sources import DEMO_SIZE, demo_digits, load_images
from equidial.data._trajectories import SCENES, Trajectories, load_trajectories

__all__ = [
    "AUGMENTATIONS",
    "DEMO_SIZE",
    "SCENES",
    "Augmentation",
    "Images",
    "PointClouds",
    "SegmentationPart",
    "Segmentations",
    "Split",
    "Trajectories",
    "demo_digits",
    "held_out_rows",
    "hold_out",
    "load_images",
    "load_points",
    "load_segmentation",
    "load_trajectories",
    "loader",
    "read_off",
    "sample_surface",
    "solids",
    "unit_ball",
]
