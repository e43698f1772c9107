"""What of an input is taken, left out by a pattern, or skipped, and that all of it is counted."""

import glob
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tar_of

from imgindex.config import ImagesConfig, load_config
from imgindex.errors import UsageError
from imgindex.inputs import local_files
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection, selection_of
from imgindex.inputs.skipped import Counts, added, count, described, kind_of, most_frequent
from imgindex.io import filesystem
from imgindex.models.plugins import Plugin
from imgindex.records import Failure

SELECTION = Selection((".jpg", ".png"))

# What a folder of a person's photos holds on a server that Synology, macOS and Windows have written to.
FILES = [
    "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "IMG_1.HEIC", "IMG_2.heic", "clip.mp4", "README",
    "cats/b.png", "cats/._b.png", "cats/@eaDir/b.png/SYNOPHOTO_THUMB_M.jpg", "cats/.thumbs/c.jpg",
    ".git/objects/d.jpg", "__MACOSX/cats/._b.png", "drafts/e.jpg", "drafts/deep/f.jpg", "x/drafts/g.jpg",
]  # fmt: skip

TAKEN = ["a.jpg", "cats/b.png", "drafts/deep/f.jpg", "drafts/e.jpg", "x/drafts/g.jpg"]
SKIPPED = {".heic": 2, ".mp4": 1, "no extension": 1}


def write(place: str, names: list[str] = FILES) -> None:
    for name in names:
        filesystem.write_bytes(filesystem.join(place, name), name.encode())


def listed(source: str, selection: Selection = SELECTION) -> tuple[list[str], Counts]:
    """The uris that `source` holds, sorted, and what is skipped; refuses failures."""
    skipped: Counter[str] = Counter()
    found = list(list_images(source, selection, skipped))
    assert [item for item in found if isinstance(item, Failure)] == []
    return sorted(item.uri for item in found), dict(skipped)


def taken(source: str, **patterns: tuple[str, ...]) -> list[str]:
    return listed(source, replace(SELECTION, **patterns))[0]


def test_hidden_files_and_system_thumbnails_are_left_out_and_counted(place: str) -> None:
    write(place)
    everything, skipped = listed(place)
    assert everything == TAKEN
    if place.startswith("mem://"):  # which has no folders: each file in one counts
        assert skipped == {**SKIPPED, "hidden files": 8}
    else:
        assert skipped == {**SKIPPED, "hidden files": 4, "hidden folders": 4}


def test_a_glob_takes_what_its_directory_does(tmp_path: Path) -> None:
    write(str(tmp_path))
    assert listed(f"{tmp_path}/**") == listed(str(tmp_path))
    # Directories that a glob matches are no failures, and it leaves out the hidden ones.
    assert listed(f"{tmp_path}/*") == (["a.jpg"], {**SKIPPED, "hidden files": 3})
    assert listed(f"{tmp_path}/*.jpg") == (["a.jpg"], {"hidden files": 1})
    assert listed(f"{tmp_path}/*/*.jpg") == (["drafts/e.jpg"], {"hidden folders": 2})


def test_a_glob_on_another_filesystem_takes_what_its_folder_does(memory: object) -> None:
    write("mem://bucket/in")
    assert listed("mem://bucket/in/**") == listed("mem://bucket/in")
    assert listed("mem://bucket/in/*") == (["a.jpg"], {**SKIPPED, "hidden files": 3})


def test_a_tar_holds_what_its_folder_does(place: str) -> None:
    filesystem.write_bytes(filesystem.join(place, "x.tar"), tar_of(dict.fromkeys(FILES, b"")))
    expected = [f"x.tar/{name}" for name in TAKEN], {**SKIPPED, "hidden files": 8}
    assert listed(place) == listed(filesystem.join(place, "x.tar")) == expected
    drafts = replace(SELECTION, exclude=("drafts/",))
    assert listed(place, drafts)[0] == ["x.tar/a.jpg", "x.tar/cats/b.png"]
    assert listed(place, drafts)[1]["excluded files"] == 3


def test_what_the_input_itself_is_named_leaves_out_nothing(place: str) -> None:
    write(filesystem.join(place, ".photos"), ["a.jpg", "__MACOSX/b.jpg"])
    filesystem.write_bytes(filesystem.join(place, ".x.tar"), tar_of({"c.jpg": b""}))
    assert taken(filesystem.join(place, ".photos")) == ["a.jpg"]
    assert taken(filesystem.join(place, ".photos/*.jpg")) == ["a.jpg"]
    assert taken(filesystem.join(place, ".photos/__MACOSX")) == ["b.jpg"]
    assert taken(filesystem.join(place, ".x.tar")) == [".x.tar/c.jpg"]


