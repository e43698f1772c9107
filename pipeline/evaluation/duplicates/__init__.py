"""Finds images that are duplicates of each other: of the same bytes, or with nearly equal features."""
