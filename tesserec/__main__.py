"""`python -m tesserec`."""

from tesserec.cli import main

main()
