"""What a build would do, without doing it."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imgindex import store
from imgindex.config import Config
from imgindex.embed import load_image
from imgindex.generation import Output, current_name
from imgindex.launch import check_input, engine_choice, paths_of
from imgindex.listing import list_images
from imgindex.models.annoy_index import estimate_bytes
from imgindex.models.engines import Engine, available_cores, embed_all, load_engine
from imgindex.models.preprocess import Pixels
from imgindex.records import Failure, ImageFile, ImageRow
from imgindex.summary import human_bytes

# How many images are embedded to tell how fast this machine is.
_TRIAL_BATCHES = 2


def describe_build(config: Config) -> str:
    """Counts, the plan and estimates of building with `config`. Writes nothing.

    Raises what `imgindex.build` raises before it starts.
    """
    source, target = paths_of(config)
    check_input(config)
    engine = load_engine(engine_choice(config), available_cores())
    listed = list(list_images(source, config.images.extensions))
    files = [item for item in listed if isinstance(item, ImageFile)]
    output = Output(target)
    directory = output.store(engine.spec.digest)
    stored = (image for chunk in store.chunk_names(directory) for image in store.read_keys(directory, chunk))
    missing, found = store.diff(files, stored)
    rate = _images_per_second(engine, missing, config) if missing else None
    dims = config.pca.dims if isinstance(config.pca.dims, int) else engine.feature_dim
    dims = min(dims, engine.feature_dim, len(files))
    shards = max(1, -(-len(files) // config.index.items_per_shard))
    index_bytes = estimate_bytes(len(files), dims, config.index.trees)
    image_bytes = sum(file.size for file in files)
    lines = [
        ("input", f"{source}: {len(files)} images, {human_bytes(image_bytes)}"),
        ("unusable", f"{len(listed) - len(files)} found by listing"),
        ("live", current_name(output) or f"nothing is published in {target} yet"),
        ("backbone", f"{engine.spec.backbone}, spec {engine.spec.digest}"),
        ("engine", f"{engine.name} {engine.precision}, batches of {engine.batch_size}"),
        ("to embed", f"{len(missing)}; {len(found)} are in the store"),
        ("rate", "nothing to embed" if rate is None else f"{rate:.1f} images/s, tried here just now"),
        ("time", "about 0 s" if rate is None else f"about {len(missing) / rate:.0f} s to embed"),
        ("store", f"about {human_bytes(len(missing) * 2 * engine.feature_dim)} more"),
        ("index", f"{shards} shards of {dims} dimensions, about {human_bytes(index_bytes)}"),
        ("dry run", "nothing was written"),
    ]  # fmt: skip
    return "\n".join(f"{key:<12} {text}" for key, text in lines)


def _images_per_second(engine: Engine, files: list[ImageFile], config: Config) -> float | None:
    """Measures reading, decoding and embedding on a few of `files`; None where all are bad."""
    trial = files[: _TRIAL_BATCHES * engine.batch_size]
    embed_all(engine, np.zeros((1, *engine.image_size, 3), np.uint8))  # the first call is slower

    def load(file: ImageFile) -> tuple[ImageRow, Pixels] | Failure:
        return load_image(
            file,
            engine.image_size,
            max_bytes=config.images.max_bytes,
            max_pixels=config.images.max_pixels,
        )

    started = time.monotonic()
    with ThreadPoolExecutor(available_cores()) as executor:
        loaded = list(executor.map(load, trial))
    pixels = [image[1] for image in loaded if not isinstance(image, Failure)]
    if not pixels:
        return None
    embed_all(engine, np.stack(pixels))
    return len(trial) / (time.monotonic() - started)
