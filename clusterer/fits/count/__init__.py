"""How many clusters: as a caller asks, or as estimators vote."""
