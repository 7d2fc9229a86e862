"""The page that one draws on, served as files: its answers are Python's, and what is wrong is a sentence."""

import functools
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bitlib
from bitlib import datasets, features, images, labels
from bitlib.files.layout import BUNDLED
from scripts import play
from tests.test_browser import SHOTS, browser, needs_chromium, written  # noqa: F401

pytestmark = pytest.mark.slow
DRAWN = (((0.25, 0.85), (0.5, 0.12), (0.76, 0.84)), ((0.33, 0.6), (0.68, 0.58)))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = written("site.py", tmp_path_factory.mktemp("out") / "site")
    if not (folder / "play.html").exists():
        with pytest.raises(play.Missing) as missing:
            play.brought(tmp_path_factory.mktemp("npm"))
        pytest.skip(f"the page was left out: {missing.value}")
    return folder


@pytest.fixture(scope="module")
def url(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser, url):  # noqa: F811
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    yield page
    page.close()


@pytest.fixture
def ready(page, url):
    page.goto(f"{url}play.html")
    page.wait_for_function("window.bit")
    return page


@pytest.fixture(scope="module")
def model():
    return bitlib.load(BUNDLED)


def logits(model, picture):
    return np.asarray(model(images.batch([picture], model.card)))[0].astype(float)


def expected(model, picture):
    return labels.probabilities(logits(model, picture)[None], model.card.activation)[0]


def computed(page, picture, expression):
    """What an expression of `pixels` gives in the browser."""
    height, width = picture.shape[:2]
    opaque = np.full((height, width, 1), 255, np.uint8)
    levels = np.concatenate([np.broadcast_to(picture, (height, width, 3)), opaque], 2).ravel().tolist()
    pixels = "{ data: Uint8ClampedArray.from(levels), width, height }"
    body = f"async ([levels, width, height]) => {{ const pixels = {pixels}; return {expression}; }}"
    return page.evaluate(body, [levels, width, height])


def on_paper(page):
    side, levels = page.evaluate(
        "(c => [c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]])"
        "(document.getElementById('play-drawing'))"
    )
    return np.array(levels, np.uint8).reshape(side, side, 4)[..., :3]


def draw(page, strokes=DRAWN):
    page.locator("#play-drawing").scroll_into_view_if_needed()
    box = page.locator("#play-drawing").bounding_box()
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=5)
        page.mouse.up()


def shown(page, key):
    """The names of a list of the page, and the numbers beside them, once it is filled."""
    page.wait_for_function(f"document.querySelector('#play-{key} li') && !document.hidden")
    page.wait_for_timeout(1000)  # as the hand rests, so does the answer
    numbers = page.locator(f"#play-{key} .play-share").all_inner_texts()
    return page.locator(f"#play-{key} .play-name").all_inner_texts(), [
        float(re.sub("[<% ]", "", number)) for number in numbers
    ]


PICTURES = {
    "a glyph": lambda: 255 - datasets.render_glyph("Ψ")[..., None],
    "noise of the paper's size": lambda: np.random.default_rng(0).integers(0, 256, (384, 384, 3), np.uint8),
    "a wide photograph": lambda: datasets.photographs()["china.jpg"],
    "fewer pixels than the network's": lambda: datasets.photographs()["flower.jpg"][::16, ::21],
}


def test_size(site):
    files = [path for path in (site / "play").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    licence = (site / "play" / "vendor" / "LICENSE").read_text()
    assert ("MIT License" in licence, "Microsoft Corporation" in licence) == (True, True)
    assert "play.html" in (site / "index.html").read_text()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_on_a_screen_and_on_a_telephone(browser, url, width, scheme):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints, asked = [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 400 else None)
    page.on("request", lambda request: asked.append(request.url))
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # the browser's own wish
    page.goto(f"{url}play.html")
    page.wait_for_function("window.bit", timeout=60_000)
    draw(page)
    shown(page, "names")
    for button in page.locator(".play-add").all():
        draw(page)
        button.click()
    draw(page)
    shown(page, "own")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=SHOTS / f"play_{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "cat.semantics"]})
    serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in serious] == []
    page.close()


