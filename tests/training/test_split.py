"""The split of a labeled folder: stratified, by a hash of the paths, and without leaks."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.errors import InputError
from imgindex.models.training.results import PARTS
from imgindex.models.training.split import LabeledImage, split, without_copies


def images_of(labels: dict[str, int], part: str | None = None) -> list[LabeledImage]:
    uris = [f"{label}/{number}.jpg" for label, count in sorted(labels.items()) for number in range(count)]
    return [LabeledImage(uri, uri.split("/")[0], uri, part, place) for place, uri in enumerate(uris)]


CLASSES = st.dictionaries(st.text("abcdef", min_size=1), st.integers(3, 40), min_size=2, max_size=5)


@given(CLASSES, st.integers(0, 1000))
def test_every_image_is_in_one_part_and_every_class_in_every_part(classes: dict[str, int], seed: int) -> None:
    images = images_of(classes)
    parts = split(images, seed)
    assert sorted(image.uri for part in PARTS for image in parts[part]) == sorted(i.uri for i in images)
    for part in PARTS:
        assert {image.label for image in parts[part]} == set(classes)


@given(CLASSES, st.integers(0, 1000))
def test_a_tenth_of_each_class_is_for_the_test_and_a_tenth_for_validation(
    classes: dict[str, int], seed: int
) -> None:
    parts = split(images_of(classes), seed)
    for part in ("validation", "test"):
        counted = Counter(image.label for image in parts[part])
        assert counted == {label: max(1, round(count / 10)) for label, count in classes.items()}


@given(CLASSES, st.integers(0, 1000), st.randoms())
def test_the_split_depends_on_the_paths_and_the_seed_alone(classes, seed, random) -> None:
    images = images_of(classes)
    shuffled = list(images)
    random.shuffle(shuffled)

    def uris(parts):
        return {part: {image.uri for image in parts[part]} for part in PARTS}

    assert uris(split(shuffled, seed)) == uris(split(images, seed))


def test_another_seed_gives_another_split() -> None:
    images = images_of({"a": 40, "b": 40})
    tests = [frozenset(image.uri for image in split(images, seed)["test"]) for seed in range(5)]
    assert len(set(tests)) == 5


def test_an_image_more_moves_few_of_the_others() -> None:
    before = split(images_of({"a": 40, "b": 40}), 0)
    after = split(images_of({"a": 41, "b": 40}), 0)
    part_before = {image.uri: part for part in PARTS for image in before[part]}
    part_after = {image.uri: part for part in PARTS for image in after[part]}
    assert sum(part_before[uri] != part_after[uri] for uri in part_before) <= 2


def test_images_of_folders_for_parts_stay_in_them() -> None:
    images = [*images_of({"a": 4, "b": 4}, "train"), *images_of({"a": 1, "b": 2}, "validation")]
    images += images_of({"a": 2, "b": 3}, "test")
    images = [replace(image, position=place) for place, image in enumerate(images)]
    parts = split(images, 0)
    assert {part: {image.part for image in parts[part]} for part in PARTS} == {part: {part} for part in PARTS}


def test_a_part_without_a_folder_is_drawn_from_the_images_for_training() -> None:
    images = [*images_of({"a": 20, "b": 20}, "train"), *images_of({"a": 5, "b": 5}, "test")]
    images = [replace(image, position=place) for place, image in enumerate(images)]
    parts = split(images, 0)
    assert {part: len(parts[part]) for part in PARTS} == {"train": 36, "validation": 4, "test": 10}
    assert {image.part for image in parts["validation"]} == {"train"}


def test_one_of_the_images_that_have_the_same_bytes_is_used() -> None:
    first, second, third = images_of({"a": 3})
    found = without_copies([replace(second, sha256="x"), third, replace(first, sha256="x")])
    assert [image.uri for image in found.images] == ["a/0.jpg", "a/2.jpg"]
    assert found.copies == 1


def test_of_copies_in_several_parts_the_one_for_the_test_is_used() -> None:
    train, validation, test = (
        LabeledImage(f"{part}/a/0.jpg", "a", "x", part, place) for place, part in enumerate(PARTS)
    )
    assert without_copies([train, validation, test]).images == (test,)
    assert without_copies([train, validation]).images == (validation,)


def test_copies_with_several_labels_are_not_used() -> None:
    a, b = images_of({"a": 1, "b": 1})
    found = without_copies([replace(a, sha256="x"), replace(b, sha256="x")])
    assert found.images == ()
    assert found.copies == 0
    assert found.contradictory == (("a/0.jpg", "b/0.jpg"),)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "no image has a label"),
        ({"a": 10}, "all images have the label 'a'"),
        ({"a": 10, "b": 2}, "the class 'b' has 2 distinct images for training, and 3 are the fewest"),
    ],
)
def test_a_folder_that_cannot_be_split_is_refused(classes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(images_of(classes), 0)
