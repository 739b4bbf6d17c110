"""``python -m flows.cli``: the command line without an installed script."""

from flows.cli import main

main()
