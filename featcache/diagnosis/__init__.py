"""What this machine and installation can do: facts, what is broken, what would be slow, and what to do about it."""

from featcache.diagnosis.diagnose import Diagnosis, diagnose
from featcache.diagnosis.findings import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
