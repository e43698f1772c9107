"""Approximate nearest neighbors: what a library must offer, and one module a library."""
