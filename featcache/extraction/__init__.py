"""Images -> cache: the plan of what is missing, engines that compute it, and the steps that commit and merge it."""

from featcache.extraction.api import estimate, extract
from featcache.extraction.extract_options import Options
from featcache.extraction.outcome import Estimate, Extracted, TapReport
from featcache.extraction.taps import extract_taps

__all__ = ["Estimate", "Extracted", "Options", "TapReport", "estimate", "extract", "extract_taps"]
