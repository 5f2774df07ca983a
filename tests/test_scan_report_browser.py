"""The report in a real browser: needs playwright, and chromium (or CHROMIUM)."""

from __future__ import annotations

import csv
import io
import json
import os
import re

import pytest
from chromium import CHROMIUM, SWITCHES
from scan_report_samples import failed, row, row_of, shapes, write_scan

from nsfw_guard.scan.report import read_decisions, write_report

HOSTILE = ["<img src=x onerror=alert(1)>.png", "</script><script>alert(2)</script>.png", "\u202egnp.exe", "a\nb\td"]

pytestmark = pytest.mark.skipif(
    not os.path.exists(CHROMIUM), reason="needs chromium: set CHROMIUM if it is not /usr/bin/chromium"
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page about drawn shapes: twelve or so triangles are flagged. One file is there twice, two were not read."""
    folder = tmp_path_factory.mktemp("report")
    rows = shapes(folder / "pictures", 60, side=96)
    flagged = next(one for one in rows if one.flagged)
    copy = folder / "pictures" / "drafts" / "copy.jpg"
    with open(flagged.path, "rb") as file:
        copy.write_bytes(file.read())
    rows.append(row_of(copy, flagged.score, labels=flagged.labels))
    rows += [failed("/data/x.png", "it is none"), failed("/data/y.png", "/data/y.png: it is none")]
    return write_report(write_scan(folder / "scan", rows)).path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page about five thousand files with names that want to be markup. Nothing is there to show."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        row(f"/data/{index % 7}/{HOSTILE[index % len(HOSTILE)]}{index:05}", 0.5 + index / 10_000, level=HOSTILE[0])
        for index in range(5000)
    ]
    rows += [failed(f"/data/{name}", f"{name} is broken") for name in HOSTILE]
    return write_report(write_scan(folder / "scan", rows), limit=5000, pictures=False, title=HOSTILE[0]).path


@pytest.fixture
def context(browser):
    """A browser profile of its own. What a page asks of a network, says on the console or raises fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    trouble = []
    context.on("request", lambda request: trouble.append(request.url) if not allowed(request.url) else None)
    context.on("console", lambda message: trouble.append(message.text))
    context.on("weberror", lambda error: trouble.append(str(error.error)))
    context.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    yield context
    context.close()
    assert trouble == []


def allowed(url):
    """The page itself, and what lies in it."""
    return url.startswith(("data:", "blob:")) or re.fullmatch(r"file://.*\.html", url)


@pytest.fixture
def open_page(context):
    def open_page(path):
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    return open_page


def focus(page):
    """Go to the gallery: until it is near the window, none of it is in the document."""
    page.evaluate("document.getElementById('grid').focus()")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def group(page, name):
    page.locator("#groups").get_by_role("button", name=name).click()


def active(page):
    """The index of the current item in the gallery."""
    return page.evaluate(
        "Number(document.getElementById(document.getElementById('grid').getAttribute('aria-activedescendant'))"
        ".getAttribute('aria-posinset')) - 1"
    )


def shown(page):
    return page.locator("#shown").inner_text()


def stored(page):
    return page.evaluate("Object.values(localStorage).map(JSON.parse)")


def test_it_says_the_numbers_first_and_asks_for_nothing(report, open_page):
    page = open_page(report)
    data = json.loads(page.locator("#data").inner_text())
    counts = data["counts"]
    assert counts["flagged"] > 5
    assert page.locator("#stats b").all_inner_texts() == [
        str(counts[name]) for name in ("files", "flagged", "passed", "failed")
    ]
    assert "pictures in this file, reduced but not redacted" in page.locator("#notice").inner_text()
    assert "threshold 0.5" in page.locator("#histogram svg").text_content()
    assert f"{counts['flagged']} files are flagged" in page.locator("#histogram svg").get_attribute("aria-label")
    assert page.locator("#folders tbody tr").count() == len(data["folders"]["rows"])
    assert page.locator("#failed li b").all_inner_texts() == ["1", "1"]
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    )


def test_the_security_policy_holds_even_against_the_page_itself(report, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]")
    blocked = page.evaluate(
        """async () => {
            const violated = [];
            document.addEventListener("securitypolicyviolation", event => violated.push(event.effectiveDirective));
            await fetch("https://example.invalid/").catch(() => {});
            document.body.insertAdjacentHTML("beforeend", "<img src='file:///x.png' onerror='window.ran = 1'>");
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 2" }));
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
            return [violated.sort(), window.ran ?? null];
        }"""
    )
    context.close()
    # "connect-src" and so on: fetching, foreign pictures, inline handlers and new scripts.
    assert blocked[1] is None
    assert {"connect-src", "img-src", "script-src-elem"} <= set(blocked[0])


