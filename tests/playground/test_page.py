"""The playground in headless Chromium: each control does what it says, with mouse, finger and keyboard."""

import contextlib
import functools
import http.server
import io
import os
import re
import shutil
import threading
from urllib.parse import parse_qs, quote

import numpy as np
import pytest
from playground.pages import FOLDER

import rmsfast

playwright = pytest.importorskip("playwright.sync_api", reason='Playwright is not installed: pip install ".[playground]"')
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="docs/playground is not here"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.thread_unsafe(reason="a browser is driven from one thread"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=FOLDER)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # as whom Chromium's sandbox does not start
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture
def open_page(site, browser):
    """Open the page at an address. In the end, no page may have written an error."""
    contexts, faults = [], []

    def open_at(address="", width=1200, height=900, clock=False, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        if clock:
            context.clock.install()  # so that the test can let time pass, frame by frame
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(request.url))
        page.on("request", lambda request: None if request.url.startswith(site) else faults.append(request.url))
        page.goto(f"{site}#{address}")
        page.wait_for_selector("#code code:not(:empty)", state="attached")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(open_page):
    return open_page()


def settle(page):
    """Wait until what was asked for is drawn."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
    )


def address(page):
    """Return what the address holds, which the page writes at the latest when one leaves it."""
    settle(page)
    page.evaluate("dispatchEvent(new Event('pagehide'))")
    return {name: values[-1] for name, values in parse_qs(page.evaluate("location.hash.slice(1)")).items()}


def program(page):
    settle(page)
    return page.text_content("#code code")


def path(page, racer="rmsprop"):
    settle(page)
    return page.get_attribute(f"#map-view .racer.{racer} .path", "points")


def drag(page, by, release=True):
    box = page.locator(".handle").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by[0] / 2, y + by[1] / 2)
    page.mouse.move(x + by[0], y + by[1])
    if release:
        page.mouse.up()


# ---- What one sees first ----


def test_without_modules_it_says_what_to_do(site, browser):
    """As from a folder, where browsers load no modules, the page says how to open it."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site)
    assert "python -m http.server" in page.locator("#starting").inner_text()
    context.close()


def test_the_address_follows(page):
    page.click("#first")
    page.wait_for_function("location.hash === '#step=0'")


def test_it_loads(page):
    assert page.text_content("h1") == "Watch RMSProp work"
    assert page.locator("#starting").count() == 0
    assert page.text_content("#problems") == ""
    assert "After 20 steps from (−5, −2), RMSProp is at" in page.get_attribute("#map-view svg", "aria-label")
    assert page.locator("#map-view .racer .path").count() == 6
    assert page.locator("#loss polyline.path").count() == 6
    assert page.locator("#charts svg").count() == 6
    assert page.locator("#stories a[aria-current]").all_text_contents() == ["The ravine"]
    assert page.evaluate("location.hash") == ""


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures(open_page, width, scheme, tmp_path):
    """The colours are those asked for, and no part is blank."""
    image = pytest.importorskip("PIL.Image")
    page = open_page("landscape=moving&spikes=60", width=width, height=800, color_scheme=scheme)
    settle(page)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with image.open(tmp_path / "page.png") as picture:
        whole = np.asarray(picture.convert("RGB")).astype(int)
    assert whole.shape[1] == width
    for part in ["body", "#map-view", "#loss", "#charts", "#formula", "#settings", "#racers", "#code"]:
        x, y, wide, high = page.evaluate(
            """(part) => {
                const { x, y, width, height } = document.querySelector(part).getBoundingClientRect();
                return [x + scrollX, y + scrollY, width, height].map(Math.floor);
            }""",
            part,
        )
        pixels = whole[y : y + high, x : x + wide]
        grey = pixels @ [0.2126, 0.7152, 0.0722]
        assert len(np.unique(pixels @ [65536, 256, 1])) > 40, part
        assert grey.std() > 5, part
        assert (np.median(grey) < 100) == (scheme == "dark"), part


