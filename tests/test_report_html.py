"""report.html: one file that needs no network, looked at by a real browser where there is one."""

import json
import re
import shutil
from pathlib import Path

import pytest
from report_traces import write_trace

import minidnn.report
from minidnn import nn
from minidnn.parallel import Options, make_plan, make_strategy
from minidnn.report.html import payload, save_html
from minidnn.report.plan_rows import rows_of
from minidnn.report.trace import load


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """For 2 and 8 ranks: (trace, path of its report)."""
    found = {}
    for p in (2, 8):
        folder = tmp_path_factory.mktemp(f"p{p}")
        trace = load(write_trace(folder / "t", p))
        model, options = nn.build("alexnet", image=56, classes=8, width=0.25), Options()
        strategy = make_strategy("owt", model, (56, 56, 3), p, options)
        trace.run["plan_rows"] = rows_of(make_plan(model, (56, 56, 3), strategy, 16, "alexnet"))
        trace.run["losses"] = [2.3 / (i + 1) for i in range(100)]
        epochs = ({"step": 50 * i, "accuracy": 0.4 * i, "validation_accuracy": None} for i in (1, 2))
        trace.run["history"] = list(epochs)
        save_html(trace, folder / "report.html")
        found[p] = trace, folder / "report.html"
    return found


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Opens a report and fails the test at the end if the browser complained."""
    complaints, opened = [], []

    def opener(path: Path, width=1280, scheme="light", **options):
        options.setdefault("bypass_csp", True)  # the page lets no test evaluate text as a script, either
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, **options
        )
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith("file:") else complaints.append(request.url),
        )
        page.goto(path.as_uri())
        return page

    yield opener
    for context in opened:
        context.close()
    assert not [text for text in complaints if not text.startswith("data:")]


def test_the_file_is_whole_small_and_needs_nothing_else(pages):
    for trace, path in pages.values():
        text = path.read_text()
        page = text.replace((Path(minidnn.report.__file__).parent / "echarts.min.js").read_text(), "")
        assert len(page) < len(text) - 1e6
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"'](?!data:)|https?://", page)
        assert path.stat().st_size < 1.6e6
        assert "/*DATA*/" not in text and "Licensed to the Apache Software Foundation" in text
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
        data = json.loads(found.group(1))
        assert data["plan_text"] == trace.run["plan"] and "<alexnet>" not in found.group(1)
        assert sum(len(t["messages"]) for t in data["timelines"].values()) <= len(trace.messages)


def test_the_payload_is_plain_json_for_odd_traces(tmp_path):
    trace = load(write_trace(tmp_path / "t", 1, steps=1))
    data = json.loads(json.dumps(payload(trace), allow_nan=False))
    assert data["timelines"]["1"]["messages"] == [] and data["plan"] == []
    trace.steps[1][0].loss = float("nan")
    assert payload(trace)["losses"] == [None]


@pytest.mark.parametrize(
    "p, width, scheme", [(2, 1280, "light"), (2, 390, "dark"), (8, 1280, "dark"), (8, 390, "light")]
)
def test_it_fits_the_screen_in_light_and_dark(pages, open_page, p, width, scheme):
    page = open_page(pages[p][1], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("timeline", "split", "matrix", "memory", "loss", "accuracy", "durations"):
        box = page.locator(f"#{name} canvas").first.bounding_box()
        assert box["width"] > 0.7 * min(width, 600) * (0.6 if width > 800 else 1) and box["height"] > 100
    # text stands out from what is behind it, by the WCAG's measure
    contrast = page.evaluate("""() => {
        const light = color => {
            const channels = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255);
            const c = channels.map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
        };
        const style = (s, k) => getComputedStyle(document.querySelector(s))[k];
        const back = light(style("section", "backgroundColor"));
        return ["h2", ".hint", "#facts td", "#plan tr.communication td"].map(s => {
            const [a, b] = [light(style(s, "color")), back].sort((x, y) => y - x);
            return (a + .05) / (b + .05);
        });
    }""")
    assert min(contrast) > 3.5, contrast
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 150) == (scheme == "dark")
    assert page.locator("#plan tr.communication").count() >= 4
    assert page.locator("#plan tr").first.locator("th").count() == 3 + p


def _place(page, index):
    """Where on the page the middle of a message's arrow is."""
    box = page.locator("#timeline canvas").first.bounding_box()
    x, y = page.evaluate(
        """index => {
            const m = timeline.step.messages[index], lanes = data.ranks;
            const from = lanes.indexOf(m.source), to = lanes.indexOf(m.dest), near = BROAD / 2 + GAP + THIN / 2;
            const [start, stop] = to > from ? [near, -BROAD / 2] : [-BROAD / 2, near];
            return timeline.chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 },
                [(m.sent + m.done) / 2, (from + start + to + stop) / 2]);
        }""",
        index,
    )
    return box["x"] + x, box["y"] + y


