"""Qdrant: a collection for each generation, whose metadata describes it, and an alias."""

import json
import logging
import sqlite3
import time
import warnings
from collections.abc import Mapping, Sequence
from uuid import UUID, uuid5

import httpx
import numpy as np
import pyarrow as pa
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from imgindex.errors import OutputError, UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.sinks.databases.index_kinds import IndexKind
from imgindex.sinks.databases.local import local_folder
from imgindex.sinks.databases.protocol import NoDatabaseError, PassingError, Row, Vectors, no_answer
from imgindex.sinks.databases.targets import TARGETS, credential

logger = logging.getLogger(__name__)

# Ids are whole numbers or UUIDs. That of an image is the UUID (version 5) of its uri in this namespace.
NAMESPACE = UUID("0c0b64f4-9d1e-5d1e-8d0b-3f0a2a5f5d11")

_DISTANCES = {"angular": models.Distance.COSINE, "euclidean": models.Distance.EUCLID}
_PAYLOAD = ("uri", "label", "sha256", "width", "height")
_DESCRIPTION = "imgindex"

_TIMEOUT_SECONDS = 60
# For how long a server may index without an end before it is left alone: it answers meanwhile, only slower.
_INDEXING_SECONDS = 3600.0
_LOOK_SECONDS = 0.5


def connect(uri: str, *, make: bool) -> "Qdrant":
    """Connects to a server, or opens a folder of the local mode; see `connected`."""
    if "://" in uri:
        key = credential("qdrant")
        if not key.isascii():
            raise UsageError("QDRANT_API_KEY holds a character that is not ASCII; set it anew")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key without TLS
            try:
                client = QdrantClient(
                    url=uri, api_key=key or None, timeout=_TIMEOUT_SECONDS, check_compatibility=False
                )
                return Qdrant(uri, client, is_server=True)
            except ValueError as error:
                raise UsageError(f"{uri} is no address of Qdrant: {error}") from error
    folder, is_there = local_folder(uri, "Qdrant", "meta.json")
    if not is_there and not make:
        return Qdrant(str(folder), None)
    try:
        return Qdrant(str(folder), QdrantClient(path=str(folder)))
    except RuntimeError as error:
        raise OutputError(
            f"{folder} is open in another process, and Qdrant's local mode takes one; close it, or use a "
            "server"
        ) from error
    except OSError:
        raise
    except Exception as error:  # whatever its client makes of what others, or a crash, have left there
        raise OutputError(
            f"{folder} cannot be opened, or its database of Qdrant is damaged: {error}; choose a new folder, "
            "and push again"
        ) from error


