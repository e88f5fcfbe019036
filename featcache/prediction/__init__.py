"""Model + images -> labels with probabilities, one row per file; an unreadable file is a row with its reason."""

from featcache.prediction.files import FORMATS, predict_to
from featcache.prediction.models import Classifier, open_classifier
from featcache.prediction.places import paths_in
from featcache.prediction.rows import UNKNOWN, Prediction, Tally, predict, predictions

__all__ = [
    "FORMATS",
    "UNKNOWN",
    "Classifier",
    "Prediction",
    "Tally",
    "open_classifier",
    "paths_in",
    "predict",
    "predict_to",
    "predictions",
]
