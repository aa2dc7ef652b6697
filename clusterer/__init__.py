"""Vectors to clusters: fits, runs, and the assignment of new points."""
