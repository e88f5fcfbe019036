"""Model + images -> labels with probabilities, one row per file; an unreadable file is a row with its reason."""

from featcache.prediction.classifiers import Classifier, open_classifier
from featcache.prediction.places import paths_in
from featcache.prediction.predicting import UNKNOWN, Prediction, Tally, predict, predictions
from featcache.prediction.writing import FORMATS, predict_to

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
