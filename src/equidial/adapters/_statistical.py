"""certify_statistically: what a sample proves about the error of a whole network, any network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from equidial._version import __version__
from equidial.adapters._batches import device_of, evaluation, inputs_and_labels, logits_of
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._geometry import acts_by_lattice
from equidial.certificates import StatisticalCertificate, bound_samples, check_statistics, sample_quantiles
from equidial.errors import ArgumentError, explain
from equidial.groups import Group, GroupElement, Shift, as_group
from equidial.metrics import (
    DEFAULT_RADIUS,
    in_frame,
    invariance_kl,
    random_elements,
    relative_error,
    total_variation,
    transform_images,
)
from equidial.representations import Representation

ERRORS = {
    "relative": "||F(g x) - g F(x)|| / ||g F(x)||",
    "total_variation": "1/2 sum |softmax g F(x) - softmax F(g x)|",
    "kl": "KL(softmax g F(x) || softmax F(g x)) in nats",
}
OUTPUTS = ("invariant", "image")


def certify_statistically(
    model: nn.Module,
    batches: Iterable[Any],
    group: str | Group,
    *,
    tau: float | Sequence[float],
    alpha: float,
    n: int,
    radius: float | None = None,
    error: str = "relative",
    output: str = "invariant",
    representation: str | Representation | None = None,
    output_representation: str | Representation | None = None,
    seed: int = 0,
) -> StatisticalCertificate:
    """Bound the error of any network with confidence ``1 - alpha``, from ``n`` inputs and one random element each.

    With the inputs independent draws from a population, all of this holds at once with probability ``1 - alpha``, for
    a new input and element: ``P(error > tau) <= ..`` for each ``tau`` (Clopper-Pearson, exact), and for classifiers the
    mean total variation of the predictions (Chernoff) and the probability that the prediction changes. Each of the
    ``m`` numbers has level ``alpha / m``. No statement about the worst input or element: see :func:`certify`.

    Args:
        model: any module; returns a tensor or an object with ``.logits``, in evaluation mode one output per input.
        batches: yields ``(x, y)``, dicts (``pixel_values``) or tensors; exactly the first ``n`` inputs are read. They
            must not have been used to train, tune or calibrate the model, nor to choose ``tau``, ``alpha`` or ``n``.
        group: a name or a group.
        tau: threshold(s) of the error, finite and >= 0.
        alpha: probability that some number of the certificate is wrong, in (0, 1).
        n: how many inputs; fixed beforehand. A certificate whose ``n`` was chosen after looking at results is void.
        radius: largest distance of the elements. Images: default the whole of a finite group, 30 degrees for SO(2).
            Vectors, and O(2): default what :meth:`Group.sample` draws.
        error: ``"relative"``, ``||F(gx) - gF(x)|| / ||gF(x)||``; ``"total_variation"`` of the softmax, in [0, 1];
            or ``"kl"``, in nats.
        output: ``"invariant"``: logits ``[n, classes]``; ``"image"``: logits ``[n, classes, h, w]`` that move with the
            image; divergences are then means over pixels, of a resampled image those that stay in the frame.
        representation: of the last axis of vector inputs, a :class:`Representation` or its text; ``None``: images.
        output_representation: of the last axis of the output, in place of ``output``: only ``"relative"`` has a
            meaning then and only the thresholds are certified.
        seed: of the elements, one per input index: numbers do not depend on the batch size, but for the model's own
            rounding.

    Elements are drawn by :func:`equidial.metrics.random_elements`: never the identity of a finite group. Quarter turns,
    mirrors and shifts permute pixels; other rotations resample, and interpolation is then part of the error, which
    the certificate says. Every module's mode is restored.

    Raises ``ArgumentError`` for arguments without meaning, fewer than ``n`` inputs, outputs of another shape and
    outputs that are not finite (naming the input's index). Cost: two forward passes per input. Source: theory 4.
    """
    thresholds = check_statistics(tau, alpha, n)
    group = as_group(group)
    compare = _Comparison.of(group, error, output, representation, output_representation)
    if representation is None and radius is None and group.lie_dim and not group.discrete_generators():
        radius = DEFAULT_RADIUS
    drawn = random_elements(group, n, radius, torch.Generator().manual_seed(seed))
    device, done, dtype = device_of(model), 0, ""
    with evaluation(model), torch.no_grad():
        for batch in batches:
            x = inputs_and_labels(batch)[0][: n - done].to(device)
            if len(x) == 0:
                continue
            elements = drawn.elements[done : done + len(x)]
            moved = compare.moved_inputs(x, elements)
            outputs = [_finite(logits_of(model(inputs)), len(x), done) for inputs in (x, moved)]
            compare.add(x, outputs[0], outputs[1], elements)
            done, dtype = done + len(x), str(outputs[0].dtype).removeprefix("torch.")
            if done >= n:
                break
    if done < n:
        raise ArgumentError(
            explain(f"{n} inputs", f"only {done}", f"pass more data, or fix n <= {done} before looking at any result")
        )
    return StatisticalCertificate(
        rows=bound_samples(
            compare.errors,
            error=error.replace("_", " "),
            tau=thresholds,
            alpha=alpha,
            bounded=compare.bounded,
            events=compare.events,
        ),
        n=n,
        alpha=float(alpha),
        seed=seed,
        error=compare.law,
        group=group.name,
        radius=drawn.radius,
        elements=f"{drawn.distribution}; {compare.action}",
        dtype=dtype,
        worst=max(compare.errors),
        quantiles=sample_quantiles(compare.errors),
        library=__version__,
    )


@dataclass
class _Comparison:
    """How inputs move, what the outputs should be then, and what was found, one entry per input."""

    group: Group
    error: str
    output: str
    space: Representation | None
    output_space: Representation | None
    errors: list[float] = field(default_factory=list)
    variation: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        group: Group,
        error: str,
        output: str,
        representation: str | Representation | None,
        output_representation: str | Representation | None,
    ) -> _Comparison:
        if error not in ERRORS:
            raise ArgumentError(explain(f"an error out of {tuple(ERRORS)}", repr(error), "use error='relative'"))
        if output not in OUTPUTS:
            raise ArgumentError(explain(f"an output out of {OUTPUTS}", repr(output), "use output='invariant'"))
        if output == "image" and (representation is not None or output_representation is not None):
            raise ArgumentError(
                explain("images in and out for output='image'", "a representation", "leave one of them out")
            )
        if output_representation is not None and error != "relative":
            raise ArgumentError(
                explain("error='relative' for an output with a representation", repr(error), "it has no softmax")
            )
        config = SoftEquivarianceConfig(group=group, softness=1.0)
        space, output_space = (
            None if rep is None else config.space(rep) for rep in (representation, output_representation)
        )
        return cls(group, error, output, space, output_space)

    @property
    def is_exact(self) -> bool:
        """Whether no input is resampled."""
        return self.space is not None or acts_by_lattice(self.group) or isinstance(self.group, Shift)

    @property
    def action(self) -> str:
        """How the elements act on inputs, in words."""
        if self.space is not None:
            return f"acting on vectors by {self.space.name}"
        return "permuting pixels" if self.is_exact else "on resampled images: interpolation is part of the error"

    @property
    def law(self) -> str:
        """The error in words."""
        if self.output_space is not None:
            return f"{ERRORS[self.error]}, g F(x) by {self.output_space.name}"
        if self.output == "invariant":
            return ERRORS[self.error].replace("g F(x)", "F(x)")
        means = "" if self.error == "relative" else ", mean over pixels"
        return ERRORS[self.error] + means + ("" if self.is_exact else ", pixels that stay in the frame")

    @property
    def bounded(self) -> dict[str, list[float]]:
        """Variables in [0, 1] whose mean is certified; which ones follows from the arguments, never from the data."""
        if self.output_space is not None:
            return {}
        if self.output == "invariant":
            return {"mean total variation": self.variation}
        return {"mean total variation over pixels": self.variation, "mean share of changed pixels": self.changed}

    @property
    def events(self) -> dict[str, list[bool]]:
        """Events whose probability is certified."""
        if self.output_space is not None or self.output == "image":
            return {}
        return {"P(prediction changes)": [share > 0 for share in self.changed]}

    def moved_inputs(self, x: torch.Tensor, elements: Sequence[GroupElement]) -> torch.Tensor:
        """``g_i x_i``."""
        if self.space is None and x.ndim < 3:
            raise ArgumentError(
                explain("images [n, .., h, w]", f"shape {tuple(x.shape)}", "give representation= for vector inputs")
            )
        space = self.space
        return torch.stack(
            [transform_images(a, g) if space is None else space.act(g, a) for a, g in zip(x, elements, strict=True)]
        )

    def add(self, x: torch.Tensor, before: torch.Tensor, after: torch.Tensor, elements: Sequence[GroupElement]) -> None:
        """Compare the outputs ``F(g_i x_i)`` with ``g_i F(x_i)``."""
        self._check_shape(x, before)
        before, after = before.cpu(), after.cpu()  # double precision, which not every device has
        for unmoved, found, g in zip(before, after, elements, strict=True):
            expected, found = self._rows(unmoved, found, g)
            if self.output_space is None:
                self.variation.append(float(total_variation(expected, found).mean()))
                self.changed.append(float((expected.argmax(-1) != found.argmax(-1)).double().mean()))
            if self.error == "relative":
                self.errors.append(float(relative_error(expected[None], found[None])))
            elif self.error == "kl":
                self.errors.append(float(invariance_kl(expected, found).mean()))
            else:
                self.errors.append(self.variation[-1])

    def _rows(self, unmoved: torch.Tensor, found: torch.Tensor, g: GroupElement) -> tuple[torch.Tensor, torch.Tensor]:
        """``(g F(x), F(g x))`` of one input, as rows of logits, one per pixel, or as they are."""
        if self.output_space is not None:
            return self.output_space.act(g, unmoved.double()), found.double()
        if self.output == "invariant":
            return unmoved[None], found[None]
        inside = in_frame(unmoved.shape[-2:], g)
        return transform_images(unmoved.double(), g)[:, inside].mT, found[:, inside].double().mT

    def _check_shape(self, x: torch.Tensor, outputs: torch.Tensor) -> None:
        """``ArgumentError`` for outputs that the comparison cannot read."""
        shape = tuple(outputs.shape)
        if self.output_space is not None:
            fits, expected = (
                outputs.ndim > 1 and shape[-1] == self.output_space.dim,
                f"[n, .., {self.output_space.dim}]",
            )
        elif self.output == "invariant":
            fits, expected = outputs.ndim == 2 and shape[-1] > 1, "[n, classes], two classes or more"
        else:
            fits, expected = outputs.ndim == 4 and shape[1] > 1, "[n, classes, h, w], two classes or more"
            if isinstance(self.group, Shift):
                # a shift by one pixel is no whole number of steps on a coarser grid
                fits, expected = fits and shape[-2:] == tuple(x.shape[-2:]), expected + ", h and w those of the input"
        if not fits:
            raise ArgumentError(
                explain(
                    f"outputs {expected}", f"shape {shape}", "see output= and output_representation=, or wrap the model"
                )
            )


def _finite(outputs: torch.Tensor, count: int, offset: int) -> torch.Tensor:
    """The outputs; ``ArgumentError`` unless there is one per input and all of them are finite."""
    if outputs.ndim < 1 or len(outputs) != count:
        got = f"shape {tuple(outputs.shape)} for {count} inputs"
        raise ArgumentError(explain("one output per input", got, "wrap the model so that the batch comes first"))
    bad = (~outputs.isfinite().flatten(1).all(1) if outputs.ndim > 1 else ~outputs.isfinite()).nonzero()
    if len(bad):
        raise ArgumentError(
            explain(
                "finite outputs", f"NaN or infinity at input {offset + int(bad[0])}", "mend the model or that input"
            )
        )
    return outputs
