"""Training a network on a labeled folder: split, pixels, methods, card. Nothing here imports Beam."""
