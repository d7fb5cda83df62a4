"""The options of the commands: one dataclass each, whose texts are the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model, and how images are made ready for it."""

    model: str
    """demo | hf:NAME_OR_FOLDER | timm:NAME | FILE.py:function (runs the code of that file)."""
    weights: Path | None = None
    """A .safetensors file with the model's tensors, e.g. the model.safetensors of a run."""
    image_size: int | None = None
    """Resize images to this many pixels a side."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from images in [0, 1], one number or one per channel."""
    std: tuple[float, ...] = (0.5,)
    """Divisor after that."""


@dataclass(frozen=True, kw_only=True)
class _OnImages(_Model):
    """A model on a set of images."""

    data: str
    """demo | FILE.npz (x_train, y_train, x_test, y_test) | FOLDER (train/<class>/, test/<class>/; CIFAR, MNIST as
    torchvision has them) | hf:NAME_OR_FOLDER (hub, parquet, save_to_disk)."""
    radius: float | None = None
    """Largest group element (radians or pixels); default: all, 30 degrees for SO2."""
    batch_size: int = 128
    """Images per step."""


@dataclass(frozen=True, kw_only=True)
class Measure(_OnImages):
    """Measure accuracy and error of a network under a group."""

    group: str = "C4"
    """C<n>, D<n>, SO2, Flip, FlipUD, T2."""
    task: Literal["classification", "segmentation", "features"] = "classification"
    """segmentation: --data FILE.npz with integer masks [n, h, w] as y; features: dense outputs, no labels read."""
    tokens: tuple[int, int, int] | None = None
    """Rows before the grid, and its height and width, where features are tokens of a layout that cannot be guessed."""
    curve: Path | None = None
    """Write the error against angle, 0 to 180 degrees, to this .json file and a picture beside it."""
    disc: bool = False
    """For --curve: cut the images to their inscribed disc first."""
    seed: int = 0
    """Of the Hutchinson probes."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Certify:
    """Certify the tensors of a plain or folded model."""

    model: str | None = None
    """demo | hf:NAME_OR_FOLDER | timm:NAME | FILE.py:function (runs the code of that file)."""
    group: str | None = None
    """C<n>, D<n>, SO2, Flip, FlipUD, T2; or give --config."""
    config: Path | None = None
    """The soft_equivariance_config.json of a saved folder, for its group, targets and representations."""
    weights: Path | None = None
    """A .safetensors file with the model's tensors, e.g. the model.safetensors of a run."""
    radius: float | None = None
    """Largest distance of the elements (radians or pixels); default: the whole group."""
    image_size: int | None = None
    """Input size in pixels, by which strided layers are judged."""
    norm: Literal["frobenius", "spectral", "jacobian"] = "frobenius"
    """frobenius: of the tensor; spectral: of its matrix; jacobian: Frobenius, of the matrix of the whole layer."""
    output: Path | None = None
    """Write the certificate as JSON to this file."""
    verify: Path | None = None
    """A folder with certificate.json and model.safetensors (a run writes them): recompute every row from the folded
    weights alone and compare; with --model the levels as well. Exit code 2 where a row does not stand."""


@dataclass(frozen=True, kw_only=True)
class Diagnose(_Model):
    """Find what breaks the symmetry of a network: causes by name, arithmetic, remedies."""

    data: str | None = None
    """demo | FILE.npz | FOLDER | hf:NAME_OR_FOLDER; the example is its first test image. Default: noise of
    --image-size; demo: digits."""
    group: str = "C4"
    """C<n>, D<n>, SO2, O2, Flip, FlipUD."""
    config: Path | None = None
    """The soft_equivariance_config.json of a saved folder, for its targets."""
    angles: bool = False
    """Also the error of the example against the angle from 0 to 180 degrees."""
    output: Path | None = None
    """Write diagnosis.json and, with pictures, diagnosis.html into this folder."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class CertifySampled(_OnImages):
    """Certify a whole network with a confidence, from fresh test images and random group elements."""

    data: str
    """demo | FILE.npz | FOLDER | hf:NAME_OR_FOLDER; its test images, on which the model must not have been trained or
    tuned."""
    tau: tuple[float, ...]
    """Thresholds: P(error > tau) is bounded for each; choose them before looking at results."""
    samples: int
    """How many test images, the first ones; choose it before looking at results."""
    alpha: float = 0.01
    """Probability that any number of the certificate is wrong."""
    error: Literal["relative", "total_variation", "kl"] = "relative"
    """relative: ||F(gx) - F(x)|| / ||F(x)||; total_variation of the softmax; kl in nats."""
    group: str = "C4"
    """C<n>, D<n>, SO2, O2, Flip, FlipUD, T2."""
    seed: int = 0
    """Of the random elements, one per image."""
    output: Path | None = None
    """Write the certificate as JSON to this file."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Put a saved folder on the Hugging Face hub."""

    folder: Path
    """What equidial.save wrote, or the folder of one dial position of a run."""
    repo: str
    """user/name; made if it does not exist."""
    revision: str | None = None
    """Branch to write to, made if need be; default: the main one."""
    private: bool = False
    """Make the repository private if it is made here; else as the account is set."""
    message: str = "Upload with equidial"
    """Of the commit."""
