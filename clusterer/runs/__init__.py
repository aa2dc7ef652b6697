"""Runs: the protocol from sample to cutover, and what each of its steps needs."""
