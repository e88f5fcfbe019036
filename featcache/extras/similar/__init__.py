"""Photo -> the images of a cache that look most like it to a backbone."""

from featcache.extras.similar.searching import Similar, SimilarImage, similar
from featcache.extras.similar.similar_csv import check_similar_csv, write_similar_csv

__all__ = ["Similar", "SimilarImage", "check_similar_csv", "similar", "write_similar_csv"]
