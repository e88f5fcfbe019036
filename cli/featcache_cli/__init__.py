"""The command line of featcache: every command parses, calls one library function and prints."""
