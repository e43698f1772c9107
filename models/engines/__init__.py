"""What executes a backbone.

`protocol` says what an engine is, `registry` which ones there are, `selection` chooses one, and `loading`
loads it once in a process. Every engine has a module of its own.
"""
