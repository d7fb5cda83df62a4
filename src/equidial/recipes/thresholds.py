"""Hard against smooth thresholds on segmentation (paper A, table 7), at the same softness and at the same bound.

Paper A sets a hard and a smooth threshold beside one another at the same ``b``, where they keep different amounts of
the weights and certify different bounds; what differs is then more than the shape of the response. Here ``hard`` stands
on one of its stairs, and every other response is compared with it twice, tensor by tensor:

* at the same softness: the mean response over the directions that are not symmetric is the one of ``hard`` (``nearest``
  has no mean response: it keeps this share of the defect);
* at the same certified bound: the dial is turned as far as the certificate of the filtered weight, as it stands before
  fine-tuning, stays within that of ``hard``. An a priori budget would not do: ``exponential`` has none, and the weights
  of ``hard`` and ``taper`` lie far below theirs.

A seed is one network, first fine-tuned untouched; all its rows start from there, so that they are compared in pairs.
Every row is tested twice: projected, with batch norm estimated again, and after it was fine-tuned again. The untouched
network is fine-tuned as long.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from torch import nn

import equidial as ed
from equidial.adapters._parametrization import SoftParametrization, constrained
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.filters import Dial, Setting, check_response
from equidial.groups import GroupElement
from equidial.recipes._files import read_checkpoint, write_checkpoint
from equidial.recipes._ranks import held, on_main
from equidial.recipes._segmentation_runs import STATISTICS, Plan, check_setup, fine_tuned, planned, softened, tested
from equidial.recipes._segmenters import Segmenter
from equidial.recipes._study import Key, Progress, Study, spent

NAME = "thresholds"
_HALVINGS = 12  # of the softness, until the certified bound is met
_EVERY = {"small": 3, "paper": 1}  # every how many-th of the twelve angles is tried: 15 and 30 degrees, or all


@dataclass(frozen=True)
class ThresholdStudy:
    """Does a smooth threshold beat a hard one, when both keep as much or certify as much? Rotations to 30 degrees."""

    data: Path
    """CamVid, VOCdevkit or ADEChallengeData2016: the folder, or a .zip file of it."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    weights: Path | None = None
    """FILE.safetensors of DeepLabV3 on MobileNetV2, 21 classes of VOC."""
    model: str | None = None
    """hf:NAME_OR_FOLDER instead: SegFormer with its decoder, ViT or DINOv2 with a linear head."""
    scale: Literal["small", "paper"] = "small"
    """small: 193 pixels, 6 epochs and 6 more, 4 angles. paper: 512 pixels, 100 epochs and 100 more, 12 angles."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One network per seed, from which all rows of that seed start."""
    responses: tuple[str, ...] = ("taper", "exponential", "nearest")
    """What is compared with hard, out of taper, exponential, nearest."""
    softness: tuple[float, ...] = (2 / 3,)
    """Of hard, in (0, 1), rounded up to its stairs: of 3 x 3 kernels 2/3 removes angular frequency 3, 1/3 also 2.

    With so few frequencies ``taper`` is ``hard`` itself at 1/3 and next to it at 2/3: a control, no comparison."""
    max_error: tuple[float, ...] = ()
    """Further budgets > 0 of the certified bound, alike for all tensors; here hard may waste up to a whole stair."""
    image_size: int | None = None
    """Images are resized to squares of so many pixels. Default: of the scale (518 for DINOv2)."""
    epochs: int | None = None
    """Of each of the two fine-tunings. Default: of the scale; 50 for ADE20K at that of the paper."""
    images: int | None = None
    """At most so many of every part, evenly spread over it. Default: all."""
    device: str = "cpu"
    """cpu, or cuda."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning, a network or a device that is not there."""
        check_setup(self)
        for response in self.responses:
            check_response(response)
        if not self.responses or "hard" in self.responses:
            raise ArgumentError(
                explain("responses beside hard", repr(self.responses), "name some of taper, exponential, nearest")
            )
        if not self.softness or not all(0 < s < 1 for s in self.softness):
            raise ArgumentError(explain("softness in (0, 1)", repr(self.softness), "name some, e.g. 0.33"))
        if not all(0 < e < math.inf for e in self.max_error):
            raise ArgumentError(explain("budgets max_error > 0", repr(self.max_error), "e.g. 0.25"))


