"""A folder as people have it: every file in it is indexed, named as a failure, or counted as skipped."""

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgindex
from imgindex.cli import main
from imgindex.uris import uri_of

pillow_heif = pytest.importorskip("pillow_heif")
imagecodecs = pytest.importorskip("imagecodecs")


def picture(seed: int, form: str) -> bytes:
    """A file of noise around a color; no two are alike."""
    generator = np.random.default_rng(seed)
    pixels = (generator.integers(0, 60, (36, 48, 3)) + generator.integers(0, 190, 3)).astype(np.uint8)
    if form == "JXL":
        return bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    file = io.BytesIO()
    if form == "HEIF":
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(file)
    else:
        Image.fromarray(pixels).save(file, form)
    return file.getvalue()


JPEG = picture(99, "JPEG")
HALF = JPEG[: len(JPEG) // 2]
VIDEO = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(500)
TEXT = b"Once upon a time\n" * 20

INDEXED = {
    b"IMG_0001.JPG": "JPEG", b"2019/summer at sea/IMG 0002.jpeg": "JPEG", b"2019/IMG_0003.HEIC": "HEIF",
    b"2020/IMG_0004.jxl": "JXL", b"Screenshots/Screenshot 2024-01-01 at 10.00.00.png": "PNG",
    b"web/cat.webp": "WEBP", b"web/dance.gif": "GIF", b"web/new.avif": "AVIF", b"scans/page 1.tif": "TIFF",
    b"old/paint.bmp": "BMP", b"photos.jpg/in a folder like a photo.png": "PNG", b"it's \"me\".png": "PNG",
    b"two\nlines.png": "PNG", b" blanks .png": "PNG", b"caf\xe9.jpg": "JPEG", b"caf\xe9/\xff.jpg": "JPEG",
    b"-k.jpg": "JPEG", b"100% [best] #1?.jpg": "JPEG", "猫/שלום.png".encode(): "PNG",
}  # fmt: skip

# The bytes of each, and why it fails.
FAILED = {
    b"empty.jpg": (b"", "decode/empty"),
    b"2019/broken.jpg": (HALF, "decode/truncated"),
    b"web/not found.jpg": (b"<!DOCTYPE html><h1>404</h1>", "decode/not_an_image"),
    b"old/fi\xefm.jpg": (VIDEO, "decode/not_an_image"),
    b"backup.tar.gz": (b"\x1f\x8b" + bytes(100), "list/compressed_tar"),
    b"half.tar": (bytes(100), "list/truncated_tar"),
}

# The bytes of each, and what it is counted as.
SKIPPED = {
    b"._IMG_0001.JPG": (b"\0\5\x16\7" + bytes(50), "hidden files"),
    b".DS_Store": (bytes(50), "hidden files"),
    b"2019/.nomedia": (b"", "hidden files"),
    b"2019/Thumbs.db": (bytes(50), "hidden files"),
    b"clip.mp4": (VIDEO, ".mp4"),
    b"2019/CLIP.MP4": (VIDEO, ".mp4"),
    b"2019/IMG_0003.MOV": (VIDEO, ".mov"),
    b"notes.txt": (TEXT, ".txt"),
    b"scans/paper.pdf": (b"%PDF-1.4\n", ".pdf"),
    b"2019/IMG_0003.HEIC.json": (b"{}", ".json"),
    b"2020/IMG_0005.CR2": (b"II*\0", ".cr2"),
    b"photos.zip": (b"PK\5\6" + bytes(18), ".zip"),
    b"README": (TEXT, "no extension"),
    b"two\nlines": (TEXT, "no extension"),
    b"caf\xe9.d\xe9j\xe0": (TEXT, "." + uri_of(os.fsdecode(b"d\xe9j\xe0"))),
    b"a.name whose end is no extension": (TEXT, "other"),
}

# Each is counted as one, with whatever lies in it.
HIDDEN_FOLDERS = {
    b".git": b"objects/cat.png", b"2019/@eaDir": b"IMG_0003.HEIC/SYNOPHOTO_THUMB_XL.jpg",
    b"__MACOSX": b"._IMG_0001.JPG", b".thumbnails": b"cat.jpg",
}  # fmt: skip

# Where each leads, and what becomes of it. A link to a folder above is not followed a second time.
LINKS = {
    b"again.jpg": (b"IMG_0001.JPG", "indexed"),
    b"gone.jpg": (b"nowhere.jpg", "list/unreadable"),
    b"circle.png": (b"circle.png", "list/unreadable"),
    b"gone": (b"nowhere", "no extension"),
    b"2019/loop": (b"..", ""),
}

# In a tar, where there are no folders to be counted.
MEMBERS = {
    "trip/1.jpg": (picture(50, "JPEG"), "indexed"),
    "trip/two words.png": (picture(51, "PNG"), "indexed"),
    "trip/broken.jpg": (HALF, "decode/truncated"),
    "trip/clip.mov": (VIDEO, ".mov"),
    "trip/._1.jpg": (TEXT, "hidden files"),
    "__MACOSX/trip/x.jpg": (JPEG, "hidden files"),
    "trip/README": (TEXT, "no extension"),
}


def outcomes() -> dict[str, str]:
    """What must become of each file, by its uri: indexed, why it fails, or what it is counted as."""
    fates = dict.fromkeys(INDEXED, "indexed")
    fates |= {name: fate for names in (FAILED, SKIPPED, LINKS) for name, (_, fate) in names.items()}
    fates[b"pipe.jpg"] = "list/not_a_file"
    whole = {uri_of(os.fsdecode(name)): fate for name, fate in fates.items() if fate}
    return whole | {f"trip.tar/{name}": fate for name, (_, fate) in MEMBERS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "my photos"

    def place(name: bytes) -> Path:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    try:
        for number, (name, form) in enumerate(INDEXED.items()):
            place(name).write_bytes(picture(number, form))
    except OSError:
        pytest.skip("this filesystem takes UTF-8 names only")
    for names in (FAILED, SKIPPED):
        for name, (data, _) in names.items():
            place(name).write_bytes(data)
    for name, inside in HIDDEN_FOLDERS.items():
        place(name + b"/" + inside).write_bytes(JPEG)
    for name, (target, _) in LINKS.items():
        place(name).symlink_to(os.fsdecode(target))
    os.mkfifo(place(b"pipe.jpg"))
    with tarfile.open(place(b"trip.tar"), "w") as tar:
        for member, (data, _) in MEMBERS.items():
            header = tarfile.TarInfo(member)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def output(folder: Path) -> Path:
    output = folder.parent / "index"
    words = ["build", "--input", str(folder), "--output", str(output)]
    for setting in (
        "backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32",
        "engine.precision=float32", "pca.dims=4", "publish.min_recall=0", "publish.max_failure_rate=0.5",
    ):  # fmt: skip
        words += ["--set", setting]
    assert main(words) == 0
    return output


def test_every_file_that_is_there_has_an_outcome_here(folder: Path) -> None:
    there = {
        str(Path(where, name).relative_to(folder))
        for where, folders, names in os.walk(folder)
        for name in (*names, *(name for name in folders if Path(where, name).is_symlink()))
    }
    in_hidden = {os.fsdecode(name + b"/" + inside) for name, inside in HIDDEN_FOLDERS.items()}
    named = {os.fsdecode(name) for names in (INDEXED, FAILED, SKIPPED, LINKS) for name in names}
    assert there == named | in_hidden | {"pipe.jpg", "trip.tar"}


def test_each_is_indexed_or_named_or_counted(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = imgindex.Index.open(output)
    ledger = index.manifest["ledger"]
    indexed = [row["uri"] for table in index._opened._metadata for row in table.to_pylist()]
    capsys.readouterr()
    assert main(["inspect", str(output), "--failures", "--json"]) == 0
    failed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    found = [(uri, "indexed") for uri in indexed]
    found += [(failure["uri"], f"{failure['stage']}/{failure['reason']}") for failure in failed]
    expected = outcomes()
    by_name = {uri: fate for uri, fate in expected.items() if fate == "indexed" or "/" in fate}
    assert sorted(found) == sorted(by_name.items())
    assert ledger["skipped"] == {
        **Counter(fate for uri, fate in expected.items() if uri not in by_name),
        "hidden folders": len(HIDDEN_FOLDERS),
    }
    assert (ledger["listed"], ledger["failed"]) == (len(by_name), len(failed))


def test_what_people_read_tells_the_same(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "32 listed, 22 indexed, 10 failed" in printed
    assert "2 .mov, 2 .mp4" in printed
    assert "6 hidden files, 4 hidden folders" in printed
    assert main(["inspect", str(output), "--failures"]) == 0
    printed = capsys.readouterr().out
    assert "old/fi\\xefm.jpg: decode/not_an_image: " in printed
    assert "gone.jpg: list/unreadable: it is a link that leads nowhere\n" in printed


def test_each_that_is_indexed_finds_itself(folder: Path, output: Path) -> None:
    index = imgindex.Index.open(output)
    names = [os.fsdecode(name) for name in INDEXED]
    for name, result in zip(names, index.search_each([folder / name for name in names], k=1), strict=True):
        assert result.error is None, result.error
        assert result.neighbors[0].similarity > 0.999
        assert {uri_of(name)} & {result.neighbors[0].uri, "IMG_0001.JPG"} or name == "IMG_0001.JPG"
