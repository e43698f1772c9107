"""What an evaluation advises, and what it says where its figures mean little."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from outputs import publish_features

import imgindex
from imgindex.cli import main
from imgindex.commands.arguments import parser
from imgindex.config import load_config
from imgindex.evaluation.advice import _changed
from imgindex.evaluation.tables import as_text
from imgindex.models.pca import normalize


def of_labels(folder: Path, *, labels: int, each: int, dims: int = 8, trees: int = 4) -> imgindex.Evaluation:
    """An index of so many labels of `each` images, in which only the first directions tell labels apart."""
    generator = np.random.default_rng(0)
    count = labels * each
    rows = generator.standard_normal((count, 16)).astype(np.float32) + 5
    of_image = np.arange(count) % labels
    rows[:, 0] += 30 * of_image
    unit = normalize(rows)[0].astype(np.float32)
    uris = [f"{label}/{n}.jpg" for n, label in enumerate(of_image)]
    publish_features(folder, unit, uris, dims=dims, metric="euclidean", trees=trees)
    return imgindex.evaluate(folder, dims=[1, dims])


class TestAdvice:
    def test_the_size_is_that_of_what_a_search_holds(self, tmp_path: Path) -> None:
        found = of_labels(tmp_path, labels=2, each=150)
        (advice,) = found.advice
        assert (advice.setting, advice.value) == ("pca.dims", "1")
        size = sum(
            path.stat().st_size
            for kind in ("index", "metadata")
            for path in (tmp_path / "generations").glob(f"*/{kind}/*")
        )
        assert f"(now {size / 1024:.4g} KiB)" in advice.text
        assert "of Annoy files and metadata" in advice.text
        assert "95 % interval" in advice.text

    def test_the_command_is_the_last_build_with_the_change(self, tmp_path: Path) -> None:
        found = of_labels(tmp_path, labels=2, each=150)
        known = parser().parse_args(shlex.split(found.advice[0].command)[1:])
        assert (known.command, known.input, known.output) == ("build", "/photos", str(tmp_path))
        assert {"backbone.name=MobileNetV2", "backbone.weights=none", "pca.dims=1"} <= set(known.set)
        assert f"    {found.advice[0].command}\n" in as_text(found)
        assert "no image is embedded again" in as_text(found)

    @pytest.mark.parametrize(
        "assignments",
        [
            ["pca.dims=0.9", "pca.whiten=true"],
            ["images.extensions=[.jpg]", "backbone.image_size=64"],
            ['images.exclude=["a b/*", "it\'s"]', "publish.min_recall=0"],
            ["backbone.weights=/a dir/1.h5"],
        ],
    )
    def test_its_flags_make_the_same_config(self, assignments: list[str]) -> None:
        config = load_config(None, [each for each in assignments if "weights" not in each])
        recorded = json.loads(json.dumps(asdict(config)))
        if "weights" in assignments[0]:
            recorded["backbone"]["weights"] = "/a dir/1.h5"
        flags = shlex.split(shlex.join(f"{key}={text}" for key, text in _changed(recorded).items()))
        assert {flag.partition("=")[0] for flag in flags} == {each.partition("=")[0] for each in assignments}
        if "weights" not in assignments[0]:
            assert load_config(None, flags) == config

    def test_nothing_is_advised_that_does_not_shrink(self, tmp_path: Path) -> None:
        """Of few images the trees take most of the room."""
        found = of_labels(tmp_path, labels=2, each=60, dims=2, trees=80)
        assert [advice for advice in found.advice if advice.setting == "pca.dims"] == []


class TestNotes:
    def test_a_k_that_is_larger_than_the_labels(self, tmp_path: Path) -> None:
        of_labels(tmp_path, labels=15, each=10)
        found = imgindex.evaluate(tmp_path, k=50, dims=[1])
        assert found.quality is not None
        assert found.quality.p_at_k.best == pytest.approx(9 / 50)
        assert found.quality.recall_at_k.best == 1
        assert found.notes[0] == (
            "k is 50, but half of the queries have at most 9 other images of their label; so P@50 cannot be "
            "above 18.00 %; choose a --k of at most 9"
        )
        assert found.advice == ()
        assert "Advice: none, because k is 50, which is too large for these labels" in as_text(found)

    def test_few_queries(self, tmp_path: Path) -> None:
        found = of_labels(tmp_path, labels=2, each=20)
        assert found.quality is not None
        low, high = found.quality.p_at_k.interval
        assert low < high
        assert found.notes[0].startswith("P@4 rests on 40 queries, which are few: the true value may lie")
        assert found.no_advice == "comparing settings takes at least 100 queries, and there are 40"
        assert found.advice == ()

    def test_one_image_is_not_measured(self, tmp_path: Path) -> None:
        publish_features(tmp_path, np.eye(1, 8, dtype=np.float32), ["a/0.jpg"], dims=1)
        found = imgindex.evaluate(tmp_path)
        assert (found.ladder, found.sweep, found.unseen_recall) == ((), (), None)
        printed = as_text(found)
        assert "there are too few images to measure" in printed
        assert "recall@10" not in printed
        assert "gains anything" not in printed

    def test_whitening_of_few_images(self, tmp_path: Path) -> None:
        found = of_labels(tmp_path, labels=2, each=60)
        assert (
            "whitening amplifies noise here: for 8 dimensions there are 15.0 images each" in found.notes[-1]
        )
        enough = of_labels(tmp_path / "more", labels=2, each=120)
        assert enough.notes == ()

    def test_dimensions_that_there_are_not(self, tmp_path: Path) -> None:
        of_labels(tmp_path, labels=2, each=120)
        found = imgindex.evaluate(tmp_path, dims=[5000, 2])
        assert found.notes == (
            "pca.dims 5000 cannot be tried: the features of these images have only 16 principal components",
        )

    def test_images_in_no_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        publish_features(tmp_path, np.eye(8, dtype=np.float32), [f"{n}.jpg" for n in range(8)])
        assert main(["evaluate", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "Sort the images into folders, one for each label, and build again" in printed
        assert "Advice: none, because there are no labels to compare settings by." in printed
