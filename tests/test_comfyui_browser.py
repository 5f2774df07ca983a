"""The node pack in a real browser: needs COMFYUI_DIR, COMFYUI_PYTHON, playwright, and chromium (or CHROMIUM).

The demo's classifier stands in as the installed checkpoint: what it flags are triangles.
"""

from __future__ import annotations

import json
import os
import urllib.request

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, SWITCHES
from comfyui_server import PACK, Server
from PIL import Image
from safetensors.torch import save_file

from nsfw_guard.demo.shapes import draw

EXAMPLES = sorted(path.stem for path in (PACK / "example_workflows").glob("*.json"))
EMPTY = {"version": 0.4, "nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0}
TROUBLE = "[data-testid=error-overlay]:visible, [role=dialog]:visible, .p-dialog:visible"

pytestmark = pytest.mark.skipif(
    not (os.environ.get("COMFYUI_DIR") and os.environ.get("COMFYUI_PYTHON") and os.path.exists(CHROMIUM)),
    reason="set COMFYUI_DIR and COMFYUI_PYTHON to a ComfyUI, and CHROMIUM if it is not /usr/bin/chromium",
)


def triangle(color):
    """[H, W, 3], uint8."""
    return (draw("triangle", color, "white").movedim(0, -1) * 255).round().to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("comfyui"))
    checkpoints = server.base / "models" / "nsfw_guard"
    (checkpoints / "shapes").rename(checkpoints / "freepik")  # what the examples name
    models = server.base / "models" / "checkpoints"
    models.mkdir(exist_ok=True)
    save_file({"none": torch.zeros(1)}, models / "v1-5-pruned-emaonly-fp16.safetensors")  # likewise
    server.upload("example.png", triangle("red"))  # what comes with ComfyUI, and the examples name
    server.post("/settings/Comfy.TutorialCompleted", True)
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def renderer(request, server):
    server.post("/settings/Comfy.VueNodes.Enabled", request.param)
    yield request.param
    server.post("/settings/Comfy.VueNodes.Enabled", False)


@pytest.fixture
def page(server, browser):
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(server.url)
    ready(page)
    yield page
    page.close()


def ready(page):
    """Wait for the workflow that the frontend opens by itself."""
    page.wait_for_function("window.app?.graph?.nodes?.length > 0", timeout=60_000)


def load(page, workflow):
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)


def example(server, name):
    return server.get(f"/api/workflow_templates/nsfw_guard/{name}.json")


@pytest.fixture
def search(page):
    """Returns a function: the names that the node search shows for some words, when the wanted one is among them."""
    load(page, EMPTY)
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    field = page.locator("input[role=combobox]")
    options = page.get_by_role("option")

    def names(words, *, shown=None, gone=None):
        field.fill(words)
        if shown:
            options.filter(has_text=shown).first.wait_for()
        if gone:
            options.filter(has_text=gone).first.wait_for(state="detached")
        return options.all_inner_texts()

    return names


def test_the_nodes_are_found_by_name_and_by_other_words(search):
    for words, found in {
        "NSFW Safety Guard": "NSFW Safety Guard",
        "safety checker": "NSFW Safety Guard",
        "mosaic": "NSFW Censor",
        "falconsai": "Load NSFW Classifier",
        "nsfw": "Save Image (Guarded)",
        "preview image": "Preview Image (Guarded)",
    }.items():
        search(words, shown=found)


@pytest.mark.parametrize(("words", "hidden"), [("enforced", "NSFW Guard (enforced)"), ("refused", "Refused by")])
def test_the_nodes_of_enforce_mode_are_not_offered(search, words, hidden):
    search("safety checker", shown="NSFW Safety Guard")
    assert not [name for name in search(words, gone="NSFW Safety Guard") if hidden in name]


def test_every_example_loads_whole(server, page):
    offered = server.get("/workflow_templates")["nsfw_guard"]
    assert sorted(offered) == EXAMPLES
    assert len(EXAMPLES) == 5
    for name in EXAMPLES:
        workflow = example(server, name)
        load(page, workflow)
        page.wait_for_timeout(300)  # what is missing is shown after the graph
        assert page.locator(TROUBLE).count() == 0, page.locator(TROUBLE).first.inner_text()
        drawn = page.evaluate("app.graph.nodes.map(node => [node.type, !!node.has_errors])")
        assert sorted(drawn) == sorted([node["type"], False] for node in workflow["nodes"])
        assert sum(node["type"] == "MarkdownNote" for node in workflow["nodes"]) == 1
        picture = Image.open(PACK / "example_workflows" / f"{name}.jpg")
        assert picture.format == "JPEG"
        url = f"{server.url}/api/workflow_templates/nsfw_guard/{name}.jpg"
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200