def test_pictures_are_blurred_until_they_are_opened(report, open_page):
    page = open_page(report)
    focus(page)
    curtains = page.locator(".card img").evaluate_all("all => all.map(image => getComputedStyle(image).filter)")
    assert curtains
    assert all("blur" in curtain for curtain in curtains)
    page.locator(".card").first.click()
    picture = page.locator("#detail figure img")
    assert picture.evaluate("image => getComputedStyle(image).filter") == "none"
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.keyboard.press("Space")
    assert "blur" in picture.evaluate("image => getComputedStyle(image).filter")
    page.keyboard.press("Enter")
    assert picture.evaluate("image => getComputedStyle(image).filter") == "none"
    page.keyboard.press("ArrowRight")  # the next one was not asked for
    assert "blur" in picture.evaluate("image => getComputedStyle(image).filter")
    page.get_by_role("button", name="Show the picture").click()
    assert picture.evaluate("image => getComputedStyle(image).filter") == "none"
    page.keyboard.press("r")
    page.keyboard.press("ArrowRight")
    assert picture.evaluate("image => getComputedStyle(image).filter") == "none"
    page.keyboard.press("Escape")
    picture.wait_for(state="detached")
    assert not page.locator("#detail").is_visible()
    assert all(
        "blur" in one
        for one in page.locator(".card img").evaluate_all("all => all.map(i => getComputedStyle(i).filter)")
    )


def test_the_keyboard_is_enough(report, open_page):
    page = open_page(report)
    total = int(shown(page).split()[0])
    focus(page)
    assert active(page) == 0
    assert page.locator(".card.active").evaluate("card => card.getBoundingClientRect().top") > 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert active(page) == 1
    page.keyboard.press("ArrowDown")
    columns = active(page) - 1
    assert columns > 1
    page.keyboard.press("ArrowUp")
    assert active(page) == 1
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert active(page) == total - 1
    page.keyboard.press("Home")
    for key in ("y", "n", "y", "u"):
        page.keyboard.press(key)
    assert active(page) == 4
    marks = page.locator(".card .mark").all_inner_texts()
    assert sorted(marks) == ["Safe", "Unsafe", "Unsafe"]
    assert page.locator("#progress").inner_text() == "3 reviewed: 2 of 3 flagged are unsafe (67 %)"
    page.keyboard.press("Home")
    page.keyboard.press("u")
    assert page.locator("#progress").inner_text() == "2 reviewed: 1 of 2 flagged are unsafe (50 %)"
    page.keyboard.press("Enter")
    assert page.locator("#detail .under [role=status]").inner_text() == f"2 of {total}"
    page.keyboard.press("y")
    assert page.locator("#detail .under [role=status]").inner_text() == f"3 of {total}"
    page.keyboard.press("ArrowLeft")
    assert page.locator(".decide.unsafe").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert active(page) == 1
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert page.evaluate("document.activeElement.textContent") == "Close"
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("y?/n")  # is text there
    assert page.locator("#text").input_value() == "y?/n"
    assert page.locator("#empty").inner_text().startswith("Nothing matches these filters.")
    assert page.locator("#progress").inner_text() == "2 reviewed: 2 of 2 flagged are unsafe (100 %)"


@pytest.mark.parametrize(
    ("then", "focused"),
    [("document.getElementById('text').focus()", "text"), ("press('Enter')", "detail"), ("", "grid")],
    ids=["search", "open again", "nothing"],
)
def test_a_closed_picture_takes_nothing_from_what_comes_next(report, open_page, then, focused):
    """A dialog's close event comes a frame late."""
    page = open_page(report)
    focus(page)
    page.keyboard.press("Enter")
    seen = page.evaluate(
        f"""async () => {{
            const detail = document.getElementById("detail"), grid = document.getElementById("grid");
            const press = key => grid.dispatchEvent(new KeyboardEvent("keydown", {{ key }}));
            const closed = new Promise(done => detail.addEventListener("close", done, {{ once: true }}));
            detail.close();
            {then};
            await closed;
            return [document.activeElement.id, detail.open, detail.children.length > 0];
        }}"""
    )
    assert seen == [focused, focused == "detail", focused == "detail"]


