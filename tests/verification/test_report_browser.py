"""The report in a real browser: it loads alone, without errors, and fits a desk and a phone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from tests.verification.report_fixture import synthetic_records
from verification import report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENS = {"desk": (1280, 800), "phone": (390, 844)}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = synthetic_records(sizes=(16,), probes=(1, 16))
    return report.write(records, tmp_path_factory.mktemp("report"))


@pytest.fixture(params=SCREENS)
def shown(request: pytest.FixtureRequest, driver: Any, index: Path) -> Any:
    """The page, freshly loaded on each screen."""
    width, height = SCREENS[request.param]
    size = {"width": width, "height": height, "deviceScaleFactor": 1}
    metrics = {**size, "mobile": request.param == "phone"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(index.as_uri())
    return driver


def overflow(driver: Any) -> int:
    """Pixels by which the page is wider than the screen."""
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return int(driver.execute_script(script))


def test_page_loads_without_console_errors_or_requests(shown: Any) -> None:
    assert shown.title.startswith("FAIL · ")
    assert shown.get_log("browser") == []
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert [name for name in shown.execute_script(script) if not name.startswith("data:")] == []


def test_every_image_is_drawn(shown: Any) -> None:
    script = """
        await Promise.all([...document.images].map(image => image.decode()));
        return [...document.images].map(image => [image.naturalWidth, image.clientWidth]);
    """
    sizes = shown.execute_script(f"return (async () => {{{script}}})()")
    assert len(sizes) > 10
    assert all(natural > 0 and visible > 0 for natural, visible in sizes)


def test_page_does_not_scroll_sideways_even_with_everything_open(shown: Any) -> None:
    assert overflow(shown) <= 0
    script = "document.querySelectorAll('details').forEach(e => { e.open = true })"
    shown.execute_script(script)
    assert overflow(shown) <= 0
    script = """
        return [...document.querySelectorAll('.scroll')].filter(e => e.clientWidth > innerWidth)
    """
    assert shown.execute_script(script) == []


def test_verdict_and_grid_are_on_the_first_screen(shown: Any) -> None:
    script = """
        const box = selector => document.querySelector(selector).getBoundingClientRect();
        return [box('.banner').bottom, box('.verdicts').top, box('.verdicts').bottom, innerHeight]
    """
    banner, top, bottom, height = shown.execute_script(script)
    assert banner < top < height / 2
    assert shown.execute_script("return innerWidth") < 500 or bottom < height


def test_worst_cell_leads_to_its_row_in_a_folded_table(shown: Any) -> None:
    link = shown.find_element("css selector", ".verdicts .worst a")
    target = link.get_attribute("href").rsplit("#", 1)[1]
    row = shown.find_element("id", target)
    assert not row.is_displayed()
    shown.execute_script("arguments[0].click()", link)
    assert row.is_displayed()


def test_screenshot_shows_a_page(shown: Any) -> None:
    pixels = image.imread(io.BytesIO(shown.get_screenshot_as_png()))
    width = shown.execute_script("return innerWidth")
    assert pixels.shape[1] == width
    colours = {tuple(colour) for colour in (pixels[::4, ::4, :3].reshape(-1, 3) * 255).round()}
    assert len(colours) > 30  # text, verdict colours and their blends; an empty page has one