LONG = "dialect=sb3&lr=1e-300&momentum=0.123456789&beta=0.123456789012345&spikes=5"


@pytest.mark.parametrize(
    ("width", "where"), [(320, LONG), (360, ""), (360, LONG), (799, ""), (1240, LONG), (2200, LONG)]
)
def test_nothing_sticks_out_or_overlaps(open_page, width, where):
    page = open_page(where, width=width)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for element in page.locator("main button, main input, main select, main h2, main label").all():
        box = element.bounding_box()
        if box and element.is_visible():
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
    boxes = [
        page.locator(f"#{part}").bounding_box() for part in ["settings", "race", "coordinates", "numbers", "python"]
    ]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = (
                a["x"] + a["width"] <= b["x"] + 1
                or b["x"] + b["width"] <= a["x"] + 1
                or a["y"] + a["height"] <= b["y"] + 1
                or b["y"] + b["height"] <= a["y"] + 1
            )
            assert apart, (a, b)


def test_the_switch_of_colours(open_page):
    page = open_page(color_scheme="light")
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    shade = lambda: page.evaluate(  # noqa: E731
        """() => {
            const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            copy.drawImage(document.querySelector("canvas"), 0, 0);
            return [...copy.getImageData(0, 0, 1, 1).data];
        }"""
    )
    light, light_map = ground(), shade()
    page.click("#theme")
    assert page.text_content("#theme") == "Light"
    page.click("#theme")
    settle(page)
    assert page.text_content("#theme") == "Dark"
    dark = ground()
    assert dark != light
    assert sum(shade()) < sum(light_map) - 300
    page.reload()
    settle(page)
    assert ground() == dark  # it is remembered
    page.click("#theme")
    assert ground() == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(open_page, scheme):
    """Texts have the contrast of WCAG AA; the racers differ also for the colour-blind, or by their dashes."""
    page = open_page(color_scheme=scheme)
    names = ["ground", "ink", "soft", "accent", "rmsprop", "adam", "adadelta", "adagrad", "momentum", "sgd"]
    colours = page.evaluate(
        """(names) => Object.fromEntries(names.map((name) => {
            const probe = document.createElement("i");
            probe.style.color = `var(--${name})`;
            document.body.append(probe);
            const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
            probe.remove();
            return [name, rgb];
        }))""",
        names,
    )
    linear = {
        name: np.where((c := np.array(rgb) / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        for name, rgb in colours.items()
    }
    light = {name: c @ [0.2126, 0.7152, 0.0722] for name, c in linear.items()}

    def contrast(a, b):
        return (max(light[a], light[b]) + 0.05) / (min(light[a], light[b]) + 0.05)

    for text in ["ink", "soft", "accent"]:
        assert contrast(text, "ground") >= 4.5, text
    racers = names[4:]
    for racer in racers:
        assert contrast(racer, "ground") >= 2.9, racer
    # Machado, Oliveira and Fernandes 2009, severity 1.0
    blindness = {
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "none": np.eye(3),
    }
    solid = ["rmsprop", "adam", "adagrad"]
    for kind, matrix in blindness.items():
        seen = {name: oklab(np.clip(np.array(matrix) @ linear[name], 0, 1)) for name in racers}
        for group in [solid, ["momentum", "sgd", "adadelta"]]:
            for i, a in enumerate(group):
                for b in group[:i]:
                    assert np.linalg.norm(seen[a] - seen[b]) > 0.1, (kind, a, b)


def oklab(rgb):
    """Linear sRGB as OKLab (Ottosson 2020), in which distances are those that people see."""
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ rgb)


# ---- The start ----


def test_a_drag_moves_the_path(page):
    before = path(page)
    drag(page, (120, -60), release=False)
    during = path(page)
    assert during != before
    page.mouse.move(0, 0)
    assert path(page) not in (before, during)  # also while the pointer is outside
    page.mouse.up()
    drag(page, (60, 60))
    settled = path(page)
    page.mouse.move(300, 300)
    assert path(page) == settled  # the button is up
    held = address(page)
    numbers = re.findall(r"np.array\(\[(-?[\d.]+), (-?[\d.]+)\]\)", program(page))[-1]
    assert (float(held["x1"]), float(held["x2"])) == tuple(map(float, numbers))
    assert page.input_value("#number-x1") == held["x1"]


def test_a_finger_moves_the_path(open_page):
    page = open_page(width=360, height=740, has_touch=True, is_mobile=True)
    page.locator(".handle").scroll_into_view_if_needed()
    box = page.locator(".handle").bounding_box()
    x, y = box["x"] + 22, box["y"] + 22
    before, scrolled = path(page), page.evaluate("scrollY")
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for k in range(1, 9):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + 6 * k, "y": y - 7 * k}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert path(page) != before
    assert page.evaluate("scrollY") == scrolled
    assert float(address(page)["x2"]) > -1.6
    page.locator("#map-view svg").tap(position={"x": 250, "y": 60})
    assert float(address(page)["x1"]) > 1


