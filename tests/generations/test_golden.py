"""Small outputs that earlier code has written: every one opens, searches, verifies and refreshes."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from annoy import AnnoyIndex

import imgindex
from imgindex.config import load_config
from imgindex.errors import OutputError
from imgindex.generations import verify

GOLDEN = Path(__file__).parent / "golden"
PHOTOS = GOLDEN / "photos"  # 12 images in three folders, and a file that is none
OUTPUTS = ("without-layers-digest", "layers-digest")  # the spec of the first had no layers_sha256
NEWEST = OUTPUTS[-1]
SETTINGS = [
    "backbone.name=MobileNetV2",
    "backbone.weights=bundled",
    "backbone.image_size=64",
    "engine.name=openvino",
    "engine.precision=float32",
    "pca.dims=4",
    "index.items_per_shard=8",
    "index.trees=4",
    "publish.max_failure_rate=0.2",
]


@pytest.fixture(params=OUTPUTS)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / request.param, tmp_path / request.param)


def test_verifies(output: Path) -> None:
    assert verify.verify(str(output)).problems == ()


def test_answers_vectors(output: Path) -> None:
    index = imgindex.Index.open(output)
    assert len(index) == 12
    manifest = json.loads(
        (output / "generations" / (output / "CURRENT").read_text().strip() / "manifest.json").read_text()
    )
    annoy = AnnoyIndex(manifest["dims"], manifest["metric"])
    annoy.load(str(output / "generations" / manifest["generation"] / manifest["shards"][0]["index"]))
    vector = np.float32([annoy.get_item_vector(0)])
    found = index.search_vectors(vector, 12)[0].neighbors
    assert (found[0].shard, found[0].item) == (0, 0)
    assert found[0].similarity == pytest.approx(1, abs=1e-6)
    assert {neighbor.label for neighbor in found} == {"red", "green", "blue"}


@pytest.mark.long
def test_the_newest_answers_images_as_it_did() -> None:
    index = imgindex.Index.open(GOLDEN / NEWEST)
    for result in index.search(sorted(map(str, PHOTOS.glob("red/*.png"))), 4):
        assert result.neighbors[0].uri == result.query.removeprefix(f"{PHOTOS}/")
        assert result.neighbors[0].similarity > 0.999


def test_an_older_spec_refuses_images_and_says_why() -> None:
    index = imgindex.Index.open(GOLDEN / OUTPUTS[0])
    why = r"the decoding of images and layers of MobileNetV2 .* differ .* build the index again"
    with pytest.raises(OutputError, match=why):
        index.search([str(PHOTOS / "red/0.jpg")], 1)


def test_refreshes(output: Path) -> None:
    before = (output / "CURRENT").read_text().strip()
    manifest = imgindex.build(replace(load_config(None, SETTINGS), input=str(PHOTOS), output=str(output)))
    ledger = manifest["ledger"]
    assert manifest["previous"] == before
    assert (ledger["listed"], ledger["indexed"]) == (13, 12)
    assert ledger["failed_by_reason"] == {"decode/not_an_image": 1}
    # The features of another spec are no use. Those of the same are found by the bytes of the photos.
    counts = (0, 12) if output.name == NEWEST else (12, 0)
    assert (ledger["embedded"], ledger["copied"]) == counts
    assert verify.verify(str(output)).problems == ()


def test_a_refresh_that_embeds_nothing_tells_how_long_its_stages_took(tmp_path: Path) -> None:
    output = shutil.copytree(GOLDEN / NEWEST, tmp_path / "output")
    began = time.time()
    manifest = imgindex.build(replace(load_config(None, SETTINGS), input=str(PHOTOS), output=str(output)))
    seconds = manifest["timings"]
    assert all(0 <= value <= time.time() - began for value in seconds.values())
    stages = ("prepare", "list", "embed", "pca", "index", "publish")
    assert sum(seconds[stage] for stage in stages) == pytest.approx(seconds["total"], abs=0.01)
