"""Bytes in and out: local files and object stores, read again, locked, checked."""
