"""The commands: a function each, on the options of the command line."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

import equidial as ed
from equidial.adapters import configured_size, example_images
from equidial.certificates import check_statistics
from equidial.cli._options import Certify, CertifySampled, Diagnose, Measure, Push
from equidial.cli._reproduce import Reproduce
from equidial.cli._sweep import SweepCommand
from equidial.cli._sweep import sweep as run_sweep
from equidial.data import load_images, loader
from equidial.errors import ArgumentError, EquidialWarning, GroupActionError, explain
from equidial.recipes import STUDIES, Adapt, Demo, check_fits, load_model
from equidial.recipes._ranks import is_main, on_main
from equidial.recipes.adapt import Outcome, Progress, run


def demo(command: Demo) -> None:
    """Adapt the embedded model and write its report; an earlier demo in the folder is replaced."""
    adaptation = command.adaptation()
    adaptation.check_values()
    on_main(lambda: _cleared(command.output))
    adapt(adaptation)


def _cleared(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "metrics.jsonl").is_file():
            raise ArgumentError(
                explain(
                    "a new folder, or one with an earlier run", f"{folder}, which holds other files", "choose --output"
                )
            )
        shutil.rmtree(folder)


def adapt(command: Adapt) -> None:
    """Adapt a classifier at every dial position, print a table, write the run folder and its report.

    On a folder where it was interrupted it goes on. Under a launch rank 0 alone looks at the model as it came, prints
    and writes.
    """
    from equidial.reporting import DIAGNOSIS_FILE, dial_pictures, write_report, write_table

    command.check()

    def looked_at() -> tuple[Any, Any]:
        model = load_model(command.model, command.weights)
        diagnosis = _diagnosed(command, model)
        return diagnosis, dial_pictures(model, command.soft_config(command.softness[0]), command.softness)

    diagnosis, pictures = looked_at() if is_main() else (None, None)
    with warnings.catch_warnings(record=True) as caught, _bar(unit="step") as bar:
        warnings.simplefilter("always", EquidialWarning)
        outcomes = run(command, _progress(bar))
    if not is_main():
        return
    if diagnosis is not None:
        diagnosis.save(command.output / DIAGNOSIS_FILE)
    for number, strip in enumerate(pictures or ()):
        strip.save(command.output / f"pictures-{number}.npz")
    settings = json.loads((command.output / "config.json").read_text())
    before = settings.get("warnings", [])
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, EquidialWarning)))
    if not set(notes) <= set(before):
        settings["warnings"] = list(dict.fromkeys([*before, *notes]))
        (command.output / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for note in notes:
        print(f"note: {note}")
    print(_table(outcomes))
    write_table(command.output)
    print(f"report: {write_report(command.output)}")


def _diagnosed(command: Adapt, model: nn.Module) -> ed.Diagnosis | None:
    """What breaks the symmetry of the model as it came; ``None`` for groups that cannot be asked, e.g. shifts."""
    images = load_images(command.data, size=command.image_size, mean=command.mean, std=command.std)
    check_fits(model, images)
    try:
        return ed.diagnose(model, images.test.dataset[0][0][None], command.group, command.soft_config(1.0))
    except GroupActionError:
        return None


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


def diagnose(command: Diagnose) -> None:
    """Print what breaks the symmetry of a network; write the page if asked for."""
    model = load_model(command.model, command.weights)
    config = None if command.config is None else _read_config(command.config)
    example = _example(command, model)
    diagnosis = ed.diagnose(model, example, command.group, config)
    print(json.dumps(diagnosis.to_dict()) if command.json else diagnosis)
    curve = None
    if command.angles:
        dense = diagnosis.outputs[0].kind in ("grid", "tokens")
        task, error = ("features", "relative") if dense else ("classification", "relative")
        curve = ed.error_curve(model, [example], command.group, task=task, error=error)
        if not command.json:
            print(curve)
    if command.output is not None:
        from equidial.reporting import DIAGNOSIS_FILE, write_diagnosis

        command.output.mkdir(parents=True, exist_ok=True)
        diagnosis.save(command.output / DIAGNOSIS_FILE)
        page = write_diagnosis(command.output, command.model, diagnosis, curve)
        print(f"report: {page}", file=sys.stderr if command.json else sys.stdout)


def _example(command: Diagnose, model: nn.Module) -> torch.Tensor:
    """The first test image of the data, else noise of the size that was asked for or that the model tells."""
    data = command.data or ("demo" if command.model == "demo" else None)
    if data is not None:
        images = load_images(data, size=command.image_size, mean=command.mean, std=command.std)
        return images.test.dataset[0][0][None]
    size = command.image_size or configured_size(model)
    example = None if size is None else example_images(model, size)
    if example is None:
        raise ArgumentError(
            explain("--data or --image-size", "neither, and the model does not tell its size", "e.g. --image-size 224")
        )
    return torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)


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


def reproduce(command: Reproduce) -> None:
    """Run what is left of a study, then write its page."""
    from equidial.reporting import write_study

    recipe = command.recipe
    with _bar(unit="training") as bar:
        run = next(run for made, run in STUDIES.values() if isinstance(recipe, made))
        run(recipe, _progress(bar))
    if not is_main():
        return
    print(write_study(recipe.output).read_text())
    print(f"results: {recipe.output / 'results.md'}")


def sweep(command: SweepCommand) -> None:
    """Run or join a sweep under a bar, or print its status."""
    with tqdm(unit="trial", dynamic_ncols=True, disable=True if command.status else None) as bar:
        run_sweep(command, _progress(bar))


COMMANDS: tuple[tuple[str, type, Callable[[Any], None], str], ...] = (
    ("demo", Demo, demo, "Embedded model and data, no network: adapt, measure, certify, fold, report."),
    ("adapt", Adapt, adapt, "Adapt a pretrained image classifier at several dial positions."),
    ("measure", Measure, measure, "Accuracy and error of a network under a group."),
    ("certify", Certify, certify, "Bounds of every symmetric tensor of a plain or folded model."),
    ("diagnose", Diagnose, diagnose, "What breaks the symmetry of a network, by how much, and what to do."),
    ("certify-sampled", CertifySampled, certify_sampled, "Bounds of a network's error, with a confidence, from data."),
    ("reproduce", Reproduce, reproduce, "An experiment of the papers, from data to its page of results."),
    ("sweep", SweepCommand, sweep, "Search a recipe's settings for accuracy and error, with any number of workers."),
    ("push", Push, push, "Put a saved folder on the Hugging Face hub (log in first: hf auth login)."),
)

TOGETHER = (Demo, Adapt, Reproduce)
"""What all ranks of a launch run; the rest is for rank 0."""


def _bar(*arguments: Any, unit: str) -> tqdm[Any]:
    """A progress bar on a terminal; elsewhere finished dial positions are logged, one a line."""
    return tqdm(*arguments, unit=unit, dynamic_ncols=True, disable=None if is_main() else True)


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
