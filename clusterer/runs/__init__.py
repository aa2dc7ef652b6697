"""Runs: the steps from sample to cutover, and the records of runs."""
