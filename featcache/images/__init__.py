"""Files -> rows: listing, splits, manifest, decoding."""