def test_a_click_moves_the_start(page):
    page.locator("#map-view svg").click(position={"x": 100, "y": 80})
    held = address(page)
    assert float(held["x1"]) < 0 < float(held["x2"])


def test_no_key_is_lost_between_two_frames(page):
    page.evaluate(
        """() => {
            const press = (key) => new KeyboardEvent("keydown", { key, bubbles: true });
            for (const key of ["ArrowUp", "ArrowUp", "ArrowRight", "ArrowUp"]) {
                document.querySelector(".handle").dispatchEvent(press(key));
            }
        }"""
    )
    assert address(page) == {"x1": "-4.9", "x2": "-1.7"}


def test_the_keyboard_moves_the_start(page):
    page.focus(".handle")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    assert address(page) == {"x1": "-4.9", "x2": "-1"}
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowLeft")
    assert address(page)["x2"] == "-1.1"
    assert page.get_attribute(".handle", "aria-valuetext").endswith("x₂ −1.1")


# ---- The settings ----

SLIDERS = ["lr", "beta", "eps", "momentum", "initial_square_avg", "clip_value", "angle", "steps"]


def open_more(page):
    if not page.evaluate("document.querySelector('details').open"):
        page.click("summary")


@pytest.mark.parametrize("name", SLIDERS)
def test_a_slider(page, name):
    before, text = path(page), program(page)
    open_more(page)
    slider = page.locator(f"#slider-{name}")
    slider.focus()
    key = "ArrowLeft" if name == "clip_value" else "ArrowRight"
    for _ in range(4):
        page.keyboard.press(key)
    value = address(page)[name]
    assert page.input_value(f"#number-{name}") == value == slider.get_attribute("aria-valuetext")
    assert program(page) != text
    if name not in ("angle", "steps"):
        assert float(re.search(rf"\b{name}=([^,)]+)", program(page))[1]) == float(value)
    if name == "steps":
        assert f"in range({value})" in program(page)
    elif name != "eps":
        assert path(page) != before


@pytest.mark.parametrize(
    ("name", "typed", "wrong"),
    [
        ("lr", "0.37", "fast"),
        ("beta", "0.925", "1.5"),
        ("clip_value", "2.5", "-1"),
        ("angle", "33", "400"),
        ("x1", "-3.25", ""),
        ("steps", "33", "5"),
    ],
)
def test_a_number_that_is_typed(page, name, typed, wrong):
    open_more(page)
    field = page.locator(f"#number-{name}")
    field.fill(typed)
    field.press("Enter")
    assert address(page)[name] == typed
    held, drawn = address(page), path(page)
    field.fill(wrong)
    field.press("Enter")
    fault = page.locator(".fault:not(:empty)").text_content()
    assert fault.startswith(f"{name}: {wrong or 'nothing'}, expected a ")
    assert field.get_attribute("aria-invalid") == "true"
    assert address(page) == held
    assert path(page) == drawn
    field.fill(typed)
    field.press("Enter")
    assert page.locator(".fault:not(:empty)").count() == 0


