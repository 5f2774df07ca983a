"""The node that checks and saves in one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from nsfw_guard.errors import SettingError
from nsfw_guard.policy import Policy
from nsfw_guard.verdict import Verdict

from . import options, redaction, report
from .nodes_image import ClassifyingNode, decide, replacement_if_flagged, scores_of

UNFLAGGED, ALL, NEVER = "in unflagged images only", "in all images", "never"


class SaveImage(ClassifyingNode):
    """Save Image (Guarded)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_SaveImage",
            display_name="Save Image (Guarded)",
            category="image",
            description="Looks at every image, redacts what is flagged, and saves as PNG, the verdict in the file. "
            "With the action block, flagged images are not saved.",
            search_aliases=["save", "save image", "export image", "nsfw save"],
            inputs=[
                io.Image.Input("images", tooltip="Every image is looked at."),
                io.String.Input("filename_prefix", default="ComfyUI", tooltip="As for Save Image."),
                *options.guard_inputs(),
                io.Combo.Input(
                    "prompt_in_file",
                    options=[UNFLAGGED, ALL, NEVER],
                    default=UNFLAGGED,
                    optional=True,
                    advanced=True,
                    tooltip="Whether prompt and workflow are written into the files.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(
        cls,
        images: Any,
        sensitivity: Any = None,
        action: Any = None,
        classifier: Any = None,
        policy: Any = None,
        replacement: Any = options.UNLINKED,
        **_: Any,
    ) -> list[str]:
        """Ask for the replacement picture only when something is flagged."""
        return replacement_if_flagged(
            replacement, action, sensitivity, policy, lambda: scores_of(images, classifier, cls.hidden.unique_id)
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        filename_prefix: str = "ComfyUI",
        sensitivity: Any = None,
        action: Any = None,
        classifier: Any = None,
        policy: Policy | None = None,
        prompt_in_file: str = UNFLAGGED,
        replacement: Any = None,
    ) -> io.NodeOutput:
        """Classify, decide, redact, save."""
        if prompt_in_file not in (UNFLAGGED, ALL, NEVER):
            raise SettingError(f"prompt_in_file is {prompt_in_file!r}; expected {UNFLAGGED!r}, {ALL!r} or {NEVER!r}.")
        scores = scores_of(images, classifier, cls.hidden.unique_id)
        chosen, verdicts = decide(scores, sensitivity, policy)
        done = options.action_of(action, replacement, flagged=any(verdict.flagged for verdict in verdicts))
        shown = redaction.redacted(images, verdicts, done, scores.judge(chosen))
        told = shown.told()
        saved = [
            (image, verdict, told.get(index))
            for index, (image, verdict) in enumerate(zip(shown.images, verdicts, strict=True))
            if not (verdict.flagged and done.kind == options.BLOCK)
        ]
        results = _save(cls, saved, filename_prefix, prompt_in_file)
        text = report.as_text(verdicts, done.kind, told)
        verdicts_json = report.as_json(verdicts, chosen, done.kind, told)
        return io.NodeOutput(ui={"images": results, **report.as_ui(text, verdicts_json)})


def _save(
    cls: Any, images: list[tuple[Tensor, Verdict, dict[str, Any] | None]], prefix: str, prompt_in_file: str
) -> list[dict[str, str]]:
    if not images:
        return []
    height, width = images[0][0].shape[:2]
    folder, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    results = []
    for index, (image, verdict, told) in enumerate(images):
        pixels = np.clip(image.float().cpu().numpy() * 255.0, 0, 255).astype(np.uint8)  # as Save Image rounds
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        name = f"{filename.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
        path = os.path.join(folder, name)
        part = Path(path + ".part")  # under another name until it is whole
        try:
            picture.save(part, format="PNG", pnginfo=_metadata(cls, verdict, told, prompt_in_file), compress_level=4)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        results.append({"filename": name, "subfolder": subfolder, "type": "output"})
    return results


def _metadata(cls: Any, verdict: Verdict, told: dict[str, Any] | None, prompt_in_file: str) -> PngInfo | None:
    if args.disable_metadata:
        return None
    metadata = PngInfo()
    metadata.add_text("nsfw_guard", json.dumps(report.as_dict(verdict, told)))
    if prompt_in_file == ALL or (prompt_in_file == UNFLAGGED and not verdict.flagged):
        if cls.hidden.prompt:
            metadata.add_text("prompt", json.dumps(cls.hidden.prompt))
        for key, value in (cls.hidden.extra_pnginfo or {}).items():
            metadata.add_text(key, json.dumps(value))
    return metadata


NODES = [SaveImage]
