"""Features of a frozen backbone as a transformer of scikit-learn, computed once through a cache."""

from featcache.extras.transformer.feature_extractor import FeatureExtractor

__all__ = ["FeatureExtractor"]
