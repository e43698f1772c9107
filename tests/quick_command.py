"""The command, with a quick engine, and with decoders that traps catch."""

import signal
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "stubs"))

import quarters
import trapped

from imgindex import cli
from imgindex.models import decoder_pool
from imgindex.models.decoder import DecoderProcess

if __name__ == "__main__":
    # What a terminal's shell does not do for what runs in the background of a script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    quarters.install()
    trap = partial(DecoderProcess, trapped.COMMAND)
    decoder_pool.DecoderPool = partial(decoder_pool.DecoderPool, make=trap)
    cli.run()
