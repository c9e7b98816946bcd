"""The explorer's page in a browser: what it shows is what NumPy computes from the same payload."""

import re
import shutil
from pathlib import Path

import explorer_payload
import numpy as np
import pytest

import posenc

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]

ARGUMENTS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
ARGUMENTS += "--disable-background-networking --disable-component-update"
TEMPLATE = Path(posenc.__file__).parent / "explorer" / "page.html"
SQUARE, RECTANGLE, MIXTURE, REGISTERS, PYRAMID = range(5)
MODES = {
    SQUARE: ("total", "content", "position"),
    RECTANGLE: ("total", "content", "position", "bias"),
    MIXTURE: ("total", "bias"),
    REGISTERS: ("total", "content", "position"),
    PYRAMID: ("total", "content", "position"),
}
VIEW = "article.view"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def payload():
    return explorer_payload.payload()


@pytest.fixture(scope="module")
def address(payload, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explore.html"
    path.write_text(explorer_payload.page(TEMPLATE.read_text(), payload))
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """`visit(hash)` opens the page; in the end: an empty console, nothing asked of a network."""
    complaints, requests, contexts, known = [], [], [], ["data:", "blob:"]

    def visit(anchor="", width=1280, at=address, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        known.append(at)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(at + anchor)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(tuple(known))] == []


def shown(page, view=0):
    data = page.locator(VIEW).nth(view).evaluate("view => ({...view.dataset})")
    return {key: int(value) if value.isdigit() else value for key, value in data.items()}


def cell(page, row, column, view=0):
    """Where a patch is on the screen."""
    stage, layer = page.locator(".stage").nth(view), page.locator(".stage canvas").nth(view)
    box = stage.bounding_box()
    width, height = layer.evaluate("canvas => [canvas.width, canvas.height]")
    return (
        box["x"] + (column + 0.5) * box["width"] / width,
        box["y"] + (row + 0.5) * box["height"] / height,
    )


def value(text):
    return float(text.replace(MINUS, "-"))


def of_page(page, **asked):
    return np.array(page.evaluate("asked => posenc.weights(asked)", asked))


@pytest.mark.parametrize("subject", MODES)
def test_weights_are_those_of_numpy(visit, payload, subject):
    page = visit()
    num_layers = len(payload["subjects"][subject]["layers"])
    for layer in {0, 1, 2, num_layers - 1} & set(range(num_layers)):
        for mode in MODES[subject]:
            exact = explorer_payload.weights(payload, subject, layer, mode)
            rounded = explorer_payload.weights(payload, subject, layer, mode, rounded=True)
            for query in (0, 1, exact.shape[1] - 2):
                for head in (0, exact.shape[0] - 1, "mean"):
                    asked = {
                        "subject": subject,
                        "layer": layer,
                        "head": head,
                        "query": query,
                        "mode": mode,
                    }
                    told = of_page(page, **asked)
                    for expected, tolerance in ((exact, 2e-2), (rounded, 1e-4)):
                        row = (
                            expected[:, query].mean(0) if head == "mean" else expected[head, query]
                        )
                        assert abs(told - row).max() <= tolerance * row.max(), asked


def test_map_shows_the_weights_in_viridis(visit, payload):
    matplotlib = pytest.importorskip("matplotlib")
    page = visit("#subject=0&layer=2&head=4&query=60")
    row = explorer_payload.weights(payload, SQUARE, 2, "total", rounded=True)[4, 60, 1:]
    expected = 255 * matplotlib.colormaps["viridis"](row / row.max())[:, :3]
    pixels = page.locator(".stage canvas").evaluate(
        "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, 14, 14).data)"
    )
    assert abs(np.array(pixels).reshape(-1, 4)[:, :3] - expected).max() <= 4


def test_click_chooses_the_query_and_the_readout_tells_it(visit, payload):
    page = visit("#subject=0&layer=1&head=3")
    page.mouse.click(*cell(page, 3, 5))
    query = 1 + 3 * 14 + 5
    assert shown(page) == {"subject": 0, "layer": 1, "head": 3, "mode": "total", "query": query}
    row = explorer_payload.weights(payload, SQUARE, 1, "total", rounded=True)[3, query]
    best = int(row[1:].argmax())
    readout = page.locator(".readout").inner_text()
    assert "Query row 3, column 5 · head 3 of blocks.1.attn · mode total" in readout
    assert f"at row {best // 14}, column {best % 14}" in readout
    assert float(re.search(r"largest ([\d.]+)", readout)[1]) == pytest.approx(
        row[1:].max(), rel=6e-3
    )
    assert float(re.search(r"entropy ([\d.]+)", readout)[1]) == pytest.approx(
        -(row * np.log(row)).sum(), abs=6e-3
    )
    cls = value(re.search(rf"CLS ([\d.e{MINUS}]+)", readout)[1])
    assert cls == pytest.approx(row[0], rel=6e-2)


def test_hover_previews_and_leaves_again(visit):
    page = visit("#subject=0&layer=1&head=3&query=20")
    page.mouse.move(*cell(page, 6, 2))
    assert shown(page)["query"] == 1 + 6 * 14 + 2
    page.mouse.move(2, 2)
    assert shown(page)["query"] == 20


def test_query_keeps_its_place_on_another_grid(visit):
    page = visit("#subject=4&layer=0&head=mean&query=0")
    page.mouse.click(*cell(page, 6, 9))
    assert shown(page)["query"] == 6 * 12 + 9
    page.mouse.move(*cell(page, 3, 10))
    for key in "lhhhh":
        page.keyboard.press(key)
    assert shown(page) == {"subject": 4, "layer": 1, "head": 3, "mode": "total", "query": 1 * 6 + 5}
    page.keyboard.press("L")
    assert shown(page)["head"] == 1  # the last of two
    page.keyboard.press("l")
    page.mouse.move(2, 2)
    assert shown(page)["query"] == 3 * 6 + 4


def test_pointing_tells_what_a_logit_is_made_of(visit, payload):
    page = visit("#subject=1&layer=1&head=2&query=9")
    page.get_by_role("button", name="weight", exact=True).click()
    page.mouse.move(*cell(page, 4, 3))
    key = 4 * 4 + 3
    assert shown(page)["query"] == 9
    panel = page.locator("section.token")
    assert panel.get_attribute("data-token") == str(key)
    part = payload["subjects"][RECTANGLE]["layers"][1]["parts"][0]
    means = payload["models"][RECTANGLE]["layers"][1]["means"]
    q, k = part["query"].rounded()[2, 9], part["key"].rounded()[2, key]
    mq, mk = means["query"].rounded()[2, 9], means["key"].rounded()[2, key]
    by_query, by_key = part["biases"]
    expected = {
        "content.content": part["scale"] * (q - mq) @ (k - mk),
        "content.position": part["scale"] * (q - mq) @ mk,
        "position.content": part["scale"] * mq @ (k - mk),
        "position.position": part["scale"] * mq @ mk,
        "native_bias": part["native"].rounded()[0, 9, key],
        "bias": by_query["table"].rounded()[0, 9, by_query["index"].numbers[9, key]]
        + by_key["table"].rounded()[2, key, by_key["index"].numbers[9, key]],
    }
    told = {
        term.get_attribute("data-term"): value(term.locator("dd").inner_text())
        for term in panel.locator("[data-term]").all()
    }
    assert told == pytest.approx(expected, abs=6e-3)
    logit = value(panel.locator("p b").nth(1).inner_text())
    assert logit == pytest.approx(sum(expected.values()), abs=6e-3)


def test_masked_token_gets_nothing(visit):
    page = visit("#subject=1&layer=1&head=2&query=9")
    assert of_page(page, subject=1, layer=1, head=2, query=9, mode="total")[5] == 0
    page.keyboard.press("r")
    page.mouse.move(*cell(page, 1, 1))
    assert f"{MINUS}∞" in page.locator("section.token p").inner_text()


def test_keys(visit):
    page = visit("#subject=0&layer=0&head=mean&query=1")
    steps = [
        ("ArrowRight", {"query": 2}),
        ("ArrowDown", {"query": 16}),
        ("ArrowLeft", {"query": 15}),
        ("ArrowUp", {"query": 1}),
        ("ArrowUp", {"query": 1}),
        ("l", {"layer": 1}),
        ("l", {"layer": 2}),
        ("l", {"layer": 2}),
        ("L", {"layer": 1}),
        ("h", {"head": 0}),
        ("h", {"head": 1}),
        ("H", {"head": 0}),
        ("H", {"head": "mean"}),
        ("H", {"head": 5}),
        ("2", {"mode": "content"}),
        ("3", {"mode": "position"}),
        ("4", {"mode": "position"}),  # there is no bias
        ("1", {"mode": "total"}),
        ("c", {"query": 0}),
        ("ArrowUp", {"query": 1 + 13 * 14 + 7}),
        ("ArrowDown", {"query": 0}),
    ]
    expected = shown(page)
    for key, change in steps:
        page.keyboard.press(key)
        expected |= change
        assert shown(page) == expected, key
    page.keyboard.press("?")
    page.locator("dialog").wait_for(state="visible")
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")


def test_slider_select_prefix_and_small_maps(visit):
    page = visit("#subject=3")
    page.locator("input[name=layer]").fill("7")
    assert shown(page)["layer"] == 7
    page.locator("input[name=layer]").press("ArrowRight")  # the slider's own key
    assert shown(page)["layer"] == 8
    page.locator("select[name=head]").select_option("4")
    assert shown(page)["head"] == 4
    page.locator(".prefix button", has_text="register 2").click()
    assert shown(page)["query"] == 2
    page.locator(".heads [data-head='1']").click()
    assert shown(page)["head"] == 1
    page.get_by_role("button", name="all layers").click()
    assert page.locator(".matrix .tile").count() == 12 * 7
    page.locator(".matrix [data-layer='2'][data-head='5']").click()
    assert shown(page) == {"subject": 3, "layer": 2, "head": 5, "mode": "total", "query": 2}


def test_missing_modes_say_why(visit):
    page = visit("#subject=2&mode=position")
    assert shown(page)["mode"] == "total"
    for mode in ("content", "position"):
        button = page.locator(f"[data-choice={mode}]")
        assert button.is_disabled()
        assert "another grid" in button.get_attribute("title")
    assert (
        "content, position (the crops of this image have another grid)"
        in page.locator(".note").inner_text()
    )
    assert page.locator("[data-choice=bias]").is_enabled()
    page.locator("select[name=subject]").select_option("0")
    assert "no encoding of posenc adds a bias" in page.locator("[data-choice=bias]").get_attribute(
        "title"
    )


def test_header_says_which_weights(visit):
    page = visit("#subject=0")
    heading = page.locator(f"{VIEW} header")
    for words in (
        "waves.jpg",
        "vit_square_patch16_224",
        "14 \N{MULTIPLICATION SIGN} 14 patches + CLS",
        "Untrained: maps show",
    ):
        assert words in heading.inner_text()
    assert heading.locator("[data-random=true]").inner_text() == "random weights (seed 0)"
    page.locator("select[name=subject]").select_option("1")
    assert heading.locator("[data-random=false]").inner_text() == "checkpoint person.safetensors"
    assert "person </script>.jpg" in heading.inner_text()


def test_shares_and_distances_are_shown_with_their_signs(visit, payload):
    page = visit("#subject=0&layer=1&head=3")
    assert "approximate: from 30 crops" in page.locator(".shares h3").inner_text()
    shares = payload["models"][SQUARE]["layers"][1]["shares"]
    values = [value(text) for text in page.locator(".shares dd").all_inner_texts()]
    assert values == pytest.approx([share[3] for share in shares.values()], abs=6e-3)
    beside = page.locator(".shares [data-head='3'] > .value").inner_text()
    assert value(beside) == pytest.approx(shares["interaction"][3], abs=6e-3)
    assert shares["interaction"][3] < -0.005
    distance = payload["subjects"][SQUARE]["layers"][1]["distance"]
    told = page.locator(".distance .headrow .value").all_inner_texts()
    assert [float(text) for text in told] == pytest.approx([np.mean(distance), *distance], abs=6e-3)
    assert page.locator(".distance [aria-pressed=true]").get_attribute("data-head") == "3"


def test_compare_shows_the_same_place(visit):
    page = visit("#subject=3&layer=9&head=5&query=125&mode=content")  # row 7, column 8 of 16 x 16
    page.locator("select[name=compare]").select_option("1")
    assert shown(page, 1) == {
        "subject": 1,
        "layer": 3,
        "head": 3,
        "mode": "content",
        "query": 3 * 4 + 2,
    }
    page.mouse.click(*cell(page, 7, 3, view=1))
    assert shown(page, 1)["query"] == 7 * 4 + 3
    assert shown(page, 0)["query"] == 5 + 15 * 16 + 14
    page.keyboard.press("c")
    assert shown(page, 1)["query"] == 4 * 4 + 2  # it has no prefix: the center
    page.locator("select[name=compare]").select_option("2")
    assert shown(page, 1) == {"subject": 2, "layer": 0, "head": 3, "mode": "total", "query": 0}
    assert "there is no content" in page.locator(VIEW).nth(1).inner_text()


def test_address_holds_what_is_shown(visit):
    page = visit("#subject=1&layer=2&head=1&query=13&mode=bias&compare=0&show=all")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("l")
    page.wait_for_url(re.compile("layer=3.*query=14"))
    again = visit(page.url[page.url.index("#") :])
    assert [shown(again, view) for view in (0, 1)] == [shown(page, view) for view in (0, 1)]
    assert again.locator(".matrix").count() == 2
    again.evaluate("location.hash = '#subject=0&layer=99&head=99&query=9999&mode=none'")
    again.wait_for_selector(f"{VIEW}[data-subject='0']")
    assert shown(again) == {"subject": 0, "layer": 2, "head": 5, "mode": "total", "query": 196}


@pytest.mark.parametrize("width", [390, 1280])
def test_page_never_scrolls_sideways(visit, width):
    page = visit(width=width)
    for anchor in (
        "subject=0",
        "subject=1&compare=3",
        "subject=2&compare=1",
        "subject=3&show=all&compare=2",
    ):
        page.evaluate("anchor => { location.hash = anchor }", anchor)
        page.wait_for_selector(f"{VIEW}[data-subject='{anchor[8]}']")
        assert page.evaluate("document.documentElement.scrollWidth") == width, anchor


def test_touch_drags_the_query_without_scrolling(visit):
    page = visit("#subject=3", width=390, has_touch=True)
    touch = page.context.new_cdp_session(page)

    def send(kind, *points):
        places = [{"x": x, "y": y} for x, y in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    page.locator(".stage").scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    send("touchStart", cell(page, 12, 4))
    assert shown(page)["query"] == 5 + 12 * 16 + 4
    for row in (10, 8, 6):
        send("touchMove", cell(page, row, 4))
    send("touchEnd")
    assert shown(page)["query"] == 5 + 6 * 16 + 4
    assert page.evaluate("scrollY") == before


TIMES = """() => {
  window.times = [];
  const view = document.querySelector("article.view");
  let start = 0;
  addEventListener("pointerdown", () => (start = performance.now()), true);
  new MutationObserver(() => {
    const drawn = performance.now() - start;
    requestAnimationFrame(() => setTimeout(() => times.push([drawn, performance.now() - start])));
  }).observe(view, { attributeFilter: ["data-query"] });
}"""


def test_click_answers_within_50_milliseconds(visit):
    """By touch, which computes nothing ahead as a hover does; 261 tokens, 6 heads of 64 numbers."""
    page = visit("#subject=3&layer=5&head=2", has_touch=True)
    page.evaluate(TIMES)
    for row in range(1, 14):
        page.touchscreen.tap(*cell(page, row, 15 - row))
        page.wait_for_function("count => times.length === count", arg=row)
    drawn, painted = np.median(page.evaluate("times"), axis=0)
    print(f"a click: {drawn:.1f} ms until drawn, {painted:.1f} ms until after the next frame")
    assert painted < 50


def test_dark_and_light(visit):
    def brightness(page):
        return sum(
            map(
                int,
                re.findall(
                    r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")
                )[:3],
            )
        )

    light, dark = visit(color_scheme="light"), visit(color_scheme="dark")
    assert brightness(light) > 600 > 150 > brightness(dark)
    dark.get_by_role("button", name="dark or light page").click()
    assert brightness(dark) == brightness(light)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page, payload: page, "holds no data yet[^|]*posenc explore IMAGE"),
        (
            lambda page, payload: explorer_payload.page(
                page, {**payload, "format": 7, "subjects": []}
            ),
            "reads data of format 1, and was given format 7",
        ),
    ],
)
def test_page_without_data_says_what_to_do(visit, payload, tmp_path, change, message):
    path = tmp_path / "page.html"
    path.write_text(change(TEMPLATE.read_text(), payload))
    page = visit(at=path.as_uri())
    assert re.search(message, page.get_by_role("alert").inner_text())
