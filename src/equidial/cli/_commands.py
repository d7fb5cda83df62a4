"""The commands: a dataclass of options and a function each."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from tqdm import tqdm

import equidial as ed
from equidial.certificates import check_statistics
from equidial.data import load_images, loader
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.recipes import Adapt, Demo, check_fits, load_model
from equidial.recipes.adapt import Outcome, Progress, run


@dataclass(frozen=True, kw_only=True)
class _OnImages:
    """A model, images, and how they are read."""

    model: str
    """demo | hf:NAME_OR_FOLDER | timm:NAME | FILE.py:function (runs the code of that file)."""
    data: str
    """demo | FILE.npz (x_train, y_train, x_test, y_test) | FOLDER (train/<class>/, test/<class>/)."""
    weights: Path | None = None
    """A .safetensors file with the model's tensors, e.g. the model.safetensors of a run."""
    radius: float | None = None
    """Largest group element (radians or pixels); default: all, 30 degrees for SO2."""
    batch_size: int = 128
    """Images per step."""
    image_size: int | None = None
    """Resize images to this many pixels a side."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from images in [0, 1], one number or one per channel."""
    std: tuple[float, ...] = (0.5,)
    """Divisor after that."""


@dataclass(frozen=True, kw_only=True)
class Measure(_OnImages):
    """Measure accuracy and error of a network under a group."""

    group: str = "C4"
    """C<n>, D<n>, SO2, Flip, FlipUD, T2."""
    task: Literal["classification", "segmentation", "features"] = "classification"
    """segmentation: --data FILE.npz with integer masks [n, h, w] as y; features: dense outputs, no labels read."""
    tokens: tuple[int, int, int] | None = None
    """Rows before the grid, and its height and width, where features are tokens of a layout that cannot be guessed."""
    curve: Path | None = None
    """Write the error against angle, 0 to 180 degrees, to this .json file and a picture beside it."""
    disc: bool = False
    """For --curve: cut the images to their inscribed disc first."""
    seed: int = 0
    """Of the Hutchinson probes."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Certify:
    """Certify the tensors of a plain or folded model."""

    model: str | None = None
    """demo | hf:NAME_OR_FOLDER | timm:NAME | FILE.py:function (runs the code of that file)."""
    group: str | None = None
    """C<n>, D<n>, SO2, Flip, FlipUD, T2; or give --config."""
    config: Path | None = None
    """The soft_equivariance_config.json of a saved folder, for its group, targets and representations."""
    weights: Path | None = None
    """A .safetensors file with the model's tensors, e.g. the model.safetensors of a run."""
    radius: float | None = None
    """Largest distance of the elements (radians or pixels); default: the whole group."""
    image_size: int | None = None
    """Input size in pixels, by which strided layers are judged."""
    norm: Literal["frobenius", "spectral", "jacobian"] = "frobenius"
    """frobenius: of the tensor; spectral: of its matrix; jacobian: Frobenius, of the matrix of the whole layer."""
    output: Path | None = None
    """Write the certificate as JSON to this file."""
    verify: Path | None = None
    """A folder with certificate.json and model.safetensors (a run writes them): recompute every row from the folded
    weights alone and compare; with --model the levels as well. Exit code 2 where a row does not stand."""


@dataclass(frozen=True, kw_only=True)
class CertifySampled(_OnImages):
    """Certify a whole network with a confidence, from fresh test images and random group elements."""

    data: str
    """demo | FILE.npz | FOLDER; its test images, which the model must not have been trained or tuned on."""
    tau: tuple[float, ...]
    """Thresholds: P(error > tau) is bounded for each; choose them before looking at results."""
    samples: int
    """How many test images, the first ones; choose it before looking at results."""
    alpha: float = 0.01
    """Probability that any number of the certificate is wrong."""
    error: Literal["relative", "total_variation", "kl"] = "relative"
    """relative: ||F(gx) - F(x)|| / ||F(x)||; total_variation of the softmax; kl in nats."""
    group: str = "C4"
    """C<n>, D<n>, SO2, O2, Flip, FlipUD, T2."""
    seed: int = 0
    """Of the random elements, one per image."""
    output: Path | None = None
    """Write the certificate as JSON to this file."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Put a saved folder on the Hugging Face hub."""

    folder: Path
    """What equidial.save wrote, or the folder of one dial position of a run."""
    repo: str
    """user/name; made if it does not exist."""
    revision: str | None = None
    """Branch to write to, made if need be; default: the main one."""
    private: bool = False
    """Make the repository private if it is made here; else as the account is set."""
    message: str = "Upload with equidial"
    """Of the commit."""


