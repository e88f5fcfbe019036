"""Fit every setting of one head together, sharing the work that they have in common."""
