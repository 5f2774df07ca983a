"""The node pack in a real ComfyUI: set COMFYUI_DIR and COMFYUI_PYTHON to run these.

The demo's classifier stands in as the installed checkpoint: what it flags are triangles.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import urllib.request
import wave

import numpy as np
import pytest
import torch
from comfyui_server import PACK, ROOT, Refused, Server
from PIL import Image

from nsfw_guard import NsfwGuard, Redaction
from nsfw_guard.demo.shapes import draw
from nsfw_guard.redact import redact

pytestmark = pytest.mark.skipif(
    not (os.environ.get("COMFYUI_DIR") and os.environ.get("COMFYUI_PYTHON")),
    reason="set COMFYUI_DIR and COMFYUI_PYTHON to a ComfyUI",
)

SAFE, UNSAFE = ("circle", "red", "white"), ("triangle", "red", "white")
BATCH = [SAFE, UNSAFE, ("square", "blue", "yellow"), SAFE, ("heart", "red", "white"), UNSAFE, SAFE, SAFE]
FLAGGED = [1, 5]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("comfyui"))
    yield server
    server.close()


def picture(scene):
    """[H, W, 3], uint8."""
    return (draw(*scene).movedim(0, -1) * 255).round().to(torch.uint8).numpy()


def load(server, scenes=BATCH):
    """Nodes that load these scenes as one batch; the last one's id is "batch"."""
    nodes, link = {}, None
    for index, scene in enumerate(scenes):
        name = server.upload("_".join(scene) + ".png", picture(scene))
        nodes[f"load{index}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        if link is None:
            link = [f"load{index}", 0]
            continue
        nodes[f"join{index}"] = {
            "class_type": "ImageBatch",
            "inputs": {"image1": link, "image2": [f"load{index}", 0]},
        }
        link = [f"join{index}", 0]
    return nodes, link


def save(link, prefix="out"):
    return {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": prefix}}


def guard(link, **inputs):
    return {
        "class_type": "NSFWG_Guard",
        "inputs": {"image": link, "sensitivity": "balanced", "action": "blur", "action.cells": 16, **inputs},
    }


def test_the_one_node_guard_blurs_what_it_flags_and_nothing_else(server):
    nodes, link = load(server)
    run = server.run({**nodes, "guard": guard(link), "save": save(["guard", 0])})
    assert run.succeeded, run.error
    report = run.report("guard")
    assert report["flagged"] is True
    assert report["flagged_indices"] == FLAGGED
    assert [verdict["flagged"] for verdict in report["verdicts"]] == [i in FLAGGED for i in range(8)]
    shown = run.pictures("save")
    for index, (scene, image) in enumerate(zip(BATCH, shown, strict=True)):
        if index in FLAGGED:
            assert report["verdicts"][index]["verified"] is True
            assert report["verdicts"][index]["redacted"] == "blur, 8 cells"
            wanted = redact(torch.from_numpy(picture(scene)).movedim(-1, 0) / 255, Redaction("blur", cells=8))
            assert np.abs(image / 255 - wanted.movedim(0, -1).numpy()).max() <= 1.01 / 255
        else:
            assert np.array_equal(image, picture(scene))
    assert "2 FLAGGED, blur" in run.outputs["guard"]["text"][0]


def test_nothing_flagged_is_the_same_file_as_without_a_guard(server):
    nodes, link = load(server, [SAFE, SAFE])
    run = server.run({**nodes, "guard": guard(link), "save": save(["guard", 0]), "bare": save(link, "bare")})
    for one, other in zip(run.pictures("save"), run.pictures("bare"), strict=True):
        assert np.array_equal(one, other)
    assert "none flagged" in run.outputs["guard"]["text"][0]


ACTIONS = {
    "pixelate": ({"action": "pixelate", "action.cells": 4}, Redaction("pixelate", cells=4)),
    "fill": ({"action": "fill", "action.color": "#ff8000"}, Redaction("fill", color=(1, 128 / 255, 0))),
    "detect only": ({"action": "detect only"}, Redaction("none")),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_is_the_cores(server, name):
    inputs, redaction = ACTIONS[name]
    nodes, link = load(server, [SAFE, UNSAFE])
    given = {"class_type": "NSFWG_Guard", "inputs": {"image": link, "sensitivity": "balanced", **inputs}}
    run = server.run({**nodes, "guard": given, "save": save(["guard", 0])})
    safe, unsafe = run.pictures("save")
    assert np.array_equal(safe, picture(SAFE))
    wanted = redact(torch.from_numpy(picture(UNSAFE)).movedim(-1, 0) / 255, redaction).movedim(0, -1).numpy()
    assert np.abs(unsafe / 255 - wanted).max() <= 1.01 / 255
    assert run.report("guard")["action"] == name


def test_the_replacement_is_made_only_when_something_is_flagged(server):
    for scenes, made in (([SAFE], False), ([SAFE, UNSAFE], True)):
        nodes, link = load(server, scenes)
        other = picture(("cross", "green", "blue"))[:64]
        nodes["other"] = {"class_type": "LoadImage", "inputs": {"image": server.upload(f"other{made}.png", other)}}
        replace = {"action": "replace", "action.fit": "stretch", "replacement": ["other", 0]}
        given = {"class_type": "NSFWG_Guard", "inputs": {"image": link, "sensitivity": "balanced", **replace}}
        run, executed = server.watched({**nodes, "guard": given, "save": save(["guard", 0])})
        assert run.succeeded, run.error
        shown = run.pictures("save")
        assert np.array_equal(shown[0], picture(SAFE))
        if made:
            wanted = redact(torch.zeros(3, 128, 128), Redaction("replace", image=other, fit="stretch"))
            assert np.abs(shown[1] / 255 - wanted.movedim(0, -1).numpy()).max() <= 1.01 / 255
        assert ("other" in executed) is made


def test_replace_without_a_picture_is_an_error_only_when_it_is_needed(server):
    for scenes, fails in (([SAFE], False), ([UNSAFE], True)):
        nodes, link = load(server, scenes)
        replace = {"action": "replace", "action.fit": "cover"}
        given = {"class_type": "NSFWG_Guard", "inputs": {"image": link, "sensitivity": "balanced", **replace}}
        run = server.run({**nodes, "guard": given, "save": save(["guard", 0])})
        assert run.succeeded is not fails
        assert not fails or "no picture is linked" in run.error
        assert len(run.pictures("save")) == (0 if fails else 1)


@pytest.mark.parametrize("message", ["", "not here"])
def test_block_holds_the_images_back_and_nothing_else(server, message):
    nodes, link = load(server, [SAFE, UNSAFE])
    block = {"action": "block", "action.message": message}
    given = {"class_type": "NSFWG_Guard", "inputs": {"image": link, "sensitivity": "balanced", **block}}
    mask = {"class_type": "MaskPreview", "inputs": {"mask": ["guard", 2]}}
    run = server.run({**nodes, "guard": given, "save": save(["guard", 0]), "mask": mask})
    assert run.pictures("save") == []
    white = [image.max() > 0 for image in run.pictures("mask")]
    assert white == [False, True]
    assert run.report("guard")["flagged"] is True


def test_each_image_of_a_list_is_looked_at(server):
    nodes, link = load(server, [SAFE, UNSAFE, SAFE])
    nodes["list"] = {"class_type": "RebatchImages", "inputs": {"images": link, "batch_size": 1}}
    run = server.run({**nodes, "guard": guard(["list", 0]), "save": save(["guard", 0])})
    assert run.succeeded, run.error
    changed = [
        not np.array_equal(a, picture(s)) for a, s in zip(run.pictures("save"), [SAFE, UNSAFE, SAFE], strict=True)
    ]
    assert changed == [False, True, False]
    assert [json.loads(one)["flagged"] for one in run.outputs["guard"]["nsfw_guard"]] == [False, True, False]


def test_alpha_hides_nothing_and_what_is_redacted_is_opaque(server):
    nodes, link = load(server, [SAFE, UNSAFE])
    nodes["solid"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 128, "height": 128}}
    nodes["rgba"] = {"class_type": "JoinImageWithAlpha", "inputs": {"image": link, "alpha": ["solid", 0]}}
    run = server.run({**nodes, "guard": guard(["rgba", 0]), "save": save(["guard", 0])})
    assert run.succeeded, run.error
    safe, unsafe = run.pictures("save")
    assert np.array_equal(safe[..., :3], picture(SAFE))
    assert not safe[..., 3].any()  # all of it is transparent: seen on white, it would be an empty picture
    assert (unsafe[..., 3] == 255).all()
    assert run.report("guard")["flagged_indices"] == [1]
    assert not np.array_equal(unsafe[..., :3], picture(UNSAFE))


def classify(link):
    return {"class_type": "NSFWG_Classify", "inputs": {"image": link}}


def censor(link, threshold, **inputs):
    settings = {"sensitivity": "threshold", "sensitivity.threshold": threshold, "action": "blur", "action.cells": 8}
    return {
        "class_type": "NSFWG_Censor",
        "inputs": {"image": link, "scores": ["classify", 0], **settings, **inputs},
    }


def test_moving_a_threshold_runs_no_classifier(server):
    nodes, link = load(server, [SAFE, UNSAFE, ("heart", "blue", "white")])
    nodes["classify"] = classify(link)
    flags = []
    for threshold in (0.5, 1.0, 0.0):
        run = server.run({**nodes, "censor": censor(link, threshold), "save": save(["censor", 0])})
        assert run.succeeded, run.error
        flags.append([verdict["flagged"] for verdict in run.report("censor")["verdicts"]])
        assert ("classify" in run.ran) is (threshold == 0.5)
    assert flags[0] == [False, True, False]
    assert flags[2] == [True, True, True]


def test_the_one_node_guard_runs_its_classifier_once_for_a_batch(server):
    nodes, link = load(server, [UNSAFE, UNSAFE, SAFE])
    classified = []
    for threshold, action in ((0.5, "fill"), (1.0, "fill"), (0.5, "detect only")):
        settings = {"sensitivity": "threshold", "sensitivity.threshold": threshold, "action": action}
        given = guard(link, **settings, **{"action.color": "#000000"})
        with server.listening() as socket:
            prompt_id = server.submit({**nodes, "guard": given, "save": save(["guard", 0])}, client_id=socket.client_id)
            said = socket.until_the_end()
        assert server.finished(prompt_id).report("guard")["policy"]["threshold"] == threshold
        classified.append(any(kind == "progress" and data["node"] == "guard" for kind, data in said))
    assert classified == [True, False, False]


def test_a_cached_run_says_the_verdict_again(server):
    nodes, link = load(server, [UNSAFE, SAFE, SAFE])
    prompt = {**nodes, "guard": guard(link), "save": save(["guard", 0], "cached")}
    first, second = server.run(prompt), server.run(prompt)
    assert "guard" not in second.ran
    assert second.outputs["guard"] == first.outputs["guard"]


def test_censoring_through_a_mask(server):
    nodes, link = load(server, [UNSAFE])
    nodes["classify"] = classify(link)
    nodes["half"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 128}}
    nodes["none"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}}
    nodes["mask"] = {
        "class_type": "MaskComposite",
        "inputs": {"destination": ["none", 0], "source": ["half", 0], "x": 0, "y": 0, "operation": "add"},
    }
    run = server.run({**nodes, "censor": censor(link, 0.5, mask=["mask", 0]), "save": save(["censor", 0])})
    assert run.succeeded, run.error
    (shown,) = run.pictures("save")
    assert np.array_equal(shown[:, 64:], picture(UNSAFE)[:, 64:])
    assert not np.array_equal(shown[:, :64], picture(UNSAFE)[:, :64])


