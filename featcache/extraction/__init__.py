"""Plan -> cache: pipeline, engines, the job."""

from featcache.extraction.job import Extracted, TapReport, extract

__all__ = ["Extracted", "TapReport", "extract"]
