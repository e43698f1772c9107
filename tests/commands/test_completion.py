"""What a shell offers after `imgindex` and TAB, asked of the shell itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imgindex.cli import main

# Sets what bash sets before it calls the function of a command, and prints what it would offer.
ASK = """
source "$1"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
function=$(complete -p imgindex | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" imgindex "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" || exit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def offered(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "index").mkdir()
    (tmp_path / "indoors.jpg").touch()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def ask(*words: str) -> set[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", "./script", "imgindex", *words]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return {name.rstrip("/") for name in done.stdout.split()}

    return ask


def test_commands(offered):
    assert {"build", "search", "demo"} <= offered("")
    assert offered("sea") == {"search"}


def test_flags(offered):
    assert {"--input", "--dry_run", "--config"} <= offered("build", "--")
    assert offered("build", "--retry") == {"--retry_failed"}


def test_flags_that_are_begun_with_hyphens(offered):
    assert offered("build", "--dry-") == {"--dry-run"}
    assert offered("build", "--retry-f") == {"--retry-failed"}
    assert offered("search", "index", "--exclude-") == {"--exclude-self"}
    assert offered("build", "--dry-run", "--reh") == {"--rehash"}


def test_only_directories_where_an_index_is_expected(offered):
    assert offered("search", "ind") == {"index"}
    assert offered("search", "index", "ind") == {"index", "indoors.jpg"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_its_script(tmp_path, capsys):
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    told = "autoload -Uz compinit; compinit -u -D; source ./script; print $_comps[imgindex]"
    done = subprocess.run(["zsh", "-f", "-c", told], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "argcomplete" in done.stdout


def test_a_library_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "argcomplete.shell_integration", None)
    assert main(["completion", "bash"]) == 3
    assert "pip install 'imgindex[completion]'" in capsys.readouterr().err