@pytest.mark.parametrize("scenes", [[SAFE, UNSAFE, SAFE], [SAFE], [UNSAFE]])
def test_split_leaves_out_what_comes_after_an_empty_side(server, scenes):
    nodes, link = load(server, scenes)
    nodes["classify"] = classify(link)
    nodes["split"] = {
        "class_type": "NSFWG_Split",
        "inputs": {"image": link, "scores": ["classify", 0], "sensitivity": "balanced"},
    }
    nodes["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["split", 2]}}
    run = server.run({**nodes, "safe": save(["split", 0], "safe"), "flagged": save(["split", 1], "flagged")})
    assert run.succeeded, run.error
    safe = [scene for scene in scenes if scene == SAFE]
    assert len(run.pictures("safe")) == len(safe)
    assert len(run.pictures("flagged")) == len(scenes) - len(safe)
    assert run.outputs["text"]["text"] == [str([i for i, scene in enumerate(scenes) if scene == SAFE])]


MODES = ("leave out silently", "leave out with an error", "stop the whole prompt")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scene", [SAFE, UNSAFE])
def test_the_gate_in_its_modes(server, mode, scene):
    nodes, link = load(server, [scene])
    nodes["guard"] = guard(link, action="detect only")
    nodes["gate"] = {
        "class_type": "NSFWG_Gate",
        "inputs": {"value": link, "flagged": ["guard", 1], "mode": mode, "message": "held back"},
    }
    run = server.run({**nodes, "save": save(["gate", 0])})
    assert len(run.pictures("save")) == (scene == SAFE)
    if scene == UNSAFE and mode == MODES[2]:
        assert not run.succeeded
        assert "held back" in run.error


def test_a_policy_of_ones_own(server):
    nodes, link = load(server, [SAFE, UNSAFE, ("heart", "red", "white")])
    nodes["policy"] = {
        "class_type": "NSFWG_Policy",
        "inputs": {
            "level": "high",
            "threshold": 1.0,
            "per_label": "heart = 0.4\n\ntriangle: 0.99999",
            "batch": "each image by itself",
        },
    }
    run = server.run({**nodes, "guard": guard(link, policy=["policy", 0]), "save": save(["guard", 0])})
    assert run.succeeded, run.error
    report = run.report("guard")
    assert report["policy"]["per_label"] == {"heart": 0.4, "triangle": 0.99999}
    assert report["verdicts"][2]["reason"] == "label"
    assert report["verdicts"][2]["flagged"] is True
    assert report["verdicts"][0]["flagged"] is False


@pytest.mark.parametrize("prompt_in_file", [None, "in all images", "never"])
def test_saving_with_the_verdict_in_the_file(server, prompt_in_file):
    nodes, link = load(server, [SAFE, UNSAFE])
    settings = {"filename_prefix": "sub/guarded", "sensitivity": "balanced", "action": "blur", "action.cells": 16}
    if prompt_in_file:
        settings["prompt_in_file"] = prompt_in_file
    nodes["save"] = {"class_type": "NSFWG_SaveImage", "inputs": {"images": link, **settings}}
    run = server.run(nodes)
    assert run.succeeded, run.error
    files = [server.open(entry) for entry in run.outputs["save"]["images"]]
    verdicts = [json.loads(file.text["nsfw_guard"]) for file in files]
    assert [verdict["flagged"] for verdict in verdicts] == [False, True]
    wanted = {None: [True, False], "in all images": [True, True], "never": [False, False]}[prompt_in_file]
    assert ["prompt" in file.text for file in files] == wanted
    assert np.array_equal(np.asarray(files[0]), picture(SAFE))
    assert not np.array_equal(np.asarray(files[1]), picture(UNSAFE))
    assert not list(server.base.rglob("*.part"))


def test_saving_leaves_blocked_images_out(server):
    nodes, link = load(server, [SAFE, UNSAFE])
    settings = {"filename_prefix": "blocked", "sensitivity": "balanced", "action": "block", "action.message": ""}
    nodes["save"] = {"class_type": "NSFWG_SaveImage", "inputs": {"images": link, **settings}}
    run = server.run(nodes)
    (shown,) = run.pictures("save")
    assert np.array_equal(shown, picture(SAFE))


def test_a_guarded_preview_shows_nothing_else_and_writes_to_temp_alone(server):
    nodes, link = load(server, [SAFE, UNSAFE])
    before = set(server.base.glob("output/**/*.png"))
    nodes["preview"] = {
        "class_type": "NSFWG_PreviewImage",
        "inputs": {"images": link, "sensitivity": "balanced", "action": "blur"},
    }
    run = server.run({**nodes, "save": save(["preview", 0], "handed_on")})
    assert run.succeeded, run.error
    assert {entry["type"] for entry in run.outputs["preview"]["images"]} == {"temp"}
    assert {file.name.split("_0")[0] for file in {*server.base.glob("output/**/*.png")} - before} == {"handed_on"}
    safe, unsafe = run.pictures("preview")
    assert np.array_equal(safe, picture(SAFE))
    shown = torch.from_numpy(unsafe.copy()).movedim(-1, 0)[None] / 255
    assert not NsfwGuard("demo").check(shown)[0].flagged
    for file in server.base.glob("temp/**/*.png"):
        assert not np.array_equal(np.asarray(Image.open(file)), picture(UNSAFE))
    for one, other in zip(run.pictures("save"), (safe, unsafe), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("node", ["NSFWG_SaveImage", "NSFWG_PreviewImage"])
@pytest.mark.parametrize("scenes", [[SAFE, UNSAFE], [UNSAFE]])
def test_what_is_not_written_is_not_handed_on(server, node, scenes):
    nodes, link = load(server, scenes)
    settings = {"sensitivity": "balanced", "action": "block"}
    settings |= {"filename_prefix": "handed"} if node == "NSFWG_SaveImage" else {}
    nodes["write"] = {"class_type": node, "inputs": {"images": link, **settings}}
    nodes["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["write", 1]}}
    run = server.run({**nodes, "save": save(["write", 0], "after")})
    assert run.succeeded, run.error
    assert [np.array_equal(one, picture(SAFE)) for one in run.pictures("save")] == [True] * (len(scenes) - 1)
    assert run.outputs["text"]["text"] == ["True"]


ACTIONS_ALONE = ["blur", "pixelate", "fill", "replace", "block", "detect only"]


@pytest.mark.parametrize("action", ACTIONS_ALONE)
def test_an_api_prompt_may_leave_out_what_belongs_to_an_action(server, action):
    nodes, link = load(server, [SAFE, UNSAFE])
    nodes["other"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}}
    inputs = {"image": link, "sensitivity": "balanced", "action": action}
    inputs |= {"replacement": ["other", 0]} if action == "replace" else {}
    run = server.run({**nodes, "guard": {"class_type": "NSFWG_Guard", "inputs": inputs}, "save": save(["guard", 0])})
    assert run.succeeded, run.error
    assert run.report("guard")["action"] == action
    assert len(run.pictures("save")) == (0 if action == "block" else 2)


def test_a_threshold_without_a_number_is_refused(server):
    nodes, link = load(server, [SAFE])
    inputs = {"image": link, "sensitivity": "threshold", "action": "blur"}
    with pytest.raises(Refused, match="required_input_missing"):
        server.run({**nodes, "guard": {"class_type": "NSFWG_Guard", "inputs": inputs}, "save": save(["guard", 0])})


def test_a_mask_is_made_only_when_it_is_needed(server):
    for scene, needed in ((SAFE, False), (UNSAFE, True)):
        nodes, link = load(server, [scene])
        nodes["classify"] = classify(link)
        nodes["mask"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64 + needed}}
        run, executed = server.watched(
            {**nodes, "censor": censor(link, 0.5, mask=["mask", 0]), "save": save(["censor", 0])}
        )
        assert ("mask" in executed) is needed
        assert run.succeeded is not needed
        assert not needed or "The mask has the shape (1, 65, 64); expected [H, W] = [128, 128]" in run.error


def test_nothing_that_is_saved_or_told_names_a_folder_of_the_server(server):
    nodes, link = load(server, [SAFE])
    nodes["model"] = {"class_type": "NSFWG_LoadClassifier", "inputs": {"checkpoint": "shapes/model.safetensors"}}
    settings = {"sensitivity": "balanced", "action": "blur"}
    nodes["guard"] = guard(link, classifier=["model", 0])
    nodes["classify"] = classify(link)
    nodes["censor"] = censor(link, 0.5)
    written = {"images": ["guard", 0], "filename_prefix": "told", "prompt_in_file": "in all images", **settings}
    nodes["guarded"] = {"class_type": "NSFWG_SaveImage", "inputs": written}
    nodes["preview"] = {"class_type": "NSFWG_PreviewImage", "inputs": {"images": ["censor", 0], **settings}}
    nodes["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["classify", 0]}}
    prompt_id = server.submit({**nodes, "save": save(["guard", 0], "told_too")})
    run = server.finished(prompt_id)
    assert run.succeeded, run.error
    history = json.dumps(server.get(f"/history/{prompt_id}"))
    files = [server.open(entry) for node in ("guarded", "preview", "save") for entry in run.outputs[node]["images"]]
    assert len(files) == 3
    prompts = [json.loads(file.text["prompt"]) for file in files]
    assert all(re.fullmatch("[0-9a-f]{32}", prompt["guard"]["is_changed"][0]) for prompt in prompts)
    for said in (history, *(text for file in files for text in file.text.values())):
        for place in (str(server.base), str(ROOT), "/models/nsfw_guard"):
            assert place not in said


# --- Videos ----------------------------------------------------------------------------------------------------------


def clip(server, scenes, *, audio=True, fps=4.0):
    """Nodes that make a video of these frames, with sound."""
    nodes, link = load(server, scenes)
    inputs = {"images": link, "fps": fps}
    if audio:
        with wave.open(str(server.base / "input" / "sound.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(16000)
            sound.writeframes((1000 * np.sin(np.arange(int(16000 * len(scenes) / fps)) / 9)).astype("<i2").tobytes())
        nodes["sound"] = {"class_type": "LoadAudio", "inputs": {"audio": "sound.wav"}}
        inputs["audio"] = ["sound", 0]
    nodes["clip"] = {"class_type": "CreateVideo", "inputs": inputs}
    return nodes


def video_guard(**inputs):
    settings = {"sensitivity": "balanced", "action": "fill", "action.color": "#000000"}
    return {"class_type": "NSFWG_Video", "inputs": {"video": ["clip", 0], **settings, **inputs}}


FRAMES = [SAFE] * 5 + [UNSAFE] * 3 + [SAFE] * 4


def frames_of(server, nodes):
    """Run, and return the run and the frames that come out of the guard, by ComfyUI's own reading of the video."""
    parts = {"class_type": "GetVideoComponents", "inputs": {"video": ["guard", 0]}}
    run = server.run({**nodes, "parts": parts, "save": save(["parts", 0])})
    assert run.succeeded, run.error
    return run, run.pictures("save")


@pytest.mark.parametrize(
    ("settings", "black", "seen"),
    [
        ({"min_run": 1}, [5, 6, 7], 12),
        ({"min_run": 1, "every": 3}, [5, 6, 7], 9),  # 0 3 6 9 11, and those next to 6
        ({"min_run": 5}, [4, 5, 6, 7, 8], 12),
        ({"redact": "the whole video"}, list(range(12)), 12),
    ],
)
def test_frames_of_a_video(server, settings, black, seen):
    run, shown = frames_of(server, {**clip(server, FRAMES), "guard": video_guard(**settings)})
    assert len(shown) == len(FRAMES)
    for index, (scene, frame) in enumerate(zip(FRAMES, shown, strict=True)):
        assert (not frame.any()) if index in black else np.array_equal(frame, picture(scene))
    report = run.report("guard")
    assert report["redacted_seconds"] == [[black[0] / 4, (black[-1] + 1) / 4]]
    assert len(report["verdicts"]) == len(report["seen_frames"]) == seen
    assert f"{black[0] / 4:.2f} to {(black[-1] + 1) / 4:.2f} s" in run.outputs["guard"]["text"][0]


def test_the_report_of_a_video_counts_frames_and_not_looks(server):
    unsafe = [10, 11, 12, 20]
    scenes = [UNSAFE if index in unsafe else SAFE for index in range(30)]
    run, _ = frames_of(server, {**clip(server, scenes), "guard": video_guard(every=2, min_run=1)})
    report = run.report("guard")
    assert report["flagged_indices"] == [10, 12, 20]  # 11 lies between two that are flagged
    assert [verdict["index"] for verdict in report["verdicts"]] == report["seen_frames"]
    head, *lines = run.outputs["guard"]["text"][0].split("\n")
    assert head == f"30 frames, {len(report['seen_frames'])} looked at: 3 FLAGGED, fill"
    assert lines[:2] == ["2.50 to 3.25 s: fill", "5.00 to 5.25 s: fill"]
    assert [line.split(":")[0] for line in lines if "FLAGGED" in line] == ["10", "12", "20"]
    assert lines[-1] == "classifier: shapes/model.safetensors"


@pytest.mark.parametrize("source", ["frames", "file"])
def test_the_replacement_of_a_video_is_made_only_when_something_is_flagged(server, source):
    video_files(server)
    for name, scenes, made in (("safe.mp4", [SAFE] * 4, False), ("unsafe.mp4", FRAMES, True)):
        nodes = clip(server, scenes)
        if source == "file":
            nodes = {"clip": {"class_type": "LoadVideo", "inputs": {"file": name}}}
        size = {"width": 64, "height": 64, "batch_size": 1, "color": 7 + made}
        nodes["other"] = {"class_type": "EmptyImage", "inputs": size}
        nodes["guard"] = video_guard(action="replace", replacement=["other", 0])
        nodes["parts"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["guard", 0]}}
        run, executed = server.watched({**nodes, "save": save(["parts", 0])})
        assert run.succeeded, run.error
        assert ("other" in executed) is made
        assert run.report("guard")["flagged"] is made


def test_a_saved_video_keeps_its_sound_rate_and_frames(server):
    nodes = {**clip(server, FRAMES), "guard": video_guard(min_run=1)}
    nodes["save"] = {
        "class_type": "SaveVideo",
        "inputs": {"video": ["guard", 0], "filename_prefix": "video/out", "format": "mp4", "codec": "h264"},
    }
    run = server.run(nodes)
    assert run.succeeded, run.error
    (entry,) = run.outputs["save"]["images"]
    probe = (
        "import av, sys; c = av.open(sys.argv[1]); v = c.streams.video[0]; "
        "print(v.average_rate, len(c.streams.audio), sum(1 for _ in c.decode(v)))"
    )
    file = server.base / "output" / entry["subfolder"] / entry["filename"]
    said = subprocess.run(
        [os.environ["COMFYUI_PYTHON"], "-c", probe, str(file)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert said == ["4", "1", "12"]


def test_a_video_that_is_blocked(server):
    nodes = {**clip(server, FRAMES, audio=False), "guard": video_guard(action="block", **{"action.message": ""})}
    parts = {"class_type": "GetVideoComponents", "inputs": {"video": ["guard", 0]}}
    run = server.run({**nodes, "parts": parts, "save": save(["parts", 0])})
    assert run.succeeded
    assert run.pictures("save") == []


def test_a_long_video_can_be_interrupted_and_says_how_far_it_is(server):
    nodes, _ = load(server, [SAFE])
    nodes["many"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["load0", 0], "amount": 4096}}
    nodes["clip"] = {"class_type": "CreateVideo", "inputs": {"images": ["many", 0], "fps": 30.0}}
    parts = {"class_type": "GetVideoComponents", "inputs": {"video": ["guard", 0]}}
    with server.listening() as socket:
        prompt_id = server.submit(
            {**nodes, "guard": video_guard(), "parts": parts, "save": save(["parts", 0])}, client_id=socket.client_id
        )
        progress = socket.wait_for("progress", lambda data: data["node"] == "guard" and 0 < data["value"] < data["max"])
        assert progress["max"] == 4096
        server.post("/interrupt", {})
        run = server.finished(prompt_id)
    assert not run.succeeded
    assert any(kind == "execution_interrupted" for kind, _ in run.status["messages"])
    assert run.pictures("save") == []


# Two streams, the second of which ComfyUI copies unseen; and white frames with a triangle in their alpha.
FILES = """
import av, sys
import numpy as np
from PIL import Image
folder = sys.argv[1]
safe, unsafe = (np.asarray(Image.open(f"{folder}/{name}.png").convert("RGB")) for name in ("safe", "unsafe"))
def write(name, codec, pix_fmt, streams, form):
    with av.open(f"{folder}/{name}", "w") as out:
        made = [out.add_stream(codec, rate=4) for _ in streams]
        for stream, frame in zip(made, streams):
            stream.width, stream.height, stream.pix_fmt = frame.shape[1], frame.shape[0], pix_fmt
        for _ in range(4):
            for stream, frame in zip(made, streams):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=form).reformat(format=pix_fmt)))
        for stream in made:
            out.mux(stream.encode(None))
shape = (np.abs(unsafe.astype(int) - unsafe[0, 0]).sum(-1) > 60).astype(np.uint8) * 255
write("two.mp4", "h264", "yuv420p", [safe, unsafe], "rgb24")
write("alpha.mov", "png", "rgba", [np.dstack([np.full_like(safe, 255), shape])], "rgba")
write("changed.mp4", "h264", "yuv420p", [safe], "rgb24")
write("unsafe.mp4", "h264", "yuv420p", [unsafe], "rgb24")
write("safe.mp4", "h264", "yuv420p", [safe], "rgb24")
"""


def video_files(server):
    server.upload("safe.png", picture(SAFE))
    server.upload("unsafe.png", picture(UNSAFE))
    subprocess.run([os.environ["COMFYUI_PYTHON"], "-c", FILES, str(server.base / "input")], check=True)


def saved_streams(server, run):
    """The first frame of each video stream of what SaveVideo has saved."""
    (entry,) = run.outputs["save"]["images"]
    file = server.base / "output" / entry["subfolder"] / entry["filename"]
    frames = server.base / "streams.npy"
    read = "import av, sys, numpy; n = len(av.open(sys.argv[1]).streams.video); "
    read += "numpy.save(sys.argv[2], numpy.stack([next(av.open(sys.argv[1]).decode(video=i)).to_ndarray(format='rgba') "
    read += "for i in range(n)]))"
    subprocess.run([os.environ["COMFYUI_PYTHON"], "-c", read, str(file), str(frames)], check=True)
    return np.load(frames)


def file_graph(name, source, prefix="file"):
    load_video = {"class_type": "LoadVideo", "inputs": {"file": name}}
    settings = {"filename_prefix": prefix, "format": "auto", "codec": "auto"}
    return {"clip": load_video, "save": {"class_type": "SaveVideo", "inputs": {"video": source, **settings}}}


def test_a_second_stream_of_a_file_does_not_come_along(server):
    video_files(server)
    run = server.run({**file_graph("two.mp4", ["guard", 0]), "guard": video_guard()})
    assert run.succeeded, run.error
    assert len(saved_streams(server, run)) == 1


def test_a_shape_that_is_only_in_the_alpha_of_a_file_is_seen(server):
    video_files(server)
    run = server.run({**file_graph("alpha.mov", ["guard", 0]), "guard": video_guard()})
    assert run.succeeded, run.error
    assert run.report("guard")["flagged"] is True
    (frame,) = saved_streams(server, run)
    assert frame[..., :3].max() < 16  # filled with black
    assert frame[..., 3].min() == 255


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"action": "hide"}, "action is 'hide'|action is .*; expected one of blur, pixelate"),
        ({"sensitivity": "lax"}, "sensitivity is .*; expected one of balanced, strict"),
        ({"action": "fill", "action.color": "pink"}, "color is 'pink'; expected a colour such as #000000"),
    ],
)
def test_choices_that_there_are_not_stop_the_prompt(server, inputs, said):
    nodes, link = load(server, [UNSAFE])
    run = server.run({**nodes, "guard": guard(link, **inputs), "save": save(["guard", 0])})
    assert not run.succeeded
    assert re.search(said, run.error), run.error
    assert run.pictures("save") == []


