"""Several processes at one job, as ``accelerate launch`` and ``torchrun`` start them: who we are, and how we talk.

Rank 0 decides, writes and reports; the others compute with it. One process alone is rank 0 of 1, and everything here
does nothing. A launch is told by ``WORLD_SIZE`` in the environment, and only then is accelerate imported.
"""

from __future__ import annotations

import atexit
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import distributed

from equidial.errors import ArgumentError, explain

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which rank 0 tells the others that it still waits, so that no collective runs into its time limit."""
_PARTING = 0.2  # seconds in which such threads have the interpreter to themselves


def world() -> int:
    """How many ranks there are; the first call of a launched process meets the others."""
    return accelerator().num_processes if _launched() else 1


def rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK") or 0) if _launched() else 0


def is_main() -> bool:
    """Whether this is the rank that writes."""
    return rank() == 0


def device_of_ranks(otherwise: torch.device) -> torch.device:
    """Where this rank computes; ``otherwise`` for one process alone."""
    return otherwise if world() == 1 else accelerator().device


def sharded() -> bool:
    """Whether the launch asks for FSDP2. Raises ``ArgumentError`` for FSDP1."""
    if world() == 1 or not _is_set("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ArgumentError(explain("FSDP2", f"version {version}", "accelerate launch --use_fsdp --fsdp_version 2"))
    return True


@cache
def accelerator() -> Any:
    """accelerate's ``Accelerator`` of this process. Raises ``ArgumentError`` where accelerate is not installed."""
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError as error:
        got = f"{os.environ.get('WORLD_SIZE')} processes, and accelerate is not installed"
        raise ArgumentError(
            explain("accelerate, for a launch of several processes", got, "pip install 'equidial[train]'")
        ) from error
    # rank 0 certifies and writes while the others wait; an untouched mask token of a network is no error
    handlers = [
        InitProcessGroupKwargs(timeout=timedelta(days=1)),
        DistributedDataParallelKwargs(find_unused_parameters=True),
    ]
    found = Accelerator(cpu=_is_set("ACCELERATE_USE_CPU") or not torch.cuda.is_available(), kwargs_handlers=handlers)
    atexit.register(_part)
    return found


def _part() -> None:
    """Leave the others while the interpreter still runs.

    Threads of gloo need it to drop the tensors of the last collectives; one that is late would abort the process.
    """
    if distributed.is_initialized():
        gc.collect()  # what holds the group in a cycle
        distributed.destroy_process_group()
        time.sleep(_PARTING)


def on_main(function: Callable[[], T]) -> T:
    """What ``function`` returns on rank 0, on every rank; what it raises there is raised on every rank."""
    if world() == 1:
        return function()
    answer: list[Any] = [None]
    if is_main():
        try:
            answer = [(function(), None)]
        except Exception as error:
            answer = [(None, error)]
    distributed.broadcast_object_list(answer, src=0, device=accelerator().device)
    value, error = answer[0]
    if error is not None:
        raise error
    return value


def raised_by_all(error: Exception | None) -> None:
    """Raise on every rank what the first of those with an ``error`` caught; every rank has to ask."""
    count = torch.tensor(float(error is not None), device=accelerator().device)
    distributed.all_reduce(count)
    if count:
        errors: list[Any] = [None] * world()
        distributed.all_gather_object(errors, error)
        raise next(found for found in errors if found is not None)


@contextmanager
def held(file: Path, wait: bool = True) -> Iterator[bool]:
    """Whether the lock of a file, which rank 0 holds for all ranks, is ours inside; ``wait``: until it is."""
    lock = FileLock(file)

    def take() -> bool:
        try:
            lock.acquire(timeout=PATIENCE if wait else 0)
        except Timeout:
            return False
        return True

    ours = on_main(take)
    while wait and not ours:
        ours = on_main(take)
    try:
        yield ours
    finally:
        lock.release()


def joined(x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The rows of all ranks, of which each holds its own ``[sizes[rank], ...]``."""
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def check_rows(batch_size: int) -> None:
    """Raise ``ArgumentError`` where a batch has fewer rows than there are ranks."""
    if batch_size < world():
        raise ArgumentError(
            explain(f"a row of every batch for each of {world()} processes", f"batches of {batch_size}", "launch fewer")
        )


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
