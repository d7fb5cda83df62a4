"""Parse the command line, show progress, turn errors into messages and exit codes."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from equidial._version import __version__
from equidial.errors import EquidialError, EquidialWarning

DESCRIPTION = "Turn the equivariance dial of any pretrained neural network, with a guarantee."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 2 with a message for anything a user can mend, or 130 when interrupted."""
    if list(sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(f"equidial {__version__}")
        return 0
    try:
        import tyro
        from tqdm import tqdm  # noqa: F401 (checked here, used by the commands)
    except ImportError as error:
        print(f"error: the command line needs {error.name}: pip install 'equidial[cli,report,data]'", file=sys.stderr)
        return 2
    from equidial.cli import _commands

    def sub(name: str, cls: type, text: str) -> Any:
        return Annotated[cls, tyro.conf.subcommand(name, description=text, prefix_name=False)]

    runs: dict[type, Callable[[Any], None]] = {cls: run for _, cls, run, _ in _commands.COMMANDS}
    union: Any = None
    for name, cls, _, text in _commands.COMMANDS:
        one = sub(name, cls, text)
        union = one if union is None else union | one
    command = tyro.cli(
        union, prog="equidial", description=DESCRIPTION, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
    )
    from equidial.recipes._ranks import is_main

    if not is_main() and type(command) not in _commands.TOGETHER:
        return 0
    if not sys.stderr.isatty() and is_main():
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("equidial").setLevel(logging.INFO)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_Once())
    with warnings.catch_warnings():
        warnings.simplefilter("always", EquidialWarning)
        warnings.showwarning = _show_warning if is_main() else _show_nothing
        try:
            runs[type(command)](command)
        except EquidialError as error:
            if is_main():
                print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    return 0


class _Once(logging.Filter):
    """Lets every message through once: each dial position softens the model anew and says the same of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.seen
        self.seen.add(message)
        return new


def _show_nothing(*_: Any, **kwargs: Any) -> None:
    """Rank 0 says it already."""


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **kwargs: Any) -> None:
    if issubclass(category, EquidialWarning):
        print(f"note: {message}", file=sys.stderr)
