"""Export a trained model to another runtime, and prove that the file gives the model's probabilities there."""

from featcache.extras.export.exporting import Exported, export

__all__ = ["Exported", "export"]