@pytest.mark.parametrize(
    "inputs",
    [
        {"sensitivity": "threshold", "sensitivity.threshold": 1.5},
        {"sensitivity": "threshold", "sensitivity.threshold": -0.1},
        {"action": "blur", "action.cells": 0},
        {"batch": "some"},
    ],
)
def test_values_out_of_range_are_refused_by_the_server(server, inputs):
    nodes, link = load(server, [UNSAFE])
    with pytest.raises(Refused, match="value_smaller_than_min|value_bigger_than_max|value_not_in_list"):
        server.run({**nodes, "guard": guard(link, **inputs), "save": save(["guard", 0])})


def test_a_mask_in_the_place_of_an_image_is_refused(server):
    nodes, _ = load(server, [UNSAFE])
    with pytest.raises(Refused, match="return_type_mismatch"):
        server.run({**nodes, "guard": guard(["load0", 1]), "save": save(["guard", 0])})


def test_a_checkpoint_that_is_not_there_is_refused(server):
    nodes, link = load(server, [UNSAFE])
    nodes["model"] = {"class_type": "NSFWG_LoadClassifier", "inputs": {"checkpoint": "gone.safetensors"}}
    with pytest.raises(Refused, match="value_not_in_list"):
        server.run({**nodes, "guard": guard(link, classifier=["model", 0]), "save": save(["guard", 0])})