SWITCHES = ["centered", "bias_correction", "eps_inside_sqrt", "nesterov", "lr_in_momentum"]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch(open_page, name):
    page = open_page("momentum=0.5&eps=0.1")
    open_more(page)
    before, formula = path(page), page.text_content("#formula")
    switch = page.locator(f"#switch-{name}")
    switch.focus()
    page.keyboard.press("Space")
    assert address(page)[name] == "1"
    assert f"{name}=True" in program(page)
    assert page.text_content("#formula") != formula
    if name != "lr_in_momentum":  # which shows only where the rate changes
        assert path(page) != before
    page.keyboard.press("Space")
    assert name not in address(page)
    assert path(page) == before


def test_switches_without_an_effect_are_off(open_page):
    page = open_page()
    open_more(page)
    assert page.is_disabled("#switch-nesterov")
    assert page.is_disabled("#switch-lr_in_momentum")
    page.fill("#number-momentum", "0.5")
    page.press("#number-momentum", "Enter")
    settle(page)
    assert page.is_enabled("#switch-nesterov")


def test_a_refused_switch_says_why(open_page):
    page = open_page("beta=1")
    before = path(page)
    page.click("label[for=switch-bias_correction]")
    assert (
        page.locator(".fault:not(:empty)")
        .text_content()
        .startswith("bias_correction: true with beta 1, expected beta < 1")
    )
    assert not page.is_checked("#switch-bias_correction")
    assert path(page) == before
    assert address(page) == {"beta": "1"}


@pytest.mark.parametrize("name", ["torch", "keras", "tf1", "optax", "timm", "sb3", "mxnet", "d2l"])
def test_a_dialect(open_page, name):
    page = open_page("lr=0.3")
    page.select_option("#dialect", name)
    assert address(page)["dialect"] == name
    assert f"rmsfast.dialects.{name}(" in program(page)
    expected = getattr(rmsfast.dialects, name)(0.3)
    assert float(page.input_value("#number-lr")) == 0.3
    assert float(page.input_value("#number-beta")) == expected["beta"]
    assert float(page.input_value("#number-eps")) == expected["eps"]
    assert page.is_checked("#switch-eps_inside_sqrt") == expected.get("eps_inside_sqrt", False)
    beta = {"keras": "rho", "d2l": "gamma", "mxnet": "gamma1", "tf1": "decay", "optax": "decay"}.get(name, "alpha")
    assert beta in page.text_content("label[for=slider-beta]")
    page.fill("#number-beta", "0.75")
    page.press("#number-beta", "Enter")
    assert f"{beta}=0.75" in program(page)
    open_more(page)
    page.fill("#number-clip_value", "0.125")
    page.press("#number-clip_value", "Enter")
    page.click("label[for=switch-bias_correction]")
    settle(page)
    assert page.input_value("#dialect") == ""  # no framework has these two together
    assert "bias_correction=True" in program(page)


@pytest.mark.parametrize("name", ["rosenbrock", "saddle", "noisy", "moving", "ravine"])
def test_a_landscape(open_page, name):
    page = open_page("landscape=saddle" if name == "ravine" else "")
    before, formula = path(page), page.text_content("#map-text .formula")
    contours = page.evaluate("document.querySelector('.contours').innerHTML")
    page.check(f"#landscape-{name}", force=True)
    settle(page)
    assert address(page).get("landscape", "ravine") == name
    assert path(page) != before
    assert page.text_content("#map-text .formula") != formula
    assert page.evaluate("document.querySelector('.contours').innerHTML") != contours


def test_rotation_turns_the_map(page):
    contours = page.evaluate("document.querySelector('.contours').innerHTML")
    page.fill("#number-angle", "45")
    page.press("#number-angle", "Enter")
    settle(page)
    assert "turned by 45°" in page.text_content("#map-text .formula")
    assert page.evaluate("document.querySelector('.contours').innerHTML") != contours


