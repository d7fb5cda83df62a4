"""The compatibility matrix: which feature of a model's life works on which architecture.

``python -m tests.life.matrix`` carries out every feature on every network and writes ``docs/compatibility.md``;
:mod:`tests.life.test_matrix` runs the same cells one by one. What a feature must come to, works or refused, stands in
:data:`FEATURES`; what a cell says is what happened.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from tests.life import distributed, ecosystem, features
from tests.life.networks import NETWORKS, Network, NotApplicable, build

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
PACKAGES = ("torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime", "equidial")


@dataclass(frozen=True)
class Feature:
    """A row: what a user does, what carries it out, and whether equidial is to refuse it."""

    title: str
    law: Callable[[Network], str | None]
    refused: bool = False

    @property
    def together(self) -> bool:
        """Whether two processes carry it out."""
        return self.law.__module__ == distributed.__name__


FEATURES = (
    Feature("fold", features.folded),
    Feature("`equidial.save`, `load`", features.saved_and_loaded),
    Feature("state dict while soft", features.state_dict),
    Feature("deep copies", features.deep_copied),
    Feature("EMA (`AveragedModel`)", features.averaged),
    Feature("gradient checkpointing", features.checkpointed),
    Feature("autocast bfloat16", features.autocast_bf16),
    Feature("autocast float16", features.autocast_fp16),
    Feature("`torch.compile`, dial moving", features.compiled),
    Feature("fold when compiled", features.folded_when_compiled),
    Feature("soften when compiled", features.softened_after_compiling, refused=True),
    Feature("`torch.export` after fold", ecosystem.exported_after_fold),
    Feature("`torch.export` while soft", ecosystem.exported_while_soft),
    Feature("ONNX after fold", ecosystem.onnx_after_fold),
    Feature("ONNX while soft", ecosystem.onnx_while_soft, refused=True),
    Feature("`save_pretrained` after fold", ecosystem.pretrained_after_fold),
    Feature("`save_pretrained` while soft", ecosystem.pretrained_while_soft, refused=True),
    Feature("LoRA after fold", ecosystem.lora_after_fold),
    Feature("LoRA on other layers, soft", ecosystem.lora_beside),
    Feature("LoRA on softened layers", ecosystem.lora_before_fold, refused=True),
    Feature("soften after LoRA", ecosystem.softened_after_lora, refused=True),
    Feature("DDP training", distributed.data_parallel),
    Feature("dial moving under DDP", distributed.dial_under_data_parallel),
    Feature("fold under DDP", distributed.folded_in_data_parallel, refused=True),
    Feature("soften under DDP", distributed.softened_in_data_parallel, refused=True),
    Feature("FSDP2 training", distributed.sharded),
    Feature("dial moving while sharded", distributed.dial_while_sharded),
    Feature("`max_error` while sharded", distributed.max_error_while_sharded, refused=True),
    Feature("fold, certify while sharded", distributed.folded_while_sharded, refused=True),
    Feature("soften when sharded", distributed.softened_while_sharded, refused=True),
)


@dataclass(frozen=True)
class Cell:
    """What came of a feature on a network: ``works``, ``refused``, ``not applicable`` or ``fails``, and its words."""

    mark: str
    text: str = ""


def carry_out(feature: Feature, network: str, pair: distributed.Pair) -> Cell:
    """One cell; raises what the law raises, :class:`NotApplicable` excepted."""
    try:
        said = pair.run(feature.law, network) if feature.together else feature.law(build(network))
    except NotApplicable as error:
        return Cell("not applicable", str(error))
    return Cell("works") if said is None else Cell("refused", said)


def seeded_slice(seed: int = 162) -> list[tuple[Feature, str]]:
    """Every feature once, on architectures in a drawn order that comes round to each; at this seed all apply."""
    names = random.Random(seed).sample(NETWORKS, len(NETWORKS))
    return [(feature, names[i % len(names)]) for i, feature in enumerate(FEATURES)]


def whole() -> list[tuple[Feature, str]]:
    """Every cell."""
    return [(feature, name) for feature in FEATURES for name in NETWORKS]


# -- The page


def _surveyed() -> dict[tuple[str, str], Cell]:
    pair, cells = distributed.Pair(), {}
    try:
        for i, (feature, name) in enumerate(whole()):
            sys.stderr.write(f"\r{i + 1}/{len(FEATURES) * len(NETWORKS)} {feature.title}, {name}\033[K")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    cells[feature.title, name] = carry_out(feature, name, pair)
            except Exception as error:
                # a pair raises the traceback of one of its processes, whose last line says what failed
                lines = str(error).strip().splitlines() or [type(error).__name__]
                cells[feature.title, name] = Cell("fails", lines[-1 if lines[0].startswith("Traceback") else 0])
    finally:
        pair.close()
        sys.stderr.write("\n")
    return cells


def page(cells: dict[tuple[str, str], Cell]) -> str:
    """The page of the documentation that these cells make."""
    notes: dict[str, str] = {}

    def shown(cell: Cell) -> str:
        if cell.mark in ("works", "refused"):
            return {"works": "✓", "refused": "r"}[cell.mark]
        letter = notes.setdefault(cell.text, f"{'–' if cell.mark == 'not applicable' else '✗'} {len(notes) + 1}")
        return letter

    table = ["| | " + " | ".join(NETWORKS) + " |", "|---|" + ":-:|" * len(NETWORKS)]
    table += [
        f"| {feature.title} | " + " | ".join(shown(cells[feature.title, name]) for name in NETWORKS) + " |"
        for feature in FEATURES
    ]
    marks = [cell.mark for cell in cells.values()]
    counted = ", ".join(f"{marks.count(m)} {m}" for m in ("works", "refused", "not applicable", "fails"))
    laws = [f"* **{f.title}.** {' '.join((f.law.__doc__ or '').split())}" for f in FEATURES]
    refusals = []
    for feature in FEATURES:
        said = next((c.text for n in NETWORKS if (c := cells[feature.title, n]).mark == "refused"), None)
        if said is not None:
            refusals += [f"{feature.title}:", "", "```text", said, "```", ""]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        "\n".join(
            [
                _INTRODUCTION,
                "```",
                "python -m tests.life.matrix      # writes this page",
                "```",
                "",
                f"{len(cells)} cells: {counted}. Python {platform.python_version()}, {versions}; CPU.",
                "",
                "✓ works, `r` refused with the message below, – not applicable, ✗ fails; the numbers are notes.",
                "",
                *table,
                "",
                *[f"{letter}. {text}\n" for text, letter in notes.items()],
                "## The law of each row",
                "",
                *laws,
                "",
                "## What a refusal says",
                "",
                "The first network's message of each row.",
                "",
                *refusals,
            ]
        ).rstrip()
        + "\n"
    )


_INTRODUCTION = """# Compatibility

Attach after loading weights, before compiling and sharding; fold before ONNX, `save_pretrained` and LoRA on softened
layers.

    load -> soften -> compile, wrap, shard -> train (the dial may move) -> unwrap, gather -> fold -> export, LoRA, share

A verb called at the wrong moment says so and leaves the model as it was. Under DDP and `fully_shard` every process
turns its dial; DDP sends the buffers of process 0 to the others, dials among them. An exported program of a softened
model needs `import equidial` where it is loaded, for the operator of `nearest`. A state dict given to
`save_pretrained(state_dict=...)`, as trainers do, is written as it is. An adapter of PEFT over a softened layer is
refused by the verbs, not by PEFT: merging it there loses it.

What an untouched model needs, a softened one needs too: SegFormer of transformers is called once before it compiles
to one graph, and DINOv2, whose mask token is unused, takes `find_unused_parameters=True` under DDP.

Carried out by tests on tiny networks with random weights; no cell is filled by hand. A seeded slice (every row and
every column at least once) runs in `make test`, all cells in `make test-all`.
"""


def main() -> None:
    """Run every cell and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PAGE)
    target = parser.parse_args().output
    torch.set_num_threads(1)
    target.write_text(page(_surveyed()))


if __name__ == "__main__":
    main()
