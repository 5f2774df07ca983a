"""The nodes that check and save, or show, in one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from nsfw_guard.errors import SettingError
from nsfw_guard.files import write_new
from nsfw_guard.policy import Policy
from nsfw_guard.verdict import Verdict

from . import options, report
from .nodes_image import RedactingNode, censored, decide, scores_of

UNFLAGGED, ALL, NEVER = "in unflagged images only", "in all images", "never"


@dataclass(frozen=True)
class Kept:
    """An image that is written.

    Attributes:
        index: Its place in the batch.
        image: ``[H, W, C]``, as it is shown.
        verdict: On what came in.
        told: What became of it, if it was redacted.
    """

    index: int
    image: Tensor
    verdict: Verdict
    told: dict[str, Any] | None


class SaveImage(RedactingNode):
    """Save Image (Guarded)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_SaveImage",
            display_name="Save Image (Guarded)",
            category="image/safety",
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
            outputs=_outputs("saved"),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
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

        def write(kept: list[Kept]) -> list[dict[str, str]]:
            return _write(cls, kept, filename_prefix, prompt_in_file, temporary=False)

        return _written(cls, images, sensitivity, action, classifier, policy, replacement, write)


class PreviewImage(RedactingNode):
    """Preview Image (Guarded)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id="NSFWG_PreviewImage",
            display_name="Preview Image (Guarded)",
            category="image/safety",
            description="Looks at every image, redacts what is flagged, and shows the rest as it is. Nothing is "
            "written but to ComfyUI's temp folder. With the action block, flagged images are not shown.",
            search_aliases=["preview", "preview image", "show image", "view image", "nsfw preview"],
            inputs=[io.Image.Input("images", tooltip="Every image is looked at."), *options.guard_inputs()],
            outputs=_outputs("shown"),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        sensitivity: Any = None,
        action: Any = None,
        classifier: Any = None,
        policy: Policy | None = None,
        replacement: Any = None,
    ) -> io.NodeOutput:
        """Classify, decide, redact, show."""

        def write(kept: list[Kept]) -> list[dict[str, str]]:
            # As Preview Image: a name that no browser has in its cache.
            return _write(cls, kept, f"nsfw_guard_temp_{secrets.token_hex(4)}", UNFLAGGED, temporary=True)

        return _written(cls, images, sensitivity, action, classifier, policy, replacement, write)


def _outputs(images: str) -> list[Any]:
    return [
        io.Image.Output(images, display_name="images", tooltip="What was written: with block, only unflagged images."),
        io.Boolean.Output("flagged", tooltip="Whether any image is flagged."),
        io.String.Output("report", tooltip="JSON: one verdict per image."),
    ]


def _written(
    cls: Any,
    images: Tensor,
    sensitivity: Any,
    action: Any,
    classifier: Any,
    policy: Policy | None,
    replacement: Any,
    write: Callable[[list[Kept]], list[dict[str, str]]],
) -> io.NodeOutput:
    """Look, redact, write; the images that were written, whether any is flagged, the report."""
    scores = scores_of(images, classifier, cls.hidden.unique_id)
    chosen, verdicts = decide(scores, sensitivity, policy)
    done = censored(images, scores, chosen, verdicts, action, replacement)
    told = done.shown.told()
    kept = [
        Kept(index, image, verdict, told.get(index))
        for index, (image, verdict) in enumerate(zip(done.shown.images, verdicts, strict=True))
        if not (verdict.flagged and done.action.kind == options.BLOCK)
    ]
    results = write(kept)
    handed_on = done.shown.images if len(kept) == len(images) else _some(done.shown.images, kept, done.action)
    return io.NodeOutput(handed_on, done.flagged, done.report, ui={"images": results, **done.ui})


def _some(images: Tensor, kept: list[Kept], action: options.Action) -> Any:
    return images[[one.index for one in kept]] if kept else ExecutionBlocker(action.message)


def _write(cls: Any, images: list[Kept], prefix: str, prompt_in_file: str, *, temporary: bool) -> list[dict[str, str]]:
    if not images:
        return []
    height, width = images[0].image.shape[:2]
    kind = "temp" if temporary else "output"
    root = folder_paths.get_temp_directory() if temporary else folder_paths.get_output_directory()
    folder, filename, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root, width, height)
    numbers = count(counter)
    results = []
    for one in images:
        pixels = np.clip(one.image.float().cpu().numpy() * 255.0, 0, 255).astype(np.uint8)  # as Save Image rounds
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        metadata = _metadata(cls, one.verdict, one.told, prompt_in_file)
        file = BytesIO()
        picture.save(file, format="PNG", pnginfo=metadata, compress_level=1 if temporary else 4)
        for number in numbers:
            name = f"{filename.replace('%batch_num%', str(one.index))}_{number:05}_.png"
            try:
                write_new(Path(folder, name), file.getvalue())
            except FileExistsError:  # of a prompt that was counted at the same time
                continue
            break
        results.append({"filename": name, "subfolder": subfolder, "type": kind})
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


NODES = [SaveImage, PreviewImage]
