"""`python -m atlasport`."""

from atlasport.cli import main

main()