# ---- The race ----


@pytest.mark.parametrize("racer", ["rmsprop", "adam", "adadelta", "adagrad", "momentum", "sgd"])
def test_a_racer_is_hidden_and_shown(page, racer):
    page.uncheck(f"#show-{racer}")
    settle(page)
    assert page.locator(f"#map-view .racer.{racer} *").count() == 0
    assert page.locator(f"#loss .{racer}").count() == 0
    assert address(page) == {"hide": racer}
    page.check(f"#show-{racer}")
    settle(page)
    assert page.locator(f"#map-view .racer.{racer} .path").count() == 1
    assert address(page) == {}


@pytest.mark.parametrize("racer", ["adam", "adadelta", "adagrad", "momentum", "sgd"])
def test_a_rate(page, racer):
    before, ours, loss = path(page, racer), path(page), page.text_content(f"#loss-{racer}")
    page.fill(f"#number-rate-{racer}", "0.011")
    page.press(f"#number-rate-{racer}", "Enter")
    assert path(page, racer) != before
    assert path(page) == ours
    assert page.text_content(f"#loss-{racer}") != loss
    assert address(page) == {f"rate_{racer}": "0.011"}


def test_who_gets_lost_is_said(open_page):
    page = open_page("beta=1&rate_sgd=1000000")
    settle(page)
    assert page.text_content("#loss-rmsprop").startswith("lost in step ")
    page.fill("#number-steps", "300")
    page.press("#number-steps", "Enter")
    settle(page)
    assert page.text_content("#loss-sgd").startswith("lost in step ")
    assert "NaN" not in page.evaluate("document.querySelector('main').innerHTML")


# ---- Time ----


def test_single_steps(page):
    page.click("#first")
    settle(page)
    assert page.text_content("#time-text") == "0 / 20"
    assert "No step has been taken yet" in page.text_content("#formula")
    assert "range(0)" in program(page)
    page.click("#step")
    page.click("#step")
    page.click("#step")
    page.click("#back")
    assert address(page) == {"step": "2"}
    assert page.text_content("#formula").startswith("Step 2 of 20")
    assert len(path(page).split()) == 4  # the start, two steps, and the head
    page.focus("#time")
    page.keyboard.press("ArrowRight")
    assert address(page) == {"step": "3"}
    assert page.get_attribute("#time", "aria-valuetext") == "step 3 of 20"
    page.keyboard.press("End")
    assert address(page) == {}


def test_play_and_pause(open_page):
    page = open_page("steps=300")
    page.select_option("#speed", "10")
    assert page.text_content("#play") == "Play"
    page.click("#play")
    page.wait_for_function("document.querySelector('#play').textContent === 'Pause'")
    page.wait_for_function("parseInt(document.querySelector('#time-text').textContent) >= 3")
    page.click("#play")
    settle(page)
    at = page.text_content("#time-text")
    assert 3 <= int(at.split()[0]) < 300  # it began anew
    page.wait_for_timeout(300)
    assert page.text_content("#time-text") == at
    page.goto(page.url.split("#")[0] + "#step=18")
    page.wait_for_function("document.querySelector('#time-text').textContent === '18 / 20'")
    page.click("#play")
    page.wait_for_function("document.querySelector('#time-text').textContent === '20 / 20'")
    page.wait_for_function("document.querySelector('#play').textContent === 'Play'")
    assert address(page) == {}
    assert "Step 20. Loss of RMSProp: " in page.text_content("#status")