def demo(command: Demo) -> None:
    """Adapt the embedded model and write its report; an earlier demo in the folder is replaced."""
    folder, adaptation = command.output, command.adaptation()
    adaptation.check_values()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "metrics.jsonl").is_file():
            raise ArgumentError(
                explain(
                    "a new folder, or one with an earlier run", f"{folder}, which holds other files", "choose --output"
                )
            )
        shutil.rmtree(folder)
    adapt(adaptation)


def adapt(command: Adapt) -> None:
    """Adapt a classifier at every dial position, print a table, write the run folder and its report."""
    from equidial.reporting import dial_pictures, write_report, write_table

    command.check()
    model = load_model(command.model, command.weights)
    pictures = dial_pictures(model, command.soft_config(command.softness[0]), command.softness)
    with warnings.catch_warnings(record=True) as caught, _bar(unit="step") as bar:
        warnings.simplefilter("always", EquidialWarning)
        outcomes = run(command, _progress(bar))
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, EquidialWarning)))
    for number, strip in enumerate(pictures):
        strip.save(command.output / f"pictures-{number}.npz")
    if notes:
        settings = json.loads((command.output / "config.json").read_text())
        (command.output / "config.json").write_text(json.dumps(settings | {"warnings": notes}, indent=2) + "\n")
    for note in notes:
        print(f"note: {note}")
    print(_table(outcomes))
    write_table(command.output)
    print(f"report: {write_report(command.output)}")


def measure(command: Measure) -> None:
    """Print the scores of a model; write its error curve if asked for."""
    if command.curve is not None and command.curve.suffix != ".json":
        raise ArgumentError(explain("a .json file for --curve", str(command.curve), "e.g. --curve curve.json"))
    segmentation = command.task == "segmentation"
    images = load_images(command.data, size=command.image_size, mean=command.mean, std=command.std, masks=segmentation)
    model = load_model(command.model, command.weights)
    check_fits(model, images, classifier=command.task == "classification")
    batches = loader(images.test, command.batch_size)
    if command.curve is not None:
        with _bar(batches, unit="batch") as bar:
            curve = ed.error_curve(
                model, bar, command.group, task=command.task, tokens=command.tokens, disc=command.disc
            )
        curve.save(command.curve)
        curve.plot().savefig(command.curve.with_suffix(".png"), dpi=150)
    with _bar(batches, unit="batch") as bar:
        scores = ed.measure(
            model, bar, command.group, command.task, command.radius, seed=command.seed, tokens=command.tokens
        )
    print(json.dumps(scores.to_dict()) if command.json else scores)


def certify(command: Certify) -> None:
    """Print the certificate of a model's tensors, or verify the one of a folder."""
    if command.verify is not None:
        return _verify(command, command.verify)
    if command.model is None:
        raise ArgumentError(explain("--model or --verify", "neither", "say which model, or which folder"))
    if (command.group is None) == (command.config is None):
        got = "both" if command.group else "neither"
        raise ArgumentError(explain("--group or --config", got, "give one of them"))
    if command.config is not None:
        config = _read_config(command.config)
    else:
        assert command.group is not None
        config = ed.SoftEquivarianceConfig(group=command.group, softness=1.0)
    model = load_model(command.model, command.weights)
    certificate = ed.certify(model, config, radius=command.radius, norm=command.norm, image_size=command.image_size)
    print(certificate)
    if command.output is not None:
        certificate.save(command.output)


