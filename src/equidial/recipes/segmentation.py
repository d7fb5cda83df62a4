"""Segmentation at every softness (paper A, table 4): CamVid on two cores, PASCAL VOC 2012 and ADE20K with transformers.

One pretrained network is fine-tuned with the same steps and images: untouched, untouched with turned training images,
exactly symmetric (softness 0, where the responses agree), and at positions between for every response. Masks of test
images and of turned test images are compared with the truth (mIoU, aIoU, cIoU) and with one another (eErr); beside
stands the certified defect of the kernels. Nothing is chosen by looking: the last weights are tested, validation images
are not augmented and decide nothing.
"""

from __future__ import annotations

import base64
import copy
import io
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.data import SegmentationPart, Segmentations, load_segmentation
from equidial.data._segmentation import IGNORED
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.filters import check_response
from equidial.groups import by_name
from equidial.metrics import DEFAULT_RADIUS, measured_elements, transform_images
from equidial.recipes._dense_moves import Moves, moved, turned_together
from equidial.recipes._schedule import clip_gradients
from equidial.recipes._segmenters import Segmenter, check_segmenter, load_segmenter
from equidial.recipes._study import Key, Progress, Study, Training, check_named, fit, spent
from equidial.recipes._together import shared
from equidial.recipes._training import restore_statistics

NAME = "segmentation"
_STATISTICS = 8  # batches from which batch norm is restored and re-estimated
_HELD_OUT = 0.1  # of the training images, where a data set has no third part
_WORKERS = 8
_BATCH = 8  # images at once when testing: logits of full size are large

_KINDS = {"vit": (5e-5, 0.07, 512), "dinov2": (1e-5, 0.01, 518), "segformer": (1e-4, 0.01, 512)}
"""Of transformers: learning rate of what is pretrained, weight decay, and image size at the scale of the paper."""
_HEAD_RATE = 1e-3


@dataclass(frozen=True)
class _Sizes:
    group: str
    image: int
    training: Training
    moves: Moves
    head_rate: float
    decay: float
    warmup_steps: int
    clip: float
    in_memory: bool


SCALES = {
    "small": _Sizes("C4", 193, Training(6, 8, 1e-3), Moves(), 1e-2, 0.0, 20, 5.0, True),
    "paper": _Sizes(
        "SO2", 512, Training(100, 32, 1e-4), Moves(True, (0.5, 2.0), 10.0, 0.25), _HEAD_RATE, 0.01, 250, 1.0, False
    ),
}
_EPOCHS = {"ade20k": 50}
_WARMUP = {"ade20k": 500}