def test_hover_click_and_zoom(pages, open_page):
    trace, path = pages[2]
    page = open_page(path)
    step = int(page.locator("#step").input_value())
    messages = trace.messages_of(step)
    index = next(i for i, m in enumerate(messages) if m.phase == "forward" and m.source == 0)

    page.mouse.move(*_place(page, index))
    tip = page.get_by_text("rank 0 → rank 1, 576.0 KiB float32, elements 0:147456")
    tip.wait_for()

    page.mouse.click(*_place(page, index))
    details = page.locator("#details")
    details.get_by_text("all_gather of activations for fc6").wait_for()
    back = details.locator("button")
    assert back.count() == 1 and "reduce_scatter" in back.inner_text()
    back.click()  # to its adjoint, and from there back again
    details.get_by_text("It returns the gradient of the forward").wait_for()
    assert "all_gather" in details.locator("button").inner_text()
    assert page.evaluate("timeline.chosen") != messages[index].number

    shown = (
        "(() => { const z = timeline.chart.getOption().dataZoom[0]; return z.endValue - z.startValue; })()"
    )
    whole = page.evaluate(shown)
    page.locator("#zoom-in").click()
    assert page.evaluate(shown) == pytest.approx(whole / 2, rel=0.01)
    box = page.locator("#timeline canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    page.wait_for_function(f"{shown} < {0.49 * whole}")
    page.locator("#zoom-all").click()
    assert page.evaluate(shown) == pytest.approx(whole, rel=0.01)

    page.mouse.click(box["x"] + box["width"] / 2, _place(page, index)[1] - 30)  # a bar of rank 0
    details.get_by_text("computing").wait_for()


def test_another_step_and_another_colour_scheme_are_drawn_at_once(pages, open_page):
    trace, path = pages[8]
    page = open_page(path)
    options = [option.get_attribute("value") for option in page.locator("#step option").all()]
    assert set(map(int, options)) <= set(trace.complete_steps())
    page.locator("#step").select_option(options[-1])
    assert page.evaluate("timeline.step === data.timelines[document.getElementById('step').value]")
    before = page.locator("#timeline").screenshot()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("timeline.chart.getOption().tooltip[0].backgroundColor === css('card')")
    assert page.locator("#timeline").screenshot() != before
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function("timeline.chart.getWidth() < 700")


HOSTILE = "<img src=x onerror='window.hit = 1'><script>window.hit = 1</script>\"'"


@pytest.mark.parametrize("bypass_csp", [True, False])
def test_nothing_in_a_trace_runs_as_a_script(pages, open_page, tmp_path, monkeypatch, bypass_csp):
    """Texts where numbers belong, as a page could get them past the check of the records; with the page's own policy
    switched off, which would stop them in the end, and with it on.
    """
    data = payload(pages[2][0])
    for timeline in data["timelines"].values():
        for message in timeline["messages"]:
            message |= {
                key: HOSTILE for key in message if key not in ("number", "hidden", "difference", "group")
            }
            message["group"] = [HOSTILE]
            message |= {"source": 0, "dest": 1, "sent": 0.0, "done": 1.0}
        timeline["pieces"] = [[*piece[:4], HOSTILE, HOSTILE, HOSTILE, 0.0] for piece in timeline["pieces"]]
    data |= {
        "title": HOSTILE,
        "facts": [[HOSTILE, HOSTILE]],
        "fit": HOSTILE,
        "plan_text": HOSTILE,
        "layers": [HOSTILE],
    }
    data["collectives"] = {"header": [HOSTILE], "rows": [[HOSTILE]]}
    data["plan"] = [
        {key: HOSTILE for key in ("kind", "name", "detail", "shape")} | {"cells": [HOSTILE, None]}
    ]
    monkeypatch.setattr("minidnn.report.html.payload", lambda *_: data)
    save_html(pages[2][0], tmp_path / "r.html")
    page = open_page(tmp_path / "r.html", bypass_csp=bypass_csp)
    for show in (
        "timeline.pick(0)",
        "showDetails('piece', timeline.step.pieces[0])",
        "byId('fit').innerHTML = timeline.tip({seriesId: 'messages', dataIndex: 0})",
        "byId('fit').innerHTML = timeline.tip({seriesId: 'pieces', dataIndex: 0})",
    ):
        page.evaluate(show)
    page.wait_for_timeout(50)
    assert page.evaluate("window.hit") is None and page.locator("img").count() == 0
    assert "onerror" in page.locator("#details").inner_text()


def test_the_page_lets_no_script_run_but_its_own(pages, browser):
    page = browser.new_context().new_page()
    page.goto(pages[2][1].as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">')")
    page.wait_for_timeout(50)
    assert page.evaluate("window.hit") is None and page.evaluate("typeof timeline") == "object"
    page.context.close()
