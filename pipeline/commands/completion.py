"""Completion in a shell, by argcomplete: the shell asks the command itself what may come next."""

import argparse
import os
import re

from imgindex.commands.arguments import hyphened
from imgindex.errors import MachineError


def run(known: argparse.Namespace) -> None:
    """Prints the script for a shell."""
    print(script(known.shell))


def script(shell: str) -> str:
    """What bash or zsh runs at its start to complete `imgindex`. Raises MachineError without argcomplete."""
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError as error:
        raise MachineError(
            "completion needs the library argcomplete, which is not installed; "
            "pip install 'imgindex[completion]'"
        ) from error
    return shellcode(["imgindex"], shell=shell)


def answer(parser: argparse.ArgumentParser) -> None:
    """Tells the shell that asks what `parser` takes at the cursor, and ends the process."""
    import argcomplete
    from argcomplete.completers import DirectoriesCompleter

    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in ("INDEX", "INDEX|URI", "OUT"):
                action.completer = DirectoriesCompleter()  # where argcomplete looks for it
            if re.match("--.*-", _word_at_cursor()):
                action.option_strings = [hyphened(flag) for flag in action.option_strings]
    argcomplete.autocomplete(parser)


def _word_at_cursor() -> str:
    """The beginning of the word that the shell asks about; argcomplete's own parser knows quotes as well."""
    line = os.environ.get("COMP_LINE", "").encode()[: int(os.environ.get("COMP_POINT", "0"))]
    return line.decode(errors="replace").rpartition(" ")[2]
