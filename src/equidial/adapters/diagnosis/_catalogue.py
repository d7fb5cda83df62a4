"""Every cause by its name: why it breaks the symmetry, what to do, and what has to change. Theory 6."""

from __future__ import annotations

from dataclasses import dataclass

from equidial.adapters.diagnosis._result import Mend

_NO = "cannot be mended by weights"


@dataclass(frozen=True)
class Entry:
    """``why`` and ``remedy`` are filled in with the facts of the place; a weight's remedy depends on the model."""

    why: str
    remedy: str
    mend: Mend


CATALOGUE: dict[str, Entry] = {
    # weights: the remedy says how to soften the tensor that is to blame
    "kernel": Entry("{share:.3g} of the norm of its {size} kernels lies outside the symmetric ones", "", "weights"),
    "patch kernel": Entry("a linear layer reads patches whose entries the group exchanges", "", "weights"),
    "position table": Entry("{parameter} has other values at places that the group exchanges", "", "weights"),
    "relative-position table": Entry("the offset to the turned place has another bias", "", "weights"),
    "place-dependent parameter": Entry(
        "{parameter} has other values at places that the group exchanges", "", "weights"
    ),
    "linear map": Entry("the map between the declared spaces does not commute with the group", "", "weights"),
    "flatten": Entry(
        "a linear layer reads {inputs} numbers that the group exchanges, each with a weight of its own",
        "pool before it, or declare its spaces: representations={{{module!r}: ({spaces!r}, '{outputs}*Trivial')}}",
        "weights",
    ),
    # layers of equidial.nn
    "relaxed layer": Entry(
        "{amount}: its defect under {group} is {defect:.3g} of the norm of its kernel",
        "lower its omega', learn it with the penalty (equidial.relaxation_penalty), or set it to 0",
        "weights",
    ),
    "continuous kernel": Entry(
        "a continuous kernel without a group axis ({amount}) is symmetric no more than any other",
        f"{_NO}: use LiftingConv2d and GroupConv2d, or fold the model and soften the plain kernel",
        "code",
    ),
    "missing samples": Entry("{samples} samples hold no {element}", f"{_NO}: sample a group that contains it", "code"),
    # windows
    "stride": Entry("{arithmetic}", "{padding}", "size"),
    "asymmetric padding": Entry("{arithmetic}{before} before and {after} after by {by}", "{padding}", "padding"),
    "even kernel": Entry(
        "{before} before and {after} after by {by}: a window of {taps} taps has no centre",
        "use a kernel of odd size, or the same padding on both sides",
        "padding",
    ),
    "ceil mode": Entry(
        "{arithmetic}; ceil_mode adds a window on one side", "set ceil_mode=False at an input size that fits", "code"
    ),
    "rectangular kernel": Entry(
        "a quarter turn makes another window of {size} taps",
        f"{_NO}: pad the kernel with zeros to a square, and the padding with it",
        "code",
    ),
    "anisotropic window": Entry(
        "kernel {kernel}, stride {stride}, padding {pads} on a grid {grid}: a quarter turn exchanges the axes",
        f"{_NO}: treat rows and columns alike",
        "code",
    ),
    # what happens between the layers
    "subsampling": Entry(
        "[{what}] of {shape}: the mirror image keeps other places, as ({n} - 1) mod {step} = {rest} and not 0",
        "choose an input whose grid there is 1 more than a multiple of {step}",
        "size",
    ),
    "crop": Entry(
        "{name} [{what}] of {shape} keeps places that the group exchanges with places that are dropped",
        f"{_NO}: keep a centred part",
        "code",
    ),
    "anisotropic resize": Entry(
        "square images become {h}x{w}: no quarter turn acts there", f"{_NO}: resize rows and columns alike", "code"
    ),
    "nearest resize": Entry(
        "{n} -> {m} places: the nearest neighbour of a mirrored place is not the mirrored one",
        f"{_NO}: use bilinear or area",
        "code",
    ),
    "pixel shuffle": Entry(
        "channels become places in a fixed order that does not turn",
        f"{_NO} of one kernel: resize and convolve instead",
        "code",
    ),
    "fixed position code": Entry(
        "a constant that differs from place to place",
        f"{_NO}: it is no parameter; average it over the group in the code",
        "code",
    ),
    # attention
    "window shift": Entry(
        "windows of {window} shifted by {shift}: reversed, they are cut at 2 x {shift} mod {window} = {rest}, not 0",
        f"{_NO}: only an even window shifted by half of it maps onto itself",
        "none",
    ),
    "cyclic shift": Entry(
        "rows and columns are rolled by {shift}, and what works on them then does not turn with the image",
        f"{_NO}: shift by what maps onto itself, e.g. by half of an even window",
        "none",
    ),
    "window padding": Entry(
        "a grid of {h}x{w} is padded on one side to a multiple of {window}",
        "choose an input whose grids are multiples of {window}",
        "size",
    ),
    "rotary position embedding": Entry(
        "it turns features by angles that grow with row and column: coordinates are vectors, not scalars; only angles "
        "equal at all places are invariant, and they hold no position",
        f"{_NO} without erasing position: measure, or choose a network with a table",
        "none",
    ),
    # vectors
    "non-linearity": Entry(
        "{name} acts entry by entry on {space}, whose entries the group mixes",
        f"{_NO}: use an equivariant non-linearity, e.g. equidial.nn.NormNonlinearity",
        "code",
    ),
    "unknown": Entry(
        "{name} does not commute with the group, and no rule says why",
        "look at what the module does with rows and columns",
        "none",
    ),
}
