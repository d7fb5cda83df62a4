"""Bounds of whole networks: a rule per module, a walk through the traced network, one budget for all dials.

_trace -> _walk (values, actions, bounds) -> _module_rules, _function_rules -> _certify -> _budget
"""

from equidial.adapters.network._budget import set_network_error
from equidial.adapters.network._certify import certify_network
from equidial.adapters.network._walk import Call, Value

__all__ = ["Call", "Value", "certify_network", "set_network_error"]
