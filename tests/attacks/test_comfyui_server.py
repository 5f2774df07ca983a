"""Ways past the operators' mode of a real ComfyUI: set COMFYUI_DIR and COMFYUI_PYTHON to run these.

``T`` is a picture that the demo's classifier flags; ``comfyui_pack`` has the nodes of others.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_server import Refused, Server
from safetensors.torch import save_file

from nsfw_guard import NsfwGuard
from nsfw_guard.audit import read, verify
from nsfw_guard.demo.shapes import draw

pytestmark = pytest.mark.skipif(
    not (os.environ.get("COMFYUI_DIR") and os.environ.get("COMFYUI_PYTHON")),
    reason="set COMFYUI_DIR and COMFYUI_PYTHON to a ComfyUI",
)

PACK = Path(__file__).parents[1] / "comfyui_pack"
NAME = "triangle_red_white.png"


def picture(*scene):
    """[H, W, 3], uint8."""
    return (draw(*scene).movedim(0, -1) * 255).round().to(torch.uint8).numpy()


T, C = picture("triangle", "red", "white"), picture("circle", "red", "white")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("attacked")
    env = {"NSFW_GUARD_ENFORCE": "1", "NSFW_GUARD_AUDIT": str(base / "audit")}
    server = Server(base, env=env, packs=(PACK,))
    server.upload(NAME, T)
    server.upload("circle.png", C)
    for name, image in (("T", T), ("C", C)):  # latents of the pixel space, as uploads
        latent = torch.from_numpy(image).movedim(-1, 0)[None].float() / 127.5 - 1
        tensors = {"latent_tensor": latent.contiguous(), "latent_format_version_0": torch.tensor([])}
        save_file(tensors, server.base / "input" / f"{name}.latent")
    yield server
    server.close()


@pytest.fixture(scope="module")
def judge():
    guard = NsfwGuard("demo")

    def flagged(image):
        """Whether [H, W, 3], uint8 or in [0, 1], is flagged."""
        values = torch.from_numpy(np.array(image))
        values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
        return guard.check(values.movedim(-1, 0)[None].contiguous())[0].flagged

    return flagged


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def save(link, prefix="attack"):
    return node("SaveImage", images=link, filename_prefix=prefix)


def loaded(name=NAME):
    return node("LoadImage", image=name)


LOAD, VAE = loaded(), node("VAELoader", vae_name="pixel_space")
LATENT = node("LoadLatent", latent="T.latent")


def put_together(tiles, columns):
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def test_tiles_put_together_again_show_nothing(server, judge):
    tiles = node("SplitImageToTileList", image=["load", 0], tile_width=64, tile_height=64, overlap=0)
    run = server.run({"load": LOAD, "tiles": tiles, "save": save(["tiles", 0])})
    assert run.succeeded, run.error
    assert not judge(put_together([tile[..., :3] for tile in run.pictures("save")], 2))


TURNED = {
    "180 degrees": (node("ImageRotate", image=["load", 0], rotation="180 degrees"), lambda image: image[::-1, ::-1]),
    "90 degrees": (node("ImageRotate", image=["load", 0], rotation="90 degrees"), lambda image: np.rot90(image)),
    "mirrored": (node("ImageFlip", image=["load", 0], flip_method="x-axis: vertically"), lambda image: image[::-1]),
    "inverted": (node("ImageInvert", image=["load", 0]), lambda image: 255 - image),
    "faint": (
        node("ImageBlend", image1=["load", 0], image2=["black", 0], blend_factor=0.98, blend_mode="normal"),
        lambda image: np.clip(image.astype(float) * 50, 0, 255).astype(np.uint8),
    ),
    "padded": (
        node("ImagePadForOutpaint", image=["load", 0], left=512, top=512, right=512, bottom=512, feathering=0),
        lambda image: image[512:640, 512:640],
    ),
    "one of a grid": (
        node("ImageStitch", image1=["load", 0], image2=["wide", 0], direction="right", match_image_size=False,
             spacing_width=0, spacing_color="white"),
        lambda image: image[-128:, :128] if image.shape[0] > 128 else image[:128, :128],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNED)
def test_what_is_turned_back_shows_nothing(server, judge, name):
    change, back = TURNED[name]
    black = node("EmptyImage", width=128, height=128, batch_size=1, color=0)
    wide = node("EmptyImage", width=1280, height=128, batch_size=1, color=0)
    run = server.run({"load": LOAD, "black": black, "wide": wide, "end": change, "save": save(["end", 0])})
    assert run.succeeded, run.error
    for shown in run.pictures("save"):
        assert not judge(back(shown[..., :3]))


CUTS = {
    "LatentCrop": {"width": 512, "height": 1024, "x": 0, "y": 0},
    "LatentCut": {"dim": "x", "index": 0, "amount": 64},
    "LatentRotate": {"rotation": "180 degrees"},
    "LatentFlip": {"flip_method": "x-axis: vertically"},
    "LatentMultiply": {"multiplier": 0.02},
    "LatentCutToBatch": {"dim": "x", "slice_size": 64},
    "LatentUpscale": {"upscale_method": "nearest-exact", "width": 1024, "height": 512, "crop": "disabled"},
    "TestTurnLatent": {},
}


@pytest.mark.parametrize("name", CUTS)
def test_pieces_of_a_latent_show_nothing(server, name):
    for source, gone in (("T", True), ("C", False)):
        cut = node(name, **{"latent" if name.startswith("Test") else "samples": ["latent", 0]}, **CUTS[name])
        graph = {"vae": VAE, "latent": node("LoadLatent", latent=f"{source}.latent"), "cut": cut}
        end = node("VAEDecode", samples=["cut", 0], vae=["vae", 0])
        run = server.run({**graph, "end": end, "save": save(["end", 0])})
        assert run.succeeded, run.error
        shown = run.pictures("save")
        assert shown
        assert all(not image[..., :3].any() for image in shown) is gone


def test_a_piece_of_a_latent_without_a_vae_is_refused(server):
    cut = node("LatentCrop", samples=["latent", 0], **CUTS["LatentCrop"])
    end = node("TestDecodeLatent", latent=["cut", 0])
    with pytest.raises(Refused, match="shows a latent after something has cut, turned or mixed it"):
        server.run({"latent": LATENT, "cut": cut, "end": end, "save": save(["end", 0])})


def test_whole_latents_are_looked_at_whoever_decodes_them(server, judge):
    for end in (
        node("VAEDecode", samples=["latent", 0], vae=["vae", 0]),
        node("VAEDecodeTiled", samples=["latent", 0], vae=["vae", 0], tile_size=512, overlap=64, temporal_size=64,
             temporal_overlap=8),
        node("TestDecodeLatent", latent=["latent", 0]),
    ):  # fmt: skip
        run = server.run({"vae": VAE, "latent": LATENT, "end": end, "save": save(["end", 0])})
        assert run.succeeded, run.error
        (shown,) = run.pictures("save")
        assert not judge(shown[..., :3])


REFUSED = {
    "a latent saved": ({"show": node("SaveLatent", samples=["latent", 0], filename_prefix="l")}, "SaveLatent.samples"),
    "a latent shown as text": ({"show": node("PreviewAny", source=["latent", 0])}, "PreviewAny.source"),
    "a latent and a VAE": ({"show": node("TestShow", value=["latent", 0], vae=["vae", 0])}, "TestShow.value"),
    "a picture and a VAE": ({"show": node("TestShow", value=["load", 0], vae=["vae", 0])}, "TestShow.vae"),
    "its own pictures": ({"show": node("TestMakeAndShow")}, "TestMakeAndShow"),
}


def shown_values(server):
    return sorted((server.base / "output").glob("shown-*.npy"))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_looked_at_is_refused_and_says_why(server, name):
    graph, allow = REFUSED[name]
    before = shown_values(server)
    with pytest.raises(Refused, match=f"put {allow} into NSFW_GUARD_ALLOW") as refused:
        server.run({"vae": VAE, "latent": LATENT, "load": LOAD, **graph})
    said = json.loads(str(refused.value))
    assert list(said["node_errors"]) == ["show"]
    assert str(server.base) not in str(refused.value)
    assert os.environ["COMFYUI_DIR"] not in str(refused.value)
    assert shown_values(server) == before
    assert not (server.base / "output" / "itself.png").exists()


KINDS = (
    "numpy", "numpy of bytes", "channels first", "one picture", "whole numbers", "six dimensions", "PIL",
    "list of PIL", "list of lists", "flat list", "dict", "dict of numpy", "tuple", "PNG", "base64", "data URL", "hex",
    "JSON", "file", "latent", "object",
)  # fmt: skip


@pytest.mark.parametrize("source", ["TestMake", "TestMakeAnything"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_picture_gets_out(server, judge, kind, source):
    before = shown_values(server)
    run = server.run({"make": node(source, kind=kind), "show": node("TestShow", value=["make", 0])})
    new = [path for path in shown_values(server) if path not in before]
    if not run.succeeded:
        assert not new
        assert any(word in run.error for word in ("expected", "cannot be looked at")), run.error
        return
    (path,) = new
    for found in np.load(path):
        assert not judge(found)


def test_a_node_that_puts_out_another_picture_than_it_took_is_no_way(server, judge):
    make = node("TestMakeImage", image=["load", 0])
    crop = node("ImageCrop", image=["make", 0], width=64, height=64, x=0, y=0)
    whole = {"load": loaded("circle.png"), "make": make, "save": save(["make", 0])}
    run = server.run({**whole, "crop": crop, "piece": save(["crop", 0])})
    assert run.succeeded, run.error
    assert not judge(run.pictures("save")[0][..., :3])
    assert not np.array_equal(run.pictures("piece")[0][..., :3], T[:64, :64])


def test_every_picture_of_a_list_is_looked_at(server, judge):
    run = server.run({"make": node("TestMakeList"), "save": save(["make", 0])})
    assert run.succeeded, run.error
    shown = run.pictures("save")
    assert len(shown) == 2
    assert not any(judge(image[..., :3]) for image in shown)


def test_a_lazy_input_is_looked_at(server, judge):
    before = shown_values(server)
    show = node("TestShow", value=["number", 0], more=["load", 0])
    run = server.run({"load": LOAD, "number": node("PrimitiveInt", value=3), "show": show})
    assert run.succeeded, run.error
    (path,) = [path for path in shown_values(server) if path not in before]
    (shown,) = np.load(path)
    assert not judge(shown)


INNER = {"inner": LOAD, "kept": save(["inner", 0], "inside")}


@pytest.mark.parametrize("name", ["TestExpand", "TestExpandLater"])
def test_a_graph_that_takes_a_nodes_place_is_guarded(server, judge, name):
    expand = node(name, graph=json.dumps([INNER, ["inner", 0]]))
    run = server.run({"expand": expand, "save": save(["expand", 0])})
    assert run.succeeded, run.error
    pictures = [image for key in run.outputs for image in run.pictures(key)]
    assert len(pictures) == 2
    assert not any(judge(image[..., :3]) for image in pictures)
    turn = {"turn": node("ImageRotate", image="outer", rotation="180 degrees"), "kept": save(["turn", 0], "inside")}
    expand = node(name, graph=json.dumps([turn, "outer"]), outer=["load", 0])
    run = server.run({"load": LOAD, "expand": expand, "save": save(["expand", 0])})
    assert run.succeeded, run.error
    pictures = [image for key in run.outputs for image in run.pictures(key)]
    assert not any(judge(image[..., :3]) or judge(image[::-1, ::-1, :3]) for image in pictures)


def test_a_graph_that_takes_a_nodes_place_saves_no_latent(server):
    inner = {"kept": node("SaveLatent", samples="outer", filename_prefix="inside")}
    expand = node("TestExpand", graph=json.dumps([inner, "outer"]), outer=["latent", 0])
    run = server.run({"latent": LATENT, "expand": expand, "save": node("TestShow", value=["expand", 0])})
    assert not run.succeeded
    assert not list((server.base / "output").glob("inside*.latent"))


def test_what_others_put_into_the_queue_is_guarded(server, judge):
    prompt_id = str(uuid.uuid4())
    prompt = json.dumps({"load": LOAD, "save": save(["load", 0], "queued")})
    run = server.run({"enqueue": node("TestEnqueue", prompt=prompt, prompt_id=prompt_id, output="save")})
    assert run.succeeded, run.error
    queued = server.finished(prompt_id)
    assert queued.succeeded, queued.error
    (shown,) = queued.pictures("save")
    assert not judge(shown[..., :3])


@pytest.mark.parametrize("name", ["NSFWG_Enforced", "NSFWG_EnforcedSource", "NSFWG_EnforcedUncut"])
def test_a_guard_that_came_with_the_prompt_counts_for_nothing(server, judge, name):
    mine = node(name, value=["load", 0], latent=["load", 0], vae=["load", 0])
    run = server.run({"load": LOAD, "mine": mine, "save": save(["mine", 0])})
    assert run.succeeded, run.error
    (shown,) = run.pictures("save")
    assert not judge(shown[..., :3])
    with pytest.raises(Refused, match="guards nothing"):
        server.run({"mine": node(name, value="text"), "save": save(["mine", 0])})


def test_one_output_of_several_is_guarded(server, judge):
    graph = {"load": LOAD, "save": save(["load", 0]), "other": save(["load", 0], "other")}
    run = server.run(graph, partial_execution_targets=["other"])
    assert run.succeeded, run.error
    assert run.pictures("save") == []
    (shown,) = run.pictures("other")
    assert not judge(shown[..., :3])


def test_clean_pictures_stay_as_they_are(server):
    graph = {"load": loaded("circle.png"), "turn": TURNED["180 degrees"][0], "save": save(["turn", 0])}
    run = server.run(graph)
    assert run.succeeded, run.error
    (shown,) = run.pictures("save")
    assert np.array_equal(shown[..., :3], C[::-1, ::-1])
    assert set(run.outputs) == {"save"}


def test_a_redaction_leaves_a_trace(server):
    log = server.base / "audit" / "audit-comfyui.jsonl"
    before = len(list(read(log)))
    text = server.log.read_text(errors="replace").count("load_nsfw_source_0: 1 of 1 flagged")
    name = server.upload(f"{uuid.uuid4().hex}.png", picture("triangle", "green", "white"))
    graph = {"load": loaded(name), "save": save(["load", 0])}
    for _ in range(2):  # from the cache, too
        run = server.run(graph)
        report = run.report("load_nsfw_source_0")
        assert report["flagged"]
        assert report["verdicts"][0]["redacted"].startswith("blur")
    lines = list(read(log))[before:]
    assert [line["where"] for line in lines][:1] == ["load_nsfw_source_0"]
    assert verify(log).intact
    assert server.log.read_text(errors="replace").count("load_nsfw_source_0: 1 of 1 flagged") > text


# --- The tables, against what this ComfyUI says of its nodes ---------------------------------------------------------

WALKED = {"IMAGE", "MASK", "VIDEO", "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO", "AUDIO", "*", "MESH"}
# Of outputs: dicts of a few numbers, and what the page itself keeps in a widget.
FEW = {"LOAD3D_CAMERA", "LOAD3D_MODEL_INFO", "LOAD_3D", "IMAGECOMPARE", "BOUNDING_BOX", "BOUNDING_BOXES", "ARRAY",
       "COLOR", "CURVE", "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"}  # fmt: skip


def test_every_output_node_of_comfyui_is_thought_of(server):
    info = server.get("/object_info")
    read_table = (
        "import sys, types, json; sys.modules['nodes'] = types.SimpleNamespace(NODE_CLASS_MAPPINGS={});"
        "import importlib.util as u; s = u.spec_from_file_location('t', sys.argv[1]); m = u.module_from_spec(s);"
        "sys.modules['t'] = m; s.loader.exec_module(m);"
        "print(json.dumps({'passes': {k: {i: sorted(t) for i, t in v.items()} for k, v in m.PASSES.items()},"
        "'opaque': sorted(m.OPAQUE), 'drawn': sorted(m.DRAWN), 'whole': sorted(m.WHOLE), 'empty': sorted(m.EMPTY)}))"
    )
    path = PACK.parents[1] / "integrations" / "comfyui" / "enforce_types.py"
    told = subprocess.run([os.environ["COMFYUI_PYTHON"], "-c", read_table, str(path)], capture_output=True, check=True)
    table = json.loads(told.stdout)
    refused = {*table["opaque"], *table["drawn"], "LATENT"}
    strange = []
    for name, about in info.items():
        if about["python_module"].startswith("custom_nodes") or not about["output_node"]:
            continue
        for section in ("required", "optional"):
            for key, declared in (about["input"].get(section) or {}).items():
                kind = "COMBO" if isinstance(declared[0], list) else declared[0]
                passes = set(table["passes"].get(name, {}).get(key, ()))
                known = passes | refused | WALKED | FEW
                strange += [(name, key, one) for one in kind.split(",") if one not in known and "FILE_3D" not in one]
    assert strange == []
    for name, inputs in table["passes"].items():
        for key, types in inputs.items():
            assert name in info, name
            if key in (info[name]["input"].get("required") or {}) and key != "source":
                assert info[name]["input"]["required"][key][0] in (*types, "COMFY_AUTOGROW_V3")
    for name in (*table["whole"], *table["empty"]):
        assert name in info, name
        assert {"LATENT", "COMFY_MATCHTYPE_V3"} & set(info[name]["output"]), name


# --- Servers that do not start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "No NSFW classifier is installed"),
        ({"NSFW_GUARD_MODEL": "gone.safetensors"}, "NSFW_GUARD_MODEL is 'gone.safetensors'"),
        ({"NSFW_GUARD_ACTION": "nothing"}, "NSFW_GUARD_ACTION is 'nothing'"),
        ({"PYTHONPATH": ""}, "the guard cannot be loaded: ModuleNotFoundError: No module named 'nsfw_guard'"),
    ],
)
def test_comfyui_does_not_start_without_its_guard(tmp_path, env, said):
    with pytest.raises(RuntimeError, match="(?s)ComfyUI ended") as ended:
        Server(tmp_path, env={"NSFW_GUARD_ENFORCE": "1", **env}, checkpoint=bool(env)).close()
    assert said in str(ended.value)
    assert "NSFW_GUARD_ENFORCE is set" in str(ended.value)
