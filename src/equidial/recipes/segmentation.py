"""Segmentation at every softness (paper A, table 4): CamVid on two cores, PASCAL VOC 2012 and ADE20K with transformers.

One pretrained network is fine-tuned with the same steps and images: untouched, untouched with turned training images,
exactly symmetric (softness 0, where the responses agree), and at positions between for every response; where asked,
the dial with turned training images too. Masks of test images and of turned test images are compared with the truth
(mIoU, aIoU, cIoU) and with one another (eErr); beside stands the certified defect of the kernels. Nothing is chosen by
looking: the last weights are tested, validation images are not augmented and decide nothing.
"""

from __future__ import annotations

import base64
import copy
import io
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import equidial as ed
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.filters import check_response
from equidial.metrics import transform_images
from equidial.recipes._segmentation_runs import STATISTICS, Plan, check_setup, fine_tuned, planned, softened, tested
from equidial.recipes._segmenters import Segmenter
from equidial.recipes._study import Key, Progress, Study, spent

NAME = "segmentation"


@dataclass(frozen=True)
class SegmentationStudy:
    """CamVid, PASCAL VOC or ADE20K: one pretrained segmentation network, fine-tuned from strict to free."""

    data: Path
    """CamVid, VOCdevkit or ADEChallengeData2016: the folder, or a .zip file of it | hf:NAME_OR_FOLDER with masks and
    the splits train and validation."""
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
    softness: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75)
    """Positions of every response, in (0, 1); of equal networks (hard has stairs) one is trained."""
    image_size: int | None = None
    """Images are resized to squares of so many pixels. Default: of the scale (518 for DINOv2)."""
    epochs: int | None = None
    """Default: of the scale; 50 for ADE20K at that of the paper."""
    images: int | None = None
    """At most so many of every part, evenly spread over it. Default: all."""
    turned_dial: bool = False
    """Turned training images also at softness 0 and half way of the first response: more rows, in the same folder."""
    device: str = "cpu"
    """cpu, or cuda."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning, a network or a device that is not there."""
        check_setup(self)
        for response in self.responses:
            check_response(response)
        if not all(0 < s < 1 for s in self.softness):
            raise ArgumentError(explain("softness in (0, 1)", repr(self.softness), "0 and 1 are always there"))


def run(recipe: SegmentationStudy, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`SegmentationStudy.check`."""
    recipe.check()
    plan = planned(recipe)
    positions = list(_positions(recipe, plan))
    settings = plan.settings()
    del settings["turned_dial"]  # which adds rows and changes none
    study = Study(recipe.output, NAME, settings)
    return study.collect(list(_keys(recipe, positions)), lambda key: _result(recipe, plan, study, key), progress)


def _positions(recipe: SegmentationStudy, plan: Plan) -> Iterator[tuple[str, float]]:
    """Responses and positions, without those whose filters are the same as an earlier one's or do nothing."""
    model = plan.network().model
    for response in recipe.responses:
        seen = set()
        for softness in sorted(recipe.softness):
            if response == "hard":
                rows = ed.status(softened(plan, copy.deepcopy(model), response, softness))
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
    for seed in recipe.seeds if recipe.turned_dial else ():
        yield {"method": "strict, turned", "response": None, "softness": 0.0, "seed": seed}
        first = [softness for response, softness in positions if response == recipe.responses[0]]
        if first:
            middle = min(first, key=lambda s: abs(s - 0.5))
            yield {"method": "soft, turned", "response": recipe.responses[0], "softness": middle, "seed": seed}


def _result(recipe: SegmentationStudy, plan: Plan, study: Study, key: Key) -> dict[str, Any]:
    start = time.perf_counter()
    torch.manual_seed(key["seed"])
    network = plan.network()
    parameters = sum(p.numel() for p in network.model.parameters())
    plan.restore(network)
    response, softness = key["response"] or "nearest", key["softness"]
    if softness < 1:
        softened(plan, network.model, response, softness)
        ed.recalibrate(network.model, plan.sample(STATISTICS, network))
    history = fine_tuned(plan, network, key["seed"], study.checkpoint(key), key["method"].endswith("turned"))
    ed.recalibrate(network.model, plan.sample(4 * STATISTICS, network))
    found: dict[str, Any] = {"parameters": parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)
        certificate = ed.certify(network.model, plan.config(response, softness))
        found |= {"bound": float(certificate.bound), "levels": sorted({row.level for row in certificate})}
        found["measured_defect"] = max(row.measured for row in certificate if row.measured is not None)
        model = ed.fold(network.model) if softness < 1 else network.model
        network = replace(network, model=model.eval())
        val, test = (
            tested(plan, network, part, chosen)
            for part, chosen in ((plan.val, plan.elements[:1]), (plan.test, plan.elements))
        )
    found |= {name: test[name] for name in ("mIoU", "aIoU", "cIoU", "Acc", "aAcc", "cAcc", "eErr")}
    found |= {"validation": val.mIoU, "images": len(plan.train), "test_images": len(plan.test)}
    found |= {"complete": all(part.complete for part in (plan.train, plan.val, plan.test))}
    if key["seed"] == recipe.seeds[0] and _pictured(recipe, key):
        found["picture"] = _picture(plan, network, key["method"] == "untouched")
    return found | spent(history, start)


def _pictured(recipe: SegmentationStudy, key: Key) -> bool:
    """At 0, at 1, and half way of the first response."""
    if key["method"] != "soft":
        return key["method"] in ("untouched", "strict")
    middle = min(recipe.softness, key=lambda s: abs(s - 0.5))
    return (key["response"], key["softness"]) == (recipe.responses[0], middle)


def _picture(plan: Plan, network: Segmenter, with_image: bool) -> dict[str, Any]:
    """The classes of one test image, and of the same image moved, moved back; packed bytes of ``[2, h, w]``."""
    rows = [len(plan.test) // 2]
    x, y = plan.batch(plan.test, rows, network)
    g = plan.elements[0]
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
