"""Trained heads: what they are, how they are trained, where they are kept."""
