"""Launches: two ranks give the numbers of one process, under DDP and FSDP2, and what they begin one process ends."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from equidial.recipes import Training, fit
from tests.recipes.image_folder import image_folder, tiny_vit
from tests.recipes.launched import TOLERANCE, run_all
from tests.recipes.segmentation_folder import SIZE, camvid, weights

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples" / "launch"
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def launch(
    arguments: list[str], wait: bool = True, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    """Two ranks, each with one thread; finished, with exit code 0, unless ``wait`` is False."""
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    process = subprocess.Popen(
        arguments,
        env={**os.environ, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if wait:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and models: as many images as no batch divides, and a last batch of one row."""
    folder, rng = tmp_path_factory.mktemp("launch"), np.random.default_rng(0)
    for name, side, train in (("noise", (9, 9, 3), 17), ("mnist", (28, 28), 33)):
        arrays: dict[str, Any] = {}
        for part, count in (("train", train), ("test", 11)):
            arrays[f"x_{part}"] = rng.integers(0, 256, (count, *side), dtype=np.uint8)
            arrays[f"y_{part}"] = np.tile([6, 8], count)[:count] if name == "mnist" else np.arange(count) % 4
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "net.py").write_text(
        "import os\nfrom pathlib import Path\n\nimport torch\nfrom tests.adapters.models import cnn\n\n\n"
        "def build():\n    torch.manual_seed(int(os.environ.get('RANK', 0)))\n"
        "    if 'RANK' in os.environ:\n        Path(__file__).with_name(f'rank-{os.getpid()}').touch()\n"
        "    return cnn()\n"
    )
    image_folder(folder / "classes", train=3, test=1)
    tiny_vit(folder / "vit")
    camvid(folder / "camvid")
    weights(folder)
    return folder


def commands(folder: Path, name: str) -> list[list[str]]:
    """What is run by one process, by two, and by two with shards."""
    cnn = ["--model", f"{folder / 'net.py'}:build", "--data", str(folder / "noise.npz"), "--augment", "group"]
    cnn += ["--batch-size", "8", "--optimizer", "sgd", "--learning-rate", "0.01", "--epsilon-images", "3"]
    digits = ["--data", str(folder / "mnist.npz"), "--seeds", "0", "--epochs", "1"]
    found = {
        "adapt": ["adapt", *cnn, "--softness", "0.5", "--epochs", "2"],
        "mnist": ["reproduce", "mnist", *digits, "--softness", "0.3", "--responses", "nearest", "--ratios", "0.01"],
        "o5": ["reproduce", "o5", "--seeds", "0", "--breaking", "0.3", "--examples", "101", "--softness", "0.5"],
    }
    found["o5"] += ["--methods", "rpp", "--steps", "4"]
    found["imagenet"] = ["reproduce", "imagenet", "--data", str(folder / "classes"), "--model", f"hf:{folder / 'vit'}"]
    found["imagenet"] += ["--methods", "soft", "--scale", "small", "--image-size", "32", "--seeds", "0"]
    found["segmentation"] = ["reproduce", "segmentation", "--data", str(folder / "camvid"), "--seeds", "0"]
    found["segmentation"] += ["--weights", str(folder / "voc.safetensors"), "--image-size", str(SIZE), "--epochs", "1"]
    found["segmentation"] += ["--responses"]  # strict and free: between them this network multiplies rounding by 100
    if name != "sharded":
        found["mnist6-180"] = ["reproduce", "mnist6-180", *digits, "--rotations", "4", "--tasks", "invariant"]
        found["mnist6-180"] += ["--methods", "partial", "learned"]
    return [[*arguments, "--output", str(folder / name / kind)] for kind, arguments in found.items()]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The runs of one process."""
    (folder / "alone.json").write_text(json.dumps({"commands": commands(folder, "alone")}))
    assert run_all(folder / "alone.json") == 0
    return folder / "alone"


@pytest.mark.parametrize(("name", "settings"), [("parallel", {}), ("sharded", FSDP2)], ids=["ddp", "fsdp2"])
def test_two_ranks_give_the_numbers_of_one_process(
    name: str, settings: dict[str, str], folder: Path, alone: Path
) -> None:
    asked = {"commands": commands(folder, name), "checks": True}
    (folder / f"{name}.json").write_text(json.dumps(asked))
    launch([*TWO, "-m", "tests.recipes.launched", str(folder / f"{name}.json")], environment=settings)
    for arguments in asked["commands"]:
        found = Path(arguments[-1])
        same_records(found / "metrics.jsonl", alone / found.name / "metrics.jsonl")
        kept = list(found.rglob("*.safetensors"))
        assert kept or found.name == "segmentation"  # whose 50 layers multiply rounding
        for file in kept:
            one, other = load_file(file), load_file(alone / file.relative_to(folder / name))
            assert one.keys() == other.keys()
            for key, tensor in one.items():
                assert torch.allclose(tensor, other[key], rtol=0, atol=TOLERANCE), key
    assert not [*(folder / name).rglob("checkpoint*.pt"), *(folder / name).rglob("*.partial")]


def test_two_ranks_time_one_after_the_other(tmp_path: Path) -> None:
    """A study with a lock of its own around its collectives."""
    small = ["--sizes", "3", "--dense-sizes", "3", "--groups", "C4", "--networks", "resnet20", "--batch", "2"]
    command = ["reproduce", "timing", *small, "--rounds", "1", "--clock", "cpu", "--output", str(tmp_path / "timing")]
    launch([*TWO, "-m", "equidial.cli", *command])
    records = (tmp_path / "timing" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["part"] for line in records] == ["construction", "network"]


def same_records(found: Path, wanted: Path, tolerance: float = TOLERANCE) -> None:
    """The same lines, numbers up to the tolerance, times aside."""
    one, other = ([json.loads(line) for line in file.read_text().splitlines()] for file in (found, wanted))
    assert len(one) == len(other) > 0
    for record, expected in zip(one, other, strict=True):
        assert record.keys() == expected.keys()
        for key, value in expected.items():
            assert "seconds" in key or close(record[key], value, tolerance), (key, record[key], value)


def close(one: Any, other: Any, tolerance: float) -> bool:
    """Numbers up to the tolerance, in lists and by name, times aside; everything else exactly."""
    if isinstance(other, list):
        return len(one) == len(other) and all(close(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(other, dict):
        return one.keys() == other.keys() and all("seconds" in k or close(one[k], other[k], tolerance) for k in other)
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance) if isinstance(other, float) else one == other


def test_what_two_ranks_began_one_process_ends(folder: Path) -> None:
    """``accelerate launch`` of the command line, in shards, killed after a checkpoint; the same command, alone."""

    def command(name: str) -> list[str]:
        (adapt, *_), output = commands(folder, name), str(folder / name)
        return [*adapt[:-1], output, "--softness", "0.5", "1", "--epochs", "30", "--augment", "crop"]

    options = ["--config_file", str(LAUNCH / "fsdp2.yaml"), "--main_process_port", "0", "--dynamo_backend", "no"]
    options += ["--module", "equidial.cli"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *options]
    for file in folder.glob("rank-*"):
        file.unlink()  # of launches before
    process = launch([*accelerate, *command("killed")], wait=False)
    try:
        log, before = folder / "killed" / "metrics.jsonl", time.monotonic()
        checkpoint = folder / "killed" / "checkpoint-softness-1-seed-0.pt"
        while not checkpoint.is_file():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() - before < 200
            time.sleep(0.01)
    finally:
        ranks = [int(file.name.partition("-")[2]) for file in folder.glob("rank-*")]
        for ended in (*ranks, process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(ended, signal.SIGKILL)
        process.communicate()
    assert len(ranks) == 2
    ended = len([line for line in log.read_text().splitlines() if '"tuned"' in line])
    assert ended == 1, "the first position is done, the second is not"
    assert checkpoint.is_file()
    for name in ("killed", "whole"):
        (folder / "resumed.json").write_text(json.dumps({"commands": [command(name)]}))
        assert run_all(folder / "resumed.json") == 0
    same_records(log, folder / "whole" / "metrics.jsonl")
    assert not list((folder / "killed").glob("checkpoint*"))
    assert not (folder / "killed" / "run.lock").exists()


def test_several_processes_need_accelerate(folder: Path) -> None:
    """Said once, by the rank that speaks, before anything is read."""
    hidden = "import sys; sys.modules['accelerate'] = None; from equidial.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", hidden, *commands(folder, "none")[0]]
    ranks = [launch(arguments, wait=False, environment={"WORLD_SIZE": "2", "RANK": rank}) for rank in "01"]
    first, second = (rank.communicate(timeout=200)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "pip install 'equidial[train]'" in first
    assert not second
    assert not (folder / "none").exists()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_process_needs_no_other(batch_size: int, tmp_path: Path) -> None:
    """Alone nothing is asked of a batch, and WORLD_SIZE=1 is alone."""
    model = torch.nn.Linear(2, 1)
    history = fit(model, 3, lambda rows, _: model(torch.ones(len(rows), 2)).sum(), Training(1, batch_size), seed=0)
    assert len(history) == 1


# -- The files to copy


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")])
def test_configurations_are_those_of_accelerate(name: str, kind: str) -> None:
    """accelerate refuses keys that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.distributed_type.value == kind
    assert (config.num_processes, config.num_machines) == (2, 1)
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("name", ["slurm.sbatch", "ssh.sh"])
def test_scripts_are_shell(name: str) -> None:
    """bash reads them whole, and both start the module of the command line."""
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    assert "--module equidial.cli" in (LAUNCH / name).read_text()


