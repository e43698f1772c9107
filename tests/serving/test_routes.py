"""What the service shows of indexed images, of itself, and to whom."""

import io
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image
from relocated import relocate
from starlette.testclient import TestClient
from webpages import Page

from imgindex.errors import UsageError
from imgindex.serving.app import asgi_app
from imgindex.serving.routes import ROUTES
from imgindex.serving.settings import ServiceSettings

TOKEN = "a token of the tests"


class TestImages:
    def test_an_item_is_described(self, client: TestClient, folder: Path) -> None:
        found = client.get("/items/b/copy of 00.png").json()
        assert (found["uri"], found["label"]) == ("b/copy of 00.png", "b")
        assert found["size"] == (folder / "photos/b/copy of 00.png").stat().st_size
        assert (found["width"], found["height"]) == (20, 16)

    def test_a_thumbnail_is_a_small_jpeg_that_a_browser_keeps(self, client: TestClient) -> None:
        answer = client.get("/thumbnails/a/02.png")
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (20, 16)
        again = client.get("/thumbnails/a/02.png", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize("kind", ["items", "thumbnails"])
    @pytest.mark.parametrize(
        "uri",
        ["nowhere.png", "../photos/a/02.png", "a/%2e%2e/a/02.png", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd",
         "a%2f..%2fa%2f02.png", "a/02.png%00", "a/02.png%0a", "a", "a/", "file:///etc/passwd",
         "http://localhost/", "%ff"],
    )  # fmt: skip
    def test_only_indexed_uris_are_there(self, kind: str, uri: str, client: TestClient) -> None:
        answer = client.get(f"/{kind}/{uri}")
        assert answer.status_code == 404, answer.text

    def test_original_images_are_shown_only_where_that_is_wanted(
        self, client: TestClient, folder: Path
    ) -> None:
        assert client.get("/images/a/02.png").status_code == 403
        with TestClient(asgi_app(folder / "index", ServiceSettings(images=True))) as open_client:
            answer = open_client.get("/images/a/02.png")
        assert answer.headers["content-type"] == "image/png"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.content == (folder / "photos/a/02.png").read_bytes()

    def test_a_file_that_is_not_as_it_was_indexed_is_not_shown(self, folder: Path, tmp_path: Path) -> None:
        relocate(folder, tmp_path / "copy")
        photos = tmp_path / "copy/photos"
        secret = tmp_path / "secret.png"
        shutil.copy(photos / "b/03.png", secret)
        (photos / "a/02.png").unlink()
        (photos / "a/02.png").symlink_to(secret)
        (photos / "a/04.png").unlink()
        settings = ServiceSettings(images=True)
        with TestClient(asgi_app(tmp_path / "copy/index", settings)) as client:
            for kind in ("thumbnails", "images"):
                changed, gone = client.get(f"/{kind}/a/02.png"), client.get(f"/{kind}/a/04.png")
                assert (changed.status_code, changed.json()["error"]["reason"]) == (404, "changed")
                assert (gone.status_code, gone.json()["error"]["reason"]) == (404, "not_found")
                assert client.get(f"/{kind}/b/03.png").status_code == 200


class TestAboutItself:
    def test_info_tells_what_answers_and_what_is_allowed(self, client: TestClient) -> None:
        found = client.get("/info").json()
        assert (found["images"], found["dims"], found["labels"]) == (13, 6, ["a", "b"])
        assert found["limits"]["max_k"] == 1000
        assert not found["trouble"]

    def test_it_is_healthy_and_ready(self, client: TestClient) -> None:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json()["status"] == "ok"

    def test_metrics_count_requests_errors_stages_and_batches(self, client: TestClient, folder: Path) -> None:
        client.post("/search", files={"image": (folder / "photos/a/02.png").read_bytes()})
        client.post("/search", data={"uri": "nowhere"})
        lines = client.get("/metrics").text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert float(values['imgindex_requests_total{route="search",status="200"}']) >= 1
        assert float(values['imgindex_errors_total{reason="not_found",route="search"}']) >= 1
        for stage in ("decode", "embed", "search", "metadata"):
            assert float(values[f'imgindex_stage_seconds_count{{stage="{stage}"}}']) >= 1
        assert float(values["imgindex_batch_images_count"]) >= 1
        assert float(values["imgindex_images"]) == 13
        assert float(values["imgindex_generation_bytes"]) > 0
        assert float(values["imgindex_generation_seconds"]) > 0
        generation = client.get("/info").json()["generation"]
        assert float(values[f'imgindex_generation{{generation="{generation}"}}']) == 1

    def test_a_generation_without_a_report_has_none(self, client: TestClient) -> None:
        assert client.get("/report").status_code == 404
        assert not client.get("/info").json()["has_report"]

    def test_the_document_names_every_route_and_describes_the_answers(
        self, client: TestClient, folder: Path
    ) -> None:
        document = client.get("/openapi.json").json()
        described = {(method.upper(), path) for path, ways in document["paths"].items() for method in ways}
        served = {(method, path.replace(":uri", "")) for method, path, _ in ROUTES}
        assert served - described == {
            ("GET", "/"), ("GET", "/session"), ("POST", "/session"), ("GET", "/openapi.json")
        }  # fmt: skip
        assert not described - served

        def check(name: str, answer: Any) -> None:
            schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            jsonschema.validate(answer, schema)

        image = {"image": (folder / "photos/a/02.png").read_bytes()}
        check("Results", client.post("/search", files=image, params={"with_vectors": "1"}).json())
        check("Item", client.get("/items/a/02.png").json())
        check("Error", client.get("/items/nowhere").json())
        for entry in client.post("/knn-service", json={"embedding_input": [0.5] * 6}).json():
            check("KnnResult", entry)


class TestPage:
    def test_it_is_whole_and_accessible_and_loads_nothing_from_elsewhere(self, client: TestClient) -> None:
        answer = client.get("/")
        page = Page(answer.text)
        page.assert_accessible()
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        for tag, attributes in page.found:
            assert not any(name.startswith("on") or name == "style" for name in attributes), tag
            for name in ("src", "href"):
                target = attributes.get(name, "#")
                if not target.startswith(("#", "?")):
                    assert client.get(f"/{target}").status_code == 200, target
        for name in ("page.js", "duplicates.js", "common.js"):
            script = client.get(f"/static/{name}")
            assert script.headers["content-type"].startswith("text/javascript")
            assert "http" not in script.text
            assert "innerHTML" not in script.text

    def test_static_files_are_those_of_the_page_alone(self, client: TestClient) -> None:
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/static/nothing.js"):
            assert client.get(path).status_code == 404, path


class TestHeaders:
    @pytest.mark.parametrize("path", ["/", "/info", "/thumbnails/a/02.png", "/nothing", "/static/page.css"])
    def test_a_browser_is_told_what_it_may_do(self, path: str, client: TestClient) -> None:
        headers = client.get(path, headers={"origin": "https://elsewhere.example"}).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not any(name.startswith("access-control-") for name in headers)


class TestToken:
    @pytest.fixture
    def guarded(self, folder: Path) -> Any:
        with TestClient(asgi_app(folder / "index", ServiceSettings(token=TOKEN))) as client:
            yield client

    def test_nothing_of_the_index_is_shown_without_it(self, guarded: TestClient) -> None:
        for method, path, _ in ROUTES:
            answer = guarded.request(method, path.replace("{uri:uri}", "a/02.png"))
            is_open = path in ("/", "/healthz", "/session", "/openapi.json", "/readyz")
            assert (answer.status_code == 401) == (not is_open or (method, path) == ("POST", "/session")), (
                path
            )
        wrong = guarded.get("/info", headers={"authorization": "Bearer a token of others"})
        assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")

    def test_whoever_shows_it_is_answered(self, guarded: TestClient) -> None:
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert guarded.get("/info", headers=headers).status_code == 200
        assert guarded.get("/openapi.json").json()["security"] == [{"token": []}]

    def test_a_browser_gets_a_cookie_for_it(self, guarded: TestClient) -> None:
        assert guarded.get("/session").json() == {"wanted": True, "shown": False}
        answer = guarded.post("/session", headers={"authorization": f"Bearer {TOKEN}"})
        cookie = answer.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert guarded.get("/thumbnails/a/02.png").status_code == 200
        guarded.cookies.clear()
        assert guarded.get("/thumbnails/a/02.png").status_code == 401

    def test_a_short_one_is_refused(self) -> None:
        with pytest.raises(UsageError, match="at least 16"):
            ServiceSettings(token="short")

    @pytest.mark.parametrize("token", ["0123456789abcdef\n", " 0123456789abcdef", "01234567\r\n89abcdef"])
    def test_one_that_no_request_can_send_is_refused(self, token: str) -> None:
        with pytest.raises(UsageError, match="no request can send"):
            ServiceSettings(token=token)

    def test_a_limit_must_be_positive(self) -> None:
        with pytest.raises(UsageError, match="max_k is 0"):
            ServiceSettings(max_k=0)