@needs_chromium
class TestAnswers:
    @pytest.mark.parametrize("name", PICTURES)
    def test_probabilities_are_those_of_python(self, ready, model, name):
        picture = PICTURES[name]()
        found = computed(ready, picture, "[...(await bit.classify(pixels)).probabilities]")
        assert np.abs(np.array(found) - expected(model, picture)).max() < 1e-4

    def test_evidence_is_the_logit_taken_apart(self, ready, model):
        picture = PICTURES["a glyph"]()
        resolution = model.card.resolution
        run = f"bit.model.run(pixels, {resolution}).then(r => [r.evidence.dims, [...r.evidence.data]])"
        shape, values = computed(ready, picture, run)
        bias = np.asarray(model.head.convolution.bias)
        found = np.reshape(values, shape).mean((0, 1, 2)) + bias
        assert np.abs(found - logits(model, picture)).max() < 1e-3

        best = int(expected(model, picture).argmax())
        found = computed(
            ready, picture, f"bit.model.evidence(pixels, {best}).then(e => [[...e.values], e.width])"
        )
        assert len(found[0]) == found[1] ** 2 > np.prod(shape[1:3])
        assert max(found[0]) > 0

    def test_nearest_are_those_of_python(self, ready, site, model):
        card = json.loads((site / "play" / "card.json").read_text())
        pictures, numbers, names = datasets.labelled("glyphs")
        first = np.unique(numbers, return_index=True)[1]
        assert [card["classes"][index] for index in card["pictured"]] == [names[numbers[i]] for i in first]
        picture = 255 - datasets.render_glyph("Ψ", datasets.UNSEEN_STYLES[0])
        vectors = features.extract(model, images.batch([picture, *(pictures[i] for i in first)], model.card))
        vectors = (vectors - vectors[1:].mean(0)) / (vectors[1:].std(0) + 1e-6)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = vectors[1:] @ vectors[0]
        found = computed(
            ready, picture[..., None], "bit.classify(pixels).then(a => bit.model.nearest(a.features))"
        )
        assert [each["index"] for each in found[:2]] == [
            card["pictured"][row] for row in np.argsort(-cosines)[:2]
        ]
        for each in found:
            assert (
                abs(each["cosine"] - cosines[card["pictured"].index(each["index"])]) < 0.01
            )  # a row has 8 bits

    def test_a_drawing(self, ready, model):
        draw(ready)
        names, shares = shown(ready, "names")
        [best] = labels.top_k(
            expected(model, on_paper(ready))[None], labels.of_card(model.card, model.num_classes)[0]
        )
        assert names == [name for name, _ in best]
        assert abs(shares[0] - 100 * best[0][1]) <= 0.5
        assert best[0][0] in ready.locator("#play-spoken").inner_text()
        assert best[0][0] in ready.locator("#play-evidence-of").inner_text()
        assert ready.locator("#play-evidence").is_visible()
        assert int(re.search(r"\d+", ready.locator("#play-time").inner_text())[0]) < 200
        ready.locator("#play-looks").uncheck()
        ready.wait_for_function("document.getElementById('play-evidence').hidden")
        before = on_paper(ready)
        ready.locator("#play-invert").check()
        [inverted] = labels.top_k(
            expected(model, 255 - before)[None], labels.of_card(model.card, model.num_classes)[0]
        )
        assert shown(ready, "names")[0] == [name for name, _ in inverted]

    @pytest.mark.parametrize("way", ["chosen", "dropped"])
    def test_a_file(self, ready, model, tmp_path, way):
        file = tmp_path / "flower.png"
        Image.fromarray(PICTURES["a wide photograph"]()[40:300]).save(file)
        if way == "chosen":
            ready.set_input_files("#play-file", file)
        else:
            drop(ready, file)
        names, shares = shown(ready, "names")
        [best] = labels.top_k(
            expected(model, str(file))[None], labels.of_card(model.card, model.num_classes)[0]
        )
        assert names == [name for name, _ in best]
        assert np.allclose(shares, [100 * share for _, share in best], atol=0.5)
        assert "flower.png" in ready.locator("#play-status").inner_text()


def drop(page, file):
    """Let a file fall on the paper."""
    page.evaluate(
        """([levels, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(levels)], name));
            const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.getElementById("play-drawing").dispatchEvent(event);
        }""",
        [list(file.read_bytes()), file.name],
    )


