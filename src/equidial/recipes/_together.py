"""One batch, several ranks: each computes its rows, and every rank sees the outputs of all of them.

Every rank has the whole batch: it draws the same rows and the same moves from the same generators. A call of the
network inside of :func:`shared` runs on this rank's rows alone, and its outputs are gathered; whatever follows (a loss,
a metric, a penalty) is computed from the whole batch on every rank and needs no thought of the others. Let ``L`` be
that loss, ``z_r`` the outputs of rank ``r``'s rows. Backward, rank ``r`` passes on ``R dL/dz_r`` for its own rows only,
``R`` the number of ranks, so that the mean over ranks, which is what DDP and FSDP2 take, is

    (1/R) sum_r R (dz_r/dw)^T dL/dz_r + (1/R) sum_r dL/dw = dL/dw,

the first term through the network and the second past it (penalties, alike on all ranks): exactly the gradient of one
process, whatever the loss is, and with uneven shares, as long as backward passes are linear in the gradient. Batch
normalisation takes its moments from all rows.

A batch with fewer rows than there are ranks, and one whose gradient is asked for, is computed whole by each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from equidial.baselines import PartialSamples
from equidial.errors import ArgumentError, explain
from equidial.recipes._ranks import accelerator, joined, rank, sharded, world


@contextmanager
def shared(model: nn.Module) -> Iterator[None]:
    """Calls of ``model`` inside are computed by all ranks together; every rank has to make the same ones.

    Rows are the first axis of every tensor as long as the first one. A model whose rows belong together (pedestrians
    who look at one another) says so with ``together(*args, **kwargs)``, a label per row; equal ones are not parted.
    """
    if world() == 1:
        yield
        return
    share = _Share()
    handles = [
        model.register_forward_pre_hook(share.cut, with_kwargs=True),
        model.register_forward_hook(share.join),
    ]
    try:
        with _NormOfAll(share):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Share:
    """The rows of each rank in the call that is under way; ``None``: every rank computes all."""

    def __init__(self) -> None:
        self.sizes: list[int] | None = None

    def cut(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        self.sizes = None
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.ndim]
        if not tensors or any(t.requires_grad for t in tensors):
            return None
        rows = len(tensors[0])
        units = torch.ones(rows, dtype=torch.long)
        if hasattr(module, "together"):
            labels: Any = module.together
            units = labels(*args, **kwargs).unique_consecutive(return_counts=True)[1].cpu()
        if len(units) < world():
            return None
        self.sizes = [int(part.sum()) for part in units.tensor_split(world())]
        start = sum(self.sizes[: rank()])
        stop = start + self.sizes[rank()]

        def mine(v: Any) -> Any:
            return v[start:stop] if isinstance(v, torch.Tensor) and v.ndim and len(v) == rows else v

        return tuple(map(mine, args)), {name: mine(v) for name, v in kwargs.items()}

    def join(self, module: nn.Module, args: Any, output: Any) -> Any:
        sizes, self.sizes = self.sizes, None
        return output if sizes is None else _gathered(output, sizes)


def _gathered(output: Any, sizes: list[int]) -> Any:
    """An output with the rows of all ranks: a tensor, or tensors in tuples and mappings."""
    if isinstance(output, torch.Tensor):
        whole = output.ndim == 0 or len(output) != sizes[rank()]
        return output if whole else _Gather.apply(output, sizes)
    if isinstance(output, Mapping):  # outputs of transformers are made from their entries
        return type(output)(**{name: _gathered(v, sizes) for name, v in output.items()})
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_gathered(v, sizes) for v in output))
    if isinstance(output, tuple | list):
        return type(output)(_gathered(v, sizes) for v in output)
    if output is None:
        return None
    raise ArgumentError(
        explain("a network that returns tensors, in tuples or mappings", type(output).__name__, "run it in one process")
    )


class _Gather(torch.autograd.Function):
    """The rows of all ranks; backward, those of this one, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.start, ctx.size = sum(sizes[: rank()]), len(x)
        return joined(x.detach().contiguous(), sizes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0].narrow(0, ctx.start, ctx.size) * world(), None


