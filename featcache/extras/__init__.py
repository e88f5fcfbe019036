"""Features built on the rooms. Only the command line and the public names of `featcache` import from here."""
