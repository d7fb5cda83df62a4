"""Which architectures reach exact symmetry, at which input size, and why the others do not.

    python -m benchmarks.architectures --library transformers
    .venv-timm/bin/python -m benchmarks.architectures --library timm
    python -m benchmarks.architectures --page docs/results/architectures.md

The first two write one JSON file each into ``--output``, a row at a time (timm needs an environment with torchvision,
which transformers does not bear beside CPU torch; ``make architectures`` runs all three). Random weights, position
tables and batch norms, ``--seeds`` draws each; every network is softened to 0 under C4, folded, and diagnosed at its
default input size, then at the size that the diagnosis names.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import equidial as ed
from equidial.errors import ArgumentError, explain

LIBRARIES = ("transformers", "timm")
Build = Callable[[], Any]


def transformers_models() -> dict[str, tuple[Build, int]]:
    """Default configurations with fewer blocks where all blocks are alike; builder and default input size."""
    t: Any = import_module("transformers")

    def of(name: str, model: str, **more: Any) -> Build:
        return lambda: getattr(t, model)(getattr(t, f"{name}Config")(**more))

    depth = {"num_hidden_layers": 4}
    swin = {"depths": [2, 2, 2, 2]}
    return {
        "ViT": (of("ViT", "ViTForImageClassification", **depth), 224),
        "DeiT": (of("DeiT", "DeiTForImageClassification", **depth), 224),
        "DINOv2": (of("Dinov2", "Dinov2ForImageClassification", **depth), 224),
        "DINOv2 with registers": (of("Dinov2WithRegisters", "Dinov2WithRegistersForImageClassification", **depth), 224),
        "DINOv3 ViT": (of("DINOv3ViT", "DINOv3ViTModel", **depth), 224),
        "DINOv3 ConvNeXt": (of("DINOv3ConvNext", "DINOv3ConvNextModel"), 224),
        "CLIP vision": (of("CLIPVision", "CLIPVisionModel", **depth), 224),
        "SigLIP vision": (of("SiglipVision", "SiglipVisionModel", **depth), 224),
        "ConvNeXt": (of("ConvNext", "ConvNextForImageClassification"), 224),
        "ResNet-50": (of("ResNet", "ResNetForImageClassification"), 224),
        "MobileNetV2": (of("MobileNetV2", "MobileNetV2ForImageClassification"), 224),
        "MobileNetV2, symmetric padding": (
            of("MobileNetV2", "MobileNetV2ForImageClassification", tf_padding=False),
            224,
        ),
        "EfficientNet": (of("EfficientNet", "EfficientNetForImageClassification", width_coefficient=1.0,
                            depth_coefficient=1.0, hidden_dim=1280, image_size=224), 224),
        "Swin, window 7": (of("Swin", "SwinForImageClassification", **swin), 224),
        "Swin, window 8 at 256 px": (
            of("Swin", "SwinForImageClassification", window_size=8, image_size=256, **swin),
            256,
        ),
        "SegFormer": (of("Segformer", "SegformerForSemanticSegmentation"), 224),
    }  # fmt: skip


def timm_models() -> dict[str, tuple[Build, int]]:
    """Models by name, with their default input size."""
    timm: Any = import_module("timm")
    names = [
        "vit_small_patch16_224",
        "deit_small_patch16_224",
        "deit_small_distilled_patch16_224",
        "convnext_tiny",
        "resnet50",
        "mobilenetv2_100",
        "mobilenetv3_large_100",
        "efficientnet_b0",
        "tf_efficientnet_b0",
        "swin_tiny_patch4_window7_224",
        "vit_small_patch16_rope_224",
    ]
    return {name: (lambda name=name: timm.create_model(name, pretrained=False), 224) for name in names}


def randomise(model: nn.Module, size: int) -> nn.Module:
    """Weights through which a signal lives to the end; position tables, tokens and scales that are not zeros and ones.

    Initial convolutions of some models let it die in a hundred layers, and an output that hears nothing of its input is
    invariant to everything. Batch norms get the statistics of noise.
    """
    norms = False
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("pos", "token", "relative", "register", "probe", "class_embedding")):
                parameter.normal_(std=0.5)
            elif "scale" in name or "gamma" in name or name.endswith("lambda1"):
                parameter.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            norms |= isinstance(module, nn.BatchNorm2d)
    if norms:
        ed.recalibrate(model, [torch.randn(8, 3, size, size)])
    return model.eval()


def examine(build: Build, size: int, seeds: int) -> dict[str, Any]:
    """Errors as it comes, at softness 0, and at the size that the diagnosis names; what is left and why."""
    row: dict[str, Any] = {
        "size": size,
        "strict": [],
        "heard": [],
        "float64": [],
        "named": None,
        "named_errors": [],
        "left": [],
    }
    start = time.perf_counter()
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = randomise(build(), size)
        x = torch.randn(1, 3, size, size)
        if seed == 0:
            row["untouched"] = ed.diagnose(model, x).error
        config = ed.SoftEquivarianceConfig(group="C4", softness=0.0)
        row["rules"] = ed.describe_targets(model, config).architecture
        ed.fold(ed.soften(model, config))
        found = ed.diagnose(model, x)
        row["strict"].append(found.error)
        row["heard"].append(heard(model, x))
        row["left"] = [
            {"cause": c.cause, "count": c.count, "why": c.arithmetic, "do": c.remedy} for c in found.summary()
        ]
        if found.sizes:
            side = min(found.sizes, key=lambda n: abs(n - size))
            row["named"] = side
            x = torch.randn(1, 3, side, side)
            row["named_errors"].append(ed.diagnose(model, x).error)
        # the folded weights are exactly symmetric in float32, so in float64 as well: what is left there is no rounding
        row["float64"].append(ed.diagnose(model.double(), x.double()).error)
    row["seconds"] = time.perf_counter() - start
    return row


@torch.no_grad()
def heard(model: nn.Module, x: torch.Tensor) -> float:
    """How much the output changes from one image to another, relative: an invariance only counts beside it."""
    first, second = (_output(model(image)) for image in (x, torch.randn_like(x)))
    return float((first - second).norm() / first.norm())


def _output(found: Any) -> torch.Tensor:
    if isinstance(found, torch.Tensor):
        return found
    return found["logits"] if "logits" in found else found["last_hidden_state"]


def page(folder: Path) -> str:
    """The table of all libraries whose file is there."""
    lines = [
        "| library | architecture | rules | px | heard | untouched | softness 0 | at the size named "
        "| there in float64 | what is left |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    reasons = []
    for library in LIBRARIES:
        path = folder / f"{library}.json"
        if not path.is_file():
            raise ArgumentError(explain(f"{path}", "nothing", f"run --library {library} first"))
        found = json.loads(path.read_text())
        for name, row in found["rows"].items():
            named = "–" if row["named"] is None else f"{row['named']} px: {max(row['named_errors']):.1e}"
            left = ", ".join(f"{c['cause']} ({c['count']})" for c in row["left"]) or "nothing"
            lines.append(
                f"| {library} | {name} | {row['rules']} | {row['size']} | {min(row['heard']):.2g} "
                f"| {row['untouched']:.2g} | {max(row['strict']):.1e} | {named} "
                f"| {max(row['float64']):.1e} | {left} |"
            )
            for c in row["left"] if row["named"] is None else []:
                reasons.append(f"* **{name}** ({library}), {c['cause']}: {c['why']}. To do: {c['do']}.")
        minutes = sum(row["seconds"] for row in found["rows"].values()) / 60
        lines.append(
            f"| {library} {found['version']} | {found['seeds']} seeds, {minutes:.1f} minutes | | | | | | | | |"
        )
    return "\n".join([*lines, "", "What no size mends:", "", *reasons])


def main() -> None:
    """Examine one library, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES)
    parser.add_argument("--only", help="names that contain this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--page", type=Path, help="write the table between the markers of this page")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ed.EquidialWarning)
    if arguments.library:
        models = transformers_models() if arguments.library == "transformers" else timm_models()
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"{arguments.library}.json"
        version = import_module(arguments.library).__version__
        document: dict[str, Any] = {"library": arguments.library, "version": version, "seeds": arguments.seeds}
        rows = json.loads(path.read_text())["rows"] if path.is_file() else {}  # finished ones of an earlier start
        for name, (build, size) in models.items():
            if name not in rows and (arguments.only is None or arguments.only in name):
                rows[name] = examine(build, size, arguments.seeds)
                print(name, json.dumps(rows[name]), flush=True)
                path.write_text(json.dumps(document | {"rows": rows}, indent=2) + "\n")
    if arguments.page:
        text = arguments.page.read_text(encoding="utf-8")
        head, _, rest = text.partition("<!-- table -->")
        tail = rest.partition("<!-- end of table -->")[2]
        table = f"<!-- table -->\n\n{page(arguments.output)}\n\n<!-- end of table -->"
        arguments.page.write_text(f"{head}{table}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
