"""Listing: which images an input holds, and how one of them is read."""
