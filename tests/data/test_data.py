"""Loading images: npz files, class folders, the digits; what is refused; loaders and their moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from equidial.data import AUGMENTATIONS, Split, demo_digits, hold_out, load_images, loader
from equidial.errors import EquidialError
from equidial.groups import C


def write_npz(path: Path, **changes: np.ndarray | None) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {
        "x_train": rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    kept = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(path, allow_pickle=False, **kept)
    return path


def write_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def test_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    images = load_images(str(path), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 2.0))
    assert images.shape == (3, 8, 8)
    assert images.classes == ("0", "1", "2")
    assert (len(images.train), len(images.test)) == (12, 6)
    with np.load(path) as raw:
        expected = (raw["x_test"][1].transpose(2, 0, 1) / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array(
            [0.5, 0.5, 2.0]
        )[:, None, None]
    assert np.allclose(images.test.dataset[1][0].numpy(), expected, atol=1e-6)
    assert load_images(str(path), size=9).shape == (3, 9, 9)
    grey = write_npz(
        tmp_path / "g.npz",
        x_train=np.zeros((3, 5, 5)),
        y_train=np.zeros(3),
        x_test=np.ones((2, 5, 5)),
        y_test=np.zeros(2),
    )
    found = load_images(str(grey))
    assert found.shape == (1, 5, 5)
    assert float(found.test.dataset[0][0].mean()) == 1.0


def test_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    masks = {f"y_{part}": rng.integers(0, 3, (n, 8, 8), dtype=np.uint8) for part, n in (("train", 12), ("test", 6))}
    masks["y_test"][1, 0] = 255
    path = str(write_npz(tmp_path / "m.npz", **masks))
    images = load_images(path, masks=True)
    assert images.classes == ("0", "1", "2"), "255 is no class"
    x, y = next(iter(loader(images.test, 4)))
    assert (x.shape, y.shape, y.dtype) == ((4, 3, 8, 8), (4, 8, 8), torch.long)
    assert np.array_equal(y.numpy(), masks["y_test"][:4])
    tripled = load_images(path, masks=True, size=24).test.dataset[1][1]
    assert np.array_equal(tripled.numpy(), masks["y_test"][1].repeat(3, 0).repeat(3, 1)), "each label three times over"
    with pytest.raises(EquidialError, match="as many labels"):
        load_images(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "demo", "existing FILE.npz for masks"),
        (lambda p: str(p), "existing FILE.npz for masks"),
        (lambda p: str(write_npz(p / "a.npz")), "y_train: integer masks of shape"),
        (lambda p: str(write_npz(p / "a.npz", y_train=np.zeros((12, 8, 7), int))), "y_train: integer masks of shape"),
        (lambda p: str(write_npz(p / "a.npz", y_train=np.zeros((12, 8, 8)))), "integer masks of shape"),
    ],
)
def test_masks_refused(make, message: str, tmp_path: Path) -> None:
    source = make(tmp_path)
    with pytest.raises(EquidialError, match=message):
        load_images(source, masks=True)


def test_folder(tmp_path: Path) -> None:
    images = load_images(str(write_folder(tmp_path)))
    assert images.classes == ("cat", "dog")
    assert (len(images.train), len(images.test)) == (8, 4)
    assert images.shape == (3, 10, 14)
    assert [label for _, label in (images.test.dataset[i] for i in range(4))] == [0, 0, 1, 1]
    square = load_images(str(tmp_path), size=8)
    assert square.shape == (3, 8, 8)
    with Image.open(tmp_path / "val" / "cat" / "0.png") as image:
        middle = np.asarray(image)[:, 2:12].transpose(2, 0, 1) / 255 * 2 - 1
    assert np.allclose(load_images(str(tmp_path), size=10).test.dataset[0][0].numpy(), middle, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "missing.npz"), "existing FILE.npz"),
        (lambda p: str(p / "missing"), "existing folder"),
        (lambda p: str(p), "train/<class>/"),
        (lambda p: str(write_npz(p / "a.npz", y_test=None)), "without.*y_test"),
        (lambda p: str(write_npz(p / "a.npz", x_test=np.zeros((3, 3)))), "x_test of shape"),
        (lambda p: str(write_npz(p / "a.npz", x_test=np.zeros((6, 3, 3, 7)))), "x_test of shape"),
        (lambda p: str(write_npz(p / "a.npz", y_test=np.zeros(2))), "as many labels"),
        (lambda p: (p / "a.npz").write_bytes(b"no") and str(p / "a.npz"), "readable a.npz"),
        (lambda p: str(empty_folder(p)), "images in every split"),
    ],
)
def test_refused(make, message: str, tmp_path: Path) -> None:
    source = make(tmp_path)
    with pytest.raises(EquidialError, match=message):
        load_images(source)


def empty_folder(root: Path) -> Path:
    for part in ("train", "test"):
        (root / part / "cat").mkdir(parents=True)
    return root


def test_wrong_normalisation(tmp_path: Path) -> None:
    with pytest.raises(EquidialError, match="one or 3 numbers for mean"):
        load_images(str(write_npz(tmp_path / "a.npz")), mean=(0.1, 0.2))


def test_digits_are_the_scans() -> None:
    images = demo_digits()
    assert images.shape == (1, 16, 16)
    assert (len(images.train), len(images.test)) == (1257, 540)
    x = torch.stack([images.train.dataset[i][0] for i in range(50)])
    assert -1.6 < float(x.min()) < -0.9
    assert 0.9 < float(x.max()) < 1.6


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_loaders(augment: str) -> None:
    images = demo_digits()
    plain = list(loader(images.test, 100))
    assert [len(x) for x, _ in plain] == [100] * 5 + [40]
    assert torch.equal(plain[0][0][3], images.test.dataset[3][0])
    once, twice, other = (
        [x for x, _ in loader(images.test, 100, seed=s, augment=augment, group=C(4))]  # type: ignore[arg-type]
        for s in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert not torch.equal(once[0], other[0])
    assert torch.equal(next(iter(loader(images.test, 100, augment=augment, group=C(4))))[0], plain[0][0])  # type: ignore[arg-type]


def test_held_out_images_are_fixed_and_nothing_moves_them() -> None:
    numbered = _numbered(demo_digits().train)
    kept, held = hold_out(numbered, 0.1)
    rows, held_rows = (torch.cat([y for _, y in loader(part, 300)]).flatten().long() for part in (kept, held))
    assert (len(kept), len(held)) == (1131, 126)
    assert torch.equal(torch.cat([rows, held_rows]).sort().values, torch.arange(1257)), "each image once"
    order = torch.randperm(1257, generator=torch.Generator().manual_seed(0))
    assert torch.equal(held_rows, order[:126].sort().values)
    torch.manual_seed(5)
    assert torch.equal(torch.cat([y for _, y in loader(hold_out(numbered, 0.1)[1], 300)]).flatten().long(), held_rows)
    x, _ = next(iter(loader(held, 126, augment="crop-flip")))
    assert torch.equal(x, torch.stack([numbered.dataset[int(row)][0] for row in held_rows]))
    for share, split in ((0.0, numbered), (1.0, numbered), (0.5, hold_out(numbered, 0.0001)[1])):
        with pytest.raises(EquidialError, match="a share in"):
            hold_out(split, share)


def _numbered(split: Split) -> Split:
    """The same images with labels that are tensors: their own numbers."""
    x = torch.stack([split.dataset[i][0] for i in range(len(split))])
    return Split(TensorDataset(x, torch.arange(len(x)).float()[:, None]))


def test_moves_are_what_they_say() -> None:
    images = demo_digits()
    originals = torch.stack([x for x, _ in (images.test.dataset[i] for i in range(540))])
    turned = torch.cat([x for x, _ in loader(images.test, 540, seed=0, augment="group", group=C(4))])
    sums = originals[..., 4:12, 4:12].sum((1, 2, 3)).sort().values
    assert turned.shape == originals.shape
    assert float((turned.mean((1, 2, 3)).sort().values - originals.mean((1, 2, 3)).sort().values).abs().mean()) < 0.1
    assert sums.isfinite().all()
    x = torch.cat([x for x, _ in loader(images.test, 540, seed=0, augment="turn", group=C(4))])
    order = torch.cat([y for _, y in loader(_numbered(images.test), 540, seed=0, augment="turn", group=C(4))]).flatten()
    views = torch.stack([originals[order.long()].rot90(k, (-2, -1)) for k in range(4)])
    kept = (views == x).flatten(2).all(-1)
    assert kept.any(0).all(), "every image is one of its own turns"
    assert (kept.sum(1) > 100).all(), "and every turn is drawn"
    for augment in ("group", "turn"):
        with pytest.raises(EquidialError, match="a group for"):
            loader(images.test, 10, seed=0, augment=augment)
    with pytest.raises(EquidialError, match="augmentation out of"):
        loader(images.test, 10, seed=0, augment="rotate")  # type: ignore[arg-type]
