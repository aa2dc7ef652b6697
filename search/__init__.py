"""Queries to neighbours, whole or inside a cluster, and the listing of clusters."""
