"""The rows of the compatibility matrix that take two processes: DistributedDataParallel and ``fully_shard``.

:class:`Pair` keeps two processes joined by gloo; each carries a feature out on a network built alike, and the law is
checked in both. One process with the whole batch is the oracle: the loss is a mean over the batch, normalisation
statistics stand still, and weights are float64, so that nothing but the order of sums differs. The loss is logarithmic
in large outputs: under a plain square the untouched ResNet, with random weights, is not a number after two steps.
"""

from __future__ import annotations

import copy
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import equidial as ed
from equidial.adapters._parametrization import constrained
from tests.adapters.models import same_tensors, snapshot
from tests.life.networks import SOFTNESS, Network, NotApplicable, build, evaluate, gap, loss_of, refused

WORLD = 2
STEPS = 3
PATIENCE = 120.0  # seconds until a pair that says nothing counts as stuck
TOLERANCE = 1e-9


# -- Features: each runs in both processes


def data_parallel(net: Network) -> None:
    """Three steps on halves of the batch equal three steps of one process on the whole batch."""
    soft, alone = _twins(net)
    _train(_parallel(soft, net), _share(net.x))
    _train(alone, net.x)
    _same_training(soft.state_dict(), alone, net)
    ed.fold(soft)
    assert gap(evaluate(soft, net.x), evaluate(ed.fold(alone), net.x)) < TOLERANCE


def dial_under_data_parallel(net: Network) -> None:
    """A dial that every process turns between the steps is followed, as in one process."""
    soft, alone = _twins(net)
    _turned_between_steps(_parallel(soft, net), alone, net)
    _same_training(soft.state_dict(), alone, net)


def folded_in_data_parallel(net: Network) -> str:
    """Refused with the wrapper around, done on ``.module``; status and certificate read through it."""
    soft, alone = _twins(net)
    parallel = _parallel(soft, net)
    before = snapshot(parallel)
    for verb in (ed.unload, ed.fold):
        with refused(f"{verb.__name__}(model.module)", "DistributedDataParallel") as said:
            verb(parallel)
    assert same_tensors(snapshot(parallel), before)
    assert len(ed.status(parallel)) == len(ed.certify(parallel)) == len(ed.status(alone))
    folded = ed.fold(parallel.module)
    assert gap(evaluate(folded, net.x), evaluate(ed.fold(alone), net.x)) < TOLERANCE
    return said[0]


def softened_in_data_parallel(net: Network) -> str:
    """Refused, and the model stays as it is."""
    parallel = _parallel(net.model, net)
    before = snapshot(parallel)
    with refused("before DistributedDataParallel", ".module") as said:
        ed.soften(parallel, net.config)
    assert same_tensors(snapshot(parallel), before)
    return said[0]


def sharded(net: Network) -> None:
    """Three steps of shards on halves of the batch equal one process; the gathered weights fold."""
    soft, alone = _twins(net)
    _shard(soft)
    _train(soft, _share(net.x))
    _train(alone, net.x)
    gathered = _gather(soft)
    _same_training(gathered, alone, net)
    soft.reshard()
    for (owner, key, _), (twin, _, _) in zip(constrained(soft), constrained(alone), strict=True):
        read = getattr(owner, key)  # outside of forward: constrained as well, and in shards
        assert gap(read.full_tensor(), getattr(twin, key)) < TOLERANCE
    whole, _ = _twins(net)
    whole.load_state_dict(gathered)
    assert gap(evaluate(ed.fold(whole), net.x), evaluate(ed.fold(alone), net.x)) < TOLERANCE


def dial_while_sharded(net: Network) -> None:
    """Softness and threshold turn on shards, without talk between the processes, and are followed."""
    soft, alone = _twins(net)
    _shard(soft)
    _turned_between_steps(soft, alone, net)
    _same_training(_gather(soft), alone, net)
    ed.set_dial(soft, threshold=1.1)
    ed.set_dial(alone, threshold=1.1)
    gathered = _gather(soft)
    _same_training(gathered, alone, net)
    # outputs of the same weights: MobileNetV2, untrained as it is, makes more of their last bits than may differ
    alone.load_state_dict(gathered)
    assert gap(evaluate(soft, net.x), evaluate(alone, net.x)) < TOLERANCE


def max_error_while_sharded(net: Network) -> str:
    """Refused, as it reads whole tensors; the dial stays where it is."""
    soft, alone = _twins(net)
    _shard(soft)
    with refused("whole tensors for set_dial(max_error=...)", "get_model_state_dict") as said:
        ed.set_dial(soft, max_error=0.5)
    with refused("whole tensors"):
        ed.DialSchedule(soft, "linear", 0.5, 0.4, 2, dial="max_error")
    assert gap(evaluate(soft, net.x), evaluate(alone, net.x)) < TOLERANCE
    return said[0]


def folded_while_sharded(net: Network) -> str:
    """Refused, as is whatever reads whole tensors, with the way out that training shows."""
    soft, _ = _twins(net)
    _shard(soft)
    said: list[str] = []
    for verb in (ed.fold, ed.unload, ed.certify, ed.status, lambda m: ed.save(m, "nowhere")):
        with refused("whole tensors", "sharded by fully_shard", "get_model_state_dict") as message:
            verb(soft)
        said = said or message
    evaluate(soft, net.x)  # after which the root's own tensors are whole for a while
    with refused("whole tensors", "sharded by fully_shard"):
        ed.fold(soft)
    return said[0]


def softened_while_sharded(net: Network) -> str:
    """Refused, and the model stays as it is."""
    _shard(net.model)
    kinds = [type(m) for m in net.model.modules()]
    with refused("before fully_shard", "then shard it") as said:
        ed.soften(net.model, net.config)
    assert [type(m) for m in net.model.modules()] == kinds
    evaluate(net.model, net.x)
    return said[0]


