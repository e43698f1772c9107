"""PostgreSQL with pgvector: a table for each generation, whose comment describes it, and a view."""

import contextlib
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import psycopg
import pyarrow as pa
from pgvector.psycopg import register_vector
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from imgindex.errors import OutputError, UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.sinks.databases.description import Description
from imgindex.sinks.databases.index_kinds import IndexKind, lists_of, probes_of
from imgindex.sinks.databases.protocol import PassingError, Row, Vectors, no_answer
from imgindex.sinks.databases.targets import TARGETS, secret_error

P = ParamSpec("P")
T = TypeVar("T")

_COLUMNS = ("uri", "label", "sha256", "width", "height", "vector")
_TYPES = ("text", "text", "text", "int4", "int4", "bytea")  # of `_as_received`, for the vector

# The classes of operators of an index, and the operator that it orders by.
_OPERATORS = {"angular": ("vector_cosine_ops", "<=>"), "euclidean": ("vector_l2_ops", "<->")}

_RELATION = "format('%%I.%%I', current_schema(), %s::text)::regclass"

_NO_ROOM = (
    errors.DiskFull,
    errors.OutOfMemory,
    errors.ConfigurationLimitExceeded,
    errors.ProgramLimitExceeded,
)

_CONNECT_SECONDS = "10"
# What somebody reads in a long transaction is not waited for: whoever comes after would wait, too.
_LOCK_TIMEOUT = "5s"
# libpq waits for an answer without an end.
_CALL_SECONDS = 600.0
_INDEX_SECONDS = 6 * 3600.0
# After two minutes without a sign of it a server takes a client for dead, and frees what it has locked.
_KEEP_ALIVE = "SET tcp_keepalives_idle = 60; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 6"


def connect(uri: str, *, make: bool) -> "Pgvector":
    """Names a database; see `connected`."""
    try:
        given = conninfo_to_dict(uri)
    except psycopg.ProgrammingError as error:
        raise UsageError(f"the address of pgvector cannot be read: {_said(error)}") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{uri} is no address of pgvector: it is not UTF-8") from error
    if given.get("password") or given.get("sslpassword"):
        raise secret_error("pgvector")
    host = given.get("hostaddr") or given.get("host") or os.environ.get("PGHOST") or "the local socket"
    name = given.get("dbname") or os.environ.get("PGDATABASE") or "the default database"
    return Pgvector(uri, f"PostgreSQL at {host} ({name})", make=make)


@contextlib.contextmanager
def _within(seconds: float, connection: psycopg.Connection) -> Iterator[None]:
    """Breaks the connection off where the block takes longer, which then raises TimeoutError."""
    late = threading.Event()
    with socket.socket(fileno=os.dup(connection.fileno())) as held:

        def break_off() -> None:
            late.set()
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, break_off)
        timer.daemon = True
        timer.start()
        try:
            yield
        except psycopg.Error as error:
            if late.is_set():
                raise TimeoutError(f"a request took longer than {seconds:.0f} s") from error
            raise
        finally:
            timer.cancel()
            timer.join()


def _bounded(
    method: Callable[Concatenate["Pgvector", P], T], seconds: float | None = None
) -> Callable[Concatenate["Pgvector", P], T]:
    """`method`, which raises TimeoutError where the database does not answer it in time."""

    def call(self: "Pgvector", /, *given: P.args, **named: P.kwargs) -> T:
        with _within(_CALL_SECONDS if seconds is None else seconds, self._connection):
            return method(self, *given, **named)

    return call