def test_the_current_picture_is_always_in_view(hostile, open_page):
    page = open_page(hostile)
    focus(page)
    for key in ["PageDown"] * 3 + ["ArrowDown"] * 9 + ["End", "PageUp", "ArrowUp", "Home"]:
        page.keyboard.press(key)
        box = page.evaluate("document.querySelector('.card.active').getBoundingClientRect().toJSON()")
        bar = page.evaluate("document.getElementById('toolbar').getBoundingClientRect().bottom")
        assert box["top"] >= bar - 1, key
        assert box["bottom"] <= 900, key


def test_five_thousand_items_are_never_in_the_document_at_once(hostile, open_page):
    page = open_page(hostile)
    focus(page)
    assert shown(page) == "5,000 shown"
    seen = page.evaluate(
        """async () => {
            const grid = document.getElementById("grid"), seen = [];
            const start = scrollY, end = document.documentElement.scrollHeight - innerHeight;
            for (let step = 0; step <= 20; step++) {
                scrollTo({ top: start + (end - start) * step / 20, behavior: "instant" });
                await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
                const x = grid.getBoundingClientRect().left + 20;
                const at = y => document.elementFromPoint(x, y)?.closest(".card");
                seen.push({
                    cards: grid.children.length,
                    nodes: grid.querySelectorAll("*").length,
                    gaps: [300, 500, 700].filter(y => !at(y) && !at(y + 20)).length,
                    places: [...grid.children].map(card => Number(card.ariaPosInSet)).sort((a, b) => a - b),
                });
            }
            return seen;
        }"""
    )
    for step in seen:
        assert 20 < step["cards"] < 80
        assert step["nodes"] < 1000
        assert step["gaps"] == 0
        assert step["places"] == list(range(step["places"][0], step["places"][-1] + 1))
    assert seen[0]["places"][0] == 1
    assert seen[-1]["places"][-1] == 5000
    assert len({step["places"][0] for step in seen}) > 15


def test_a_window_that_grows_shows_more(hostile, open_page):
    page = open_page(hostile)
    focus(page)
    before = page.locator(".card").count()
    page.set_viewport_size({"width": 1280, "height": 2400})
    page.locator(f"#grid > :nth-child({before + 30})").wait_for(state="attached")


def test_what_files_are_called_does_not_run_and_is_seen(hostile, open_page):
    page = open_page(hostile)
    assert page.title() == HOSTILE[0]
    focus(page)
    for seen in [*HOSTILE[:2], "⟨U+202E⟩gnp.exe", "a␊b␉d"]:
        page.locator("#text").fill(seen)
        assert shown(page).startswith("1,250 of 5,000")
        # What follows the last slash of a name with slashes is its name.
        assert seen.rsplit("/", 1)[-1] in page.locator(".card .name").first.inner_text()
        page.locator(".card").first.click()
        assert seen in page.locator("#detail .where code").inner_text()
        page.keyboard.press("Escape")
    group(page, "Not read")
    page.locator("#text").fill("")
    assert page.locator(".card").count() == len(HOSTILE)
    assert page.evaluate("document.querySelectorAll('img, main script').length") == 0


def test_filters_and_orders(report, open_page):
    page = open_page(report)
    items = json.loads(page.locator("#data").inner_text())["items"]

    def names():
        return page.locator(".card").evaluate_all(
            "all => all.sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map(card => card.id)"
        )

    def expected(keep, key):
        return [f"item-{i}" for i in sorted((i for i, item in enumerate(items) if keep(item)), key=key)]

    def score(item):
        return item.get("score", -1)

    def best(item):
        return max(item["labels"], key=item["labels"].get) if "labels" in item else None

    page.set_viewport_size({"width": 1280, "height": 4000})
    focus(page)
    assert names() == expected(lambda item: item["group"] == "flagged", lambda i: -score(items[i]))
    group(page, "All")
    assert len(names()) == len(items)
    page.locator("#low").fill("0.2")
    page.locator("#high").fill("0.8")
    page.locator("#sort").select_option("low")
    assert names() == expected(lambda item: 0.2 <= score(item) <= 0.8, lambda i: score(items[i]))
    assert names()
    page.locator("#sort").select_option("near")
    assert names() == expected(lambda item: 0.2 <= score(item) <= 0.8, lambda i: abs(score(items[i]) - 0.5))
    page.locator("#reset").click()
    assert len(names()) == len(items)
    page.locator("#label").select_option(label="circle")
    assert names() == expected(lambda item: best(item) == "circle", lambda i: -score(items[i]))
    page.locator("#label").select_option(label="p(triangle) ≥")
    page.locator("#least").fill("0.9")
    assert names() == expected(
        lambda item: item.get("labels", {}).get("triangle", 0) >= 0.9, lambda i: -score(items[i])
    )
    page.locator("#reset").click()
    page.locator("#text").fill("COPY.jpg")  # found by the name of a copy, in any case
    assert page.locator(".card .badges").all_inner_texts() == ["×2"]
    page.locator("#reset").click()
    folder = items[0]["folder"]
    page.locator("#folder").select_option(value=folder)
    page.locator("#sort").select_option("path")
    assert names() == expected(lambda item: item["folder"] == folder, lambda i: items[i]["path"])
    page.locator("#reset").click()
    focus(page)
    page.keyboard.press("y")
    for value, count in (("unsafe", 1), ("safe", 0), ("any", 1), ("none", len(items) - 3)):  # two were not read
        page.locator("#decision").select_option(value)
        assert len(names()) == count, value


