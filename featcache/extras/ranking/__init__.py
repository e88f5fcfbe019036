"""Which backbone separates the classes of these images best, and at what cost: without extracting with all of them."""

from featcache.extras.ranking.contenders import Contender, Ranking, Rung
from featcache.extras.ranking.halving import rank

__all__ = ["Contender", "Ranking", "Rung", "rank"]
