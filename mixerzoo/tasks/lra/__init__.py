"""Holds Long Range Arena (Tay et al., arXiv:2011.04006): generators, readers of the released files, and the tasks."""
