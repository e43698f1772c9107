"""Searching over HTTP: by images, uris and vectors; the same answers as from Python."""

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from starlette.testclient import TestClient

import imgindex


def photo(folder: Path, name: str) -> bytes:
    return (folder / "photos" / name).read_bytes()


def upload(data: bytes, name: str = "query.png") -> dict[str, Any]:
    return {"files": {"image": (name, data)}}


def uris(answer: Any) -> list[str]:
    return [neighbor["uri"] for neighbor in answer.json()["results"][0]["neighbors"]]


def _png_of(width: int, height: int) -> bytes:
    """The head of a PNG that promises so many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (head, body)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture(scope="module")
def index(folder: Path) -> imgindex.Index:
    return imgindex.Index.open(folder / "index")


class TestQueries:
    def test_an_image_is_answered_as_from_python(
        self, client: TestClient, folder: Path, index: imgindex.Index
    ) -> None:
        data = photo(folder, "b/03.png")
        answer = client.post("/search", **upload(data, "mine.png"), params={"k": 4})
        assert answer.status_code == 200
        (result,) = answer.json()["results"]
        (expected,) = index.search(data, 4)
        assert [each["uri"] for each in result["neighbors"]] == [each.uri for each in expected.neighbors]
        np.testing.assert_allclose(
            [each["similarity"] for each in result["neighbors"]],
            [each.similarity for each in expected.neighbors], atol=1e-5,
        )  # fmt: skip
        assert (result["query"], result["known"], result["error"]) == ("mine.png", "b/03.png", None)

    def test_every_answer_says_which_generation_gave_it(
        self, client: TestClient, index: imgindex.Index
    ) -> None:
        answer = client.post("/search", data={"uri": "a/02.png"})
        assert answer.json()["generation"] == index.facts.generation
        assert answer.headers["imgindex-generation"] == index.facts.generation

    def test_an_indexed_image_is_named_by_its_uri(self, client: TestClient, index: imgindex.Index) -> None:
        answer = client.post("/search", data={"uri": "a/02.png", "k": "3", "exclude_self": "true"})
        (expected,) = index.search(index.image_path("a/02.png"), 3, exclude_self=True)
        assert uris(answer) == [each.uri for each in expected.neighbors]
        assert "a/02.png" not in uris(answer)

    def test_vectors_come_as_json_or_in_a_field(self, client: TestClient, index: imgindex.Index) -> None:
        vectors = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
        expected = index.search_vectors(vectors, 2, exact=True)
        sent = {"vectors": vectors.tolist(), "k": 2, "exact": True}
        found = client.post("/search", json=sent).json()["results"]
        for one, other in zip(found, expected, strict=True):
            assert [each["uri"] for each in one["neighbors"]] == [each.uri for each in other.neighbors]
            distances = [each["distance"] for each in one["neighbors"]]
            assert distances == pytest.approx([each.distance for each in other.neighbors], rel=1e-6)
        form = {"vectors": json.dumps(vectors.tolist()), "k": "2", "exact": "1"}
        assert client.post("/search", data=form).json()["results"] == found

    def test_many_vectors_are_answered_as_each_of_them_alone(self, client: TestClient) -> None:
        vectors = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32).tolist()
        found = client.post("/search", json={"vectors": vectors, "k": 3}).json()["results"]
        for result, vector in zip(found, vectors, strict=True):
            (alone,) = client.post("/search", json={"vectors": [vector], "k": 3}).json()["results"]
            assert result["neighbors"] == alone["neighbors"]

    def test_several_images_are_answered_in_their_order_and_a_bad_one_does_not_stop_the_others(
        self, client: TestClient, folder: Path
    ) -> None:
        files = [
            ("image", ("first", photo(folder, "a/04.png"))),
            ("image", ("bad", b"no image")),
            ("image", ("last", photo(folder, "b/05.png"))),
        ]
        first, bad, last = client.post("/search", files=files, params={"k": 1}).json()["results"]
        assert (first["query"], first["neighbors"][0]["uri"]) == ("first", "a/04.png")
        assert (last["query"], last["neighbors"][0]["uri"]) == ("last", "b/05.png")
        assert (bad["neighbors"], bad["error"]["reason"]) == ([], "not_an_image")

    def test_an_unknown_uri_does_not_stop_the_others(self, client: TestClient) -> None:
        uris = ["a/04.png", "nowhere.png", "b/05.png"]
        answer = client.post("/search", json={"uri": uris, "k": 1, "exclude_self": True})
        first, unknown, last = answer.json()["results"]
        assert [len(result["neighbors"]) for result in (first, unknown, last)] == [1, 0, 1]
        assert unknown["query"] == "nowhere.png"
        assert unknown["error"] == {
            "stage": "list", "reason": "not_found", "message": "no indexed image has this uri"
        }  # fmt: skip

    def test_filters_copies_and_vectors_are_those_of_a_search(
        self, client: TestClient, index: imgindex.Index
    ) -> None:
        sent = {"uri": "a/00.png", "where": ["label=b", "uri^=b/"], "k": 20, "with_vectors": True}
        answer = client.post("/search", json=sent)
        assert sorted(uris(answer)) == sorted(
            ["b/copy of 00.png", *(f"b/{n:02}.png" for n in range(1, 12, 2))]
        )
        (result,) = answer.json()["results"]
        assert len(result["vector"]) == len(result["neighbors"][0]["vector"]) == index.facts.dims
        distinct = client.post("/search", data={"uri": "a/00.png", "k": "20", "distinct": "true"})
        assert len(uris(distinct)) == 12

    def test_a_query_string_serves_as_well_as_a_form(self, client: TestClient) -> None:
        in_query = client.post("/search?uri=a/02.png&k=2&where=label%3Da")
        in_form = client.post("/search", data={"uri": "a/02.png", "k": "2", "where": "label=a"})
        assert in_query.json() == in_form.json()
        assert len(uris(in_query)) == 2


class TestCombined:
    """Several queries as one, as `Index.search_combined` makes it."""

    def check(self, answer: Any, expected: imgindex.Result) -> None:
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        found = [(each["uri"], each["similarity"]) for each in result["neighbors"]]
        assert [uri for uri, _ in found] == [each.uri for each in expected.neighbors]
        np.testing.assert_allclose(
            [similarity for _, similarity in found],
            [each.similarity for each in expected.neighbors],
            atol=1e-5,
        )

    def test_images_together(self, client: TestClient, folder: Path, index: imgindex.Index) -> None:
        names = ["a/02.png", "b/03.png", "b/07.png"]
        files = [("image", (name, photo(folder, name))) for name in names]
        answer = client.post("/search", files=files, data={"combine": "true", "k": "5"})
        self.check(answer, index.search_combined([photo(folder, name) for name in names], k=5))
        assert answer.json()["results"][0]["query"] == "a/02.png, b/03.png, b/07.png"

    def test_like_this_and_not_like_that(
        self, client: TestClient, folder: Path, index: imgindex.Index
    ) -> None:
        files = {"image": photo(folder, "a/02.png"), "negative": photo(folder, "b/03.png")}
        answer = client.post("/search", files=files, params={"k": 13, "exclude_self": "1", "exact": "1"})
        expected = index.search_combined(files["image"], files["negative"], 13, exclude_self=True, exact=True)
        self.check(answer, expected)
        assert {"a/02.png", "b/03.png"}.isdisjoint(uris(answer))
        by_uri = {
            "uri": "a/02.png",
            "negative_uri": ["b/03.png"],
            "k": 13,
            "exclude_self": True,
            "exact": True,
        }
        assert uris(client.post("/search", json=by_uri)) == uris(answer)

    def test_all_kinds_of_queries_in_one(
        self, client: TestClient, folder: Path, index: imgindex.Index
    ) -> None:
        vectors = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
        data = photo(folder, "b/05.png")
        form = {
            "uri": "a/04.png", "vectors": json.dumps(vectors[:2].tolist()), "combine": "true",
            "negative_vectors": json.dumps(vectors[2].tolist()), "with_vectors": "true", "where": "label=a",
        }  # fmt: skip
        answer = client.post("/search", files={"image": ("mine", data)}, data=form)
        expected = index.search_combined(
            [data, index.image_path("a/04.png"), *vectors[:2]], [vectors[2]], where="label=a", vectors=True
        )
        self.check(answer, expected)
        (result,) = answer.json()["results"]
        assert result["query"] == "mine, a/04.png, vector 0 and 1 more; not vector 0"
        np.testing.assert_allclose(result["vector"], expected.vector, atol=1e-5)

    def test_a_bad_image_leaves_the_whole_query_without_an_answer(
        self, client: TestClient, folder: Path
    ) -> None:
        files = {"image": photo(folder, "a/02.png"), "negative": ("bad.png", b"no image")}
        answer = client.post("/search", files=files)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (422, "not_an_image")
        assert "bad.png" in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("sent", "status", "told"),
        [
            ({"negative_uri": "a/00.png"}, 400, "nothing to search for"),
            ({"uri": "a/00.png", "negative_uri": "nowhere"}, 404, "no indexed image"),
            ({"uri": "a/00.png", "negative_vectors": [[1, 2]]}, 400, "lists of 6 numbers"),
            (
                {"vectors": [[1, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0]], "combine": True},
                400,
                "cancel each other",
            ),
            ({"uri": ["a/00.png"] * 9, "negative_uri": ["a/02.png"] * 8}, 413, "at most 16"),
            ({"uri": "a/00.png", "negative_vectors": [[0] * 6], "exclude_self": True}, 400, "does not tell"),
        ],
    )
    def test_what_makes_no_query_is_refused(
        self, sent: Any, status: int, told: str, client: TestClient
    ) -> None:
        answer = client.post("/search", json=sent)
        assert answer.status_code == status, answer.text
        assert told in answer.json()["error"]["message"]


class TestBadRequests:
    @pytest.mark.parametrize(
        ("sent", "status", "told"),
        [
            ({}, 400, "nothing to search for; expected one of 'image', 'uri' and 'vectors'"),
            ({"uri": "a/00.png", "vectors": [[0] * 6]}, 400, "several kinds; expected one of"),
            ({"uri": "nowhere.png"}, 404, "no indexed image has this uri"),
            ({"uri": "\ud800"}, 400, "the JSON cannot be read"),
            ({"uri": 7}, 400, "must be text"),
            ({"uri": "a/00.png", "k": 0}, 400, "expected a whole number from 1 to 1000"),
            ({"uri": "a/00.png", "k": 1001}, 400, "expected a whole number from 1 to 1000"),
            ({"uri": "a/00.png", "k": True}, 400, "expected a whole number"),
            ({"uri": "a/00.png", "k": "\uff11"}, 400, "expected a whole number"),
            ({"uri": "a/00.png", "exact": "maybe"}, 400, "expected true or false"),
            ({"uri": "a/00.png", "where": "lable=a"}, 400, "did you mean label?"),
            ({"uri": "a/00.png", "color": "red"}, 400, "unknown field 'color'"),
            ({"vectors": []}, 400, "list of lists of numbers"),
            ({"vectors": [["a"] * 6]}, 400, "list of lists of numbers"),
            ({"vectors": [[1, 2]]}, 400, "lists of 6 numbers"),
            ({"vectors": [[1, 2], [1]]}, 400, "lists of 6 numbers"),
            ({"vectors": [[1e300] * 6]}, 400, "finite"),
            ({"vectors": [[10**400] * 6]}, 400, "lists of 6 numbers"),
            ({"vectors": [[0.5] * 6], "exclude_self": True}, 400, "a vector does not tell"),
            ({"vectors": [[0.5] * 6] * 257}, 413, "at most 256"),
            ({"vectors": [[0.5] * 6] * 100, "k": 101}, 413, "at most 10000 neighbors"),
            ({"vectors": [[0.5] * 6] * 200, "k": 1000, "with_vectors": True}, 413, "at most"),
            ({"uri": ["a/00.png"] * 17}, 413, "at most 16"),
            ({"uri": ["a/00.png", "a" * 20_000]}, 413, "'uri' holds more than 16384 characters"),
            ({"uri": "a/00.png", "negative_uri": "a" * 20_000}, 413, "'negative_uri' holds more than"),
            ({"uri": "a/00.png", "where": "uri^=" + "a" * 10_000_000}, 413, "'where' holds more than"),
            ({"uri": "a/00.png", "where": ["label=a"] * 1001}, 413, "more than 1000 values"),
            ({"uri": "a/00.png", "where": "uri^=" + "a," * 1000}, 413, "more than 1000 values"),
        ],
    )  # fmt: skip
    def test_json_is_refused_by_what_is_wrong_with_it(
        self, sent: Any, status: int, told: str, client: TestClient
    ) -> None:
        headers = {"content-type": "application/json"}
        answer = client.post("/search", content=json.dumps(sent), headers=headers)
        assert answer.status_code == status, answer.text
        assert told in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("kind", "content", "status"),
        [
            ("application/json", b"{", 400),
            ("application/json", b"[" * 1500, 400),
            ("application/json", b"[" * 100_000, 413),
            ("application/json", b"[1]", 400),
            ("application/json", b'"\xff"', 400),
            ("multipart/form-data", b"", 400),
            ("multipart/form-data; boundary=x", b"--x\r\nnothing", 400),
            ("text/plain", b"hello", 415),
        ],
    )
    def test_a_body_that_cannot_be_read_is_a_bad_request(
        self, kind: str, content: bytes, status: int, client: TestClient
    ) -> None:
        answer = client.post("/search", content=content, headers={"content-type": kind})
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b"<svg onload='x()'/>", "not_an_image"),
            (_png_of(20_000, 20_000), "too_many_pixels"),
        ],
    )
    def test_an_image_that_cannot_be_decoded_is_told_with_its_reason(
        self, data: bytes, reason: str, client: TestClient
    ) -> None:
        answer = client.post("/search", **upload(data))
        assert answer.status_code == 422
        assert answer.json()["error"]["reason"] == reason

    def test_a_file_in_another_field_is_refused(self, client: TestClient) -> None:
        answer = client.post("/search", files={"picture": ("x", b"x")})
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "bad_request")
        assert client.post("/search", data={"image": "x"}).status_code == 400

    @pytest.mark.parametrize(
        ("field", "told"),
        [("where", "is no condition"), ("x" * 50_000, "unknown field"), ("k", "whole number")],
    )
    def test_what_was_sent_is_not_repeated_at_length(self, field: str, told: str, client: TestClient) -> None:
        answer = client.post("/search", json={"uri": "a/00.png", field: "é" * 10_000})
        assert answer.status_code == 400
        assert told in answer.json()["error"]["message"]
        assert len(answer.content) < 4000

    def test_no_path_leads_to_another_by_what_the_request_says_of_itself(self, client: TestClient) -> None:
        for path in ("/search/", "/info/", "/static"):
            answer = client.get(path, headers={"host": "elsewhere.example"}, follow_redirects=False)
            assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "not_found"), path

    def test_paths_and_methods_that_are_not_there(self, client: TestClient) -> None:
        assert client.get("/nothing").json()["error"]["reason"] == "not_found"
        wrong = client.put("/search")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert wrong.json()["error"]["message"] == "PUT is not for this path; expected POST"


class TestClipRetrieval:
    """What the client of clip-retrieval sends and reads; see its clip_client.py."""

    REQUEST: ClassVar[dict[str, Any]] = {
        "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": True,
        "use_safety_model": True, "use_violence_detector": True, "indice_name": "imgindex",
        "use_mclip": False, "aesthetic_score": 9, "aesthetic_weight": 0.5, "modality": "image",
        "num_images": 3, "num_result_ids": 3,
    }  # fmt: skip

    def test_an_image_in_base64(self, client: TestClient, folder: Path, index: imgindex.Index) -> None:
        image = base64.b64encode(photo(folder, "b/07.png")).decode()
        found = client.post("/knn-service", content=json.dumps({**self.REQUEST, "image": image})).json()
        assert found[0]["image_path"] == "b/07.png"
        assert len(found) == 3
        assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
        assert {entry["id"] for entry in found} <= set(range(len(index)))

    def test_a_vector(self, client: TestClient, index: imgindex.Index) -> None:
        vector = [0.5, 0, 0, 0, 0.1, 0]
        found = client.post("/knn-service", json={**self.REQUEST, "embedding_input": vector}).json()
        (expected,) = index.search_vectors([vector], 3, distinct=True)
        assert [entry["image_path"] for entry in found] == [each.uri for each in expected.neighbors]

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({"text": "a cat"}, 422),
            ({"image_url": "http://169.254.169.254/"}, 422),
            ({"image": "no base64!"}, 400),
            ({"image": 7}, 400),
            ({"embedding_input": ["x"]}, 400),
            ({}, 400),
            ({"embedding_input": [0.5] * 6, "modality": "text"}, 400),
            ({"embedding_input": [0.5] * 6, "indice_name": "laion5B"}, 400),
            ({"embedding_input": [0.5] * 6, "num_images": 10**9}, 400),
        ],
    )
    def test_what_it_cannot_have_is_refused(self, change: Any, status: int, client: TestClient) -> None:
        assert client.post("/knn-service", json={**self.REQUEST, **change}).status_code == status

    def test_its_list_of_indices(self, client: TestClient) -> None:
        assert client.get("/indices-list").json() == ["imgindex"]
