"""The set-ups of five tutorials, each run as it stands: extraction, exactly its head, fine-tuning, a table."""

from featcache.extras.recipes.options import parse_settings
from featcache.extras.recipes.run import MEANINGLESS, Line, Named, Trained, run_recipe, weights_of
from featcache.extras.recipes.settings import RECIPES, Naming, Training, find

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