class Pgvector:
    """A database of PostgreSQL, with tables in the first schema of its search path."""

    longest_name = 63
    # An entry of the index of the key has at most 2,704 bytes.
    longest_uri = 2600
    most_dims = 2000
    index_kinds = TARGETS["pgvector"].index_kinds
    exact_kinds = index_kinds

    def __init__(self, conninfo: str, at: str, *, make: bool) -> None:
        """`at` is for messages. With `make`, the extension is made where it is missing."""
        self._make = make
        self.at = at
        self._conninfo = conninfo
        self._held: psycopg.Connection | None = None
        self._schema = ""
        # It logs what is lost with a connection.
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)

    @property
    def _connection(self) -> psycopg.Connection:
        """The connection, made anew where it was lost. Each statement is a transaction of its own."""
        if self._held is None or self._held.closed:
            timeout = {} if "PGCONNECT_TIMEOUT" in os.environ else {"connect_timeout": _CONNECT_SECONDS}
            connection = psycopg.connect(
                self._conninfo, autocommit=True, application_name="imgindex", **timeout
            )
            connection.add_notice_handler(lambda notice: None)
            with _within(_CALL_SECONDS, connection):
                self._prepare(connection)
            self._held = connection
        return self._held

    def _prepare(self, connection: psycopg.Connection) -> None:
        found = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
        if found is None and self._make:
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except (errors.InsufficientPrivilege, errors.UndefinedFile, errors.FeatureNotSupported) as error:
                connection.close()
                raise OutputError(
                    f"{self.at} does not have the extension vector: {_said(error)}; install pgvector and "
                    "have an administrator run CREATE EXTENSION vector"
                ) from error
        if found is not None or self._make:  # without it, there are no collections
            register_vector(connection)
        connection.execute(
            sql.SQL(
                f"{_KEEP_ALIVE}; SET lock_timeout = {{}}; SET hnsw.iterative_scan = strict_order; "
                "SET ivfflat.iterative_scan = relaxed_order"
            ).format(_LOCK_TIMEOUT)
        )
        row = connection.execute("SELECT current_schema()").fetchone()
        if row is None or row[0] is None:
            connection.close()
            raise OutputError(f"{self.at} has none of the schemas of the search path; create one")
        self._schema = row[0]

    def _table(self, name: str) -> sql.Identifier:
        """A relation of the first schema of the search path, whatever the others hold."""
        _ = self._connection  # which knows the schema
        return sql.Identifier(self._schema, name)

    def index_kind(self, name: str, rows: int) -> IndexKind:
        """See `Database`."""
        if name == "ivfflat":
            lists = lists_of(rows)
            return IndexKind(name, {"lists": lists}, {"ivfflat.probes": probes_of(lists)})
        return IndexKind(name, {"m": 16, "ef_construction": 128}, {"hnsw.ef_search": 256})

    @_bounded
    def collections(self, name: str) -> Mapping[str, str]:
        """See `Database`."""
        rows = self._connection.execute(
            "SELECT relname, coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class "
            "WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f') "
            "AND starts_with(relname, %s) AND relname <> %s",
            (name, name),
        )
        return dict(rows.fetchall())

    @_bounded
    def live(self, name: str) -> str | None:
        """See `Database`."""
        found = self._connection.execute(
            "SELECT relkind, obj_description(oid, 'pg_class') FROM pg_class "
            "WHERE relnamespace = current_schema()::regnamespace AND relname = %s",
            (name,),
        ).fetchone()
        if found is None:
            return None
        kind, comment = found
        if kind != "v":
            raise UsageError(f"{self.at} has a relation {name} already; choose another --collection")
        if Description.parse(comment) is None:
            raise UsageError(
                f"{self.at} has a view {name}, which imgindex did not make; choose another --collection"
            )
        # What the view reads, and not what its comment says.
        read = self._connection.execute(
            "SELECT DISTINCT t.relname FROM pg_rewrite r JOIN pg_depend d ON d.objid = r.oid "
            "JOIN pg_class t ON t.oid = d.refobjid AND t.oid <> r.ev_class "
            "WHERE d.classid = 'pg_rewrite'::regclass "
            "AND d.refclassid = 'pg_class'::regclass AND r.ev_class = " + _RELATION,
            (name,),
        ).fetchall()
        if len(read) != 1:
            raise UsageError(f"{self.at} has a view {name} of several tables; choose another --collection")
        return str(read[0][0])

    @_bounded
    def create(self, collection: str, description: str, dims: int, metric: Metric, index: IndexKind) -> None:
        """See `Database`."""
        with self._connection.transaction():
            self._connection.execute(
                sql.SQL(
                    "CREATE TABLE {} (uri text PRIMARY KEY, label text, sha256 text NOT NULL, "
                    "width integer NOT NULL, height integer NOT NULL, vector vector({}) NOT NULL)"
                ).format(self._table(collection), dims)
            )
            self._describe("TABLE", collection, description)

    def _describe(self, kind: str, name: str, description: str) -> None:
        self._connection.execute(
            sql.SQL("COMMENT ON {} {} IS {}").format(sql.SQL(kind), self._table(name), description)
        )

    @_bounded
    def insert(self, collection: str, images: pa.Table, vectors: Vectors, *, again: bool) -> None:
        """See `Database`."""
        columns = [images[name].to_pylist() for name in _COLUMNS[:-1]]
        table = self._table(collection)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            if again:
                cursor.execute(sql.SQL("DELETE FROM {} WHERE uri = ANY(%s)").format(table), (columns[0],))
            names = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, names)) as copy:
                copy.set_types(_TYPES)
                for row in zip(*columns, _as_received(vectors), strict=True):
                    copy.write_row(row)

    @functools.partial(_bounded, seconds=_INDEX_SECONDS)
    def finish(self, collection: str, metric: Metric, index: IndexKind) -> None:
        """See `Database`."""
        with self._connection.transaction():
            if self._has_index(collection, index.name):  # the request before got there
                return
            parameters = [
                sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in index.build.items()
            ]
            if "lists" in index.build:
                self._allow_memory(index.build["lists"])
            self._connection.execute(
                sql.SQL("CREATE INDEX ON {} USING {} (vector {}) WITH ({})").format(
                    self._table(collection),
                    sql.Identifier(index.name),
                    sql.SQL(_OPERATORS[metric][0]),
                    sql.SQL(", ").join(parameters),
                )
            )
        self._connection.execute(sql.SQL("ANALYZE {}").format(self._table(collection)))

    def _allow_memory(self, lists: int) -> None:
        """Lets this transaction have what pgvector's k-means takes, which refuses to run in less."""
        samples = max(50 * lists, 10_000)
        kib = 4 * (samples * (lists + self.most_dims) + lists * (lists + 4 * self.most_dims)) // 1000
        self._connection.execute(
            "SELECT set_config(name, greatest(setting::bigint, %s)::text, true) FROM pg_settings "
            "WHERE name = 'maintenance_work_mem'",
            (kib,),
        )

    def _has_index(self, collection: str, kind: str) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_am a ON a.oid = c.relam WHERE a.amname = %s AND i.indisvalid AND i.indrelid = "
            + _RELATION,
            (kind, collection),
        )
        return found.fetchone() is not None

    @_bounded
    def count(self, collection: str) -> int:
        """See `Database`."""
        found = self._connection.execute(sql.SQL("SELECT count(*) FROM {}").format(self._table(collection)))
        row = found.fetchone()
        return int(row[0]) if row else 0

    @_bounded
    def fetch(self, collection: str, uris: Sequence[str]) -> list[Row]:
        """See `Database`."""
        names = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
        found = self._connection.execute(
            sql.SQL("SELECT {} FROM {} WHERE uri = ANY(%s)").format(names, self._table(collection)),
            (list(uris),),
            binary=True,
        )
        return [_row(row) for row in found]

    @_bounded
    def search(
        self, collection: str, vectors: Vectors, k: int, metric: Metric, settings: Mapping[str, int] | None
    ) -> list[list[Row]]:
        """See `Database`."""
        names = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
        query = sql.SQL("SELECT {} FROM {} ORDER BY vector {} %s LIMIT %s").format(
            names, self._table(collection), sql.SQL(_OPERATORS[metric][1])
        )
        own = {"enable_indexscan": "off"} if settings is None else settings
        with self._connection.transaction():
            for name, value in own.items():
                self._connection.execute("SELECT set_config(%s, %s, true)", (name, str(value)))
            return [
                [_row(row) for row in self._connection.execute(query, (vector, k), binary=True)]
                for vector in vectors
            ]

    @_bounded
    def switch(self, name: str, collection: str, before: str | None) -> None:
        """See `Database`."""
        with self._connection.transaction():
            # Without its number of dimensions, so that the view stays one of the same columns.
            self._connection.execute(
                sql.SQL(
                    "CREATE OR REPLACE VIEW {} AS SELECT uri, label, sha256, width, height, "
                    "vector::vector AS vector FROM {}"
                ).format(self._table(name), self._table(collection))
            )
            comment = self._connection.execute(
                f"SELECT obj_description({_RELATION}, 'pg_class')", (collection,)
            ).fetchone()
            self._describe("VIEW", name, comment[0] if comment else "")

    @_bounded
    def drop(self, collection: str) -> None:
        """See `Database`."""
        self._connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._table(collection)))

    def close(self) -> None:
        """See `Database`."""
        if self._held is not None:
            with suppress(psycopg.Error):
                self._held.close()

    def told(self, error: Exception) -> Exception | None:
        """See `Database`."""
        if isinstance(error, errors.InvalidPassword | errors.InvalidAuthorizationSpecification):
            return OutputError(
                f"{self.at} refuses the credentials: {_said(error)}; set PGUSER and PGPASSWORD"
            )
        if isinstance(error, errors.InvalidCatalogName):
            return OutputError(f"{self.at}: {_said(error)}; create it, or name another one")
        if isinstance(error, errors.InsufficientPrivilege):
            return OutputError(f"{self.at} does not allow it: {_said(error)}")
        if isinstance(error, errors.LockNotAvailable):
            return PassingError(
                f"is held up: somebody uses it in a transaction that does not end ({_said(error)}), a reader "
                "or a push that has lost its connection; end that one, or wait two minutes, and run it again"
            )
        if isinstance(error, errors.UniqueViolation):  # another attempt has written the rows
            return PassingError(f"has rows that were to be written: {_said(error)}; run it again")
        if isinstance(error, _NO_ROOM):
            return OutputError(f"{self.at} has no room: {_said(error)}")
        if isinstance(error, psycopg.OperationalError):
            text = _said(error)
            if "password" in text or "authentication" in text or "pg_hba" in text:
                return OutputError(f"{self.at} refuses the credentials: {text}; set PGUSER and PGPASSWORD")
            if "does not exist" in text:  # a database or a role
                return OutputError(f"{self.at} refuses the connection: {text}")
            return no_answer(text)
        if isinstance(error, psycopg.Error):
            return OutputError(f"{self.at} refuses a request: {_said(error)}")
        return error if isinstance(error, OutputError | UsageError) else None


def _said(error: psycopg.Error) -> str:
    """What the server says, on one line."""
    primary = error.diag.message_primary if error.diag else None
    text = primary or str(error)
    return " ".join(text.split())


def _as_received(vectors: Vectors) -> list[bytes]:
    """`vectors` [n, dims] as pgvector reads each: dims, two unused bytes, values; the highest byte first."""
    rows = np.zeros(len(vectors), [("dims", ">i2"), ("unused", ">i2"), ("values", ">f4", vectors.shape[1:])])
    rows["dims"], rows["values"] = vectors.shape[1], vectors
    return [row.tobytes() for row in rows]


def _row(row: tuple[Any, ...]) -> Row:
    uri, label, sha256, width, height, vector = row
    return Row(uri, label, sha256, width, height, np.asarray(vector.to_list(), np.float32))
