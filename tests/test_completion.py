"""What bash offers after `imgindex` and TAB, asked of bash itself."""

import shutil
import subprocess

import pytest

from imgindex.cli import main

# Sets what bash sets before it calls the function of a command, and prints what it would offer.
ASK = """
source "$1"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p imgindex | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" imgindex "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def offered(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "index").mkdir()

    def ask(*words: str) -> set[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", "./script", "imgindex", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    return ask


def test_commands(offered):
    assert {"build", "search", "demo"} <= offered("")
    assert offered("sea") == {"search"}


def test_flags(offered):
    assert {"--input", "--dry_run", "--config"} <= offered("build", "--")
    assert offered("build", "--retry") == {"--retry_failed"}


def test_directories_where_an_index_is_expected(offered):
    assert "index" in {name.rstrip("/") for name in offered("search", "ind")}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_its_script(tmp_path, capsys):
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "_imgindex").write_text(capsys.readouterr().out)
    subprocess.run(["zsh", "-n", str(tmp_path / "_imgindex")], check=True)
