"""Reports as pages of HTML: complete, harmless whatever a model's names are, and working in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run

import onnxsep
from onnxsep.model.paths import is_page
from onnxsep.reporting.page import page
from onnxsep.rewriting.report import RewriteReport

DIGITS = Path(__file__).parents[1] / "models" / "digits" / "digits_cnn.onnx"
EVIL = "<script>alert(1)</script>"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian's package chromium)")
# What a reader would do, written where the test can read it.
ACTIONS = """
<script>
const table = document.querySelector("table"), rows = () => [...table.tBodies[0].rows].filter(row => !row.hidden);
const names = () => rows().map(row => row.cells[0].textContent.trim());
const titles = [...table.querySelectorAll("th")].map(head => head.textContent.trim());
const column = titles.indexOf("parameters"), head = table.querySelectorAll("th")[column];
const found = {titles, before: names(), wide: document.documentElement.scrollWidth, room: innerWidth};
head.querySelector("button").click(); found.up = names(); found.sorted = head.getAttribute("aria-sort");
head.querySelector("button").click(); found.down = names();
const field = document.querySelector("[data-filter]");
if (field) { field.value = "LAYER2"; field.dispatchEvent(new Event("input")); found.filtered = names(); }
found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
found.back = getComputedStyle(document.body).backgroundColor;
found.requests = performance.getEntriesByType("resource").map(entry => entry.name);
document.body.dataset.found = JSON.stringify(found);
</script>
"""


class Texts(HTMLParser):
    """The cells of all tables, and what the page would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.scripts = 0
        self.addresses: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = self._inside or tag == "td"
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.addresses += [name for name, _ in attrs if name.startswith("on")]
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def report() -> RewriteReport:
    return onnxsep.rewrite(DIGITS, mode="spatial").report


def test_page_holds_every_convolution_with_its_figures(report: RewriteReport) -> None:
    text = page(report)
    found = Texts(text)
    for conv in report.convs:
        assert conv.name in found.cells
        assert f"{conv.parameters_before:,}" in " ".join(found.cells)
    assert "spatial" in found.cells
    assert (found.scripts, found.addresses) == (1, [])
    assert "://" not in text


def test_names_of_a_strangers_file_are_text(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    for node in model.graph.node:
        node.name = node.name and f"{EVIL}{node.name}\" onload='x'"
    model.graph.name = EVIL
    text = page(onnxsep.rewrite(model, mode="spatial").report)
    found = Texts(text)
    assert (found.scripts, found.addresses) == (1, [])
    assert EVIL not in text
    assert any(EVIL in cell for cell in found.cells)


@pytest.mark.parametrize("way", ["report", "saved"])
def test_command_line_writes_pages_and_replaces_only_those(tmp_path: Path, way: str) -> None:
    words = ("rewrite", str(DIGITS), "out.onnx", "--mode", "spatial", "--quiet")
    again: tuple[str, ...]
    if way == "report":
        again = (*words, "--report", "r.html")
    else:
        assert run(*words, "--report", "r.json", cwd=tmp_path).returncode == 0
        again = ("report", "r.json", "--html", "r.html", "--quiet")
    for _ in range(2):
        assert run(*again, cwd=tmp_path).returncode == 0
        assert is_page(tmp_path / "r.html")
    (tmp_path / "r.html").write_text("<!doctype html>\n<p>a page of mine")
    done = run(*again, cwd=tmp_path)
    assert done.returncode == 1
    assert "report of onnxsep" in done.stderr
    assert (tmp_path / "r.html").read_text().endswith("mine")


def test_series_are_bars(tmp_path: Path) -> None:
    images = np.zeros((4, 1, 8, 8), np.float32)
    report = onnxsep.check(DIGITS, DIGITS, layers=True, data={"image": images})
    text = page(report)
    assert "relative error of each tensor" in text
    assert text.count('class="bar"') == len(re.findall(r'class="bar" style="width: \d+\.\d\d%"', text)) > 10


def in_browser(file: Path, width: int, dark: bool) -> tuple[dict[str, Any], str]:
    """What the actions found, and what the browser said."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
            *(f"--user-data-dir={file.parent / 'browser'}", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&")), done.stderr


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_page_sorts_filters_and_fits_in_a_browser(tmp_path: Path, shared: Path, width: int, dark: bool) -> None:
    report = onnxsep.rewrite(shared / "models" / "cifar10_resnet20_ts.onnx", mode="spatial", verify="none").report
    (tmp_path / "r.html").write_text(page(report).replace("</body>", ACTIONS + "</body>"))
    found, said = in_browser(tmp_path / "r.html", width, dark)
    assert "CONSOLE" not in said
    assert found["requests"] == []
    assert found["wide"] <= found["room"]
    names = [conv.name for conv in report.convs]
    sizes = {conv.name: conv.parameters_before or 0 for conv in report.convs}
    assert found["before"] == names
    assert found["sorted"] == "ascending"
    assert [sizes[name] for name in found["up"]] == sorted(sizes.values())
    assert [sizes[name] for name in found["down"]] == sorted(sizes.values(), reverse=True)
    assert sorted(found["filtered"]) == sorted(name for name in names if "layer2" in name)
    assert found["dark"] is dark
    assert (found["back"] == "rgb(255, 255, 255)") is not dark
