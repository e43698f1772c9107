"""Any document and any assignment: a config, or one line that names what is wrong; and little memory."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_config import KEYS, VALUES, sections

from imgindex.config import Config, load_config
from imgindex.errors import UsageError
from imgindex.io.digest_json import seal, unseal

SECTIONS = ("input", "output", *dict.fromkeys(key.partition(".")[0] for key in KEYS))

# What YAML is made of, and what PyYAML makes other types of.
TOKENS = st.sampled_from([
    *SECTIONS, *(key.partition(".")[2] for key in KEYS),
    ": ", ":", ", ", "\n", "\n  ", "\n- ", "\t", "{", "}", "[", "]", "? ", "- ", "&a ", "*a", "<<: ",
    "<<: [*a, *a]", "!!int ", "!!float ", "!!str ", "!!binary ", "!!set ", "!!omap ", "!!pairs ",
    "!!timestamp ", "!!python/object:os.system ", "!<tag:yaml.org,2002:merge> ", "!", "|\n", ">-\n", "'", '"',
    '"\\ud800"', '"\\0"', '"\\u2028"', "\\", "#", "%YAML 1.1\n", "---\n", "...\n", "@", "`", "~", "=",
    "null", "yes", ".nan", "-.inf", "1e999", "0x_", "0b_", "0o7", "1:1", "1:1:1.5", "9" * 30, "2024-99-99",
    "0001-01-01 00:00:00 +23:59", "\x85", "\u2028", "\ufeff", "\ud83d", "猫",
])  # fmt: skip
DOCUMENTS = st.lists(TOKENS | st.text(max_size=3), max_size=25).map("".join)


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


FILES = (
    DOCUMENTS.map(encode)
    | st.binary(max_size=60)
    | sections().map(lambda settings: yaml.safe_dump(settings).encode())
    | st.tuples(DOCUMENTS, st.sampled_from(["utf-16", "utf-32", "latin-1"])).map(
        lambda drawn: drawn[0].encode(drawn[1], "ignore")
    )
)


def check(path: Path | None, assignments: list[str]) -> None:
    """Asserts that a config loads that can be published, or that the refusal names what it is for."""
    try:
        config = load_config(path, assignments)
    except UsageError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert len(message) < 5000
        named = [
            f"--config {path}:",
            *(["--set "] if assignments else []),
            *SECTIONS,
            "unknown config section",
        ]
        assert any(name in message for name in named), message
        return
    assert isinstance(config, Config)
    content = json.loads(json.dumps(asdict(config)))
    assert unseal(seal(content))["digest"]
    assert {key: value for key, value in unseal(seal(content)).items() if key != "digest"} == content


@given(FILES)
@settings(max_examples=400)
@example(b"\xff\xfep\0c\0a\0")
@example(b"&a {pca: *a}")
@example(b"pca: &a {<<: *a}")
@example(b'"a\\nb": 1')
@example(b'pca: {"a\\nb": 1}')
@example(b'input: "\\ud800"')
@example(b'output: "\\0"')
@example(b'images: {extensions: [".\\ud800"]}')
@example(b"? [a, b]\n: 1")
@example(b"2024-01-01: {dims: 1}")
def test_any_document(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    check(path, [])


ASSIGNMENTS = st.tuples(
    st.sampled_from(KEYS) | st.text(st.characters(), max_size=8), st.sampled_from(["=", "", " = "]), DOCUMENTS
).map("".join) | st.text(st.characters(), max_size=20)


@given(st.lists(ASSIGNMENTS, min_size=1, max_size=3))
@settings(max_examples=400)
@example(["pca.dims=1:1:1.5"])
@example([f"pca.dims={'1:' * 300}1.5"])
@example(["a\nb.c=1"])
@example(["pca.a\nb=1"])
@example(["pca.dims\n"])
@example(["index.\udcff=1"])
@example([f"backbone.name={'x' * 3000}.keras"])
@example([f"backbone.weights={'x/' * 3000}.h5"])
@example([f"index.metric={'x' * 3000}"])
@example([f"engine.name={'x' * 3000}"])
def test_any_assignments(assignments: list[str]) -> None:
    check(None, assignments)


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_a_key_is_taken_or_refused_by_its_name(key: str, value: object) -> None:
    text = yaml.safe_dump(value, default_flow_style=True)
    try:
        load_config(None, [f"{key}={text}"])
    except UsageError as error:
        assert key in str(error)  # noqa: PT017


ALIASES = "".join(f"  - &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 30))
MERGES = "".join(f"  - &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}\n" for n in range(1, 30))

# Short documents that stand for much, and what the refusal names; PyYAML 6.0.4 makes little of merges.
BOMBS = {
    "pca: {dims: &x 1, whiten: [" + "*x, " * 10_000 + "]}": "pca.whiten",
    "pca:\n  dims:\n  - &x0 [1, 1]\n" + ALIASES: "pca.dims",
    "pca:\n  dims:\n  - &x0 {a: 1, b: 2}\n" + MERGES: "pca.dims|more than 100 keys",
    "[" * 60_000: "YAML",
    "{a: " * 15_000: "YAML",
    "- " * 30_000: "YAML",
    "? " * 30_000: "YAML",
    "pca: {dims: 0x" + "f" * 60_000 + "}": "pca.dims",
    "pca: {dims: " + "9" * 60_000 + "}": "YAML",
    "pca: {dims: " + "9:" * 30_000 + "9}": "pca.dims",
    "pca: {dims: " + "9:" * 30_000 + "9.5}": "YAML",
    "pca: {dims: 1e" + "9" * 60_000 + "}": "pca.dims",
    "pca: {? " + "9:" * 10_000 + "9 : 1}": "pca.",
    "? " + "9:" * 10_000 + "9\n: 1": "unknown config section",
    "? " + "x" * 60_000 + "\n: 1": "unknown config section",
    "pca: {? " + "x" * 60_000 + " : 1}": "pca.xxx",
    "pca: {refit: " + "x" * 60_000 + "}": "pca.refit",
    "backbone: {name: " + "x/" * 30_000 + ".keras}": "backbone.name",
    "backbone: {name: " + "x" * 300 + ".keras}": "backbone.name",
    "backbone: {weights: " + "x" * 300 + ".h5}": "backbone.weights",
    "pca: {dims: !!float " + "x" * 60_000 + "}": "YAML",
    "&" + "a" * 60_000 + " *" + "b": "YAML",
    " " * 70_000 + "pca: {dims: 3}": "longer than",
}  # fmt: skip

# Some MiB over what Python and NumPy take.
LOAD = """
import json, resource, sys
from imgindex.config import load_config
from imgindex.errors import UsageError
held = int(open("/proc/self/statm").read().split()[5]) * 4096
resource.setrlimit(resource.RLIMIT_DATA, (held + (200 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        load_config(path)
        print(json.dumps("loaded"))
    except UsageError as error:
        print(json.dumps(str(error)))
"""


def test_short_documents_that_stand_for_much_are_refused_within_little_memory(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.yaml" for number in range(len(BOMBS))]
    for path, content in zip(paths, BOMBS, strict=True):
        path.write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, paths), "/dev/zero"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *messages, endless = map(json.loads, done.stdout.splitlines())
    for message, (content, named) in zip(messages, BOMBS.items(), strict=True):
        assert re.search(named, message), (content[:60], message[:300])
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
    assert "/dev/zero: is longer than" in endless
