"""Encoders at work: which of them are open, and what waits for each."""
