"""The peer that everybody copies: the notebook way, from a directory to an Annoy index."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from annoy import AnnoyIndex
from sklearn.decomposition import PCA


def main(photos: str, output: str, backbone: str) -> None:
    """Indexes `photos` into the directory `output`."""
    build = getattr(keras.applications, backbone)
    module = {"ResNet50": "resnet50", "InceptionV3": "inception_v3"}[backbone]
    size = {"ResNet50": 224, "InceptionV3": 299}[backbone]
    preprocess = getattr(keras.applications, module).preprocess_input
    model = build(include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3))
    dataset = keras.utils.image_dataset_from_directory(
        photos, labels=None, image_size=(size, size), batch_size=32, shuffle=False
    )
    features = model.predict(dataset.map(preprocess), verbose=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    vectors = PCA(150).fit_transform(features)
    index = AnnoyIndex(150, "angular")
    for item, vector in enumerate(vectors):
        index.add_item(item, vector)
    index.build(40)
    index.save(str(Path(output) / "index.ann"))
    (Path(output) / "paths.json").write_text(json.dumps(dataset.file_paths))


if __name__ == "__main__":
    main(*sys.argv[1:])
