"""The command line: ``equidial demo | adapt | measure | certify``."""

from equidial.cli._main import main

__all__ = ["main"]
