"""Image data from disk: ``.npz`` files, folders of images, and the digits that come with scikit-learn."""

from equidial.data._images import AUGMENTATIONS, Augmentation, Images, Split, loader
from equidial.data._sources import DEMO_SIZE, demo_digits, load_images

__all__ = ["AUGMENTATIONS", "DEMO_SIZE", "Augmentation", "Images", "Split", "demo_digits", "load_images", "loader"]