def test_what_is_missing_would_be_shown(server, page):
    workflow = example(server, EXAMPLES[0])
    workflow["nodes"][-1]["type"] = "NSFWG_NoSuchNode"
    load(page, workflow)
    page.locator(TROUBLE).first.wait_for()


VERDICT = """() => app.graph.nodes.filter(node => node.type === "NSFWG_Guard").map(node => ({
    texts: (node.widgets ?? []).map(widget => widget.value).filter(value => String(value).includes("FLAGGED")),
    drawn: [...document.querySelectorAll(".nsfw-guard-verdict")].map(element => element.innerText),
}))[0]"""
DRAWN = """opacity => [...document.querySelectorAll(".nsfw-guard-verdict")].some(
    element => element.offsetParent && element.innerText && element.style.opacity === opacity)"""


def run_and_look(page, server):
    """Press the button, wait for the verdict of this run; returns it, and the prompt's entry in the history."""
    before = set(server.get("/history"))
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(DRAWN, arg="1")
    for _ in range(600):  # the history comes when all of the prompt is over
        new = [entry for key, entry in server.get("/history").items() if key not in before]
        if new:
            break
        page.wait_for_timeout(100)
    (entry,) = new
    page.wait_for_function(DRAWN, arg="1")
    return page.evaluate(VERDICT), entry


def cached(entry):
    return {n for kind, data in entry["status"]["messages"] if kind == "execution_cached" for n in data["nodes"]}


def test_the_verdict_is_drawn_once_and_again_from_the_cache(server, page, renderer):
    broken = []
    page.on("pageerror", lambda error: broken.append(error.stack) if "nsfw_guard" in (error.stack or "") else None)
    new = server.upload(f"vue{renderer}.png", triangle("blue" if renderer else "green"))  # in no cache
    page.reload()  # in this renderer
    ready(page)
    workflow = example(server, "guard_one_node")
    (guard,) = [str(node["id"]) for node in workflow["nodes"] if node["type"] == "NSFWG_Guard"]
    (picture,) = [node for node in workflow["nodes"] if node["type"] == "LoadImage"]
    picture["widgets_values"][0] = new
    load(page, workflow)
    assert page.evaluate("!!LiteGraph.vueNodesMode") is renderer

    shown, entry = run_and_look(page, server)
    assert guard not in cached(entry)
    (text,) = entry["outputs"][guard]["text"]
    assert "1 FLAGGED, blur" in text
    assert shown == {"texts": [text], "drawn": [text]}

    page.reload()
    ready(page)
    load(page, workflow)
    page.wait_for_function(DRAWN, arg="0.5")  # of an earlier run: pale
    assert page.evaluate(VERDICT) == {"texts": [text], "drawn": [text]}

    shown, entry = run_and_look(page, server)
    assert guard in cached(entry)
    assert shown == {"texts": [text], "drawn": [text]}

    # Neither a saved workflow nor the prompt has it.
    assert "FLAGGED" not in json.dumps(page.evaluate("app.graph.serialize()"))
    assert "FLAGGED" not in json.dumps(page.evaluate("app.graphToPrompt().then(({output}) => output)"))
    assert broken == []


WIDGETS = {
    "blur": {"action.cells": 16},
    "pixelate": {"action.cells": 16},
    "fill": {"action.color": "#000000"},
    "replace": {"action.fit": "cover"},
    "block": {"action.message": ""},
    "detect only": {},
}


def test_what_belongs_to_an_action_is_on_the_node_though_it_may_be_left_out(server, page, renderer):
    page.reload()
    ready(page)
    load(page, example(server, "guard_one_node"))
    for action, more in WIDGETS.items():
        page.evaluate(
            """action => { const [guard] = app.graph.nodes.filter(node => node.type === "NSFWG_Guard");
                          guard.widgets.find(widget => widget.name === "action").value = action; }""",
            action,
        )
        page.wait_for_timeout(200)
        names = page.evaluate(
            """() => app.graph.nodes.find(node => node.type === "NSFWG_Guard").widgets.map(widget => widget.name)"""
        )
        assert [name for name in names if name.startswith("action.")] == list(more)
        prompt = page.evaluate("app.graphToPrompt().then(({output}) => output)")
        (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "NSFWG_Guard"]
        assert inputs["action"] == action
        assert {name: value for name, value in inputs.items() if name.startswith("action.")} == more


