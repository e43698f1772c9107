"""Milvus, Zilliz Cloud and Milvus Lite: a collection for each generation, and an alias."""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import pyarrow as pa
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from imgindex.errors import OutputError, UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.sinks.databases.description import Description
from imgindex.sinks.databases.index_kinds import IndexKind, lists_of, probes_of
from imgindex.sinks.databases.local import local_folder
from imgindex.sinks.databases.protocol import NoDatabaseError, Row, Vectors, no_answer
from imgindex.sinks.databases.targets import TARGETS, credential

_METRICS = {"angular": "COSINE", "euclidean": "L2"}
_PROPERTIES = ("uri", "label", "sha256", "width", "height")
_COLUMNS = [*_PROPERTIES, "vector"]

# The most that a VARCHAR has, in bytes of UTF-8.
_LONGEST_TEXT = 65_535
# Servers keep the description of a schema, and take this property for it. Milvus Lite keeps only that.
_DESCRIPTION = "collection.description"

# In a text of an expression.
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})

# Milvus Lite has as many lists whatever is said.
_LEAST_LISTS = 128

_CONNECT_SECONDS = 10.0
_CALL_SECONDS = 60.0
_INDEX_SECONDS = 6 * 3600.0

# Codes of errors that pass: a server that is not ready, one that is busy, requests that take turns.
_TRANSIENT = frozenset({2, 3, 8, 9, 101, 503})
_REFUSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# What its client says of a folder, whatever the reason.
_NOT_OPENED = "Open local milvus failed"
_SCHEMES = frozenset({"http", "https", "tcp", "unix"})
_CREDENTIALS = re.compile(r"\b(auth|authenticat\w+|unauthenticated)\b", re.IGNORECASE)


def connect(uri: str, *, make: bool) -> "Milvus":
    """Names a server, or a folder of Milvus Lite; see `connected`."""
    if "://" in uri:
        try:
            parts = urlsplit(uri)
            _ = parts.port
        except ValueError as error:
            raise UsageError(f"{uri} is no address of Milvus: {error}") from error
        if parts.scheme not in _SCHEMES:
            raise UsageError(f"{uri} is no address of Milvus; expected one such as http://host:19530")
        return Milvus(uri, uri)
    if not uri.endswith(".db"):
        raise UsageError(
            f"{uri} is no address of Milvus; expected one such as http://host:19530, or a path that ends "
            "in .db, of Milvus Lite"
        )
    folder, is_there = local_folder(uri, "Milvus Lite", "databases")
    return Milvus(str(folder), str(folder), is_missing=not is_there and not make)