def test_the_speed(open_page):
    """At 2 steps a second, 80 steps would take longer than anybody waits here."""
    page = open_page("steps=80")
    page.select_option("#speed", "2")
    page.click("#play")
    page.wait_for_function("parseInt(document.querySelector('#time-text').textContent) >= 1")
    page.select_option("#speed", "60")
    page.wait_for_function("document.querySelector('#time-text').textContent === '80 / 80'")
    assert address(page) == {"steps": "80", "speed": "60"}


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_motion(open_page, motion):
    """Heads glide from step to step, but not where motion is not wanted."""
    page = open_page(reduced_motion=motion, clock=True)
    page.evaluate(
        """() => {
            window.seen = [];
            const look = () => {
                const group = document.querySelector("#map-view .racer.rmsprop");
                const head = group.querySelector(".head");
                const points = [...group.querySelectorAll(".dot")].map((dot) => dot.getAttribute("cx"));
                const start = group.querySelector(".path").getAttribute("points").split(",")[0];
                window.seen.push([...points, start].some((x) => Math.abs(x - head.getAttribute("cx")) < 0.1));
                requestAnimationFrame(look);
            };
            look();
        }"""
    )
    page.select_option("#speed", "5")
    page.click("#play")
    page.clock.run_for(700)
    assert int(page.text_content("#time-text").split()[0]) >= 3
    assert page.evaluate("window.seen.length") > 20
    assert page.evaluate("window.seen.every(Boolean)") == (motion == "reduce")


@pytest.mark.parametrize("chart", ["#loss", "#chart-g-1", "#chart-root-2", "#chart-step-2"])
def test_a_click_on_a_chart_goes_to_a_step(page, chart):
    box = page.locator(f"{chart} svg").bounding_box()
    page.locator(f"{chart} svg").click(position={"x": box["width"] * 0.4, "y": box["height"] / 2})
    assert 3 < int(address(page)["step"]) < 15


# ---- The spike ----


def test_a_spike(open_page):
    page = open_page("step=4")
    before = path(page)
    assert not page.is_visible("#clear-spikes")
    page.select_option("#spike-size", "10")
    page.click("#spike")
    assert address(page) == {"step": "4", "spikes": "5", "spike": "10"}
    assert path(page) == before  # it is still to come
    assert page.locator("#charts path.spike").count() == 6
    page.click("#step")
    settle(page)
    assert "has a spike of 10" in page.text_content("#formula")
    assert "if t + 1 in [5]:\n        g += 10.0" in program(page)
    page.click("#clear-spikes")
    assert address(page) == {"step": "5", "spike": "10"}
    assert page.locator("#charts path.spike").count() == 0


def test_a_spike_at_the_end_is_put_into_the_run(page):
    before = path(page)
    page.click("#spike")
    assert address(page) == {"spikes": "7"}
    assert path(page) != before
    assert "Step 7 has a spike of 1000" in page.text_content("#status")


# ---- The numbers, and the same in Python ----


def test_the_first_step_in_numbers(open_page):
    page = open_page("step=1")
    cells = [row.locator("td").all_text_contents() for row in page.locator("#formula tbody tr").all()]
    assert cells == [
        ["−1", "−8"],
        ["0.9·0 + 0.1·(−1)² = 0.1", "0.9·0 + 0.1·(−8)² = 6.4"],
        ["√0.1 + 10⁻⁸ = 0.31623", "√6.4 + 10⁻⁸ = 2.5298"],
        ["−5 − 0.4·(−1) / 0.3162 = −3.7351", "−2 − 0.4·(−8) / 2.53 = −0.73509"],
    ]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("centered=1", ["g", "v ← β·v + (1−β)·g²", "m ← β·m + (1−β)·g", "d ← √(v − m²) + ε", "x ← x − η·g / d"]),
        ("bias_correction=1", ["g", "v ← β·v + (1−β)·g²", "v̂ ← v / (1 − βᵗ)", "d ← √v̂ + ε", "x ← x − η·g / d"]),
        ("eps_inside_sqrt=1", ["g", "v ← β·v + (1−β)·g²", "d ← √(v + ε)", "x ← x − η·g / d"]),
        ("momentum=0.5", ["g", "v ← β·v + (1−β)·g²", "d ← √v + ε", "b ← μ·b + g / d", "x ← x − η·b"]),
        (
            "momentum=0.5&nesterov=1",
            ["g", "v ← β·v + (1−β)·g²", "d ← √v + ε", "b ← μ·b + g / d", "x ← x − η·(g / d + μ·b)"],
        ),
        ("momentum=0.5&lr_in_momentum=1", ["g", "v ← β·v + (1−β)·g²", "d ← √v + ε", "b ← μ·b + η·g / d", "x ← x − b"]),
        ("clip_value=1", ["g ← g between −c and c", "v ← β·v + (1−β)·g²", "d ← √v + ε", "x ← x − η·g / d"]),
    ],
)
def test_the_formula_is_that_of_the_settings(open_page, where, rows):
    page = open_page(where)
    assert page.locator("#formula tbody .formula").all_text_contents() == rows
    numbers = page.locator("#formula td").all_text_contents()
    assert not [text for text in numbers if "NaN" in text or "undefined" in text]


