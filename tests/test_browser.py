"""The site and JupyterLab in a real browser; skipped where there is no Chromium.

What was seen is left in build/screenshots.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOTS = ROOT / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.slow
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here: none of {', '.join(NAMES)}")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def written(script, folder):
    """The folder that a script writes."""
    command = [sys.executable, ROOT / "scripts" / script, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return written("site.py", tmp_path_factory.mktemp("out") / "site")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return written("slides.py", tmp_path_factory.mktemp("out") / "slides")


class Links(HTMLParser):
    """The targets, anchors and pictures of a page."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors, self.pictures, self.loaded = [], set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given.get("id"), given.get("name")}
        if tag == "a" and given.get("href"):
            self.targets.append(given["href"])
        if tag == "img":
            self.pictures.append(given)
        if tag in ("script", "link", "img", "source", "iframe"):
            self.loaded.append(given.get("src") or given.get("href") or "")


class TestFiles:
    """What a browser is not needed for."""

    def test_every_link_and_anchor(self, site):
        pages = {path: Links(path) for path in site.rglob("*.html")}
        assert len(pages) > 40
        for path, links in pages.items():
            for target in links.targets:
                parts = urlsplit(target)
                if parts.scheme:
                    assert re.match(r"(https://[\w.-]+\.\w+(/|$)|mailto:)", target), (path.name, target)
                    continue
                found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert found.is_file(), (path.name, target)
                if parts.fragment and found in pages:
                    assert unquote(parts.fragment) in pages[found].anchors, (path.name, target)

    def test_nothing_is_loaded_from_elsewhere(self, site):
        for path in site.rglob("*.html"):
            assert not [address for address in Links(path).loaded if re.match(r"(\w+:)?//", address)], (
                path.name
            )

    def test_every_figure_has_its_text_alternative(self, site):
        for page in PAGES:
            pictures = Links(site / "notebooks" / f"{page.stem}.html").pictures
            assert pictures
            assert all(len(picture["alt"]) > 40 for picture in pictures)

    def test_answers_are_closed(self, site):
        for page in PAGES:
            html = (site / "notebooks" / f"{page.stem}.html").read_text()
            answers = [c for c in nbformat.read(page, 4).cells if "solution" in c.metadata.get("tags", [])]
            assert html.count("tag_hide-cell") == len(answers)
            assert not re.search(r"<details[^>]* open", html)

    def test_another_folder_is_not_replaced(self, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        command = [sys.executable, ROOT / "scripts" / "site.py", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "it holds something else than a site" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


LOOKED_AT = [
    "index",
    *(f"notebooks/{page.stem}" for page in PAGES),
    "README",
    "docs/teaching",
    "docs/formats",
    "docs/own_pictures",
    "api/finetune",
]


@needs_chromium
@pytest.mark.parametrize("name", LOOKED_AT)
def test_the_site(site, browser, name):
    """On a screen and on a telephone: as wide as the window, no errors, readable for all."""
    from axe_playwright_python.sync_playwright import Axe

    for width, scheme in ((1280, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        complaints, asked = [], []
        page.on(
            "console", lambda message, c=complaints: c.append(message.text) if message.type == "error" else 0
        )
        page.on("pageerror", lambda error, c=complaints: c.append(str(error)))
        page.on("request", lambda request, a=asked: a.append(request.url))
        page.goto((site / f"{name}.html").as_uri())
        page.screenshot(path=SHOTS / f"site_{name.replace('/', '_')}_{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert complaints == []
        assert [address for address in asked if not re.match("file:|data:", address)] == []
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "cat.semantics"]})
        serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in serious] == []
        page.close()


@needs_chromium
def test_an_answer_is_opened_by_keyboard_and_a_word_is_found(site, browser):
    page = browser.new_page()
    page.goto((site / "notebooks" / "02_inference.html").as_uri())
    answer = page.locator("details.hide:has-text('Answer to exercise 1')")
    assert not answer.locator("pre").first.is_visible()
    answer.locator("summary").focus()
    page.keyboard.press("Enter")
    assert answer.locator("pre").first.is_visible()
    page.goto((site / "search.html").as_uri() + "?q=GroupNorm")
    page.wait_for_selector("ul.search li")
    page.close()


@needs_chromium
@pytest.mark.parametrize("name", [page.stem for page in PAGES])
def test_slides_fit_the_screen(slides, browser, name):
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((slides / f"{name}.html").as_uri())
    page.wait_for_function("window.Reveal?.isReady()")
    count = page.evaluate("Reveal.getTotalSlides()")
    assert count > 5
    for _ in range(count):
        where = "(slide => [slide.getBoundingClientRect().bottom, +slide.style.zoom, slide.innerText])"
        bottom, zoom, text = page.evaluate(f"{where}(Reveal.getCurrentSlide())")
        assert (bottom <= 720, zoom > 0.35) == (True, True), text[:200]
        assert "SOLUTION" not in text
        page.evaluate("Reveal.next()")
    page.screenshot(path=SHOTS / f"slides_{name}.png")
    assert complaints == []
    assert [address for address in asked if not re.match("file:|data:", address)] == []
    page.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab, started as `make lab` does, but for the port, the browser, and the pages' copy."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("bitlib", "notebooks", "scripts", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("models", "__pycache__"))
    recipe = re.search(r"^lab:.*\n\t\$\(BIN\)/(.+)", (ROOT / "Makefile").read_text(), re.M)[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    extra = [
        "--no-browser",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--allow-root",
        "--expose-app-in-browser",
    ]
    command = [sys.executable, "-m", *recipe.replace("jupyter lab", "jupyterlab").split(), *extra]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    log = (folder / "log.txt").open("w")
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=5) as answer:
                    assert json.load(answer)
                break
            except OSError:
                assert monotonic() < deadline, (folder / "log.txt").read_text()[-2000:]
                sleep(0.3)
        yield f"http://127.0.0.1:{port}/lab/workspaces", folder
    finally:
        server.terminate()
        server.wait(30)


def peaks(folder):
    """The peak memory in MiB of each kernel that runs in a folder; none where there is no /proc."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ipykernel" in (process / "cmdline").read_bytes() and (process / "cwd").readlink() == folder:
                yield int((process / "status").read_text().split("VmHWM:")[1].split()[0]) / 1024
        except OSError:
            continue  # another's, or it has ended


CELLS = "jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"


@needs_chromium
@pytest.mark.parametrize("name", ["01_porting", "02_inference"])
def test_jupyterlab_runs_a_page_whole(lab, browser, name):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(300_000)
    url, folder = lab
    page.goto(f"{url}/{name}/tree/notebooks/{name}.ipynb?reset")  # a workspace with this page alone
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady")
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status == 'idle'")
    page.evaluate("void jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.wait_for_function(f"{CELLS}.every(cell => !cell.outputs?.length)")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(f"{CELLS}.every(cell => cell.cell_type != 'code' || cell.execution_count)")
    code = [cell for cell in page.evaluate(CELLS) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    page.screenshot(path=SHOTS / f"lab_{name}.png")
    # Binder's machines have 2 GB, of which JupyterLab takes a fifth.
    assert all(peak < 1600 for peak in peaks(folder / "notebooks"))

    number = next(
        i for i, c in enumerate(page.evaluate(CELLS)) if "solution" in c["metadata"].get("tags", [])
    )
    shown = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    cell = shown.locator(f".jp-Notebook-cell[data-windowed-list-index='{number}']")
    page.evaluate(f"jupyterapp.shell.currentWidget.content.scrollToItem({number}, 'center')")
    assert cell.locator(".jp-InputPlaceholder").is_visible()
    assert not cell.locator(".cm-content").is_visible()
    cell.locator(".jp-InputPlaceholder .jp-Placeholder-content").click()
    assert "Answer to exercise 1" in cell.locator(".cm-content").inner_text()
    page.screenshot(path=SHOTS / f"lab_{name}_answer.png")

    last = page.evaluate(f"{CELLS}.length") - 1
    page.evaluate(f"jupyterapp.shell.currentWidget.content.scrollToItem({last}, 'end')")
    following = PAGES[PAGES.index(ROOT / "notebooks" / f"{name}.ipynb") + 1].name
    shown.locator(f".jp-RenderedMarkdown a[href*='{following}']").last.click()
    page.wait_for_function(f"jupyterapp.shell.currentWidget?.context?.path == 'notebooks/{following}'")
    page.close()
