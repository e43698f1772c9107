"""The store of features: what it holds already, what is new, and embedding that."""