@needs_chromium
class TestLearning:
    def test_the_fit_is_that_of_scikit_learn(self, ready):
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(0)
        numbers = np.repeat([0, 1, 2], 3)
        vectors = rng.normal(size=(9, 200)) + rng.normal(size=(3, 200))[numbers]
        others = rng.normal(size=(4, 200))
        body = "([v, l, o]) => { const fit = bit.fitted(v, l, 3); return o.map(x => [...fit(x)]); }"
        found = ready.evaluate(body, [vectors.tolist(), numbers.tolist(), others.tolist()])

        def with_bias(x):
            return np.concatenate([x / np.sqrt(x.shape[1]), np.ones((len(x), 1))], 1)

        # Its C is the inverse of the penalty.
        fit = LogisticRegression(C=1 / 0.01, fit_intercept=False, max_iter=10_000, tol=1e-8)
        fit.fit(with_bias(vectors), numbers)
        assert np.abs(np.array(found) - fit.predict_proba(with_bias(others))).max() < 1e-3

    def test_two_classes_of_ones_own(self, ready):
        loops = [((0.2, 0.5), (0.5, 0.2), (0.8, 0.5), (0.5, 0.8), (0.2, 0.5)), ((0.4, 0.4), (0.45, 0.4))]
        zigzag = [((0.1, 0.8), (0.25, 0.2), (0.4, 0.8), (0.55, 0.2), (0.7, 0.8), (0.85, 0.2))]
        smaller = [[(0.1 + 0.7 * x, 0.2 + 0.7 * y) for x, y in stroke] for stroke in zigzag]
        fields, buttons = ready.locator("#play-classes input"), ready.locator(".play-add")
        fields.nth(0).fill("balloon")
        fields.nth(1).fill("<b>grass</b>")
        for number, strokes in ((0, loops), (1, zigzag), (0, loops)):
            draw(ready, strokes)
            ready.wait_for_function(f"!document.querySelectorAll('.play-add')[{number}].disabled")
            buttons.nth(number).click()
            ready.wait_for_function("document.querySelector('#play-status').innerText.includes('example')")
            ready.wait_for_function("document.querySelector('.play-add').disabled")
        assert ready.locator(".play-examples canvas").count() == 3
        draw(ready, smaller)
        names, shares = shown(ready, "own")
        assert names == ["balloon", "<b>grass</b>"]
        assert shares[1] > 80
        assert abs(sum(shares) - 100) < 1
        assert "<b>grass</b>" in ready.locator("#play-spoken").inner_text()
        ready.get_by_role("button", name="Another class").click()
        assert fields.count() == 3
        ready.get_by_role("button", name="Forget the examples of balloon").click()
        ready.wait_for_function("!document.querySelector('#play-own li')")


@needs_chromium
def test_by_keyboard(ready):
    ready.locator("#play-stroke").focus()
    reached = set()
    ready.evaluate("document.getElementById('play-drawing').closest('section').tabIndex = -1")
    ready.evaluate("document.getElementById('play-drawing').closest('section').focus()")
    ready.keyboard.press("Tab")
    assert ready.evaluate("document.activeElement.innerText") == "Clear"
    ready.keyboard.press("Tab")
    ready.keyboard.press("Enter")  # an example
    shown(ready, "names")
    known = re.search("An example of (.+).$", ready.locator("#play-status").inner_text())[1]
    assert known in json.dumps(ready.evaluate("bit.model.card.classes"))
    for _ in range(30):
        reached.add(ready.evaluate("document.activeElement.id || document.activeElement.innerText"))
        ready.keyboard.press("Tab")
    wanted = {"play-example", "play-choose", "play-looks", "play-invert", "play-stroke", "play-another"}
    assert wanted < reached
    assert {text for text in reached if text.startswith("Add the drawing to")} == {
        "Add the drawing to “first”",
        "Add the drawing to “second”",
    }
    assert ready.locator("#play-spoken").get_attribute("aria-live") == "polite"
    assert ready.locator("#play-status").get_attribute("role") == "status"


