"""`python -m featcache` is the command `featcache`."""

from featcache_cli.app import main

main()
