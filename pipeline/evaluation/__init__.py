"""Judges a generation on its own images: how good its answers are, what they cost, and what would change."""
