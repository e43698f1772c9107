"""``python -m imgindex`` is the command ``imgindex``."""

from imgindex.cli import run

run()
