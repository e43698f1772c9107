"""The request and the answer of clip-retrieval's ``/knn-service``, for clients that speak them.

Its client and its page send JSON with one of `image` (base64) and `embedding_input`, `num_images` and
`modality`, and get a list of objects with `id` and `similarity`, and with what is known of an image.
Reference: clip_retrieval/clip_back.py (`KnnService`) and clip_client.py of clip-retrieval 2.45.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgindex.search.open_generation import Wanted
from imgindex.search.results import Result
from imgindex.serving.errors import RefusedError, bad_request
from imgindex.serving.requests import Queries, number
from imgindex.serving.settings import ServiceSettings

INDEX_NAME = "imgindex"

# What clip-retrieval answers without `num_images` is an error; its own default elsewhere is this.
_NUM_IMAGES = 100


@dataclass(frozen=True)
class KnnRequest:
    """What is searched for, an image or a vector, and how."""

    queries: Queries
    wanted: Wanted


def knn_request(content: Any, settings: ServiceSettings) -> KnnRequest:
    """Reads a request. Raises RefusedError."""
    if not isinstance(content, Mapping):
        raise bad_request("the JSON must be an object")
    if content.get("text"):
        raise RefusedError(
            422, "no_text", "this index has no text encoder; search by image or embedding_input"
        )
    if content.get("image_url"):
        raise RefusedError(422, "no_urls", "this service loads nothing from other servers; send the image")
    if content.get("modality", "image") != "image":
        raise bad_request(f"modality is {str(content['modality'])[:40]!r}; expected 'image'")
    name = content.get("indice_name")
    if name not in (None, INDEX_NAME):
        raise bad_request(f"indice_name is {str(name)[:40]!r}; /indices-list names what there is")
    most = min(_NUM_IMAGES, settings.max_k)
    k = number("num_images", content.get("num_images", most), settings.max_k)
    image, vector = content.get("image"), content.get("embedding_input")
    if (image is None) == (vector is None):
        raise bad_request("nothing to search for, or too much; expected one of image and embedding_input")
    if image is not None:
        try:
            image = base64.b64decode(image, validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise bad_request(f"image must be in base64: {error}") from error
    elif not isinstance(vector, list) or not all(type(value) in (int, float) for value in vector):
        raise bad_request("embedding_input must be a list of numbers")
    queries = Queries([("image", image)]) if image is not None else Queries(vectors=[vector])
    return KnnRequest(queries, Wanted(k, distinct=bool(content.get("deduplicate", False))))


def knn_answer(result: Result, first_items: list[int]) -> list[dict[str, Any]]:
    """The answer to a request. The id of an image is its number in the index: that of its shard's first
    image, by `first_items`, and its number in the shard.
    """
    return [
        {
            "image_path": neighbor.uri,
            "caption": neighbor.label,
            "sha256": neighbor.sha256,
            "width": neighbor.width,
            "height": neighbor.height,
            "id": first_items[neighbor.shard or 0] + (neighbor.item or 0),
            "similarity": neighbor.similarity,
        }
        for neighbor in result.neighbors
    ]
