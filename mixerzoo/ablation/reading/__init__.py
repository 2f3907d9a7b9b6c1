"""Reads the runs of a store: arms with intervals, comparisons, warnings, figures and reports."""
