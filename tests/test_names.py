"""Names as uris: any bytes, there and back, no two alike, and shown so that they steer no terminal."""

import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgindex.text import printable
from imgindex.uris import name_of, uri_of

# Bytes of UTF-8 as often as others, and the characters that stand for bytes in a uri.
CHARACTERS = st.sampled_from(
    ["a", "/", ".", "\n", "é", "猫", "\U0010dc7f", "\U0010dc80", "\U0010dcff", "\U0010dd00"]
)
NAMES = st.lists(st.one_of(st.binary(), CHARACTERS.map(str.encode), st.text().map(os.fsencode))).map(b"".join)


@given(NAMES)
@example("\U0010dcff".encode())
@example(b"\xf4\x8d\xb3\xff")  # that character, cut short
def test_every_name_comes_back_from_its_uri(name: bytes) -> None:
    uri = uri_of(os.fsdecode(name))
    assert os.fsencode(name_of(uri)) == name
    assert json.loads(json.dumps(uri, ensure_ascii=False).encode()) == uri


@given(NAMES, NAMES)
def test_no_two_names_share_a_uri(one: bytes, other: bytes) -> None:
    assert (uri_of(os.fsdecode(one)) == uri_of(os.fsdecode(other))) == (one == other)


@given(NAMES, NAMES)
def test_folders_and_files_are_named_alike_alone_and_together(folder: bytes, name: bytes) -> None:
    path = os.fsdecode(folder + b"/" + name)
    assert uri_of(path) == f"{uri_of(os.fsdecode(folder))}/{uri_of(os.fsdecode(name))}"


@given(st.text(st.characters(max_codepoint=0x10DC7F, exclude_categories=["Cs"])))
def test_ordinary_names_are_their_uris(name: str) -> None:
    assert uri_of(name) == name_of(name) == name


@pytest.mark.parametrize(
    ("name", "uri", "shown"),
    [
        (b"a b.jpg", "a b.jpg", "a b.jpg"),
        (b"\xff.jpg", "\U0010dcff.jpg", r"\xff.jpg"),
        (b"caf\xe9/\x80", "caf\U0010dce9/\U0010dc80", r"caf\xe9/\x80"),
        ("\U0010dc80".encode(), "\U0010dcf4\U0010dc8d\U0010dcb2\U0010dc80", r"\xf4\x8d\xb2\x80"),
    ],
)
def test_bytes_that_are_no_text(name: bytes, uri: str, shown: str) -> None:
    assert uri_of(os.fsdecode(name)) == uri
    assert printable(uri) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc\r", r"a\tb\nc\r"),
        ("\x1b[31m\x00\x7f", r"\x1b[31m\x00\x7f"),
        ("\u202egpj.exe\u202c\u200f\u2066", r"\u202egpj.exe\u202c\u200f\u2066"),
        ("\x85\x9b\u2028\u2029", r"\u0085\u009b\u2028\u2029"),
        ("\ue000\U000e0001", r"\ue000\U000e0001"),
        ("\udcff", r"\xff"),
        ("'quotes' \"and\" ä 猫", "'quotes' \"and\" ä 猫"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_what_is_shown_is_one_line_that_can_be_printed(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.encode().splitlines()) <= 1
