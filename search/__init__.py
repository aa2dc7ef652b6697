"""The search service: nearest images, everywhere or inside a cluster, and lists of clusters."""
