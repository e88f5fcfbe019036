"""Plan -> cache: pipeline, engines, the job."""

from featcache.extraction.job import Estimate, Extracted, Options, TapReport, estimate, extract
from featcache.extraction.taps import extract_taps

__all__ = ["Estimate", "Extracted", "Options", "TapReport", "estimate", "extract", "extract_taps"]