def test_a_checkpoint_removed_after_validation_stops_the_prompt(server):
    nodes, link = load(server, [UNSAFE])
    folder = server.base / "models" / "nsfw_guard" / "brief"
    long = {"class_type": "RepeatImageBatch", "inputs": {"image": link, "amount": 4096}}
    with server.listening() as socket:
        before = {**nodes, "many": long, "first": classify(["many", 0])}
        before["look"] = {"class_type": "PreviewAny", "inputs": {"source": ["first", 1]}}
        server.submit(before, client_id=socket.client_id)
        socket.wait_for("progress", lambda data: data["node"] == "first")
        shutil.copytree(server.base / "models" / "nsfw_guard" / "shapes", folder)
        nodes["model"] = {"class_type": "NSFWG_LoadClassifier", "inputs": {"checkpoint": "brief/model.safetensors"}}
        prompt_id = server.submit({**nodes, "guard": guard(link, classifier=["model", 0]), "save": save(["guard", 0])})
        shutil.rmtree(folder)
        server.post("/interrupt", {})
        run = server.finished(prompt_id)
    assert not run.succeeded
    assert "is not in ComfyUI's models/nsfw_guard any more" in run.error
    assert run.pictures("save") == []


def test_broken_files_stop_the_prompt(server):
    folder = server.base / "models" / "nsfw_guard"
    (folder / "corrupt.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all")
    (folder / "pickled.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    for name in ("corrupt", "pickled"):
        shutil.copy(folder / "shapes" / "config.json", folder / f"{name}.json")
        shutil.copy(folder / "shapes" / "preprocessor_config.json", folder / f"{name}.preprocessor_config.json")
        (folder / f"{name}.toml").write_text('card = "demo"\n', encoding="utf-8")
    shutil.copy(folder / "shapes" / "model.safetensors", folder / "alone.safetensors")
    nodes, link = load(server, [UNSAFE])
    for name, said in (("corrupt", "safetensors"), ("pickled", "safetensors"), ("alone", "has no config beside it")):
        nodes["model"] = {"class_type": "NSFWG_LoadClassifier", "inputs": {"checkpoint": f"{name}.safetensors"}}
        run = server.run({**nodes, "guard": guard(link, classifier=["model", 0]), "save": save(["guard", 0])})
        (folder / f"{name}.safetensors").unlink()
        assert not run.succeeded
        assert said in run.error
        assert run.pictures("save") == []


def test_the_demo_runs_where_it_is_chosen_by_name(server):
    nodes, link = load(server, [SAFE, UNSAFE])
    (choices,) = [
        entry["options"]
        for entry in [
            server.get("/object_info/NSFWG_LoadClassifier")["NSFWG_LoadClassifier"]["input"]["required"]["checkpoint"][
                1
            ]
        ]
    ]
    (demo,) = [choice for choice in choices if choice.startswith("demo")]
    assert "no NSFW model" in demo
    nodes["model"] = {"class_type": "NSFWG_LoadClassifier", "inputs": {"checkpoint": demo}}
    run = server.run({**nodes, "guard": guard(link, classifier=["model", 0]), "save": save(["guard", 0])})
    assert run.report("guard")["flagged_indices"] == [1]


def test_the_example_for_programs_runs_and_prints_what_the_readme_says(server):
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    code, printed = re.search(r"```python\n(.*?)```\n.*?```\n(.*?)```", readme, re.DOTALL).groups()
    server.upload("example.png", picture(("triangle", "orange", "purple")))
    code = code.replace("http://127.0.0.1:8188", server.url)
    done = subprocess.run([os.environ["COMFYUI_PYTHON"], "-I", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    number = re.compile(r"guarded_\d+_")
    assert number.sub("guarded_", done.stdout) == number.sub("guarded_", printed)


def test_every_node_has_a_help_page(server):
    for name, info in server.get("/object_info").items():
        if name.startswith("NSFWG_") and not info["dev_only"]:
            with urllib.request.urlopen(f"{server.url}/extensions/nsfw_guard/docs/{name}.md") as answer:
                assert answer.read().decode().startswith(f"# {info['display_name']}\n")


def would_be_installed(*what):
    command = [os.environ["COMFYUI_PYTHON"], "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip did not get through: {done.stderr[-200:]}")
    return {entry["metadata"]["name"] for entry in json.loads(done.stdout)["install"]}


@pytest.mark.parametrize("what", [[str(ROOT)], ["-r", str(PACK / "requirements.txt")]], ids=["checkout", "file"])
def test_installing_moves_no_package_of_comfyuis(what):
    lacking = would_be_installed("torch", "torchvision", "transformers")  # of an installation that is not whole
    assert would_be_installed(*what) - lacking <= {"nsfw-guard", "timm"}


# --- Servers of their own --------------------------------------------------------------------------------------------


def test_without_a_checkpoint_the_guard_says_where_to_put_one(tmp_path):
    server = Server(tmp_path, checkpoint=False)
    try:
        nodes, link = load(server, [SAFE])
        run = server.run({**nodes, "guard": guard(link), "save": save(["guard", 0])})
        assert not run.succeeded
        assert "No NSFW classifier is installed" in run.error
        assert "nsfw-guard download freepik --to" in run.error
        assert run.pictures("save") == []
    finally:
        server.close()


@pytest.fixture(scope="module")
def enforcing(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("enforcing"), env={"NSFW_GUARD_ENFORCE": "1"})
    yield server
    server.close()


def test_an_operator_guards_graphs_without_a_guard(enforcing):
    nodes, link = load(enforcing, [SAFE, UNSAFE])
    nodes["preview"] = {"class_type": "PreviewImage", "inputs": {"images": link}}
    run = enforcing.run({**nodes, "save": save(link)})
    assert run.succeeded, run.error
    for node in ("save", "preview"):
        safe, unsafe = run.pictures(node)
        assert np.array_equal(safe, picture(SAFE))
        assert not np.array_equal(unsafe, picture(UNSAFE))
        assert unsafe.std() > 1  # blurred, not filled


def test_an_operator_guards_what_nodes_draw_on_themselves(enforcing):
    nodes, link = load(enforcing, [UNSAFE])
    region = {"x": 0, "y": 0, "width": 128, "height": 128}
    nodes["crop"] = {"class_type": "ImageCropV2", "inputs": {"image": link, "crop_region": region}}
    run = enforcing.run({**nodes, "save": save(["crop", 0])})
    assert run.succeeded, run.error
    for node in ("crop", "save"):
        for shown in run.pictures(node):
            assert not np.array_equal(shown[..., :3], picture(UNSAFE))
    assert run.pictures("crop")


def test_an_operator_guards_links_in_a_wrapping_that_comfyui_takes_off(enforcing):
    nodes, link = load(enforcing, [UNSAFE])
    run = enforcing.run({**nodes, "save": save({"__value__": link})})
    assert run.succeeded, run.error
    (shown,) = run.pictures("save")
    assert not np.array_equal(shown, picture(UNSAFE))


def test_a_guarded_prompt_can_be_sent_again(enforcing):
    nodes, link = load(enforcing, [SAFE, UNSAFE])
    prompt_id = enforcing.submit({**nodes, "save": save(link, "first")})
    enforcing.finished(prompt_id)
    prompt = enforcing.get(f"/history/{prompt_id}")[prompt_id]["prompt"][2]
    run = enforcing.run(prompt)
    assert run.succeeded, run.error
    guards = [node["class_type"] for node in prompt.values() if node["class_type"].startswith("NSFWG_")]
    assert sorted(guards) == ["NSFWG_Enforced", "NSFWG_EnforcedSource", "NSFWG_EnforcedSource"]


def test_an_operator_guards_masks_and_videos_too(enforcing):
    nodes = clip(enforcing, FRAMES, audio=False)
    nodes["mask"] = {"class_type": "ImageToMask", "inputs": {"image": ["load5", 0], "channel": "green"}}
    nodes["look"] = {"class_type": "MaskPreview", "inputs": {"mask": ["mask", 0]}}
    nodes["save"] = {
        "class_type": "SaveVideo",
        "inputs": {"video": ["clip", 0], "filename_prefix": "v", "format": "mp4", "codec": "h264"},
    }
    run = enforcing.run(nodes)
    assert run.succeeded, run.error
    (mask,) = run.pictures("look")
    assert not np.array_equal(mask[..., 0], picture(UNSAFE)[..., 1])
    (entry,) = run.outputs["save"]["images"]
    saved = enforcing.base / "output" / entry["subfolder"] / entry["filename"]
    read = "import av, sys, numpy; v = [f.to_ndarray(format='rgb24') for f in av.open(sys.argv[1]).decode(video=0)]; "
    read += "numpy.save(sys.argv[2], numpy.stack(v))"
    frames = enforcing.base / "frames.npy"
    subprocess.run([os.environ["COMFYUI_PYTHON"], "-c", read, str(saved), str(frames)], check=True)
    detail = [np.abs(np.diff(frame.astype(int), axis=1)).max() for frame in np.load(frames)]
    assert len(detail) == len(FRAMES)
    assert max(detail[5:8]) < min(detail[0], detail[-1]) / 2  # the sharp edges are gone


@pytest.mark.parametrize("name", ["two.mp4", "alpha.mov", "unsafe.mp4"])
def test_an_operator_guards_whatever_a_video_file_holds(enforcing, name):
    video_files(enforcing)
    run = enforcing.run(file_graph(name, ["clip", 0]))
    assert run.succeeded, run.error
    (frame,) = saved_streams(enforcing, run)
    assert frame[..., 3].min() == 255
    triangle = picture(UNSAFE).astype(int)
    assert np.abs(frame[..., :3].astype(int) - triangle).mean() > 5


FLOATS = {
    "outside of the range": ("NormalizeImages", {"images": ["load0", 0], "mean": 0.0, "std": 0.001}),
    "faint within it": (
        "ImageBlend",
        {"image1": ["load0", 0], "image2": ["black", 0], "blend_factor": 0.9999, "blend_mode": "normal"},
    ),
}


@pytest.mark.parametrize("name", FLOATS)
def test_nothing_comes_back_from_a_file_of_floats(enforcing, name):
    nodes, _ = load(enforcing, [UNSAFE])
    nodes["black"] = {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 128, "batch_size": 1, "color": 0}}
    class_type, inputs = FLOATS[name]
    nodes["numbers"] = {"class_type": class_type, "inputs": inputs}
    settings = {"format": "exr", "format.bit_depth": "32-bit float", "format.input_color_space": "linear"}
    nodes["save"] = {
        "class_type": "SaveImageAdvanced",
        "inputs": {"images": ["numbers", 0], "filename_prefix": "floats", **settings},
    }
    run = enforcing.run(nodes)
    assert run.succeeded, run.error
    saved = max(enforcing.base.glob("output/floats*.exr"), key=os.path.getmtime)
    read = "import av, sys, numpy; f = next(av.open(sys.argv[1]).decode(video=0)).to_ndarray(format='gbrpf32le'); "
    read += "numpy.save(sys.argv[2], f)"
    numbers = enforcing.base / "numbers.npy"
    subprocess.run([os.environ["COMFYUI_PYTHON"], "-c", read, str(saved), str(numbers)], check=True)
    shown = torch.from_numpy(np.load(numbers)).movedim(-1, 0)
    assert 0 <= shown.min() <= shown.max() <= 1
    if shown.max() > shown.min():
        shown = (shown - shown.min()) / (shown.max() - shown.min())
    assert not NsfwGuard("demo").check(shown[None])[0].flagged


def test_a_clients_word_on_the_cache_counts_for_nothing(enforcing):
    video_files(enforcing)
    for prefix in ("before", "after"):
        graph = file_graph("changed.mp4", ["clip", 0], prefix)
        graph["clip"]["is_changed"] = ["always the same"]
        run = enforcing.run(graph)
        assert run.succeeded, run.error
        (frame,) = saved_streams(enforcing, run)
        shutil.copy(enforcing.base / "input" / "unsafe.mp4", enforcing.base / "input" / "changed.mp4")
    assert np.abs(frame[..., :3].astype(int) - picture(UNSAFE)).mean() > 5


def test_numbers_and_settings_go_to_outputs_as_they_are(enforcing):
    sigmas = {"class_type": "KarrasScheduler", "inputs": {"steps": 5, "sigma_max": 14.6, "sigma_min": 0.03, "rho": 7.0}}
    run = enforcing.run({"sigmas": sigmas, "look": {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 0]}}})
    assert run.succeeded, run.error


def test_an_operator_cannot_be_bypassed_by_the_guard_node_or_by_detect_only(enforcing):
    nodes, link = load(enforcing, [UNSAFE])
    run = enforcing.run({**nodes, "guard": guard(link, action="detect only"), "save": save(["guard", 0])})
    (shown,) = run.pictures("save")
    assert not np.array_equal(shown, picture(UNSAFE))


@pytest.mark.parametrize(
    "prompt", [{"1": {"inputs": {}}}, {"1": "SaveImage"}, [1, 2], {"1": {"class_type": ["a"], "inputs": 3}}]
)
def test_a_prompt_that_cannot_be_guarded_is_refused(enforcing, prompt):
    with pytest.raises(Refused, match="This server guards every prompt, and could not guard this one"):
        enforcing.run(prompt)


def test_an_operator_switches_sampler_previews_off(tmp_path):
    server = Server(tmp_path, env={"NSFW_GUARD_ENFORCE": "1"})
    try:
        assert "sampler previews are off" in server.log.read_text(errors="replace")
    finally:
        server.close()
