"""Recipes: one readable script and one dataclass per experiment."""

from equidial.recipes._models import SPECIFICATIONS, check_fits, load_model, load_weights
from equidial.recipes.adapt import Adapt, Outcome
from equidial.recipes.demo import Demo

__all__ = ["SPECIFICATIONS", "Adapt", "Demo", "Outcome", "check_fits", "load_model", "load_weights"]
