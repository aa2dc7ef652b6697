"""Encoder artefacts, and what runs them: images and texts to vectors."""