class Milvus:
    """A server of Milvus, or a folder of Milvus Lite, whose server runs in this process."""

    longest_name = 255
    longest_uri = _LONGEST_TEXT
    most_dims = 32_768
    index_kinds = TARGETS["milvus"].index_kinds
    exact_kinds = ("FLAT",)

    def __init__(self, uri: str, shown: str, *, is_missing: bool = False) -> None:
        """`shown` is for messages. `is_missing`: a folder without a database, of which none is to be made."""
        self.at = f"Milvus at {shown}"
        self._uri = uri
        self._is_missing = is_missing
        self._held: MilvusClient | None = None
        self._loaded: set[str] = set()
        # It logs what it raises, with tracebacks.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)

    @property
    def _client(self) -> MilvusClient:
        if self._is_missing:
            raise NoDatabaseError(f"{self._uri} holds no database of Milvus Lite; `imgindex push` makes it")
        if self._held is None:
            self._held = MilvusClient(self._uri, token=credential("milvus"), timeout=_CONNECT_SECONDS)
        return self._held

    def index_kind(self, name: str, rows: int) -> IndexKind:
        """See `Database`."""
        if name == "HNSW":
            return IndexKind(name, {"M": 16, "efConstruction": 200}, {"ef": 256})
        if name == "IVF_FLAT":
            lists = max(_LEAST_LISTS, lists_of(rows))
            return IndexKind(name, {"nlist": lists}, {"nprobe": probes_of(lists)})
        return IndexKind(name)

    def collections(self, name: str) -> Mapping[str, str]:
        """See `Database`."""
        found = [
            each for each in self._client.list_collections(timeout=_CALL_SECONDS) if each.startswith(name)
        ]
        described = {each: self._description(each) for each in found}
        return {each: text for each, text in described.items() if text is not None}

    def _description(self, collection: str) -> str | None:
        """What a collection says of itself; None where `create` has not come that far."""
        schema = self._client.describe_collection(collection, timeout=_CALL_SECONDS)
        text = schema["description"] or (schema.get("properties") or {}).get(_DESCRIPTION, "")
        ours = [field["name"] for field in schema["fields"]] == _COLUMNS
        return None if not text and ours and not self.count(collection) else str(text)

    def live(self, name: str) -> str | None:
        """See `Database`."""
        if name in self._client.list_collections(timeout=_CALL_SECONDS):
            raise UsageError(f"{self.at} has a collection {name} already; choose another --collection")
        if name not in self._client.list_aliases(timeout=_CALL_SECONDS)["aliases"]:
            return None
        collection = str(self._client.describe_alias(name, timeout=_CALL_SECONDS)["collection_name"])
        if Description.parse(self._description(collection)) is None:
            raise UsageError(
                f"{self.at} has an alias {name} of {collection}, which imgindex did not make; choose another "
                "--collection"
            )
        return collection

    def create(self, collection: str, description: str, dims: int, metric: Metric, index: IndexKind) -> None:
        """See `Database`."""
        there = self._client.has_collection(collection, timeout=_CALL_SECONDS)
        if there and self._description(collection) is None:  # its making has been interrupted
            self.drop(collection)
        schema = MilvusClient.create_schema(
            auto_id=False, enable_dynamic_field=False, description=description
        )
        schema.add_field("uri", DataType.VARCHAR, is_primary=True, max_length=_LONGEST_TEXT)
        schema.add_field("label", DataType.VARCHAR, max_length=_LONGEST_TEXT, nullable=True)
        schema.add_field("sha256", DataType.VARCHAR, max_length=64)
        schema.add_field("width", DataType.INT32)
        schema.add_field("height", DataType.INT32)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dims)
        self._client.create_collection(
            collection, schema=schema, consistency_level="Strong", timeout=_CALL_SECONDS
        )
        if not self._description(collection):
            self._client.alter_collection_properties(
                collection, {_DESCRIPTION: description}, timeout=_CALL_SECONDS
            )

    def insert(self, collection: str, images: pa.Table, vectors: Vectors, *, again: bool) -> None:
        """See `Database`. A plain insert would double the rows of a request that was lost on its way back."""
        rows = images.select(list(_PROPERTIES)).to_pylist()
        for row, vector in zip(rows, vectors, strict=True):
            row["vector"] = vector
        write = self._client.upsert if again else self._client.insert
        write(collection, rows, timeout=_CALL_SECONDS)

    def finish(self, collection: str, metric: Metric, index: IndexKind) -> None:
        """See `Database`."""
        self._client.flush(collection, timeout=_INDEX_SECONDS)
        if "vector" not in self._client.list_indexes(collection, timeout=_CALL_SECONDS):
            parameters = MilvusClient.prepare_index_params()
            parameters.add_index(
                "vector",
                index_type=index.name,
                index_name="vector",
                metric_type=_METRICS[metric],
                params=dict(index.build),
            )
            self._client.create_index(collection, parameters, timeout=_INDEX_SECONDS)
        self._client.load_collection(collection, timeout=_INDEX_SECONDS)

    def _is_loaded(self, collection: str) -> bool:
        state = self._client.get_load_state(collection, timeout=_CALL_SECONDS)["state"]
        return str(getattr(state, "name", state)) == "Loaded"

    def _load(self, collection: str) -> None:
        """Has a collection answer. Milvus Lite keeps none loaded from one process to the next."""
        if collection not in self._loaded:
            if not self._is_loaded(collection):
                self._client.load_collection(collection, timeout=_INDEX_SECONDS)
            self._loaded.add(collection)

    def count(self, collection: str) -> int:
        """See `Database`. Before it is loaded, what is flushed."""
        if not self._is_loaded(collection):
            return int(self._client.get_collection_stats(collection, timeout=_CALL_SECONDS)["row_count"])
        found = self._client.query(collection, output_fields=["count(*)"], timeout=_CALL_SECONDS)
        return int(found[0]["count(*)"])

    def fetch(self, collection: str, uris: Sequence[str]) -> list[Row]:
        """See `Database`."""
        self._load(collection)
        # Not by `get`, which leaves quotes and backslashes of ids as they are.
        wanted = ", ".join(f'"{uri.translate(_ESCAPES)}"' for uri in uris)
        found = self._client.query(
            collection, filter=f"uri in [{wanted}]", output_fields=_COLUMNS, timeout=_CALL_SECONDS
        )
        return [_row(entity) for entity in found]

    def search(
        self, collection: str, vectors: Vectors, k: int, metric: Metric, settings: Mapping[str, int] | None
    ) -> list[list[Row]]:
        """See `Database`. An index of `exact_kinds` has no settings."""
        self._load(collection)
        parameters = dict(settings or {})
        if "ef" in parameters:  # at least as many as are asked for
            parameters["ef"] = max(k, parameters["ef"])
        found = self._client.search(
            collection,
            data=list(vectors),
            anns_field="vector",
            limit=k,
            output_fields=_COLUMNS,
            search_params={"metric_type": _METRICS[metric], "params": parameters},
            timeout=_CALL_SECONDS,
        )
        return [[_row(hit["entity"]) for hit in hits] for hits in found]

    def switch(self, name: str, collection: str, before: str | None) -> None:
        """See `Database`. A name that is new cannot be altered, nor one that is there be made."""
        put = self._client.create_alias if before is None else self._client.alter_alias
        put(collection, name, timeout=_CALL_SECONDS)

    def drop(self, collection: str) -> None:
        """See `Database`."""
        if self._client.has_collection(collection, timeout=_CALL_SECONDS):
            self._client.drop_collection(collection, timeout=_CALL_SECONDS)

    def close(self) -> None:
        """See `Database`."""
        if self._held is not None:
            with suppress(MilvusException, grpc.RpcError):
                self._held.close()

    def told(self, error: Exception) -> Exception | None:
        """See `Database`."""
        if isinstance(error, grpc.RpcError):
            code, text = error.code(), error.details() or str(error.code())
        elif isinstance(error, MilvusException):
            code, text = error.code, error.message
        else:
            return error if isinstance(error, OutputError | UsageError) else None
        text = " ".join(str(text).split())
        if code in _REFUSED or _CREDENTIALS.search(text):
            return OutputError(
                f"{self.at} refuses the credentials; set MILVUS_TOKEN to user:password or an API key"
            )
        if _NOT_OPENED in text:
            return OutputError(
                f"{self.at} cannot be opened: another process has it open, which Milvus Lite allows to one "
                "alone, or it cannot be written here; close it there, or use a server"
            )
        passes = isinstance(code, grpc.StatusCode) or code in _TRANSIENT or getattr(error, "retriable", False)
        if passes or "server unavailable" in text or "Retry" in text:
            return no_answer(text)
        return OutputError(f"{self.at} refuses a request: {text}")


def _row(entity: Mapping[str, Any]) -> Row:
    properties = {name: entity[name] for name in _PROPERTIES}
    return Row(**properties, vector=np.asarray(entity["vector"], np.float32))