def test_the_overview_leads_to_the_review(report, open_page):
    page = open_page(report)
    items = json.loads(page.locator("#data").inner_text())["items"]
    page.locator("#folders tbody button").first.click()
    chosen = page.locator("#folder").input_value()
    assert int(shown(page).split()[0]) == sum(item["folder"] == chosen for item in items) > 0
    page.locator("#histogram .column").last.click()
    assert page.locator("#low").input_value() == "0.98"
    assert int(shown(page).split()[0]) == sum(item.get("score", 0) >= 0.98 for item in items)
    page.get_by_role("button", name="See them in the review").click()
    assert page.locator(".card.error").count() == 2
    focus(page)
    page.keyboard.press("y")  # nobody can decide on what is not known
    assert stored(page) == []
    page.locator("#folders thead button").nth(1).click()
    files = [int(text) for text in page.locator("#folders tbody tr td:nth-child(2)").all_inner_texts()]
    assert files == sorted(files, reverse=True)


def test_decisions_survive_a_reload_and_are_told_to_other_tabs(report, open_page):
    page, other = open_page(report), open_page(report)
    focus(page)
    page.keyboard.press("y")
    page.keyboard.press("n")
    other.locator("#progress", has_text="2 reviewed").wait_for()
    focus(other)
    other.keyboard.press("Home")
    other.keyboard.press("u")
    page.locator("#progress", has_text="1 reviewed").wait_for()
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator(".card .mark").all_inner_texts() == ["Safe"]


@pytest.mark.parametrize("damaged", ["{", "[1, 2]", "null", '{"a": 5, "b": {"decision": "maybe"}}'])
def test_decisions_that_are_stored_and_damaged_are_none(report, open_page, damaged):
    page = open_page(report)
    focus(page)
    page.keyboard.press("y")
    page.evaluate("text => Object.keys(localStorage).forEach(key => localStorage.setItem(key, text))", damaged)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#progress").inner_text() == "None reviewed yet"
    focus(page)
    page.keyboard.press("n")
    assert [list(entry.values())[0]["decision"] for entry in stored(page)] == ["safe"]


def test_where_nothing_can_be_stored_it_says_so_and_goes_on(report, context):
    context.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('no', 'QuotaExceededError'); }")
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]")
    focus(page)
    page.keyboard.press("y")
    assert "does not let the page keep decisions: export them" in page.locator("#message").inner_text()
    assert page.locator("#progress").inner_text().startswith("1 reviewed")
    assert [one.unsafe for one in exported(page)[1]] == [True]


def exported(page):
    """The exported file's text, and the decisions that are read from it."""
    with page.expect_download() as download:
        page.locator("#export").click()
    path = download.value.path()
    with open(path, encoding="utf-8", newline="") as file:
        return file.read(), read_decisions(path)


def imported(page, text):
    data = {"name": "decisions.csv", "mimeType": "text/csv", "buffer": text.encode()}
    page.locator("#import-file").set_input_files(data)
    page.locator("#message").wait_for()
    said = page.locator("#message").inner_text()
    page.evaluate("document.getElementById('message').hidden = true")
    return said


