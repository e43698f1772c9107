"""Words of messages."""

from imgindex.uris import byte_of


def counted(count: int, noun: str, several: str | None = None) -> str:
    """`count` and its noun: 1 shard, 2 shards; `several` is the plural where it does not just take an s."""
    return f"{count} {noun if count == 1 else several or f'{noun}s'}"


def human_bytes(count: float) -> str:
    """`count` bytes in the largest fitting unit, to four digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def printable(text: str) -> str:
    """`text` on one line, what could steer a terminal escaped: file names may hold anything.

    A byte of a name that is not UTF-8 shows as ``\\xff``, whether it stands as in a uri or as Python has it.
    """
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    byte = byte_of(character)
    if byte is not None:
        return f"\\x{byte:02x}"
    # Python has two digits for U+0080 to U+00FF, which would look like a byte.
    if 0x80 <= ord(character) <= 0xFF:
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode()