@pytest.mark.parametrize(
    ("exclude", "left_out"),
    [
        (["drafts/"], ["drafts/deep/f.jpg", "drafts/e.jpg", "x/drafts/g.jpg"]),
        (["/drafts"], ["drafts/deep/f.jpg", "drafts/e.jpg"]),
        (["*.png", "e.jpg"], ["cats/b.png", "drafts/e.jpg"]),
        (["drafts/*/*.jpg"], ["drafts/deep/f.jpg"]),
        (["**/deep"], ["drafts/deep/f.jpg"]),
        # What is below a folder that is left out stays so, as for Git.
        (["/drafts/", "!drafts/e.jpg"], ["drafts/deep/f.jpg", "drafts/e.jpg"]),
        (["/drafts/*", "!drafts/e.jpg"], ["drafts/deep/f.jpg"]),
        (["# a comment", ""], []),
    ],
)
def test_exclude(exclude: list[str], left_out: list[str], place: str) -> None:
    write(place)
    assert taken(place, exclude=tuple(exclude)) == [name for name in TAKEN if name not in left_out]


def test_include_takes_nothing_else(place: str) -> None:
    write(place)
    assert taken(place, include=("cats/", "x/")) == ["cats/b.png", "x/drafts/g.jpg"]
    assert taken(place, include=("*.jpg",)) == [name for name in TAKEN if name.endswith(".jpg")]
    assert taken(place, include=("*.jpg", "!e.*"), exclude=("deep/",)) == ["a.jpg", "x/drafts/g.jpg"]
    counts = listed(place, replace(SELECTION, include=("cats/",)))[1]
    # What is not asked for does not count by its extension.
    assert (counts["excluded files"], ".heic" in counts) == (8, False)


def test_a_hidden_name_that_is_spelled_out_is_taken(place: str) -> None:
    write(place)
    assert taken(place, include=(".thumbs/",)) == ["cats/.thumbs/c.jpg"]
    assert taken(filesystem.join(place, "*/.thumbs/*.jpg")) == ["cats/.thumbs/c.jpg"]
    assert taken(filesystem.join(place, "*/._*.png")) == ["cats/._b.png"]
    assert taken(filesystem.join(place, "*/@eaDir/*/*.jpg")) == ["cats/@eaDir/b.png/SYNOPHOTO_THUMB_M.jpg"]
    assert set(taken(place, exclude=("!.thumbs",))) == {*TAKEN, "cats/.thumbs/c.jpg"}
    assert set(taken(place, exclude=("!.*", ".git"))) == {
        *TAKEN, "._a.jpg", "cats/._b.png", "cats/.thumbs/c.jpg",
    }  # fmt: skip


def test_a_list_names_hidden_files_and_patterns_leave_them_out(place: str) -> None:
    write(place)
    filesystem.write_bytes(filesystem.join(place, "x.tar"), tar_of({"c.jpg": b"", "._c.jpg": b""}))
    names = ["a.jpg", "._a.jpg", ".git/objects/d.jpg", "IMG_1.HEIC", "drafts/e.jpg", "x.tar"]
    filesystem.write_bytes(filesystem.join(place, "list.txt"), "\n".join(names).encode())
    source = filesystem.join(place, "list.txt")
    members = {"hidden files": 1}
    assert listed(source) == (sorted([*names[:-1], "x.tar/c.jpg"]), members)
    without = replace(SELECTION, exclude=("drafts/", "*.HEIC"))
    assert listed(source, without) == (
        ["._a.jpg", ".git/objects/d.jpg", "a.jpg", "x.tar/c.jpg"],
        {**members, "excluded files": 2},
    )


