"""How work flows: who is let in, who waits, and which items run together."""
