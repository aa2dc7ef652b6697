"""The number of clusters: as a caller asks, or by the votes of estimators."""
