"""diagnose: follow the group through a network, find what does not commute, name the cause.

_motion -> _structure, _rules (how operations hand a motion on) -> _values -> _follow (the run) -> _windows, _causes
(from an error to its cause) -> _sizes -> _diagnose
"""

from equidial.adapters.diagnosis._diagnose import diagnose
from equidial.adapters.diagnosis._result import Cause, Diagnosis, LayerError, OutputError

__all__ = ["Cause", "Diagnosis", "LayerError", "OutputError", "diagnose"]
