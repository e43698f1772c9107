"""Words of messages."""


def counted(count: int, noun: str, several: str | None = None) -> str:
    """`count` and its noun: 1 shard, 2 shards; `several` is the plural where it does not just take an s."""
    return f"{count} {noun if count == 1 else several or f'{noun}s'}"
