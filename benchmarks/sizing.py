"""What a training step takes: peak memory and processor time, plain and softened.

    python -m benchmarks.sizing [--models resnet20 vit-b16] [--batches 8 32]

Random weights, C4, ``nearest``, softness 0.5, AdamW, float32; two steps in a process of its own with one thread.
Memory is what the process holds at its peak beyond what its imports took; time the processor seconds of the faster
step, which neighbours on the machine disturb little. Images: 32 pixels for resnet20 and cct, 257 for DeepLabV3, 224 for
the others.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional

import equidial as ed
from benchmarks._memory import peak_memory
from benchmarks._models import vision_model
from equidial.errors import EquidialWarning
from equidial.recipes import DeepLabV3, cct, resnet20

MODELS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "resnet20": ("ResNet-20", resnet20, 32),
    "cct": ("CCT", cct, 32),
    "deeplabv3": ("DeepLabV3-MobileNetV2", DeepLabV3, 257),
    "resnet50": ("ResNet-50", lambda: vision_model("resnet50", 224, 1000, {})[0], 224),
    "vit-b16": ("ViT-B/16", lambda: vision_model("vit-b16", 224, 1000, {})[0], 224),
}
STEPS = 2


def train(name: str, batch: int, softness: float | None, file: str) -> None:
    """Two steps of AdamW; parameters and seconds of the faster step go into a file."""
    _, build, size = MODELS[name]
    torch.manual_seed(0)
    model = build().train()
    parameters = sum(p.numel() for p in model.parameters())
    if softness is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquidialWarning)
            ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=softness))
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(batch, 3, size, size)
    times = []
    for _ in range(STEPS):
        start = time.process_time()
        optimizer.zero_grad()
        output = model(x)
        logits = getattr(output, "logits", output)
        functional.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long)).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    Path(file).write_text(json.dumps({"parameters": parameters, "seconds": min(times)}))


def row(name: str, batch: int) -> str:
    """A line of the table."""
    cells = []
    for softness in (None, 0.5):
        with TemporaryDirectory() as folder:
            file = Path(folder) / "step.json"
            memory = peak_memory("benchmarks.sizing:train", [name, batch, softness, str(file)], 1)
            found = json.loads(file.read_text()) | memory
        cells.append((found["peak_mib"] - found["before_mib"], found["seconds"]))
    (plain, before), (soft, after) = cells
    title = MODELS[name][0]
    return (
        f"| {title} | {found['parameters'] / 1e6:.2f} M | {batch} | {plain:,.0f} | {soft:,.0f} | {before:.2f} | "
        f"{after:.2f} |"
    )


def main() -> None:
    """Print the table, a line when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    arguments = parser.parse_args()
    print("| model | parameters | batch | MiB, plain | MiB, softened | s a step, plain | s, softened |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        for batch in arguments.batches:
            print(row(name, batch), flush=True)


if __name__ == "__main__":
    main()