@dataclass(frozen=True)
class SegmentationStudy:
    """CamVid, PASCAL VOC or ADE20K: one pretrained segmentation network, fine-tuned from strict to free."""

    data: Path
    """CamVid, VOCdevkit or ADEChallengeData2016: the folder, or a .zip file of it."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    weights: Path | None = None
    """FILE.safetensors of DeepLabV3 on MobileNetV2, 21 classes of VOC."""
    model: str | None = None
    """hf:NAME_OR_FOLDER instead: SegFormer with its decoder, ViT or DINOv2 with a linear head."""
    scale: Literal["small", "paper"] = "small"
    """small: C4, 193 pixels (16 k + 1: strides fit), 6 epochs. paper: SO(2) to 30 degrees, 512 pixels, 100 epochs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training per seed and setting."""
    responses: tuple[str, ...] = ("nearest", "hard", "taper", "exponential")
    """Out of nearest, hard, taper, exponential."""
    softness: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Positions of every response, in (0, 1); of equal networks (hard has stairs) one is trained."""
    image_size: int | None = None
    """Images are resized to squares of so many pixels. Default: of the scale (518 for DINOv2)."""
    epochs: int | None = None
    """Default: of the scale; 50 for ADE20K at that of the paper."""
    images: int | None = None
    """At most so many of every part, evenly spread over it. Default: all."""
    device: str = "cpu"
    """cpu, or cuda."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning, a network or a device that is not there."""
        check_named("seeds", self.seeds)
        for response in self.responses:
            check_response(response)
        if not all(0 < s < 1 for s in self.softness):
            raise ArgumentError(explain("softness in (0, 1)", repr(self.softness), "0 and 1 are always there"))
        for name in ("image_size", "epochs", "images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(explain(f"{name} >= 1", repr(value), "leave it out for the default"))
        if self.scale == "paper" and self.model is None:
            raise ArgumentError(explain("a model at the scale of the paper", "none", "e.g. --model hf:nvidia/mit-b0"))
        check_segmenter(self.model, self.weights)
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise ArgumentError(explain("cpu, or cuda where there is one", repr(self.device), "use --device cpu"))


@dataclass(frozen=True)
class _Plan:
    """What is the same in every training."""

    recipe: SegmentationStudy
    train: Segmentations
    val: Segmentations
    test: Segmentations
    size: int
    sizes: _Sizes
    cache: dict[str, tuple[torch.Tensor, torch.Tensor]]

    def batch(self, found: Segmentations, rows: list[int], network: Segmenter) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images ``[n, 3, h, w]`` and masks ``[n, h, w]`` on the device."""

        def read(row: int) -> tuple[torch.Tensor, torch.Tensor]:
            name = str(found.files[row][0])
            pair = self.cache.get(name)
            if pair is None:
                pair = found[row]
                if self.sizes.in_memory:
                    self.cache[name] = pair
            return pair

        with ThreadPoolExecutor(_WORKERS) as pool:
            pairs = list(pool.map(read, rows))
        mean, std = (torch.tensor(v, device=self.recipe.device)[:, None, None] for v in (network.mean, network.std))
        x = torch.stack([image for image, _ in pairs]).to(self.recipe.device).float() / 255
        return (x - mean) / std, torch.stack([mask for _, mask in pairs]).to(self.recipe.device).long()

    def batches(self, found: Segmentations, network: Segmenter) -> Iterator[Any]:
        """All images in order."""
        for rows in torch.arange(len(found)).split(_BATCH):
            yield self.batch(found, rows.tolist(), network)

    def sample(self, count: int, network: Segmenter) -> Iterator[Any]:
        """So many batches of training images, or as many as there are, the same at every call."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        for rows in order.split(self.sizes.training.batch_size)[:count]:
            yield self.batch(self.train, rows.tolist(), network)


def run(recipe: SegmentationStudy, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`SegmentationStudy.check`."""
    recipe.check()
    plan = _planned(recipe)
    positions = list(_positions(plan, load_segmenter(recipe.model, recipe.weights, len(plan.train.classes))))
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data", "weights", "device")}
    settings |= {"dataset": plan.train.name, "group": plan.sizes.group, "image_size": plan.size}
    settings |= {"test_masks": plan.test.checksum()}
    study = Study(recipe.output, NAME, settings)
    return study.collect(list(_keys(recipe, positions)), lambda key: _result(plan, study, key), progress)


def _planned(recipe: SegmentationStudy) -> _Plan:
    sizes = SCALES[recipe.scale]
    network = load_segmenter(recipe.model, recipe.weights, 2)
    if network.kind in _KINDS:
        rate, decay, image = _KINDS[network.kind]
        image = image if recipe.scale == "paper" else sizes.image
        training = replace(sizes.training, learning_rate=rate)
        sizes = replace(sizes, training=training, head_rate=_HEAD_RATE, decay=decay, image=image)
    size = recipe.image_size or sizes.image

    def part(name: SegmentationPart) -> Segmentations:
        return load_segmentation(recipe.data, name, size)

    train = part("train")
    if train.name == "camvid":
        val, test = part("val"), part("test")
    else:  # the official validation part is what papers test on
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        held = max(1, round(len(train) * _HELD_OUT))
        train, val, test = train.subset(sorted(order[held:])), train.subset(sorted(order[:held])), part("val")
    if test.complete and test.known_checksum not in (None, test.checksum()):
        what = f"the official masks of {test.name} {test.part}"
        warnings.warn(explain(what, "others", "unpack them again for its results"), EquidialWarning, stacklevel=3)
    train, val, test = (_spread(found, recipe.images) for found in (train, val, test))
    steps = -(-len(train) // sizes.training.batch_size)
    epochs = recipe.epochs or (_EPOCHS.get(train.name) if recipe.scale == "paper" else None) or sizes.training.epochs
    warmup = (_WARMUP.get(train.name) if recipe.scale == "paper" else None) or sizes.warmup_steps
    training = replace(sizes.training, epochs=epochs, warmup=min(warmup / steps, epochs / 4))
    return _Plan(recipe, train, val, test, size, replace(sizes, training=training), {})


def _spread(found: Segmentations, most: int | None) -> Segmentations:
    if most is None or len(found) <= most:
        return found
    return found.subset(torch.linspace(0, len(found) - 1, most).round().long().tolist())


def _config(plan: _Plan, response: str, softness: float) -> ed.SoftEquivarianceConfig:
    radius = DEFAULT_RADIUS if plan.sizes.group == "SO2" else None
    return ed.SoftEquivarianceConfig(
        plan.sizes.group, softness=softness, response=response, radius=radius, image_size=plan.size
    )


def _positions(plan: _Plan, network: Segmenter) -> Iterator[tuple[str, float]]:
    """Responses and positions, without those whose filters are the same as an earlier one's or do nothing."""
    for response in plan.recipe.responses:
        seen = set()
        for softness in sorted(plan.recipe.softness):
            if response == "hard":
                model = _softened(plan, copy.deepcopy(network.model), response, softness)
                rows = ed.status(model)
                thresholds = tuple(row.threshold for row in rows)
                if thresholds in seen or all(row.distance < 1e-6 for row in rows):
                    continue
                seen.add(thresholds)
            yield response, softness


def _keys(recipe: SegmentationStudy, positions: list[tuple[str, float]]) -> Iterator[dict[str, Any]]:
    for seed in recipe.seeds:
        for method in ("untouched", "untouched, turned"):
            yield {"method": method, "response": None, "softness": 1.0, "seed": seed}
        yield {"method": "strict", "response": None, "softness": 0.0, "seed": seed}
        for response, softness in positions:
            yield {"method": "soft", "response": response, "softness": softness, "seed": seed}


def _softened(plan: _Plan, model: nn.Module, response: str, softness: float) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)  # of strides, which do not fit every size
        return ed.soften(model, _config(plan, response, softness))


def _result(plan: _Plan, study: Study, key: Key) -> dict[str, Any]:
    start, recipe = time.perf_counter(), plan.recipe
    torch.manual_seed(key["seed"])
    network = load_segmenter(recipe.model, recipe.weights, len(plan.train.classes))
    network.model.to(recipe.device)
    parameters = sum(p.numel() for p in network.model.parameters())
    # statistics folded into weights come back first, so that the softened network can be given its own
    restore_statistics(network.model, plan.sample(_STATISTICS, network))
    response, softness = key["response"] or "nearest", key["softness"]
    if softness < 1:
        _softened(plan, network.model, response, softness)
        ed.recalibrate(network.model, plan.sample(_STATISTICS, network))
    history = _fine_tuned(plan, study, key, network)
    ed.recalibrate(network.model, plan.sample(4 * _STATISTICS, network))
    found: dict[str, Any] = {"parameters": parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)
        certificate = ed.certify(network.model, _config(plan, response, softness))
        found |= {"bound": float(certificate.bound), "levels": sorted({row.level for row in certificate})}
        found["measured_defect"] = max(row.measured for row in certificate if row.measured is not None)
        model = ed.fold(network.model) if softness < 1 else network.model
        network = replace(network, model=model.eval())
        elements = measured_elements(by_name(plan.sizes.group), _config(plan, response, softness).radius)
        with shared(model):
            val, test = (
                ed.measure(
                    model,
                    plan.batches(part, network),
                    plan.sizes.group,
                    task="segmentation",
                    elements=chosen,
                    epsilon_images=0,
                    ignore_index=IGNORED,
                )
                for part, chosen in ((plan.val, elements[:1]), (plan.test, elements))
            )
    found |= {name: test[name] for name in ("mIoU", "aIoU", "cIoU", "Acc", "aAcc", "cAcc", "eErr")}
    found |= {"validation": val.mIoU, "images": len(plan.train), "test_images": len(plan.test)}
    found |= {"complete": all(part.complete for part in (plan.train, plan.val, plan.test))}
    if key["seed"] == recipe.seeds[0] and _pictured(recipe, key):
        found["picture"] = _picture(plan, network, key["method"] == "untouched")
    return found | spent(history, start)


def _fine_tuned(plan: _Plan, study: Study, key: Key, network: Segmenter) -> list[dict[str, Any]]:
    """Cross-entropy over labelled pixels; AdamW, the new head with a rate of its own."""
    sizes, elements = plan.sizes, measured_elements(by_name(plan.sizes.group))
    groups = [
        {"params": network.parameters(head=False), "lr": sizes.training.learning_rate},
        {"params": network.parameters(head=True), "lr": sizes.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=sizes.decay)
    clip_gradients(optimizer, sizes.clip)

    def loss(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x, y = moved(*plan.batch(plan.train, rows.tolist(), network), sizes.moves, generator)
        if key["method"].endswith("turned"):
            x, y = turned_together(x, y, elements, generator)
        output = network.model(x)
        logits = getattr(output, "logits", output)
        if logits.shape[-2:] != y.shape[-2:]:
            logits = functional.interpolate(logits, size=y.shape[-2:], mode="bilinear", align_corners=False)
        return functional.cross_entropy(logits, y, ignore_index=IGNORED)

    return fit(
        network.model, len(plan.train), loss, sizes.training, key["seed"], study.checkpoint(key), optimizer=optimizer
    )


def _pictured(recipe: SegmentationStudy, key: Key) -> bool:
    """At 0, at 1, and half way of the first response."""
    if key["method"] != "soft":
        return key["method"] in ("untouched", "strict")
    middle = min(recipe.softness, key=lambda s: abs(s - 0.5))
    return (key["response"], key["softness"]) == (recipe.responses[0], middle)


def _picture(plan: _Plan, network: Segmenter, with_image: bool) -> dict[str, Any]:
    """The classes of one test image, and of the same image moved, moved back; packed bytes of ``[2, h, w]``."""
    rows = [len(plan.test) // 2]
    x, y = plan.batch(plan.test, rows, network)
    g = measured_elements(by_name(plan.sizes.group), _config(plan, "nearest", 0.0).radius)[0]
    with torch.no_grad():
        outputs = [network.model(x), network.model(transform_images(x, g))]
    logits = [getattr(output, "logits", output) for output in outputs]
    classes = [v.argmax(1)[0].cpu() for v in (logits[0], transform_images(logits[1], g.inverse()))]
    found: dict[str, Any] = {"size": list(classes[0].shape), "classes": _packed(torch.stack(classes).to(torch.uint8))}
    if with_image:
        from PIL import Image

        image, _ = plan.test[rows[0]]
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="JPEG", quality=85)
        found["image"] = base64.b64encode(buffer.getvalue()).decode()
        found |= {"truth": _packed(y[0].cpu().to(torch.uint8)), "truth_size": list(y.shape[1:])}
    return found


def _packed(values: torch.Tensor) -> str:
    return base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 9)).decode()
