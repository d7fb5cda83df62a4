"""What experiments from scratch share: a run folder that can be interrupted, and a training loop that can be resumed.

A study is many trainings, each with a key of its own (method, seed, ...). Its folder holds ``config.json``,
``metrics.jsonl`` with one finished training a line, and checkpoints of the one that is under way. The same command on
the same folder goes on where it ended, and ends with the numbers of an uninterrupted run: every epoch draws from
generators seeded by ``(seed, epoch)``. Started more than once on one folder, the processes share the trainings; the
ranks of one launch (:mod:`equidial.recipes._ranks`) work together on each, and only rank 0 touches the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.baselines import PartialSamples
from equidial.errors import ArgumentError, explain
from equidial.nn import learned_frequencies
from equidial.recipes._files import read_checkpoint, read_records, replace_text, write_checkpoint
from equidial.recipes._ranks import check_rows, held, on_main, sharded
from equidial.recipes._together import shared, together

logger = logging.getLogger("equidial")

Key = Mapping[str, Any]
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Loss = Callable[[Any, torch.Generator], torch.Tensor]
Feed = Callable[[Sequence[torch.Tensor], int], Iterable[Any]]
Progress = Callable[[int, int, str], None]
"""Called with (trainings done, trainings in all, what is going on)."""


_LOG = "metrics.jsonl"


def study_records(folder: Path) -> list[dict[str, Any]]:
    """The finished trainings of a study; a line that an interruption cut short is none."""
    return read_records(folder / _LOG)


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """The progress of a part of a study, after ``before`` trainings and out of ``total``."""
    if progress is None:
        return None
    return lambda done, _, text: progress(min(before + done, total), total, text)


def check_named(name: str, values: Sequence[Any], known: Sequence[Any] | None = None) -> None:
    """Raises ``ArgumentError`` for an empty list, or one with values that are not known."""
    if not values or (known is not None and not set(values) <= set(known)):
        raise ArgumentError(explain(f"{name}{f' out of {known}' if known else ''}", repr(values), "name some"))


class Study:
    """The folder of a study. Raises ``ArgumentError`` for a folder that holds another one, or other files."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]):
        self.folder, self.log = folder, folder / _LOG
        on_main(lambda: self._open(name, settings))

    def _open(self, name: str, settings: Mapping[str, Any]) -> None:
        folder = self.folder
        wanted = json.loads(json.dumps({"recipe": name, "settings": dict(settings)}, default=str))
        config, lock = folder / "config.json", folder / "config.lock"
        # listed before the question whether it is a study: another process may be making it now
        strange = folder.exists() and any(file.stem != config.stem for file in folder.iterdir())
        if strange and not config.is_file():
            raise ArgumentError(explain("a new or empty folder", f"{folder}, which holds files", "choose --output"))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not config.is_file():
                about = {"equidial": ed.__version__, "torch": torch.__version__, "python": platform.python_version()}
                replace_text(config, json.dumps(wanted | {"made_with": about}, indent=2) + "\n")
            found = json.loads(config.read_text())
        if {k: found.get(k) for k in wanted} != wanted:
            raise ArgumentError(
                explain(
                    f"a new folder, or that of this very study ({name} with the same settings)",
                    f"{folder}, which holds {found.get('recipe', 'another run')} with other settings",
                    "choose another --output, or the settings of its config.json",
                )
            )

    def collect(
        self, keys: Sequence[Key], train: Callable[[Key], Mapping[str, Any]], progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """The records of all keys in order; those that are not finished are trained, each by one process.

        What another process has under way is left to it, and waited for at the end; where that process has died, the
        training goes on here from its checkpoint.
        """
        found: dict[int, dict[str, Any]] = {}
        for wait in (False, True):  # what is free, then what others had taken
            for place, key in enumerate(keys):
                if place in found:
                    continue
                if progress is not None:
                    progress(len(found), len(keys), ", ".join(str(value) for value in key.values()))
                record = self._settled(key, train, wait)
                if record is not None:
                    found[place] = record
        if progress is not None:
            progress(len(keys), len(keys), "done")
        return [found[place] for place in range(len(keys))]

    def _settled(self, key: Key, train: Callable[[Key], Mapping[str, Any]], wait: bool) -> dict[str, Any] | None:
        """A record, trained for if need be; ``None`` for one that another process has under way, unless we wait."""
        with held(self.checkpoint(key).with_suffix(".lock"), wait) as ours:
            if not ours:
                return None
            return on_main(lambda: self.finished(key)) or self.finish(key, train(key))

    def finished(self, key: Key) -> dict[str, Any] | None:
        """The record of a training that is done."""
        plain = json.loads(json.dumps(key))
        return next((r for r in study_records(self.folder) if all(r.get(k) == v for k, v in plain.items())), None)

    def finish(self, key: Key, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a record and drop its checkpoint."""
        return on_main(lambda: self._write(key, result))

    def _write(self, key: Key, result: Mapping[str, Any]) -> dict[str, Any]:
        record = {**key, **result}
        with FileLock(self.log.with_suffix(".lock")), self.log.open("a+") as file:
            file.seek(0)
            text = file.read()
            file.write(("\n" if text and not text.endswith("\n") else "") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.checkpoint(key).unlink(missing_ok=True)
        words = ", ".join(f"{name} {value}" for name, value in key.items())
        logger.info("%s: %s", words, f"accuracy {result['accuracy']:.4f}" if "accuracy" in result else "done")
        return record

    def checkpoint(self, key: Key) -> Path:
        """Where the training with this key keeps its state."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"checkpoint-{digest}.pt"


@dataclass(frozen=True)
class Training:
    """Adam with linear warm-up and cosine decay to 0, step by step; learned frequencies have a rate of their own.

    Attributes:
        epochs, batch_size: passes over the images, images a step.
        learning_rate: of weights, at the top.
        symmetry_rate: of learned ``omega'`` and supports, with the same course.
        penalty: ``lambda`` of ``lambda * sum omega'^2``, added to the mean loss.
        warmup: epochs of linear rise.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    symmetry_rate: float = 1e-3
    penalty: float = 0.0
    warmup: float = 0.0


def fit_classifier(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    training: Training,
    seed: int,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
) -> list[dict[str, Any]]:
    """:func:`fit` with cross-entropy on images in memory. ``augment`` gets a batch and a generator."""

    def loss(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images = x[rows] if augment is None else augment(x[rows], generator)
        return functional.cross_entropy(model(images), y[rows])

    return fit(model, len(x), loss, training, seed, checkpoint)


def fit(
    model: nn.Module,
    count: int,
    loss_of: Loss,
    training: Training,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    feed: Feed | None = None,
    every: int = 1,
) -> list[dict[str, Any]]:
    """Train on ``count`` examples; one entry per epoch: loss, learned frequencies and supports, seconds.

    ``loss_of(rows, generator)``: the mean loss of the examples with these indices. ``checkpoint``: written after
    ``every`` so many epochs, read at the start if it is there; the result is the same. The last weights are kept: none
    are chosen by looking. ``optimizer``: default Adam; one that is given keeps its rates at the top of the course.
    ``feed(batches, epoch)``: yields what ``loss_of`` gets in place of the rows of each batch, as a loader with workers
    does that read ahead. Under a launch every rank calls it alike, and ``loss_of`` stays as it is: see
    :mod:`equidial.recipes._together`; batches need a row for each rank.
    """
    check_rows(min(count, training.batch_size))
    partial = [m for m in model.modules() if isinstance(m, PartialSamples)]
    symmetry = [*learned_frequencies(model), *(m.support for m in partial if isinstance(m.support, nn.Parameter))]
    own = {id(p) for p in symmetry}
    weights = [p for p in model.parameters() if id(p) not in own]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": training.learning_rate}]
    groups += [{"params": symmetry, "lr": training.symmetry_rate}] if symmetry else []
    optimizer = torch.optim.Adam(groups) if optimizer is None else optimizer
    steps = -(-count // training.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: _course(t, steps * training.epochs, training.warmup * steps)
    )
    history: list[dict[str, Any]] = []
    state = None if checkpoint is None else on_main(lambda: read_checkpoint(checkpoint))
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = json.loads(state["history"])
    if symmetry and sharded():
        raise ArgumentError(explain("no learned symmetry under FSDP2", f"{len(symmetry)} numbers", "launch with DDP"))

    def step(batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        loss = loss_of(batch, generator)
        if training.penalty and learned_frequencies(model):
            return loss.detach(), loss + training.penalty * ed.relaxation_penalty(model, 2)
        return loss.detach(), loss

    with _flushed(), together(model, optimizer, step) as trainer:
        for epoch in range(len(history), training.epochs):
            start = time.perf_counter()
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            torch.manual_seed(1_000_003 * seed + epoch)  # dropout, random offsets
            model.train()
            total = 0.0
            batches = torch.randperm(count, generator=generator).split(training.batch_size)
            for rows, batch in zip(batches, batches if feed is None else feed(batches, epoch), strict=True):
                optimizer.zero_grad()
                loss, penalised = trainer(batch, generator)
                total += float(loss) * len(rows)
                penalised.backward()
                optimizer.step()
                schedule.step()
            entry = {
                "loss": total / count,
                "omega_prime": [float(p.detach()) for p in learned_frequencies(model)],
                "support": [m.share for m in partial],
                "seconds": time.perf_counter() - start,
            }
            history.append(entry)
            if checkpoint is not None and (epoch + 1) % every == 0:
                extra = {"schedule": schedule.state_dict(), "history": json.dumps(history)}
                write_checkpoint(checkpoint, trainer.state() | extra)
            if on_epoch is not None:
                on_epoch(epoch + 1, entry["loss"])
    return history


@contextmanager
def _flushed() -> Iterator[None]:
    """Numbers below 1e-38 are 0 on this thread.

    Priors and weight decay make them of weights that nothing uses any more, and a CPU takes ten times as long for them.
    """
    before = not torch.tensor(torch.finfo(torch.float32).tiny).div(2)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def spent(history: Sequence[Mapping[str, Any]], start: float) -> dict[str, Any]:
    """What every record says of its training: epochs, last loss, seconds of training, and in all since ``start``."""
    return {
        "epochs": len(history),
        "loss": history[-1]["loss"] if history else None,
        "train_seconds": sum(entry["seconds"] for entry in history),
        "seconds": time.perf_counter() - start,
    }


def logits(model: nn.Module, x: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
    """``[n, classes]`` in evaluation mode."""
    model.eval()
    with shared(model), torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch_size)])


def turn_error(model: nn.Module, x: torch.Tensor) -> float:
    """The mean over images of ``||f(g x) - f(x)|| / ||f(x)||``, the largest over the three quarter turns."""
    still = logits(model, x)
    size = still.norm(dim=1).clamp_min(1e-12)
    moved = [logits(model, torch.rot90(x, k, (-2, -1))) for k in (1, 2, 3)]
    return max(float(((m - still).norm(dim=1) / size).mean()) for m in moved)


def _course(step: int, total: int, warmup: float) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1))) / 2
