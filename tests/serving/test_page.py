"""The page in a browser: what people do on it, with a keyboard too, and while the index changes."""

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served_index import build
from serving_process import Serving, serving

from imgindex.generations.layout import Output, make_current

webdriver = pytest.importorskip("selenium.webdriver")
waits = pytest.importorskip("selenium.webdriver.support.wait")
keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not BROWSER or not DRIVER, reason="needs chromium and its driver"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """A folder with ``photos``, one with a name that is markup, and an ``index`` of two generations."""
    site = tmp_path_factory.mktemp("site")
    for number in range(12):
        path = site / "photos" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
    shutil.copy(site / "photos/a/04.png", site / "photos/a/<img src=x onerror=alert(1)>.png")
    first = build(site)
    (site / "photos/a/new.png").write_bytes(image_bytes(2))
    build(site)
    make_current(Output(str(site / "index")), first)
    return site


@pytest.fixture(scope="module")
def service(site: Path) -> Iterator[Serving]:
    with serving(site / "index") as found:
        yield found


class Browser:
    """A browser on the page of a service."""

    def __init__(self, service: Serving, ready: str = "document.querySelector('#facts').textContent") -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.get(service.url)
        self.wait(ready)

    def script(self, code: str) -> Any:
        return self.driver.execute_script(f"return {code}")

    def wait(self, code: str) -> Any:
        """Waits until an expression is true; gives its value."""
        return waits.WebDriverWait(self.driver, 60, 0.05).until(lambda _: self.script(code))

    def element(self, identity: str) -> Any:
        return self.driver.find_element("id", identity)

    def upload(self, path: Path) -> None:
        self.element("status")
        self.script("document.querySelector('#status').textContent = ''")
        self.element("file").send_keys(str(path))
        self.wait("document.querySelector('#status').textContent.includes('neighbor') "
                  "|| !document.querySelector('#problem').hidden")  # fmt: skip

    def neighbors(self) -> list[str]:
        self.wait("!document.querySelector('#results[aria-busy]')")
        return list(self.script("[...document.querySelectorAll('#results a')].map((link) => link.title)"))


@pytest.fixture
def browser(service: Serving) -> Iterator[Browser]:
    browser = Browser(service)
    yield browser
    # Nothing may be refused by the page's own policy, nor fail in its script.
    severe = [entry for entry in browser.driver.get_log("browser") if entry["source"] != "network"]
    browser.driver.quit()
    assert not [entry for entry in severe if entry["level"] == "SEVERE"]


def test_a_picture_shows_its_neighbors_and_a_click_searches_by_one(browser: Browser, site: Path) -> None:
    browser.upload(site / "photos/a/02.png")
    found = browser.neighbors()
    assert found[0] == "a/02.png"
    assert len(found) == 13
    first = browser.driver.find_element("css selector", "#results a")
    assert "similarity 1.000" in first.get_attribute("aria-label")
    browser.wait("document.querySelector('#results img').naturalWidth === 20")
    browser.driver.find_elements("css selector", "#results a")[1].click()
    browser.wait(f"location.search.includes(encodeURIComponent({found[1]!r}))")
    browser.wait(f"![...document.querySelectorAll('#results a')].some((link) => link.title === {found[1]!r})")
    browser.driver.back()
    browser.wait("document.querySelector('#results a')?.title === 'a/02.png'")
    browser.driver.back()
    browser.wait("!document.querySelector('#empty').hidden")


def test_a_label_filters_and_the_link_says_so(browser: Browser, site: Path, service: Serving) -> None:
    browser.upload(site / "photos/a/02.png")
    browser.element("label").send_keys("b")
    browser.wait("document.querySelectorAll('#results a').length === 6")
    assert {uri[0] for uri in browser.neighbors()} == {"b"}
    assert "label=b" in browser.driver.current_url
    browser.driver.get(service.url + "?uri=b%2F03.png&label=a&k=2")
    browser.wait("document.querySelectorAll('#results a').length === 2")
    assert {uri[0] for uri in browser.neighbors()} == {"a"}
    assert browser.element("k").get_attribute("value") == "2"


def test_a_link_to_a_picture_of_ones_own_finds_the_same(
    browser: Browser, site: Path, service: Serving
) -> None:
    browser.upload(site / "photos/b/05.png")
    found = browser.neighbors()
    origin = {
        "origin": service.url.rstrip("/"),
        "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"],
    }
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", origin)
    browser.element("share").click()
    browser.wait("document.querySelector('#status').textContent === 'The link is copied.'")
    link = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    browser.driver.get(link)
    browser.wait("document.querySelectorAll('#results a').length === 13")
    assert browser.neighbors() == found
    browser.driver.get(link.replace("basis=", "basis=0"))
    browser.wait("document.querySelector('#problem').textContent.includes('has changed since')")
    basis = browser.script("new URLSearchParams(location.search).get('basis')").removeprefix("0")
    for cut in ("AAAA", "AADAfw", "!"):  # no whole number; not a number; no base64
        browser.driver.get(f"{service.url}?vector={cut}&basis={basis}")
        browser.wait("document.querySelector('#problem').textContent.includes('cannot be read')")


