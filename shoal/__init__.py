"""Shoal: a stream of images into searchable clusters that organise themselves."""

__version__ = "0.1.0"
