"""What every rank of a launch runs: ``python -m tests.recipes.launched FILE.json``, commands and checks.

The oracle of the checks is the same network called outside of :func:`shared`: each rank has all rows.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset, Subset

from equidial.cli import main
from equidial.data import Images, Split, loader
from equidial.errors import ArgumentError, GroupActionError
from equidial.recipes import (
    Training,
    TrajectorySizes,
    TrajectoryTransformer,
    _regressions,
    _study,
    fit,
    imagenet,
    mnist,
)
from equidial.recipes._ranks import held, is_main, on_main, rank, sharded, world
from equidial.recipes._reading import batches_of_all, images_of_all
from equidial.recipes._schedule import average_weights, clip_gradients, use_averages
from equidial.recipes._together import shared, together
from equidial.recipes._trajectory_transformer import step_loss

TOLERANCE = 1e-6


def run_all(file: Path) -> int:
    """The largest exit code of the commands in a file; the checks raise.

    Adam divides by at least 1, not 1e-8: else it scales the rounding of the smallest gradients up to steps that can be
    seen (in 14 of 48,144 weights of ``o5``, up to 2e-5), and no two ways to sum give the same weights.
    """
    asked = json.loads(file.read_text())
    if asked.get("checks"):
        for check in (norms, shapes, walks, optimizers, parts, reading, refusals, partial(locks, file.parent)):
            check()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Adam", "AdamW"):
            patch.setattr(torch.optim, name, partial(getattr(torch.optim, name), eps=1.0))
        for module in (mnist, imagenet, _regressions, _study):
            patch.setattr(module, "fit", kept(module.fit))
        return max(main(arguments) for arguments in asked["commands"])


def kept(fit: Callable[..., Any]) -> Callable[..., Any]:
    """A ``fit`` that leaves the trained weights, which studies do not save, beside their checkpoint."""

    def fitted(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        history = fit(model, *arguments, **options)
        if is_main():
            state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, arguments[4].with_suffix(".safetensors"))
        return history

    return fitted


def norms() -> None:
    """Batch normalisation in training: outputs, gradients and statistics of all rows, shares uneven."""
    for norm, shape in ((nn.BatchNorm1d(3), ()), (nn.BatchNorm2d(3), (4, 5)), (nn.BatchNorm1d(3, affine=False), (7,))):
        norm.momentum = None if shape else 0.3
        norm.double()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(5, 3, *shape, generator=generator, dtype=torch.float64) * 3 + 20
        ours = copy.deepcopy(norm)
        model = nn.Sequential(nn.Identity(), ours)
        for places in (5, 4):
            with shared(model):
                found = model(x[:places])
            wanted = norm(x[:places])
            assert (found - wanted).abs().max() < 1e-12
            for output in (found, wanted) if norm.affine else ():
                output.pow(3).sum().backward()
        for (name, one), other in zip(ours.state_dict().items(), norm.state_dict().values(), strict=True):
            assert torch.allclose(one, other, rtol=1e-12), name
        for (name, one), other in zip(ours.named_parameters(), norm.parameters(), strict=True):
            assert one.grad is not None
            total = averaged(one.grad)
            assert torch.allclose(total, torch.as_tensor(other.grad), rtol=1e-10, atol=1e-10), name

    layer, first = nn.Linear(4, 3, bias=False).double(), nn.BatchNorm1d(3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0).sin().view(3, 4))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = nn.Sequential(layer, first)
    model(x).pow(3).sum().backward()
    assert layer.weight.grad is not None
    wanted, layer.weight.grad = layer.weight.grad, None
    with shared(model):
        found = model(x)
    found.pow(3).sum().backward()
    assert wanted.abs().max() > 0.1
    assert torch.allclose(averaged(torch.as_tensor(layer.weight.grad)), wanted, rtol=1e-10, atol=1e-10)


def averaged(x: torch.Tensor) -> torch.Tensor:
    """The mean over ranks."""
    total = x.clone()
    torch.distributed.all_reduce(total)
    return total / world()


class Forms(nn.Module):
    """Outputs in other forms than a tensor; tells how many rows it saw."""

    def __init__(self, form: str):
        super().__init__()
        self.linear, self.form, self.seen = nn.Linear(2, 3), form, 0

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> Any:
        self.seen = len(x)
        y = self.linear(x if scale is None else x * scale[:, None])
        return {"tensor": y, "pair": (y, None), "mapping": {"logits": y}, "other": object()}[self.form]


def shapes() -> None:
    """Whatever the form of inputs and outputs: the rows of all ranks, of which each computes its own."""
    x, scale = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.arange(5.0)
    torch.manual_seed(0)
    for form in ("tensor", "pair", "mapping"):
        model = Forms(form)
        wanted = model(x, scale)
        with shared(model):
            found = model(x, scale=scale)
        assert model.seen == (3, 2)[rank()]
        one, other = (y["logits"] if form == "mapping" else y[0] if form == "pair" else y for y in (found, wanted))
        assert torch.allclose(one, other)
        with shared(model):
            model(x[:1])
            assert model.seen == 1, "fewer rows than ranks: each computes all"
            model(x.clone().requires_grad_())
            assert model.seen == 5, "its gradient is asked for: each computes all"
    with shared(other := Forms("other")), pytest.raises(ArgumentError, match="returns tensors"):
        other(x)


def walks() -> None:
    """Pedestrians of one window stay together."""
    torch.manual_seed(0)
    model, window = TrajectoryTransformer(TrajectorySizes()), torch.tensor([0, 0, 0, 2, 3, 3])
    tracks = torch.randn(6, 20, 2).cumsum(1) / 10
    wanted = step_loss(model, tracks, window, 8)
    wanted.backward()
    gradients = [torch.as_tensor(p.grad).clone() for p in model.parameters()]
    model.zero_grad()
    with shared(model):
        found = step_loss(model, tracks, window, 8)
    found.backward()
    assert abs(float(found - wanted)) < TOLERANCE
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(averaged(torch.as_tensor(p.grad)), gradient, atol=1e-5)


def optimizers() -> None:
    """Adam that goes on from a state, clipped and averaged: in shards within, the same objects and state after."""
    x, y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        first = next(model.parameters())
        first.data = first.data.T.contiguous().T  # laid out as channels_last lays out kernels
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        clip_gradients(optimizer, 0.1)
        average_weights(optimizer, 0.9)
        return model, optimizer

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: Any) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            step().backward()
            optimizer.step()

    (ours, optimizer), (alone, other) = made(), made()
    train(alone, other, lambda: nn.functional.cross_entropy(alone(x), y))
    train(alone, other, lambda: nn.functional.cross_entropy(alone(x), y))
    before = list(ours.parameters())
    for _ in range(2):
        with together(ours, optimizer, lambda: nn.functional.cross_entropy(ours(x), y)) as trainer:
            train(ours, optimizer, trainer)
            assert any(hasattr(p, "full_tensor") for p in ours.parameters()) == sharded()
            state = trainer.state()
    use_averages(optimizer)
    use_averages(other)
    assert all(p is q for p, q in zip(ours.parameters(), before, strict=True))
    assert next(ours.parameters()).stride() == (1, 7)
    for p, q in zip(ours.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p, q, atol=TOLERANCE)
    found, wanted = optimizer.state_dict()["state"], other.state_dict()["state"]
    for place, values in wanted.items():
        for name, value in values.items():
            assert torch.allclose(found[place][name], value, atol=TOLERANCE), name
            assert torch.allclose(state["optimizer"]["state"][place][name], value, atol=TOLERANCE), name
    assert not any(hasattr(v, "full_tensor") for v in state["model"].values())


def parts() -> None:
    """A step that passes part of its batch back by itself, as ``imagenet`` does, under DDP; twice."""
    if sharded():
        return
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(7, 4, generator=torch.Generator().manual_seed(0))

    def step() -> torch.Tensor:
        model(x[:4]).pow(3).sum().backward()
        return model(x[4:]).pow(3).sum()

    model(x).pow(3).sum().backward()
    wanted = torch.as_tensor(model.weight.grad).clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with together(model, optimizer, step) as trainer:
        for _ in range(2):
            optimizer.zero_grad()
            trainer().backward()
            assert torch.allclose(torch.as_tensor(model.weight.grad), wanted, rtol=1e-5)


class Read(Dataset[Any]):
    """Five images with labels, of which the last is damaged; tells which were read."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        self.rows.append(row)
        if row == 4:
            raise GroupActionError("image 4 is damaged")
        return torch.full((3, 2, 2), float(row)), row

    def taken(self) -> list[int]:
        """The rows read since the last call."""
        rows, self.rows = self.rows, []
        return rows


