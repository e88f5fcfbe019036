"""Trained model -> a file for another runtime, proven: loaded again there, it gives the model's own probabilities."""

from featcache.exporting.job import Exported, export

__all__ = ["Exported", "export"]
