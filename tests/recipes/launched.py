"""Commands, one after the other, in the ranks of one launch: ``python -m tests.recipes.launched COMMANDS.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from equidial.cli import main


def run_all(file: Path) -> int:
    """The largest exit code of the commands in a file, a list of arguments each."""
    torch.set_num_threads(1)
    return max(main(arguments) for arguments in json.loads(file.read_text()))


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
