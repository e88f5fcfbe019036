"""What this machine and installation can do: facts, what is broken, what would be slow, and what to do about it."""

from featcache.extras.doctor.diagnose import Diagnosis, diagnose
from featcache.extras.doctor.findings import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
