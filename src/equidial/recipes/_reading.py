"""Images that all ranks read together: each decodes its rows of a batch, and every rank gets all of them.

What follows (moves, losses, metrics) then sees the batch of one process, while files are decoded once: decoding, not
the exchange of decoded pixels, is what takes the time. A batch with fewer rows than ranks is read whole by each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from equidial.data import Images, Split
from equidial.recipes._ranks import accelerator, joined, raised_by_all, rank, world

Read = Callable[[Sequence[int]], Sequence[torch.Tensor]]


def read_by_all(rows: Sequence[int], read: Read) -> Sequence[torch.Tensor]:
    """What ``read(rows)`` returns, tensors with a row for each, of which every rank reads its own.

    An error of one rank is raised by all.
    """
    if world() == 1 or len(rows) < world():
        return read(rows)
    shares = _shares(rows)
    found, error = None, None
    try:
        found = read(shares[rank()])
    except Exception as caught:
        error = caught
    raised_by_all(error)
    assert found is not None
    sizes, device = [len(share) for share in shares], accelerator().device
    return [joined(part.to(device), sizes).to(part.device) for part in found]


def batches_of_all(
    dataset: Any, batches: Sequence[Sequence[int]], workers: int = 0, generator: torch.Generator | None = None
) -> Iterator[Sequence[torch.Tensor]]:
    """These rows of a dataset of tensors, batch by batch, read ahead by ``workers`` processes of every rank."""
    own = [list(rows) if len(rows) < world() else _shares(rows)[rank()] for rows in batches]
    ready = iter(DataLoader(dataset, batch_sampler=own, num_workers=workers, generator=generator))
    for rows in batches:
        yield read_by_all(rows, lambda _: next(ready))


def images_of_all(images: Images) -> Images:
    """The same images; loaders without workers read each batch by all ranks."""
    if world() == 1:
        return images
    return replace(images, train=Split(_ByAll(images.train.dataset)), test=Split(_ByAll(images.test.dataset)))


class _ByAll(Dataset[Any]):
    """A dataset of pairs ``(x, y)`` whose batches are read by all ranks; a single item by whoever asks for it."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:  # what loaders ask for a batch, where it is there
        return list(zip(*read_by_all(rows, self._read), strict=True))

    def _read(self, rows: Sequence[int]) -> list[torch.Tensor]:
        pairs = [self.dataset[row] for row in rows]
        return [torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*pairs, strict=True)]


def _shares(rows: Sequence[int]) -> list[list[int]]:
    return [part.tolist() for part in torch.as_tensor(rows).tensor_split(world())]