def reading() -> None:
    """Each rank reads its rows and gets all; a damaged image of one rank stops all; single rows are read by each."""
    data = Read()
    images = images_of_all(Images(Split(data), Split(data), ("a",), "five"))

    def loaded(rows: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(loader(Split(Subset(images.train.dataset, rows)), 3))  # pyright: ignore[reportArgumentType]

    for read in (loaded, lambda rows: list(batches_of_all(data, [rows[i : i + 3] for i in range(0, len(rows), 3)]))):
        (x, y), (x_last, y_last) = read([2, 0, 3, 1])
        assert (y.tolist(), y_last.tolist()) == ([2, 0, 3], [1])
        assert torch.equal(x[:, 0, 0, 0], y.float())
        assert torch.equal(x_last[:, 0, 0, 0], y_last.float())
        assert data.taken() == ([2, 0, 1], [3, 1])[rank()]
        with pytest.raises(GroupActionError, match="image 4"):
            read([2, 0, 4])
        assert data.taken() == ([2, 0], [4])[rank()]


def locks(folder: Path) -> None:
    """Rank 0 holds a lock for all ranks, which meet inside; what another process holds is nobody's."""
    file = folder / f"{'shards' if sharded() else 'copies'}.lock"

    def is_free() -> bool:
        with suppress(Timeout), FileLock(file).acquire(timeout=0):
            return True
        return False

    with held(file) as ours:
        assert ours
        assert not on_main(is_free)
    assert on_main(is_free)
    with FileLock(file) if is_main() else nullcontext():
        with held(file, wait=False) as ours:
            assert not ours
        assert not on_main(is_free), "what was not ours is not released"


def refusals() -> None:
    """What rank 0 raises is raised by all; batches smaller than the launch; what FSDP2 cannot shard."""

    def fails() -> None:
        assert is_main()
        raise GroupActionError("told by rank 0")

    with pytest.raises(GroupActionError, match="told by rank 0"):
        on_main(fails)
    model = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="each of 2 processes"):
        fit(model, 1, lambda rows, _: model(torch.zeros(1, 2)).sum(), Training(1), seed=0)
    if sharded():
        model.register_parameter("number", nn.Parameter(torch.zeros(())))
        with pytest.raises(ArgumentError, match=r"numbers: \['number'\]"):
            fit(model, 4, lambda rows, _: model(torch.zeros(4, 2)).sum(), Training(1), seed=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run_all(Path(sys.argv[1])))