@pytest.mark.parametrize(
    "where",
    [
        "",
        "angle=30&x1=3.5&x2=0.1",
        "landscape=rosenbrock&momentum=0.5&nesterov=1",
        "landscape=saddle&centered=1&eps=0.001",
        "landscape=noisy&dialect=keras&momentum=0.5",
        "landscape=moving&spikes=60,61&spike=1000000&angle=45&step=90",
        "dialect=tf1&centered=1",
        "dialect=optax&bias_correction=1&beta=0.75",
        "dialect=mxnet&centered=1",
        "dialect=torch",
        "dialect=sb3&steps=50",
        "dialect=d2l&step=0",
        "clip_value=0.5&initial_square_avg=0.3&bias_correction=1&steps=100",
        "lr=1e-7&eps=1e-12",
        "momentum=0.9&lr=0.01&lr_in_momentum=1",
        "dialect=timm&momentum=0.5",
    ],
)
def test_the_program_prints_what_the_page_says(open_page, where):
    page = open_page(where)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(program(page), {})
    assert output.getvalue().split() == page.text_content("#prints").split()


# ---- The address ----


def test_the_address_brings_the_page_back(open_page):
    first = open_page()
    first.check("#landscape-moving", force=True)
    first.select_option("#dialect", "keras")
    drag(first, (80, -50))
    first.fill("#number-momentum", "0.3")
    first.press("#number-momentum", "Enter")
    first.uncheck("#show-sgd")
    first.fill("#number-rate-adam", "0.123")
    first.press("#number-rate-adam", "Enter")
    first.locator("#loss svg").click(position={"x": 120, "y": 80})
    first.click("#spike")
    address(first)
    second = open_page(first.evaluate("location.hash.slice(1)"))
    for part in ["#map-view svg", "#loss", "#charts", "#formula", "#code", "#racers"]:
        settle(second)
        assert second.locator(part).evaluate("(e) => e.outerHTML") == first.locator(part).evaluate("(e) => e.outerHTML")


def test_stories_and_the_way_back(page):
    titles = page.locator("#stories a").all_text_contents()
    for k, title in enumerate(titles):
        page.locator("#stories a").nth(k).click()
        settle(page)
        assert page.locator("#stories a[aria-current]").all_text_contents() == [title]
        assert page.text_content("#story").endswith(".")
        assert page.text_content("#problems") == ""
    page.go_back()
    settle(page)
    assert page.locator("#stories a[aria-current]").all_text_contents() == [titles[-2]]


def test_a_wrong_address_is_said(open_page):
    page = open_page("lr=abc&rho=0.9&x1=" + quote("<img src=x onerror=window.hacked=1>") + "&beta=0.8")
    faults = page.locator("#problems li").all_text_contents()
    assert len(faults) == 3
    assert faults[0].startswith("lr: abc, expected a number")
    assert "expected beta" in faults[1]
    assert page.locator("#problems img").count() == 0
    assert "beta=0.8" in program(page)  # what is right is used
    page.locator("#stories a").first.click()
    settle(page)
    assert page.text_content("#problems") == ""