def test_a_guarded_preview_is_shown_on_the_node(server, page, renderer):
    new = server.upload(f"preview{renderer}.png", triangle("orange" if renderer else "purple"))
    page.reload()
    ready(page)
    workflow = example(server, "guard_one_node")
    (picture,) = [node for node in workflow["nodes"] if node["type"] == "LoadImage"]
    picture["widgets_values"][0] = new
    (saving,) = [node for node in workflow["nodes"] if node["type"] == "SaveImage"]
    values = ["balanced", "blur", 16]
    sockets = [{"name": "images", "type": "IMAGE", "link": saving["inputs"][0]["link"]}]
    saving |= {"type": "NSFWG_PreviewImage", "inputs": sockets, "outputs": [], "widgets_values": values}
    load(page, workflow)
    _, entry = run_and_look(page, server)
    (shown,) = entry["outputs"][str(saving["id"])]["images"]
    assert shown["type"] == "temp"
    assert entry["outputs"][str(saving["id"])]["text"][0].startswith("1 image: none flagged")  # it is blurred by now
    drawn = """id => { const node = app.graph.nodes.find(node => node.id === id);
        const images = [...(node.imgs ?? []), ...document.querySelectorAll(`[data-node-id="${id}"] img`)];
        return images.some(image => image.naturalWidth > 0 && decodeURIComponent(image.src).includes("type=temp")); }"""
    page.wait_for_function(drawn, arg=saving["id"])


def test_the_menu_has_two_places_for_the_nodes(server):
    places = {
        info["category"]
        for name, info in server.get("/object_info").items()
        if name.startswith("NSFWG_") and not info["dev_only"]
    }
    assert places == {"image/safety", "video"}


def test_the_help_page_is_served(server):
    with urllib.request.urlopen(f"{server.url}/extensions/nsfw_guard/docs/NSFWG_Guard.md") as answer:
        assert answer.status == 200
        assert "NSFW Safety Guard" in answer.read().decode()


# --- The operators' mode ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def enforcing(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("enforcing"), env={"NSFW_GUARD_ENFORCE": "1"})
    server.upload("triangle.png", triangle("red"))
    latent = {"latent_tensor": torch.zeros(1, 3, 16, 16), "latent_format_version_0": torch.tensor([])}
    save_file(latent, server.base / "input" / "some.latent")
    server.post("/settings/Comfy.TutorialCompleted", True)
    yield server
    server.close()


def queued(browser, server, prompt):
    """Load a prompt into a new page, and press the button; returns the page."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(server.url)
    ready(page)
    page.evaluate("prompt => app.loadApiJson(prompt, 'some')", prompt)
    page.wait_for_function("n => app.graph.nodes.length === n", arg=len(prompt))
    page.get_by_test_id("queue-button").click()
    return page


def test_a_refused_prompt_says_why_in_the_page_and_names_no_folder(enforcing, browser):
    page = queued(
        browser,
        enforcing,
        {
            "1": {"class_type": "LoadLatent", "inputs": {"latent": "some.latent"}},
            "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "x"}},
        },
    )
    said = "node 2 (SaveLatent) saves or shows what is linked to samples, and a LATENT cannot be looked at."
    page.locator(TROUBLE).first.wait_for()
    page.wait_for_timeout(500)
    if said not in page.inner_text("body"):
        page.locator(TROUBLE).get_by_role("button").last.click()
    page.get_by_text(said).first.wait_for()
    shown = page.inner_text("body")
    assert "put SaveLatent.samples into NSFW_GUARD_ALLOW" in shown
    assert str(enforcing.base) not in shown
    page.close()


def test_a_redacted_picture_is_what_the_page_shows(enforcing, browser):
    broken = []
    page = queued(
        browser,
        enforcing,
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": "triangle.png"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        },
    )
    page.on("pageerror", lambda error: broken.append(error.stack))
    page.wait_for_function("Object.keys(app.nodeOutputs).includes('2')")
    (entry,) = page.evaluate("app.nodeOutputs['2'].images")
    assert not np.array_equal(enforcing.picture(entry)[..., :3], triangle("red"))
    assert page.locator(TROUBLE).count() == 0
    assert broken == []
    page.close()