def run(recipe: ThresholdStudy, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training.

    Raises as :meth:`ThresholdStudy.check`, and ``ArgumentError`` for positions where ``hard`` removes nothing, or that
    lie on one of its stairs.
    """
    recipe.check()
    plan = planned(recipe, "SO2")
    _check_stairs(recipe, plan)
    study = Study(recipe.output, NAME, plan.settings())
    records = study.collect(list(_keys(recipe)), lambda key: _result(plan, study, key), progress)
    on_main(lambda: [_start_file(study, seed).unlink(missing_ok=True) for seed in recipe.seeds])
    return records


def _check_stairs(recipe: ThresholdStudy, plan: Plan) -> None:
    model, seen = plan.network().model, set()
    for softness in recipe.softness:
        shares = tuple(_shares(softened(plan, copy.deepcopy(model), "hard", softness)).values())
        if min(shares) == 1 or shares in seen:
            got = "removes nothing from this network" if min(shares) == 1 else "is the same network as another position"
            raise ArgumentError(
                explain("softness on stairs of hard, each on its own", f"{softness:g}, which {got}", "choose less")
            )
        seen.add(shares)


def _keys(recipe: ThresholdStudy) -> Iterator[dict[str, Any]]:
    """Of hard, the row at a softness is also that at its bound."""
    for seed in recipe.seeds:
        yield {"comparison": "untouched", "at": 1.0, "response": None, "seed": seed}
        for softness in recipe.softness:
            yield {"comparison": "softness", "at": softness, "response": "hard", "seed": seed}
            for comparison in ("softness", "bound"):
                for response in recipe.responses:
                    yield {"comparison": comparison, "at": softness, "response": response, "seed": seed}
        for error in recipe.max_error:
            for response in ("hard", *recipe.responses):
                yield {"comparison": "max_error", "at": error, "response": response, "seed": seed}


def _result(plan: Plan, study: Study, key: Key) -> dict[str, Any]:
    start = time.perf_counter()
    network = _started(plan, study, key["seed"])
    found: dict[str, Any] = {"images": len(plan.train), "test_images": len(plan.test)}
    found |= {"complete": all(part.complete for part in (plan.train, plan.val, plan.test))}
    found |= {"angles": len(_elements(plan))}
    if key["response"] is not None:
        found |= _projected(plan, network, key)
    ed.recalibrate(network.model, plan.sample(4 * STATISTICS, network))
    found["before"] = _scores(plan, network, key)
    history = fine_tuned(plan, network, key["seed"], study.checkpoint(key))
    ed.recalibrate(network.model, plan.sample(4 * STATISTICS, network))
    return found | _scores(plan, network, key) | spent(history, start)


def _start_file(study: Study, seed: int) -> Path:
    return study.folder / f"start-{seed}.pt"


def _started(plan: Plan, study: Study, seed: int) -> Segmenter:
    """The network of a seed, fine-tuned untouched by the process that first needs it; the others wait for it."""
    file = _start_file(study, seed)
    checkpoint = study.checkpoint({"start": seed})
    torch.manual_seed(seed)
    network = plan.network()
    with held(file.with_suffix(".lock")):
        state = on_main(lambda: read_checkpoint(file))
        if state is None:
            plan.restore(network)
            fine_tuned(plan, network, seed, checkpoint)
            state = network.model.state_dict()
            write_checkpoint(file, state)
        on_main(lambda: checkpoint.unlink(missing_ok=True))
    network.model.load_state_dict(state)
    return network


def _projected(plan: Plan, network: Segmenter, key: Key) -> dict[str, float]:
    """Soften in place; the mean softness of the tensors, and the mean share of the norm that the filters remove."""
    comparison, at, response = key["comparison"], key["at"], key["response"]
    if comparison == "max_error":
        softened(plan, network.model, response, 0.5)
        shares = _meet(network.model, dict.fromkeys(_bounds(network.model), float(at)))
    else:
        hard = softened(plan, copy.deepcopy(network.model), "hard", at)
        softened(plan, network.model, response, at)
        if comparison == "bound":
            shares = _meet(network.model, _bounds(hard))
        else:
            shares = _shares(hard)
            if response != "hard":  # which stands there, whatever was rounded up
                _turn(network.model, shares)
    if response == "hard":
        shares = _shares(network.model)
    removed = mean(row.distance for row in ed.status(network.model))
    return {"softness": mean(shares.values()), "removed": removed}


def _shares(model: nn.Module) -> dict[str, float]:
    """The mean response of every tensor's ``hard`` filter over the directions with a singular value above 0."""
    found = {}
    for _, _, link in constrained(model):
        sigma = link.filter().spectrum
        kept = sigma <= link.setting.threshold * (1 + 1e-9)
        found[link.name] = float(kept[sigma > 0].double().mean())
    return found


def _meet(model: nn.Module, budgets: Mapping[str, float]) -> dict[str, float]:
    """Turn every dial as far as the certified bound of its tensor stays within its budget; returns the softness.

    By halving, all tensors at once; what is taken was certified. One softness is tried that leaves all untouched.
    """
    low, high = dict.fromkeys(budgets, 0.0), dict.fromkeys(budgets, 1.0)
    tried = dict(high)
    for _ in range(_HALVINGS + 1):
        _turn(model, tried)
        bounds = _bounds(model)
        for name, budget in budgets.items():
            (low if bounds[name] <= budget else high)[name] = tried[name]
        tried = {name: (low[name] + high[name]) / 2 for name in budgets}
    _turn(model, low)
    return low


def _turn(model: nn.Module, softness: Mapping[str, float]) -> None:
    for _, _, link in constrained(model):
        dial = Dial.of(softness=softness[link.name])
        link.turn(dial, _setting(link, dial))


def _setting(link: SoftParametrization, dial: Dial) -> Setting:
    return Setting(math.inf) if dial.is_free else link.setting_for(dial, None)


def _certificate(model: nn.Module, config: ed.SoftEquivarianceConfig | None = None) -> ed.Certificate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)  # of strides, which do not fit every size
        return ed.certify(model, config)


def _bounds(model: nn.Module) -> dict[str, float]:
    return {row.name: row.bound for row in _certificate(model)}


def _elements(plan: Plan) -> list[GroupElement]:
    every = _EVERY[plan.recipe.scale]
    return plan.elements[every - 1 :: every]


def _scores(plan: Plan, network: Segmenter, key: Key) -> dict[str, Any]:
    """What is certified and measured of the network as it stands."""
    certificate = _certificate(network.model, plan.config("nearest", 1.0) if key["response"] is None else None)
    found: dict[str, Any] = {"bound": float(certificate.bound), "levels": sorted({row.level for row in certificate})}
    found["mean_bound"] = mean(row.bound for row in certificate)
    found["measured_defect"] = max(row.measured for row in certificate if row.measured is not None)
    if key["response"] is not None:
        network = replace(network, model=ed.fold(copy.deepcopy(network.model)))
    network.model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)
        test = tested(plan, network, plan.test, _elements(plan))
    return found | {name: test[name] for name in ("mIoU", "aIoU", "cIoU", "Acc", "aAcc", "eErr")}
