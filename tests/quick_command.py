"""The command, with the quick engine `quarters`, and with decoders that traps catch."""

import signal
from functools import partial

import trapped
from fake_engine import register_quarters

import imgindex.features.transforms
from imgindex import cli
from imgindex.models import decoder_pool
from imgindex.models.decoder import DecoderProcess

if __name__ == "__main__":
    # What a terminal's shell does not do for what runs in the background of a script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    register_quarters()
    imgindex.features.transforms.UNIT_IMAGES = 8  # a chunk after each few images
    trap = partial(DecoderProcess, trapped.COMMAND)
    decoder_pool.DecoderPool = partial(decoder_pool.DecoderPool, make=trap)
    cli.run()