class Qdrant:
    """A server of Qdrant, or a folder that its client holds in its local mode."""

    longest_name = 255
    longest_uri = None
    most_dims = 65_535
    index_kinds = TARGETS["qdrant"].index_kinds
    exact_kinds = index_kinds

    def __init__(self, uri: str, client: QdrantClient | None, *, is_server: bool = False) -> None:
        """`uri` is for messages. No `client`: of a folder without a database, where none is to be made."""
        self._is_server = is_server
        self.at = f"Qdrant at {uri}"
        self._uri = uri
        self._held = client

    @property
    def _client(self) -> QdrantClient:
        if self._held is None:
            raise NoDatabaseError(f"{self._uri} holds no database of Qdrant; `imgindex push` makes it")
        return self._held

    def index_kind(self, name: str, rows: int) -> IndexKind:
        """See `Database`."""
        return IndexKind(name, {"m": 16, "ef_construct": 200}, {"hnsw_ef": 256})

    def collections(self, name: str) -> Mapping[str, str]:
        """See `Database`."""
        found = [each.name for each in self._client.get_collections().collections]
        return {each: self._description(each) for each in found if each.startswith(name)}

    def _description(self, collection: str) -> str:
        metadata = self._client.get_collection(collection).config.metadata or {}
        return json.dumps(metadata.get(_DESCRIPTION))

    def live(self, name: str) -> str | None:
        """See `Database`."""
        if name in (each.name for each in self._client.get_collections().collections):
            raise UsageError(f"{self.at} has a collection {name} already; choose another --collection")
        for alias in self._client.get_aliases().aliases:
            if alias.alias_name == name:
                if self._description(alias.collection_name) == "null":
                    raise UsageError(
                        f"{self.at} has an alias {name} of {alias.collection_name}, which imgindex did not "
                        "make; choose another --collection"
                    )
                return str(alias.collection_name)
        return None

    def create(self, collection: str, description: str, dims: int, metric: Metric, index: IndexKind) -> None:
        """See `Database`."""
        self._client.create_collection(
            collection,
            vectors_config=models.VectorParams(size=dims, distance=_DISTANCES[metric]),
            hnsw_config=models.HnswConfigDiff(**index.build),
            metadata={_DESCRIPTION: json.loads(description)},
        )
        if self._description(collection) == "null":
            self.drop(collection)
            raise OutputError(f"{self.at} keeps no metadata of collections; Qdrant does from version 1.16 on")

    def insert(self, collection: str, images: pa.Table, vectors: Vectors, *, again: bool) -> None:
        """See `Database`; a row that is there already is written over."""
        self._client.upsert(
            collection,
            models.Batch(
                ids=[_id(uri) for uri in images["uri"].to_pylist()],
                vectors=vectors.tolist(),
                payloads=images.select(_PAYLOAD).to_pylist(),
            ),
            wait=True,
        )

    def finish(self, collection: str, metric: Metric, index: IndexKind) -> None:
        """See `Database`. A server has begun by itself, when rows came."""
        started = time.monotonic()
        while not self._is_indexed(collection):
            if time.monotonic() - started > _INDEXING_SECONDS:
                logger.warning("%s is still being indexed; until then its searches are slower", collection)
                return
            time.sleep(_LOOK_SECONDS)

    def _is_indexed(self, collection: str) -> bool:
        status = self._client.get_collection(collection).status
        if status == models.CollectionStatus.RED:
            raise OutputError(f"{self.at} reports the collection {collection} as damaged")
        # Gray is one that waits until it is written to, as after a restart.
        return bool(status != models.CollectionStatus.YELLOW)

    def count(self, collection: str) -> int:
        """See `Database`."""
        return int(self._client.count(collection, exact=True).count)

    def fetch(self, collection: str, uris: Sequence[str]) -> list[Row]:
        """See `Database`."""
        ids = [_id(uri) for uri in uris]
        return [
            _row(each)
            for each in self._client.retrieve(collection, ids, with_payload=True, with_vectors=True)
        ]

    def search(
        self, collection: str, vectors: Vectors, k: int, metric: Metric, settings: Mapping[str, int] | None
    ) -> list[list[Row]]:
        """See `Database`."""
        parameters = None  # of the local mode, which always compares with every vector
        if self._is_server:
            parameters = models.SearchParams(**settings) if settings else models.SearchParams(exact=True)
        requests = [
            models.QueryRequest(query=vector, params=parameters, limit=k, with_payload=True, with_vector=True)
            for vector in vectors.tolist()
        ]
        answers = self._client.query_batch_points(collection, requests)
        return [[_row(point) for point in answer.points] for answer in answers]

    def switch(self, name: str, collection: str, before: str | None) -> None:
        """See `Database`."""
        created = models.CreateAlias(collection_name=collection, alias_name=name)
        steps: list[models.AliasOperations] = [models.CreateAliasOperation(create_alias=created)]
        if before is not None:
            steps.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)))
        self._client.update_collection_aliases(steps)

    def drop(self, collection: str) -> None:
        """See `Database`."""
        self._client.delete_collection(collection)

    def close(self) -> None:
        """See `Database`."""
        if self._held is not None:
            self._held.close()

    def told(self, error: Exception) -> Exception | None:
        """See `Database`."""
        if isinstance(error, UnexpectedResponse):
            status, reason = error.status_code or 0, error.reason_phrase or "an error"
            if status in (401, 403):
                return OutputError(
                    f"{self.at} refuses the credentials; set QDRANT_API_KEY to a key that may write"
                )
            if status in (408, 429) or status >= 500:
                return PassingError(f"is not ready: it says {status} {reason}; run it again")
            return OutputError(f"{self.at} refuses a request: {_detail(error)}")
        if isinstance(error, ResponseHandlingException):
            return no_answer(str(error.source) or type(error.source).__name__)
        if isinstance(error, httpx.HTTPError):
            return no_answer(str(error) or type(error).__name__)
        if isinstance(error, sqlite3.Error):
            return OutputError(f"{self.at} cannot be read or written: {error}")
        if isinstance(error, ApiException):
            return OutputError(f"{self.at} refuses a request: {error}")
        return error if isinstance(error, OutputError | UsageError) else None


def _id(uri: str) -> str:
    return str(uuid5(NAMESPACE, uri))


def _row(point: models.Record | models.ScoredPoint) -> Row:
    payload = point.payload or {}
    try:
        properties = {name: payload[name] for name in _PAYLOAD}
    except KeyError as error:
        raise OutputError(
            f"point {point.id} has no {error.args[0]}: something else than imgindex has written to the "
            "collection; push again"
        ) from error
    return Row(**properties, vector=np.array(point.vector, np.float32))


def _detail(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, LookupError, TypeError):
        return f"{error.status_code} {error.reason_phrase}"