@needs_chromium
class TestTrouble:
    def told(self, page, words):
        page.wait_for_function(
            f"document.getElementById('play-status').innerText.includes({json.dumps(words)})"
        )
        sentence = page.locator("#play-status").inner_text()
        assert sentence.endswith("."), sentence
        return sentence

    def test_an_empty_paper(self, ready):
        assert "The paper is empty" in ready.locator("#play-spoken").inner_text()
        assert all(button.is_disabled() for button in ready.locator(".play-add").all())
        draw(ready)
        shown(ready, "names")
        ready.locator("#play-clear").click()
        ready.wait_for_function("document.getElementById('play-spoken').innerText.includes('empty')")
        assert ready.locator("#play-names li").count() == 0

    @pytest.mark.parametrize("content", [b"no picture", b"", b"\x89PNG\r\n\x1a\n" + bytes(100)])
    @pytest.mark.parametrize("way", ["chosen", "dropped"])
    def test_a_file_that_is_no_picture(self, ready, tmp_path, content, way):
        file = tmp_path / "notes.png"
        file.write_bytes(content)
        draw(ready)
        before = shown(ready, "names")
        ready.set_input_files("#play-file", file) if way == "chosen" else drop(ready, file)
        self.told(ready, "“notes.png” is no picture")
        assert shown(ready, "names") == before  # and the page goes on

    def test_too_many_pixels(self, ready, tmp_path):
        file = tmp_path / "poster.png"
        Image.new("1", (8000, 5001)).save(file)
        ready.set_input_files("#play-file", file)
        self.told(ready, "8000 × 5001 pixels")

    @pytest.mark.parametrize(
        "name", ["model.onnx.gz", "card.json", "table.bin.gz", "vendor/ort.wasm.gz", "probe.js"]
    )
    def test_a_lost_file(self, page, url, name):
        page.route(f"**/play/{name}", lambda route: route.fulfill(status=404))
        page.goto(f"{url}play.html")
        if name.endswith(".js"):
            self.told(page, "The page could not start: a file of its folder “play” is missing or damaged")
        else:
            assert name in self.told(page, "cannot be loaded")

    @pytest.mark.parametrize("name", ["model.onnx.gz", "vendor/ort.wasm.gz"])
    @pytest.mark.parametrize("change", [lambda b: b[: len(b) // 2], lambda b: b"<html>", lambda b: b""])
    def test_a_damaged_file(self, page, url, site, name, change):
        body = change((site / "play" / name).read_bytes())
        page.route(f"**/play/{name}", lambda route: route.fulfill(status=200, body=body))
        page.goto(f"{url}play.html")
        self.told(page, "cannot be loaded")

    def test_no_webassembly(self, page, url):
        page.add_init_script("delete window.WebAssembly")
        page.goto(f"{url}play.html")
        self.told(page, "WebAssembly")

    def test_opened_as_a_file(self, page, site):
        complaints = []
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.goto((site / "play.html").as_uri())
        self.told(page, "python -m http.server")
        assert complaints == []

    def test_no_javascript(self, browser, url):  # noqa: F811
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto(f"{url}play.html")
        assert "JavaScript" in page.locator("#play-status").inner_text()
        assert not page.locator("#play-app").is_visible()
        page.close()


class TestBuilding:
    def fake_npm(self, folder, monkeypatch, script):
        file = folder / "npm"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def test_without_npm(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(play.Missing, match="^npm, .*, is not installed$"):
            play.brought(tmp_path)

    def test_without_a_network(self, tmp_path, monkeypatch):
        self.fake_npm(tmp_path, monkeypatch, "exit 1")
        with pytest.raises(play.Missing, match="^npm could not bring onnxruntime-web@"):
            play.brought(tmp_path)

    def test_another_package_is_refused(self, tmp_path, monkeypatch):
        self.fake_npm(tmp_path, monkeypatch, f"echo other > {tmp_path}/other.tgz")
        with pytest.raises(play.Missing, match="has another SHA-512 than it should$"):
            play.brought(tmp_path)

    def test_the_site_without_the_page(self, tmp_path, monkeypatch, capsys):
        monkeypatch.syspath_prepend(Path(play.__file__).parent)
        from scripts import site as builder

        def fail(folder):
            raise builder.play.Missing("npm is not installed")

        monkeypatch.setattr(builder.play, "build", fail)
        builder.assemble(tmp_path)
        assert capsys.readouterr().err == "the page that one draws on is left out: npm is not installed\n"
        assert not (tmp_path / "play.md").exists()
        assert not re.search("^play$|play.md", (tmp_path / "index.md").read_text(), re.M)
        assert re.search("^play$", (Path(play.ROOT) / "docs" / "site" / "index.md").read_text(), re.M)
