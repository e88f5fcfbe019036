"""A tap of a cache as a dataset of TensorFlow or PyTorch, which reads features from the file while it is used."""

from featcache.extras.datasets.frameworks import make_dataset

__all__ = ["make_dataset"]