def test_copies(open_page):
    page = open_page("lr=0.25&angle=20", permissions=["clipboard-read", "clipboard-write"])
    page.click("#copy-link")
    page.wait_for_function("document.querySelector('#copy-link').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    page.click("#copy-code")
    page.wait_for_function("document.querySelector('#copy-code').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.text_content("#code code")
    page.wait_for_function("document.querySelector('#copy-code').textContent === 'Copy'")


def test_no_address_breaks_the_page(page):
    """Whatever the address says, the page draws it: no error, and no number that is not one."""
    rng = np.random.default_rng(17)
    draw = {
        "landscape": ["ravine", "rosenbrock", "saddle", "noisy", "moving"],
        "angle": [0, 90, 77.5, 180],
        "x1": [0, -5, 100, 1e-300],
        "x2": [0, 2, -100],
        "dialect": ["torch", "keras", "mxnet", "optax"],
        "lr": [0, 1e-300, 0.1, 100, 1e300],
        "beta": [0, 0.5, 1, 0.999999],
        "eps": [0, 1e-300, 1, 1e300],
        "momentum": [0, 0.5, 1, 3],
        "nesterov": [0, 1],
        "centered": [0, 1],
        "bias_correction": [0, 1],
        "eps_inside_sqrt": [0, 1],
        "initial_square_avg": [0, 1, 1e300],
        "clip_value": [1e-300, 1, "none"],
        "steps": [10, 300],
        "step": [0, 1, 10],
        "spikes": ["1", "9,10", "300"],
        "spike": [10, 1000000],
        "hide": ["rmsprop", "adam,sgd", "rmsprop,adam,adadelta,adagrad,momentum,sgd"],
        "rate_sgd": [0, 1e6],
        "rate_adadelta": [0, 1e6],
    }
    for _ in range(60):
        names = [name for name in draw if rng.random() < 0.4]
        where = "&".join(f"{name}={rng.choice(np.array(draw[name], object))}" for name in names)
        page.evaluate("(hash) => { location.hash = hash; }", where)
        settle(page)
        settle(page)
        assert not re.search("NaN|undefined|Infinity", page.evaluate("document.querySelector('#stage').outerHTML")), (
            where
        )


# ---- Without a mouse ----


def test_every_control_is_reached_and_named(open_page):
    page = open_page("momentum=0.5&spikes=3")
    open_more(page)
    page.evaluate("document.activeElement.blur()")
    wanted = set(
        page.evaluate(
            """() => [...document.querySelectorAll("a, button, input, select, summary")]
                .filter((e) => e.checkVisibility() && !e.disabled && (e.type !== "radio" || e.checked))
                .map((e, k) => (e.dataset.number = k))"""
        )
    )
    reached = set()
    for _ in range(len(wanted) + 10):
        page.keyboard.press("Tab")
        number = page.evaluate("document.activeElement.dataset.number")
        if number is not None:
            reached.add(int(number))
    assert reached == wanted
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select")].filter((e) =>
            ![e.getAttribute("aria-label"), e.textContent, ...[...(e.labels ?? [])].map((label) => label.textContent)]
                .some((name) => name?.trim())
        ).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0


def test_the_map_stays_in_sight_beside_the_sliders(open_page):
    page = open_page(width=360, height=740)
    page.focus("#show-adam")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    for _ in range(12):  # backwards, where the map could cover what is reached
        page.keyboard.press("Shift+Tab")
        settle(page)
        reached = page.evaluate("document.activeElement.getBoundingClientRect().top")
        assert reached >= page.evaluate("document.querySelector('#map-view').getBoundingClientRect().bottom") - 8
    page.locator("#slider-momentum").scroll_into_view_if_needed()
    page.evaluate("scrollBy(0, 100)")
    settle(page)
    box = page.locator("#map-view").bounding_box()
    assert -1 <= box["y"] <= 5
