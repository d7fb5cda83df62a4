"""A sample of ImageNet, one image a class, as folders that ``equidial reproduce imagenet`` reads.

    python -m examples.imagenet_sample imagenet_sample_1k_256.zip FOLDER

The archive holds files ``<number>_<WordNet id>.jpg``. A fixed seed sends one half of them to ``train/<WordNet id>/``,
the other to ``val/<WordNet id>/``; every class has a folder in both, so that the classes keep their numbers.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np


def unpack(archive: Path, folder: Path) -> dict[str, int]:
    """Write both halves; returns how many images each has. Raises ``FileExistsError`` for a folder that is there."""
    folder.mkdir(parents=True)
    count = {"train": 0, "val": 0}
    with zipfile.ZipFile(archive) as packed:
        names = sorted(name for name in packed.namelist() if name.endswith(".jpg"))
        order = np.random.default_rng(0).permutation(len(names))
        chosen = set(order[: len(names) // 2].tolist())
        for i, name in enumerate(names):
            wordnet = Path(name).stem.rpartition("_")[2]
            for part in count:
                (folder / part / wordnet).mkdir(parents=True, exist_ok=True)
            part = "train" if i in chosen else "val"
            (folder / part / wordnet / Path(name).name).write_bytes(packed.read(name))
            count[part] += 1
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    unpack(arguments.archive, arguments.folder)
