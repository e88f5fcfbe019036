"""HDF5 and nothing else: layout, parts, reader."""