class _NormOfAll(TorchFunctionMode):
    """``batch_norm`` in training mode takes mean and variance of the rows of all ranks.

    The function is replaced, not the modules: those that are saved keep their classes and keys, and subclasses with a
    forward of their own are served as well. (torch's ``SyncBatchNorm`` refuses tensors on the CPU.)
    """

    def __init__(self, share: _Share):
        super().__init__()
        self.share = share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.share.sizes is not None and func in (functional.batch_norm, torch.batch_norm):
            names = _FUNCTIONAL if func is functional.batch_norm else _NATIVE
            found = dict(zip(names, args, strict=False)) | (kwargs or {})
            if found.get("training", False):
                return _batch_norm(**{name: found[name] for name in _FUNCTIONAL if name in found})
        return func(*args, **(kwargs or {}))


_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_NATIVE = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")


def _batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``functional.batch_norm`` with ``training``, over the rows of all ranks."""
    mean, variance, count = _moments(input.detach())
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var), momentum)
    return _Normalise.apply(input, weight, bias, mean, variance, count, eps)


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean and biased variance ``[C]`` in float64 and count of all ranks' rows: the law of total variance."""
    wide = torch.promote_types(x.dtype, torch.float32)
    variance, mean = torch.var_mean(x.to(wide), [d for d in range(x.ndim) if d != 1], correction=0)
    own = torch.stack((torch.full_like(mean, x.numel() // x.shape[1]), mean, variance)).double()
    counts, means, variances = joined(own[None], [1] * world()).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, variance, int(total[0])


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, mean and variance functions of all ranks' ``x``.

    Backward, with ``z`` the normalised input, ``g`` the gradient and ``E`` the mean over all rows and places:
    ``dx = weight / sqrt(variance + eps) * (g - E[g] - z E[g z])``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        count: int,
        eps: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.count, ctx.bias = count, bias is not None
        wide = torch.promote_types(x.dtype, torch.float32)
        like = [None if t is None else t.to(wide) for t in (mean, variance, weight, bias)]
        return functional.batch_norm(x.to(wide), *like, training=False, eps=eps).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        shape = [1, -1, *[1] * (x.ndim - 2)]
        places = [d for d in range(x.ndim) if d != 1]
        g = grads[0].to(wide)
        z = (x.to(wide) - mean.to(wide).view(shape)) * scale.to(wide).view(shape)
        own = torch.stack((g.sum(places), (g * z).sum(places))).double()
        total = own.clone()
        distributed.all_reduce(total)
        of_g, of_gz = (total / ctx.count).to(wide).view(2, *shape)
        slope = scale if weight is None else scale * weight.double()
        dx = slope.to(wide).view(shape) * (g - of_g - z * of_gz)
        dweight = None if weight is None else own[1].to(weight.dtype)
        return dx.to(x.dtype), dweight, own[0].to(wide) if ctx.bias else None, None, None, None, None


class _Averaged(torch.autograd.Function):
    """The identity; backward, the mean over ranks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total / world()


@contextmanager
def _whole_gradients(model: nn.Module) -> Iterator[None]:
    """Learned supports see the gradient of the whole batch: at the ends of their range they let one sign of it pass."""
    found = [m for m in model.modules() if isinstance(m, PartialSamples)]
    for samples in found:
        angles = samples.angles
        samples.angles = lambda like, angles=angles: _Averaged.apply(angles(like))
    try:
        yield
    finally:
        for samples in found:
            del samples.angles


class Trainer:
    """A training step of all ranks, and the state of model and optimizer as one process would have them."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[..., Any]):
        self.model, self.optimizer, self.step = model, optimizer, step

    def __call__(self, *args: Any) -> Any:
        """What the step returns; the gradients of its backward pass are those of the whole batch."""
        return self.step(*args)

    def state(self) -> dict[str, Any]:
        """``{"model": ..., "optimizer": ...}``, whole tensors; every rank has to ask."""
        model = self.model.state_dict()
        for name, tensor in model.items():
            model[name] = _whole(tensor)
        return {"model": model, "optimizer": _whole(self.optimizer.state_dict())}


@contextmanager
def together(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[..., Any]) -> Iterator[Trainer]:
    """Train with all ranks: under DDP, or under FSDP2 where the launch asks for it; afterwards the model is whole.

    ``step(...)``: calls the model and returns the loss, or a tuple with it; its arguments are alike on all ranks.
    Raises ``ArgumentError`` where the model is not on this rank's device, or has a parameter that FSDP2 cannot shard.
    """
    if world() == 1:
        yield Trainer(model, optimizer, step)
        return
    found, wanted = next(model.parameters()).device.type, accelerator().device.type
    if found != wanted:
        todo = "set ACCELERATE_USE_CPU=1 for the CPU, or --device cuda where the recipe has it"
        raise ArgumentError(explain(f"a model on the {wanted} of its rank", f"one on the {found}", todo))
    whole = _Step(model, step)
    with shared(model), _whole_gradients(model):
        if sharded():
            with _in_shards(whole, optimizer):
                yield Trainer(model, optimizer, whole.call(whole))
        else:
            yield Trainer(model, optimizer, whole.call(accelerator().prepare_model(whole, device_placement=False)))
            accelerator().free_memory()  # it keeps every model that it prepared


class _Step(nn.Module):
    """A step as a module, for wrappers that act around ``forward``; a penalty on the weights is inside."""

    def __init__(self, model: nn.Module, step: Callable[..., Any]):
        super().__init__()
        self.model, self.step, self.args = model, step, ()

    def forward(self) -> Any:
        return self.step(*self.args)

    def call(self, wrapper: nn.Module) -> Callable[..., Any]:
        """Arguments pass by the wrapper, which would move them to its device."""

        def called(*args: Any) -> Any:
            self.args = args
            return wrapper()

        return called


@contextmanager
def _in_shards(whole: _Step, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """``fully_shard`` on the parameters as one group, and the optimizer's state with them; undone afterwards.

    A parameter is the same object before and after.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = [name for name, p in whole.model.named_parameters() if p.ndim == 0]
    if scalars:
        raise ArgumentError(explain("parameters with an axis for FSDP2", f"numbers: {scalars[:3]}", "launch with DDP"))
    places = [(m, name, p) for m in whole.modules() for name, p in m._parameters.items() if p is not None]
    strides = {p: p.stride() for _, _, p in places}  # channels_last: FSDP2 takes contiguous parameters only
    for p in strides:
        p.data = p.data.contiguous()
    hooks = [(m._load_state_dict_post_hooks, dict(m._load_state_dict_post_hooks)) for m in whole.modules()]
    fully_shard(whole, mesh=init_device_mesh(accelerator().device.type, (world(),)))
    shards: dict[nn.Parameter, Any] = {p: m._parameters[name] for m, name, p in places}
    _swap(optimizer, shards)
    for p in shards:
        p.data = p.data.new_empty(0)  # held whole by nobody while it is trained
    yield
    getattr(whole, "reshard")()  # noqa: B009 (of the class that fully_shard makes)
    for p, shard in shards.items():
        found = _whole(shard.detach())
        p.data = found.new_empty_strided(found.shape, strides[p]).copy_(found)
    for module, name, p in places:
        module._parameters[name] = p
    for current, before in hooks:
        current.clear()
        current.update(before)
    _swap(optimizer, {shard: p for p, shard in shards.items()})


def _swap(optimizer: torch.optim.Optimizer, new: Mapping[Any, Any]) -> None:
    """Put other tensors in an optimizer's place, and its state in their layout."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for group in optimizer.param_groups:
        group["params"] = [new.get(p, p) for p in group["params"]]
    for old, p in new.items():
        state = optimizer.state.pop(old, None)
        if state is None:
            continue
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and not isinstance(p, DTensor):
                state[name] = _whole(value)
            elif isinstance(value, torch.Tensor) and value.shape == p.shape:
                state[name] = distribute_tensor(value, p.device_mesh, p.placements)
        optimizer.state[p] = state


def _whole(value: Any) -> Any:
    """Plain data with whole tensors in place of shards."""
    if isinstance(value, Mapping):
        return {name: _whole(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_whole(v) for v in value)
    return value.full_tensor() if hasattr(value, "full_tensor") else value
