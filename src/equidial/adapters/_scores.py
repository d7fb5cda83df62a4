"""What measure finds, per task: frozen numbers that are mappings as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar


class Numbers(Mapping[str, float]):
    """A frozen dataclass of numbers, read by attribute or by key."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __getitem__(self, key: str) -> float:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))

    def to_dict(self) -> dict[str, float]:
        """Plain data, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Scores(Numbers):
    """What :func:`measure` found of a classifier; also a mapping, ``scores["aAcc"]``.

    Attributes:
        Acc: top-1 accuracy, in [0, 1]; NaN without labels, as are aAcc and cAcc.
        aAcc: top-1 accuracy on transformed images, the mean over elements.
        cAcc: ``sqrt(Acc aAcc)``.
        iErr: mean KL divergence in nats between the predictions for ``x`` and ``g x``.
        epsilon: largest ``||f(gx) - f(x)|| / (||J_f(x)|| ||x||)`` over the probed images and all elements.
        epsilon_mean: its mean.
        images, elements: how many images were read and how many group elements were tried on each.
    """

    Acc: float
    aAcc: float
    cAcc: float
    iErr: float
    epsilon: float
    epsilon_mean: float
    images: int
    elements: int

    def __str__(self) -> str:
        return (
            f"Acc {self.Acc:.4f}  aAcc {self.aAcc:.4f}  cAcc {self.cAcc:.4f}  iErr {self.iErr:.5f}  "
            f"epsilon {self.epsilon:.4g} (mean {self.epsilon_mean:.3g})  "
            f"[{self.images} images, {self.elements} elements]"
        )


@dataclass(frozen=True)
class SegmentationScores(Numbers):
    """What :func:`measure` found of a segmentation network; also a mapping, ``scores["aIoU"]``.

    Attributes:
        mIoU: mean over classes of intersection over union, both summed over the data set, in [0, 1].
        aIoU: mIoU of ``f(gx)`` against ``g y``, the mean over elements.
        cIoU: ``sqrt(mIoU aIoU)``.
        Acc, aAcc, cAcc: the same of the share of pixels that are given their label.
        eErr: mean KL divergence in nats between ``softmax g f(x)`` and ``softmax f(gx)``, over the pixels in the frame.
        epsilon: largest ``||f(gx) - g f(x)|| / (||J_f(x)|| ||x||)`` over the probed images and all elements, the
            difference over the pixels in the frame, ``||J||`` estimated by Hutchinson probes.
        epsilon_mean: its mean.
        images, elements: how many images were read and how many group elements were tried on each.
    """

    mIoU: float
    aIoU: float
    cIoU: float
    Acc: float
    aAcc: float
    cAcc: float
    eErr: float
    epsilon: float
    epsilon_mean: float
    images: int
    elements: int

    def __str__(self) -> str:
        return (
            f"mIoU {self.mIoU:.4f}  aIoU {self.aIoU:.4f}  cIoU {self.cIoU:.4f}  "
            f"Acc {self.Acc:.4f}  aAcc {self.aAcc:.4f}  cAcc {self.cAcc:.4f}  eErr {self.eErr:.5f}  "
            f"epsilon {self.epsilon:.4g} (mean {self.epsilon_mean:.3g})  "
            f"[{self.images} images, {self.elements} elements]"
        )


@dataclass(frozen=True)
class FeatureScores(Numbers):
    """What :func:`measure` found of dense features; also a mapping, ``scores["eErr_rel"]``.

    Attributes:
        eErr_rel: mean of ``||f(gx) - g f(x)|| / ||g f(x)||`` over images and elements, norms over the places of the
            grid that stay in the frame.
        eErr_rel_max: its largest value.
        iErr_rel: mean of ``||c(gx) - c(x)|| / ||c(x)||`` of the rows ``c`` before the grid (class and register tokens),
            which the group must leave; NaN without such rows.
        iErr_rel_max: its largest value.
        images, elements: how many images were read and how many group elements were tried on each.
    """

    eErr_rel: float
    eErr_rel_max: float
    iErr_rel: float
    iErr_rel_max: float
    images: int
    elements: int

    def __str__(self) -> str:
        return (
            f"eErr_rel {self.eErr_rel:.4g} (largest {self.eErr_rel_max:.4g})  "
            f"iErr_rel {self.iErr_rel:.4g} (largest {self.iErr_rel_max:.4g})  "
            f"[{self.images} images, {self.elements} elements]"
        )
