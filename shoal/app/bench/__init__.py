"""Measurements of Shoal on the machine at hand, against its own parts in the same run.

Every figure is a ratio to something measured beside it: rounds of all rows are interleaved, so
that a noisy machine is noisy for all of them, and the median of the rounds is reported.
"""
