"""One worker process of a sweep, which reads what it is to do from its standard input."""

import sys

from equidial.sweeps._run import serve

sys.exit(serve(sys.stdin.read()))
