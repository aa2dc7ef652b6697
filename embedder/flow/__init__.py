"""How work flows: what is let in, what waits, what is run together."""