def test_a_folder_that_is_left_out_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), ["a.jpg", ".git/b.jpg", "drafts/c.jpg", "x/drafts/d.jpg"])
    scandir, walked = os.scandir, []

    def record(path: str) -> object:
        walked.append(os.path.relpath(path, tmp_path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", record)
    for source in (f"{tmp_path}", f"{tmp_path}/**/*.jpg"):
        assert taken(source, exclude=("drafts",)) == ["a.jpg"]
        assert set(walked) == {".", "x"}
        walked.clear()


def test_a_folder_that_cannot_be_read_may_be_left_out(
    tmp_path: Path, forbid_listing: Callable[[str], None]
) -> None:
    write(str(tmp_path), ["a.jpg", "lost+found/b.jpg"])
    forbid_listing("lost+found")
    assert taken(str(tmp_path), exclude=("lost+found/",)) == ["a.jpg"]


NAMES = st.sampled_from(["a", "b.jpg", ".h", "drafts", "Thumbs.db", "ab", "@eaDir"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PATTERNS = st.builds(
    lambda sign, lead, parts, tail: f"{sign}{lead}{'/'.join(parts)}{tail}",
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/", "**/"]),
    st.lists(st.sampled_from(["a", "*.jpg", ".h", ".*", "*", "drafts", "a?", "[ab]*"]), min_size=1).map(
        lambda parts: parts[:3]
    ),
    st.sampled_from(["", "/", "/**", "/**/"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("needs git, which says what its patterns mean")
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


@settings(max_examples=40)
@given(st.lists(PATTERNS, max_size=4), st.lists(PATHS, min_size=1, max_size=8))
def test_git_leaves_out_the_same(repository: Path, patterns: list[str], paths: list[str]) -> None:
    (repository / ".git/info/exclude").write_text("\n".join(patterns))
    ignored = subprocess.run(
        ["git", "-C", repository, "-c", "core.excludesFile=", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(paths), capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    rules = Selection(("",), exclude=tuple(patterns), hidden=True).rules()
    assert {path for path in paths if not rules.takes_below(path, 0, ("",), Counter())} == set(ignored)


GLOBS = st.lists(
    st.sampled_from(["*", "**", "a", "a*", "?", ".*", "[ab]*", "*.jpg", "drafts"]), min_size=1, max_size=4
).map("/".join)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for top in ("a", "ab", ".h", "drafts"):
        write(f"{folder}/{top}", ["a", "b.jpg", ".h", "drafts/a", "drafts/b.jpg", "ab/a/b.jpg"])
    write(str(folder), ["b", "b.jpg"])
    (folder / "ab/link").symlink_to("../a")
    return folder


@given(GLOBS.filter(lambda pattern: "*" in pattern or "?" in pattern or "[" in pattern))
def test_python_matches_the_same_files(tree: Path, pattern: str) -> None:
    rules = Selection(("",), hidden=True).rules()
    found = list(local_files.matches(str(tree), pattern, rules, ("",), Counter()))
    expected = {
        os.path.realpath(path)
        for path in glob.glob(f"{tree}/{pattern}", recursive=True, include_hidden=True)
        if os.path.isfile(path)
    }
    assert {os.path.realpath(path) for path in found} == expected
    assert all(f"{path}".startswith(f"{tree}/") for path in found)


def test_kinds_of_files() -> None:
    names = ["a.HEIC", "a.tar.gz", "README", ".profile", "a.", "x.of a long name", "caf.\udce9"]
    assert [kind_of(name) for name in names] == [
        ".heic", ".gz", "no extension", "no extension", "no extension", "other", ".\U0010dce9",
    ]  # fmt: skip


def test_counts_stay_small_and_lose_no_file() -> None:
    total: Counts = {}
    for part in range(10):
        counts: Counter[str] = Counter()
        for number in range(5000):
            count(counts, f".{part}{number}")
        count(counts, ".mp4", 7)
        assert len(counts) <= 1001
        total = added(total, counts)
    assert (len(total) <= 1001, sum(total.values())) == (True, 50_070)
    shown = most_frequent({**total, "hidden files": 3})
    assert (len(shown), sum(shown.values()), shown["hidden files"]) == (22, 50_073, 3)


def test_counts_as_people_read_them() -> None:
    counts = {"hidden folders": 1, ".js": 1, ".mp4": 3, ".raw": 95, "other": 2, "excluded files": 4}
    assert described(most_frequent(counts)) == (
        "95 .raw, 3 .mp4, 1 .js, 1 hidden folder, 4 excluded files, 2 other"
    )


def test_a_format_whose_extra_is_not_installed_is_skipped_and_named(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place)
    images = ImagesConfig(extensions=(".jpg", ".heic"))
    monkeypatch.setattr(Plugin, "is_installed", False)
    everything, counts = listed(place, selection_of(images))
    assert ("IMG_1.HEIC" in everything, counts[".heic"]) == (False, 2)
    assert described(most_frequent(counts)).endswith("; .heic needs imgindex[heif]")
    monkeypatch.setattr(Plugin, "is_installed", True)
    assert "IMG_1.HEIC" in listed(place, selection_of(images))[0]
    assert "needs" not in described({".heic": 2})


def test_patterns_are_checked_with_the_config() -> None:
    patterns = load_config(None, ["images.exclude=[drafts/, '*.gif']", "images.include=['2024/']"]).images
    assert selection_of(patterns) == Selection(ImagesConfig().extensions, ("2024/",), ("drafts/", "*.gif"))
    for value, message in (("['!']", r"images.exclude: '!' is no pattern"), ("drafts", "a list of texts")):
        with pytest.raises(UsageError, match=message):
            load_config(None, [f"images.exclude={value}"])
