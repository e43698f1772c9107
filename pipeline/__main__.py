"""``python -m imgindex`` is the command ``imgindex``."""

import sys

from imgindex.cli import main

sys.exit(main())
