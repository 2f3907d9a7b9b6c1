"""This makes `python -m mixerzoo.cli` a command, and so `torchrun -m mixerzoo.cli`."""

from . import main

if __name__ == "__main__":
    main()
