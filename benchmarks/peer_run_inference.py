"""The peer that Beam ships: RunInference with its stock Keras handler, then the same PCA and Annoy."""

import io
import json
import sys
from pathlib import Path

import apache_beam as beam
import keras
import numpy as np
from apache_beam.io import fileio
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerNumpy
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image
from sklearn.decomposition import PCA


def decode(file: fileio.ReadableFile, size: int) -> tuple[str, np.ndarray]:
    """An image file to its path and RGB pixels."""
    with Image.open(io.BytesIO(file.read())) as image:
        return file.metadata.path, np.asarray(image.convert("RGB").resize((size, size)), np.float32)


def write(rows: list, output: str) -> None:
    """PCA and Annoy over all features at once."""
    from annoy import AnnoyIndex  # a class that Beam cannot pickle with this module's functions

    rows = sorted(rows, key=lambda row: row[0])
    features = np.array([feature for _, feature in rows])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    vectors = PCA(150).fit_transform(features)
    index = AnnoyIndex(150, "angular")
    for item, vector in enumerate(vectors):
        index.add_item(item, vector)
    index.build(40)
    index.save(str(Path(output) / "index.ann"))
    (Path(output) / "paths.json").write_text(json.dumps([path for path, _ in rows]))


def main(photos: str, output: str, backbone: str) -> None:
    """Indexes `photos` into the directory `output`."""
    size = {"ResNet50": 224, "InceptionV3": 299}[backbone]
    module = {"ResNet50": "resnet50", "InceptionV3": "inception_v3"}[backbone]
    preprocess = getattr(keras.applications, module).preprocess_input
    inputs = keras.Input((size, size, 3))
    core = getattr(keras.applications, backbone)(
        include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3)
    )
    saved = str(Path(output) / "model.keras")
    keras.Model(inputs, core(preprocess(inputs))).save(saved)
    # Left to itself Beam grows the batches until a batch of ResNet50's activations exhausts 24 GiB.
    handler = KeyedModelHandler(TFModelHandlerNumpy(saved, max_batch_size=64))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        (
            pipeline
            | fileio.MatchFiles(f"{photos}/**")
            | fileio.ReadMatches()
            | beam.Map(decode, size)
            | RunInference(handler)
            # Without this the images would travel on with their features.
            | beam.MapTuple(lambda path, result: (path, np.asarray(result.inference)))
            | beam.combiners.ToList()
            | beam.Map(write, output)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
