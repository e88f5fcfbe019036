"""The set-ups of five tutorials, each run as it stands: extraction, exactly its head, fine-tuning, a table."""

from featcache.extras.recipes.catalogue import RECIPES, Naming, Training, find
from featcache.extras.recipes.overrides import parse_settings
from featcache.extras.recipes.running import MEANINGLESS, Line, Named, Trained, run_recipe, weights_of

__all__ = [
    "MEANINGLESS",
    "RECIPES",
    "Line",
    "Named",
    "Naming",
    "Trained",
    "Training",
    "find",
    "parse_settings",
    "run_recipe",
    "weights_of",
]
