"""The clusterer's own tasks: it assigns new points, measures drift and starts scheduled runs."""