def learned_in_data_parallel(net: Network) -> str:
    """Learned dials train as in one process, the penalty counted once; ``learn_dial`` once wrapped is refused."""
    soft, alone = _twins(net)
    with refused("before it is wrapped", "then wrap it") as said:
        ed.learn_dial(_parallel(soft, net))
    parallel = _parallel(ed.learn_dial(soft), net)
    ed.learn_dial(alone)
    for model, x in ((parallel, _share(net.x)), (alone, net.x)):
        optimizer = _optimizer(model)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (loss_of(model, x) + 20.0 * ed.relaxation_penalty(model)).backward()
            optimizer.step()
    dials = [float(link.share().detach()) for _, _, link in constrained(alone)]
    assert all(SOFTNESS - 0.2 < share < SOFTNESS - 0.1 for share in dials), dials  # 0.02 (1 + 1.9 + 2.71) by momentum
    for (name, p), (_, q) in zip(soft.named_parameters(), alone.named_parameters(), strict=True):
        assert torch.allclose(p, q, rtol=TOLERANCE, atol=TOLERANCE) or name.endswith("learned_softness")
    for (_, _, p), (_, _, q) in zip(constrained(soft), constrained(alone), strict=True):
        assert abs(float(p.share().detach()) - float(q.share().detach())) < 1e-6  # float32
    return said[0]


def learned_while_sharded(net: Network) -> str:
    """Refused, with the way out."""
    soft = ed.learn_dial(_twins(net)[0])
    _shard(soft)
    with refused("a whole parameter of the learned dial", "fix_dial before fully_shard") as said:
        ed.relaxation_penalty(soft)
    return said[0]


def _twins(net: Network) -> tuple[Any, Any]:
    """The network softened twice."""
    soft = ed.soften(copy.deepcopy(net.model), net.config)
    return soft, copy.deepcopy(soft)


def _parallel(model: nn.Module, net: Network) -> DistributedDataParallel:
    """Told of unused parameters where the untouched network has some, as DINOv2's mask token; equidial adds none."""
    untouched = copy.deepcopy(net.model)
    loss_of(untouched, net.x).backward()
    unused = any(parameter.grad is None for parameter in untouched.parameters())
    return DistributedDataParallel(model, find_unused_parameters=unused)


def _share(x: torch.Tensor) -> torch.Tensor:
    return x.chunk(WORLD)[dist.get_rank()]


def _shard(model: nn.Module) -> None:
    """``fully_shard`` each softened layer on its own, then the rest."""
    mesh = init_device_mesh("cpu", (WORLD,))
    softened = {id(owner): owner for owner, _, _ in constrained(model) if owner is not model}
    for module in reversed(softened.values()):  # parts before what holds them
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _gather(model: nn.Module) -> dict[str, Any]:
    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-2)


def _train(
    model: nn.Module, x: torch.Tensor, steps: int = STEPS, optimizer: torch.optim.Optimizer | None = None
) -> None:
    optimizer = optimizer or _optimizer(model)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()


def _turned_between_steps(parallel: Any, alone: Any, net: Network) -> None:
    """By hand, then by a schedule that ends before the training does."""
    optimizers = _optimizer(parallel), _optimizer(alone)

    def both() -> None:
        _train(parallel, _share(net.x), 1, optimizers[0])
        _train(alone, net.x, 1, optimizers[1])

    for softness in (0.0, 0.8):
        ed.set_softness(parallel, softness)
        ed.set_softness(alone, softness)
        both()
    schedules = [ed.DialSchedule(model, "linear", 0.8, 0.5, 1) for model in (parallel, alone)]
    for _ in range(2):
        values = {schedule.step() for schedule in schedules}
        both()
    assert values == {0.5}


def _same_training(found: dict[str, Any], alone: nn.Module, net: Network) -> None:
    expected = alone.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        no_number = key.endswith(".softness")  # a dial that another setting turned
        assert no_number or bool(torch.isfinite(value).all()), key
        assert torch.allclose(found[key], value, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=no_number), key
    start, halved = _twins(net)
    _train(halved, _share(net.x))
    for other, what in ((start, "training moves far more"), (halved, "half of the batch trains otherwise")):
        pairs = zip(other.parameters(), alone.parameters(), strict=True)
        assert max(gap(p, q) for p, q in pairs if q.norm() > 0) > 1000 * TOLERANCE, what


# -- Two processes


class Pair:
    """Two processes that wait for features to carry out; started at the first, ended by :meth:`close`."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._folder: Any = None

    def run(self, feature: Callable[[Network], str | None], network: str) -> str | None:
        """Carry ``feature`` out in both; raises what it raised, with the text of its traceback."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((feature, network))
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(PATIENCE):
                self.close()
                raise AssertionError(f"no answer within {PATIENCE:g} s")
            answers.append(pipe.recv())
        for kind, text in answers:
            if kind == "not applicable":
                raise NotApplicable(text)
            if kind == "failed":
                self.close()  # one may wait for the other for ever
                raise AssertionError(text)
        assert answers[0] == answers[1]
        return answers[0][1]

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.kill()
            process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = (Path(self._folder.name) / "meeting").as_uri()
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, meeting, theirs), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(rank: int, meeting: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    while True:
        try:
            feature, network = pipe.recv()
        except (EOFError, ConnectionResetError):  # the parent is gone
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = build(network)
                net = replace(net, model=net.model.double(), x=net.x.double())
                pipe.send(("done", feature(net)))
        except NotApplicable as error:
            pipe.send(("not applicable", str(error)))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))
