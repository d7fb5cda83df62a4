"""Peak resident memory of one call, measured in a fresh process.

    python -m benchmarks._memory MODULE:FUNCTION '[arguments as JSON]' THREADS

prints one JSON object; :func:`peak_memory` runs this command.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks._contract import thread_environment
from equidial.errors import StateError, explain

_ROOT = Path(__file__).resolve().parents[1]


def peak_memory(target: str, arguments: Sequence[object], threads: int) -> dict[str, float]:
    """``{"before_mib", "peak_mib"}`` of ``target`` (``"module:function"``) called once in a process of its own.

    ``before_mib`` is the resident memory after all imports, so that the difference is what the call itself took.
    """
    command = [sys.executable, "-m", "benchmarks._memory", target, json.dumps(list(arguments)), str(threads)]
    done = subprocess.run(
        command, cwd=_ROOT, env=thread_environment(threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StateError(explain(f"{target} to run in its own process", done.stderr.strip()[-500:], "run it alone"))
    return json.loads(done.stdout.strip().splitlines()[-1])


def _resident(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` in MiB.

    Not ``ru_maxrss`` where Linux offers better: there it survives exec, so that a child of a large process starts
    with the parent's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Call the target of the command line and print both numbers."""
    import torch

    target, arguments, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # imports have a peak of their own: forget it
    before = _resident("VmRSS")
    function(*json.loads(arguments))
    print(json.dumps({"before_mib": round(before, 1), "peak_mib": round(_resident("VmHWM"), 1)}))


if __name__ == "__main__":
    main()
