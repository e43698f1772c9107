"""The search service: an ASGI app over the live generation of an index, and the page that it shows."""
