"""One build: planned, wired, checked, published, on whichever runner."""
