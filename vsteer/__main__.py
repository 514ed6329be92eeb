"""`python -m vsteer`: the command line, where the script is not on the path."""

from vsteer.cli import main

main(prog_name="vsteer")
