"""Exporters that turn published weights into encoder artefacts; never imported when serving."""
