"""`python -m mixerzoo.cli`, and so `torchrun -m mixerzoo.cli`."""

from . import main

if __name__ == "__main__":
    main()
