"""Reads a published generation and answers queries."""