def test_decisions_are_exported_and_go_on_elsewhere(report, open_page, browser):
    page = open_page(report)
    items = json.loads(page.locator("#data").inner_text())["items"]
    assert page.locator("#export").is_disabled()
    focus(page)
    for key in ("y", "n", "u", "y"):
        page.keyboard.press(key)
    group(page, "Nearest misses")
    focus(page)
    page.keyboard.press("Home")
    page.keyboard.press("y")
    text, decisions = exported(page)
    first_miss = next(item for item in items if item["group"] == "miss")
    wanted = [(items[0], True), (items[1], False), (items[3], True), (first_miss, True)]
    assert [(one.path, one.sha256, one.score, one.unsafe) for one in decisions] == [
        (item["path"], item["sha256"], item["score"], unsafe) for item, unsafe in wanted
    ]
    assert [one.flagged for one in decisions] == [True, True, True, False]
    assert {(one.model, one.threshold) for one in decisions} == {("demo@sha256:0123456789abcdef", 0.5)}
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", one.reviewed_at) for one in decisions)
    assert text.startswith("\ufeffpath,sha256,score,flagged,decision,model,threshold,reviewed_at\r\n")

    elsewhere = browser.new_context(accept_downloads=True)
    other = elsewhere.new_page()
    other.goto(report.as_uri())
    other.wait_for_selector("html[data-ready]")
    focus(other)
    other.keyboard.press("n")  # newer than what comes
    assert imported(other, text) == "3 decisions taken over; 1 was not newer than what is decided here."
    again = {one.path: one.unsafe for one in exported(other)[1]}
    assert again == {item["path"]: unsafe for item, unsafe in wanted} | {items[0]["path"]: False}
    elsewhere.close()


def test_any_path_goes_out_and_comes_in_unharmed(tmp_path, open_page):
    paths = [
        "=1+1.jpg",
        "+a",
        "-a",
        "@a",
        "'a",
        "''=a",
        "\ta",
        "\na,b",
        'a"b',
        "a\r\nb",
        " a",
        "＝a",
        "/é😀\u202e",
        "a,b;c",
    ]
    out = write_scan(tmp_path / "scan", [row(path, 0.9 - index / 100) for index, path in enumerate(paths)])
    page = open_page(write_report(out, pictures=False).path)
    focus(page)
    for _ in paths:
        page.keyboard.press("y")
    text, decisions = exported(page)
    assert [one.path for one in decisions] == paths
    for cells in csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")):
        assert all(cell[:1] not in tuple("=+-@\t\r\n＝") or not cell for cell in cells)
    page.evaluate("localStorage.clear()")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert imported(page, text) == f"{len(paths)} decisions taken over."
    assert exported(page)[0] == text


def test_foreign_decisions_are_kept_and_senseless_files_change_nothing(report, open_page):
    page = open_page(report)
    head = "path,sha256,score,flagged,decision,model,threshold,reviewed_at"
    foreign = f"/other.jpg,{'f' * 64},0.25,false,safe,other@1,0.7,2030-01-01T00:00:00Z"
    said = imported(page, f"{head}\n{foreign}\n")
    assert said == "0 decisions taken over; 1 is about pictures that are not shown here; the next export has them too."
    for text, why in [
        ("", 'It has no column "path"'),
        (f"{head}\n/a,,,true,safe,,,\n/b,,,true,perhaps,,,\n", 'Line 3: the decision is "perhaps"'),
        (f"{head}\n/a,,,true,safe\n", "Line 2 has 5 cells; expected 8"),
        (f'{head}\n"/a,,,true,safe,,,\n', "It ends within a quoted cell"),
        (f"{head}\n,,,true,safe,,,\n", "has neither a path nor a sha256"),
    ]:
        assert imported(page, text).startswith("Nothing was imported. ")
        assert why in imported(page, text)
    assert exported(page)[0].splitlines()[1:] == [foreign]


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_wider_than_the_window(report, open_page, width):
    page = open_page(report)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    focus(page)
    page.locator(".card").first.click()
    assert page.evaluate("document.getElementById('detail').getBoundingClientRect().width") <= width
    assert page.evaluate("document.getElementById('detail').scrollWidth") <= width


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "There is nothing to review."),
        ([row("/a.jpg", 0.1)], ""),
        ([failed("/a.jpg", "it is none")], ""),
    ],
    ids=["nothing", "nothing flagged", "only errors"],
)
def test_empty_states(tmp_path, open_page, rows, said):
    page = open_page(write_report(write_scan(tmp_path / "scan", rows)).path)
    assert page.locator("#empty").inner_text().startswith(said)
    focus(page)
    assert page.locator(".card").count() == len(rows)
    group(page, "Flagged")
    assert ("Nothing was flagged." if rows else "There is nothing to review.") in page.locator("#empty").inner_text()
    focus(page)
    page.keyboard.press("Enter")  # on nothing


def test_a_redacted_page_has_no_curtain_to_open(tmp_path, open_page):
    rows = shapes(tmp_path / "pictures", 6, side=64)
    page = open_page(write_report(write_scan(tmp_path / "scan", rows), redacted=True).path)
    assert "blurred for good" in page.locator("#notice").inner_text()
    focus(page)
    group(page, "All")
    assert page.locator(".card img").count() == 6
    assert page.locator("img.curtain").count() == 0
    page.locator(".card").first.click()
    assert page.locator(".reveal").count() == 0
