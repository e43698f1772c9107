"""What a check of `imgindex doctor` comes to."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing about this machine; a problem would break a build."""

    level: Level
    check: str  # what was looked at
    found: str
    advice: str = ""  # what to do about it
