"""Training a softened model: retraction after optimizer steps, schedules of the dial, dials that are trained."""

from equidial.adapters.training._learned import fix_dial, learn_dial, relaxation_penalty
from equidial.adapters.training._retract import Retraction, retract
from equidial.adapters.training._schedule import DialSchedule

__all__ = ["DialSchedule", "Retraction", "fix_dial", "learn_dial", "relaxation_penalty", "retract"]