def test_the_page_asks_for_the_token_until_it_is_right(site: Path) -> None:
    token = "a token of 24 characters"
    with serving(site / "index", env={**os.environ, "IMGINDEX_TOKEN": token}) as guarded:
        browser = Browser(guarded, ready="document.querySelector('#token-dialog').open")
        try:
            for given in ("wrong", "\u043f\u0430\u0440\u043e\u043b\u044c"):  # the second no header can hold
                browser.script("document.querySelector('#token-problem').textContent = ''")
                browser.element("token").clear()
                browser.element("token").send_keys(given + keys.ENTER)
                browser.wait("document.querySelector('#token-problem').textContent.includes('not the token')")
            browser.element("token").clear()
            browser.element("token").send_keys(token + keys.ENTER)
            browser.wait("document.querySelector('#facts').textContent")
            assert not browser.script("document.querySelector('#token-dialog').open")
            guarded.process.kill()
            guarded.process.wait()
            browser.script("document.querySelector('#token-dialog').showModal()")
            browser.element("token").send_keys(keys.ENTER)
            browser.wait("document.querySelector('#token-problem').textContent.includes('cannot be reached')")
        finally:
            browser.driver.quit()


def test_what_is_no_picture_is_told(browser: Browser, site: Path) -> None:
    path = site / "text.png"
    path.write_text("no picture")
    browser.upload(path)
    problem = browser.element("problem")
    assert problem.get_attribute("role") == "alert"
    assert "no image format" in problem.text
    browser.upload(site / "photos/a/02.png")
    assert not problem.is_displayed()
    assert browser.neighbors()


def test_names_are_text_whatever_they_are(browser: Browser, service: Serving) -> None:
    browser.driver.get(service.url + "?uri=a%2F04.png")
    browser.wait("document.querySelectorAll('#results a').length > 3")
    browser.driver.get(service.url + "?uri=a%2F%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E.png")
    browser.wait("document.querySelectorAll('#results a').length > 3")
    assert browser.element("query-name").text == "a/<img src=x onerror=alert(1)>.png"
    browser.wait("document.querySelector('#shown img').naturalWidth === 20")


def test_the_keyboard_is_enough(browser: Browser, site: Path) -> None:
    browser.upload(site / "photos/a/02.png")
    second = browser.driver.find_elements("css selector", "#results a")[1]
    title = second.get_attribute("title")
    for _ in range(30):
        active = browser.driver.switch_to.active_element
        if active.get_attribute("title") == title:
            break
        webdriver.ActionChains(browser.driver).send_keys(keys.TAB).perform()
    webdriver.ActionChains(browser.driver).send_keys(keys.ENTER).perform()
    browser.wait(f"document.querySelector('#query-name').textContent === {title!r}")


def test_a_pasted_picture_is_searched_by(browser: Browser, site: Path) -> None:
    encoded = base64.b64encode((site / "photos/b/03.png").read_bytes()).decode()
    browser.driver.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (each) => each.charCodeAt(0));
        for (const kind of ["paste", "drop"]) {
          const data = new DataTransfer();
          data.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
          const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data })
            : new DragEvent(kind, { dataTransfer: data, cancelable: true });
          dispatchEvent(event);
        }
        """,
        encoded,
    )
    browser.wait("document.querySelector('#results a')?.title === 'b/03.png'")


def test_another_generation_takes_over_in_the_middle(browser: Browser, site: Path) -> None:
    output = Output(str(site / "index"))
    first, second = sorted(path.name for path in (site / "index/generations").iterdir())
    browser.upload(site / "photos/a/02.png")
    assert "a/new.png" not in browser.neighbors()
    try:
        make_current(output, second)
        browser.wait(
            f"fetch('readyz').then((answer) => answer.json()).then((it) => it.generation === {second!r})"
        )
        browser.upload(site / "photos/a/02.png")
        assert "a/new.png" in browser.neighbors()
        browser.wait(f"document.querySelector('#facts').textContent.includes({second!r})")
    finally:
        make_current(output, first)


def test_a_tab_shows_duplicates_and_a_click_searches_by_one(browser: Browser, service: Serving) -> None:
    browser.element("tab-duplicates").click()
    browser.wait("document.querySelectorAll('#groups > li').length > 0")
    assert "view=duplicates" in browser.driver.current_url
    browser.driver.get(service.url + "?view=duplicates&threshold=1")
    browser.wait("document.querySelectorAll('#groups > li').length === 1")
    first = browser.driver.find_element("css selector", "#groups a")
    assert first.get_attribute("title") == "a/04.png"
    assert "Keep: shortest path" in first.text
    browser.driver.get(service.url + "?view=duplicates&threshold=1&across=labels")
    browser.wait("document.querySelector('#groups-status').textContent.startsWith('No duplicates')")
    assert browser.element("across").get_attribute("value") == "labels"
    browser.driver.back()
    browser.wait("document.querySelectorAll('#groups a').length > 0")
    browser.driver.find_elements("css selector", "#groups a")[1].click()
    browser.wait("document.querySelectorAll('#results a').length > 3")
    browser.driver.back()
    browser.wait("document.querySelectorAll('#groups a').length > 0")


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1600, 900)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_phones_and_wide_screens(
    width: int, height: int, theme: str, browser: Browser, site: Path
) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.upload(site / "photos/a/02.png")
    assert browser.script("document.documentElement.scrollWidth <= innerWidth")
    background = browser.script("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 26)") == (theme == "dark")
    for link in browser.driver.find_elements("css selector", "#results a, .button, nav a"):
        if link.is_displayed():
            assert link.size["height"] >= 40
