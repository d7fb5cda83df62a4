"""``python -m equidial.cli``."""

import sys

from equidial.cli._main import main

sys.exit(main())
