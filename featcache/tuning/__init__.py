"""Model -> trained model: start at the head, unfreeze chosen blocks, never end worse."""

from featcache.tuning.finetuning import finetune
from featcache.tuning.scratch import from_scratch
from featcache.tuning.training_recipe import Recipe
from featcache.tuning.tuned import Tuned

__all__ = ["Recipe", "Tuned", "finetune", "from_scratch"]