def test_the_ssh_script_starts_every_host(tmp_path: Path) -> None:
    """Each once, in order, with its rank; arguments keep their spaces; where one fails, the script does."""
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/bash\necho "$(printf "%s|" "$@")"\n[ "$2" != broken ]\n')
    fake.chmod(0o755)
    (tmp_path / "hosts").write_text("# two\nnode-a\n\nnode-b\n")
    command = ["bash", str(LAUNCH / "ssh.sh"), str(tmp_path / "hosts"), "4", "adapt", "--data", "a b"]
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    lines = sorted(line for line in done.stdout.splitlines() if "torchrun" in line)
    assert [line.split("|")[1] for line in lines] == ["node-a", "node-b"]
    for rank, line in enumerate(lines):
        assert f"--nnodes 2 --node_rank {rank} --nproc_per_node 4" in line
        assert "--master_addr node-a" in line
        assert "adapt --data a\\ b" in line
    (tmp_path / "hosts").write_text("node-a\nbroken\n")
    assert subprocess.run(command, env=path, capture_output=True, check=False).returncode


def test_the_slurm_script_meets_at_the_first_node(tmp_path: Path) -> None:
    """With SLURM's programs replaced by ones that print what they are given.

    The names of the nodes come with a pause between, so that a reader that leaves after the first would break the pipe.
    """
    for name, body in (("srun", 'printf "%s|" "$@"'), ("scontrol", "echo n1; sleep 0.2; echo n2")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    settings = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_ID": "7"}
    path = {**os.environ, **settings, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "adapt", "--data", "a b"]
    said = subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout
    assert said.startswith("torchrun|--nnodes|2|--nproc_per_node|4|")
    assert "--rdzv_endpoint|n1:29500|--rdzv_id|7|" in said
    assert said.endswith("--module|equidial.cli|adapt|--data|a b|")
