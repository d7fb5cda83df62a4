"""Write the golden folders of the current format: ``python -m tests.golden.make``. Refuses to overwrite any.

A new case is a new folder; a folder that is there is never written again, whatever changes in the library.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import equidial as ed
from equidial.adapters._folder import FORMAT_VERSION
from tests.golden.cases import CASES, Case

HERE = Path(__file__).parent
EXPECTED = "expected.safetensors"


def make(case: Case, folder: Path) -> None:
    """Save one case with its input, its output and its small softened tensors; ``FileExistsError`` if it is there."""
    if folder.exists():
        raise FileExistsError(f"{folder} is golden: add a case, never write one again")
    model, x = case.softened(), case.input()
    ed.save(model, folder)
    with torch.no_grad():
        expected = {"input": x, "output": model(x)}
    names = [row.name for row in ed.status(model)]
    state = ed.fold(model).state_dict()
    small = {name: state[name] for name in names if state[name].numel() <= 1000}
    expected |= {f"softened/{name}": tensor.contiguous() for name, tensor in small.items()}
    save_file(expected, folder / EXPECTED, metadata={"format": "pt"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = HERE / f"format-{FORMAT_VERSION}"
    for name, case in CASES.items():
        if not (root / name).exists():
            make(case, root / name)
            sys.stdout.write(f"{root / name}\n")
