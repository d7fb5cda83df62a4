"""Every other study on two ranks, tiny: one in CI, all of them with ``EQUIDIAL_MATRIX=whole``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from equidial.recipes import cct, resnet20
from tests.recipes.launched import run_all
from tests.recipes.segmentation_folder import FEW, SIZE, camvid, weights
from tests.recipes.test_classification_studies import images
from tests.recipes.test_launch import TWO, launch, same_records
from tests.recipes.test_trajectory_transformer import scene

WHOLE = os.environ.get("EQUIDIAL_MATRIX") == "whole"
TOLERANCE = 5e-6  # rounding of float32; the largest found was 1.6e-6, a loss

_ONCE = ["--seeds", "0", "--epochs", "1"]
_CIFAR = ["--data", "images.npz", *_ONCE]
_PRETRAINED = [*_CIFAR, "--weights", "."]
_DRAWN = ["--seeds", "0", "--breaking", "0.3", "--examples", "101", "--softness", "0.5", "--steps", "4"]
STUDIES = {
    "trajectories": ["--data", "walks", "--scenes", "eth", *_ONCE, "--softness", "0", "0.5"],
    "cifar": [*_PRETRAINED, "--networks", "cct", "--groups", "C4", "--softness", "0.5", "--responses", "nearest"],
    "nonstationary-cifar": [*_CIFAR, "--rotations", "4", "--methods", "soft", "learned", "--curve", "2"],
    "large-angles": [*_PRETRAINED, "--network", "cct", "--softness", "0.5", "--learning-rates", "0.001"],
    "beyond": [*_PRETRAINED, "--parts", "shifts", "scaling", "--shifts-softness", "0.5", "--scaling-softness", "0.5"],
    "thresholds": ["--data", "camvid", "--weights", "voc.safetensors", *_ONCE, "--image-size", str(SIZE)],
    "inertia": [*_DRAWN, "--methods", "soft"],
    "lorentz": [*_DRAWN, "--methods", "soft"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and weights of all of them."""
    folder = tmp_path_factory.mktemp("studies")
    images(folder)
    scene(folder / "walks")
    camvid(folder / "camvid")
    weights(folder)
    torch.manual_seed(0)
    for name, build in (("resnet20", resnet20), ("cct_2_3x2", cct)):
        save_file(build().state_dict(), folder / f"cifar10_{name}.safetensors")
    return folder


@FEW
@pytest.mark.parametrize("name", STUDIES if WHOLE else list(STUDIES)[:1])
def test_a_study_on_two_ranks_gives_the_numbers_of_one_process(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for way in ("alone", "parallel"):
        command = ["reproduce", name, *STUDIES[name], "--output", f"{way}-{name}"]
        (folder / f"{way}.json").write_text(json.dumps({"commands": [command]}))
    assert run_all(Path("alone.json")) == 0
    launch([*TWO, "-m", "tests.recipes.launched", "parallel.json"])
    same_records(Path(f"parallel-{name}/metrics.jsonl"), Path(f"alone-{name}/metrics.jsonl"), TOLERANCE)
