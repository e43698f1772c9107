"""Prints a JSON Schema: ``python -m imgindex.schemas config``, ``manifest`` or ``evaluation``."""

import argparse
import json
import sys

from imgindex.schemas import SCHEMAS

parser = argparse.ArgumentParser(prog="python -m imgindex.schemas")
parser.add_argument("of", choices=SCHEMAS)
sys.stdout.write(json.dumps(SCHEMAS[parser.parse_args().of](), indent=2) + "\n")
