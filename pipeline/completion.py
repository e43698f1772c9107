"""Completion in a shell: a script of every command and flag, made once; no Python runs while one types."""

import argparse

from imgindex.errors import MachineError

# What an argument takes that is a path, by how the help names it.
_FILES = ("FILE", "FILE|NAME", "IMAGE", "DIR|GLOB|LIST")
_DIRECTORIES = ("OUT",)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that completes what `parser` takes, for bash or zsh. Raises MachineError without shtab."""
    try:
        import shtab
    except ImportError as error:
        raise MachineError(
            "completion needs the library shtab, which is not installed; pip install 'imgindex[completion]'"
        ) from error
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # where shtab looks for it
            elif action.metavar in _DIRECTORIES:
                action.complete = shtab.DIRECTORY
    return str(shtab.complete(parser, shell))