def certify_sampled(command: CertifySampled) -> None:
    """Print the statistical certificate of a network."""
    check_statistics(command.tau, command.alpha, command.samples)
    images = load_images(command.data, size=command.image_size, mean=command.mean, std=command.std)
    model = load_model(command.model, command.weights)
    check_fits(model, images)
    with _bar(loader(images.test, command.batch_size), unit="batch") as bar:
        certificate = ed.certify_statistically(
            model,
            bar,
            command.group,
            tau=command.tau,
            alpha=command.alpha,
            n=command.samples,
            radius=command.radius,
            error=command.error,
            seed=command.seed,
        )
    print(certificate)
    if command.output is not None:
        certificate.save(command.output)


def push(command: Push) -> None:
    """Send the four files of a folder and print the address of the commit; the hub's client finds the token."""
    options = {"revision": command.revision, "private": command.private or None, "message": command.message}
    address = ed.push(command.folder, command.repo, **options)
    print(f"pushed: {address}")


def _verify(command: Certify, folder: Path) -> None:
    files = [folder / name for name in ("certificate.json", "model.safetensors")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ArgumentError(
            explain(
                f"a folder with {' and '.join(file.name for file in files)}",
                f"{folder} without {' and '.join(missing)}",
                "give the folder of one dial position of a run",
            )
        )
    certificate = ed.Certificate.load(files[0])
    if command.model is None:
        weights: Any = load_file(files[1])
        ed.verify(certificate, weights)
    else:
        config = _read_config(command.config or folder / "soft_equivariance_config.json")
        ed.verify(certificate, load_model(command.model, files[1]), config)
    source = "the weights alone" if command.model is None else f"{command.model} with the weights"
    print(f"verified: {len(certificate)} rows stand, recomputed from {source}; bound {certificate.bound:.6g}")


def _read_config(path: Path) -> ed.SoftEquivarianceConfig:
    if not path.is_file():
        raise ArgumentError(explain("an existing configuration file", str(path), "check the path"))
    document = json.loads(path.read_text())
    return ed.SoftEquivarianceConfig.from_dict(document.get("config", document))


COMMANDS: tuple[tuple[str, type, Callable[[Any], None], str], ...] = (
    ("demo", Demo, demo, "Embedded model and data, no network: adapt, measure, certify, fold, report."),
    ("adapt", Adapt, adapt, "Adapt a pretrained image classifier at several dial positions."),
    ("measure", Measure, measure, "Accuracy and error of a network under a group."),
    ("certify", Certify, certify, "Bounds of every symmetric tensor of a plain or folded model."),
    ("certify-sampled", CertifySampled, certify_sampled, "Bounds of a network's error, with a confidence, from data."),
    ("push", Push, push, "Put a saved folder on the Hugging Face hub (log in first: hf auth login)."),
)


def _bar(*arguments: Any, unit: str) -> tqdm[Any]:
    """A progress bar on a terminal; elsewhere finished dial positions are logged, one a line."""
    return tqdm(*arguments, unit=unit, dynamic_ncols=True, disable=None)


def _progress(bar: tqdm[Any]) -> Progress:
    def step(done: int, total: int, text: str) -> None:
        bar.total = total
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    return step


def _table(outcomes: list[Outcome]) -> str:
    lines = [
        f"{'softness':>8} {'seed':>4} {'Acc':>7} {'aAcc':>7} {'cAcc':>7} {'iErr':>8} {'epsilon':>9} {'bound':>9} "
        f"{'time':>7}"
    ]
    lines += [
        f"{o.softness:>8g} {o.seed:>4} {o.tuned.Acc:>7.4f} {o.tuned.aAcc:>7.4f} {o.tuned.cAcc:>7.4f} "
        f"{o.tuned.iErr:>8.4f} {o.tuned.epsilon:>9.3g} {o.certificate.bound:>9.3g} {o.seconds:>6.1f}s"
        for o in outcomes
    ]
    return "\n".join(lines)
