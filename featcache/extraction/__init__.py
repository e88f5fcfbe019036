"""Plan -> cache: pipeline, engines, the job."""

from featcache.extraction.job import Estimate, Extracted, Options, TapReport, estimate, extract

__all__ = ["Estimate", "Extracted", "Options", "TapReport", "estimate", "extract"]
