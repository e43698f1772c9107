"""A server of Milvus, or Milvus Lite, seen by its own client."""

import numpy as np
import numpy.typing as npt
from push_contract import Rows

from imgindex.models.ann.protocol import Metric


class MilvusTarget:
    to = "milvus"

    def __init__(self, uri: str) -> None:
        from pymilvus import MilvusClient

        self.uri = uri
        self.client = MilvusClient(uri)

    def rows(self, name: str) -> Rows:
        count = self.client.query(name, output_fields=["count(*)"])[0]["count(*)"]
        found = self.client.query(
            name, filter="width >= 0", output_fields=["uri", "label", "sha256", "width", "height", "vector"],
            limit=10_000,
        )  # fmt: skip
        assert len(found) == count
        keys = ("label", "sha256", "width", "height")
        return {row["uri"]: (*(row[key] for key in keys), list(map(float, row["vector"]))) for row in found}

    def nearest(self, name: str, vector: npt.NDArray[np.float32], k: int, metric: Metric) -> list[str]:
        found = self.client.search(
            name, data=[vector.tolist()], limit=k, search_params={"params": {"ef": 256}}
        )
        return [hit["uri"] for hit in found[0]]

    def index_kind(self, name: str) -> str:
        return str(self.client.describe_index(name, "vector")["index_type"])

    def collections(self) -> set[str]:
        return set(self.client.list_collections())

    def leads_to(self, name: str) -> str | None:
        if name not in self.client.list_aliases()["aliases"]:
            return None
        return str(self.client.describe_alias(name)["collection_name"])

    def make(self, name: str) -> None:
        self.client.create_collection(name, dimension=2)

    def alias(self, name: str, leads_to: str) -> None:
        self.client.create_alias(leads_to, name)
