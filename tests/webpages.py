"""What tests ask of a page: that it is whole, accessible, and refers to nothing outside."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "wbr", "br", "link", "input"}


class Page(HTMLParser):
    """A page's elements and its text. Raises AssertionError where tags do not pair up."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.markup = markup
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]

    def headings(self) -> list[str]:
        return re.findall(r"<h2>(.*?)</h2>", self.markup)

    def assert_self_contained(self) -> None:
        for tag in ("script", "link", "iframe", "object", "base", "form"):
            assert not self.named(tag)
        for tag, attributes in self.found:
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
            for name in ("src", "href"):
                assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
        (policy,) = (meta["content"] for meta in self.named("meta") if "http-equiv" in meta)
        assert policy.startswith("default-src 'none'")
        styles = "".join(re.findall(r"<style>(.*?)</style>", self.markup, re.DOTALL))
        assert not re.search(r"@import|url\(", styles)
        assert not re.search(r"url\((?!#)", self.markup)

    def assert_accessible(self) -> None:
        assert [attributes.get("lang") for attributes in self.named("html")] == ["en"]
        assert len(self.named("h1")) == 1
        assert all("alt" in image for image in self.named("img"))
        assert all(cell["scope"] in ("col", "row") for cell in self.named("th"))
        for svg in self.named("svg"):
            assert svg.get("aria-label") if svg.get("role") == "img" else svg["aria-hidden"] == "true"
        ids = [attributes["id"] for _, attributes in self.found if "id" in attributes]
        assert len(ids) == len(set(ids))
