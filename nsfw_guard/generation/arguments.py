"""The arguments of a pipeline's call: which it takes, which rows can share a batch, which are paths of pictures."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from nsfw_guard.integrations.diffusers_pipeline import table

from ..errors import ImageError, SettingError
from .prompts import PromptRow

# Ours to say: with others, images and verdicts could not be told apart or not be looked at.
_OURS = {
    "generator": 'use "seed"',
    "num_images_per_prompt": "use num_images",
    "output_type": "images are saved as PNG",
    "return_dict": "the output is read here",
    "batch_size": "the option batch_size says how many rows are drawn at once",
    "prompt": "prompts come as rows",
    "seed": "seeds come with the rows; the option seed is what default ones are derived from",
}
PICTURES = ("image", "mask_image", "control_image", "ip_adapter_image", "reference_image")
# One per image of a batch; all others are one for the whole: negative_prompt, prompt_2, …
_LISTED = re.compile(r"(\w+_)?prompt(_\d+)?")


class CallArguments:
    """What one pipeline's call takes.

    Args:
        pipe: The pipeline, guarded or not.
        arguments: Those of every call, such as ``num_inference_steps``.

    Raises:
        SettingError: Its images cannot be saved here, or an argument is not one of its call.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self.name = _class_of(pipe).__name__
        self.arguments = dict(arguments)
        modular = table.mechanism_of(type(pipe)) == "modular"
        if table.makes_clips(type(pipe)) or (modular and "images" not in {one.name for one in pipe.blocks.outputs}):
            raise SettingError(
                f"{self.name} makes clips, which batch generation does not save. Call it in a loop of your own: "
                "attach(pipe, guard)."
            )
        if modular:
            inputs = [one for one in pipe.blocks.inputs if one.name]
            self._names = list(dict.fromkeys(one.name for one in inputs))
            needed = [one.name for one in inputs if one.required]
            self._any = False
        else:
            parameters = inspect.signature(_class_of(pipe).__call__).parameters
            self._names = [n for n, one in parameters.items() if n != "self" and one.kind is not one.VAR_KEYWORD]
            needed = [n for n in self._names if parameters[n].default is inspect.Parameter.empty]
            # The library's own classes take any name for the sake of two old ones, and say nothing of the others.
            own = _class_of(pipe).__module__.startswith("diffusers.")
            self._any = not own and any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self._needed = [n for n in needed if n not in ("prompt", "args")]
        if "generator" not in self._names and not self._any:
            raise SettingError(f"{self.name} takes no generator, without which an image cannot be made again.")
        for name in self.arguments:
            if (problem := self._problem_of(name)) is not None:
                raise SettingError(f"{problem}.")
        try:
            json.dumps(self.arguments, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingError(
                f"arguments hold what cannot be written as JSON in UTF-8 ({error}); expected numbers, text, true, "
                "false, null, lists and mappings of them."
            ) from error

    def problem(self, row: PromptRow) -> str | None:
        """Return why a row cannot be drawn, as far as that is known before; ``None`` if it can."""
        takes_prompt = self._any or "prompt" in self._names
        if row.prompt is None and "prompt" in self._names:
            return "it has no prompt"
        if row.prompt is not None and not takes_prompt:
            return f"{self.name} takes no prompt"
        for name in row.arguments:
            if (problem := self._problem_of(name)) is not None:
                return problem
        given = {**self.arguments, **row.arguments}
        if lacking := [name for name in self._needed if name not in given]:
            return f"{self.name} needs {', '.join(lacking)}"
        for name, other in (("width", "height"), ("height", "width")):
            if name not in given:
                continue
            if isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < 1:
                return f"{name} is {given[name]!r}; expected a whole number of pixels, at least 1"
            if other in self._names and other not in given:
                return f"{name} is given and {other} is not; pipelines do not heed one alone"
        for name, value in given.items():
            if name in PICTURES:
                try:
                    paths = _paths(name, value, row.folder)
                except ImageError as error:
                    return str(error)
                for path in paths:
                    if not path.is_file():
                        return f"{name} is {path}, and there is no such file"
        return None

    def key(self, row: PromptRow) -> str | None:
        """Return what rows of one batch have in common; ``None`` for one that is drawn alone."""
        if row.prompt is None or any(name in PICTURES for name in {**self.arguments, **row.arguments}):
            return None
        listed = sorted(name for name, value in row.arguments.items() if _is_listed(name, value))
        shared = {name: value for name, value in row.arguments.items() if name not in listed}
        return json.dumps([shared, listed], sort_keys=True)

    def of(self, rows: Sequence[PromptRow]) -> dict[str, Any]:
        """Return the arguments that draw rows of one key, but for the generators.

        Raises:
            ImageError: A picture cannot be read.
        """
        first = rows[0]
        given = {**self.arguments, **first.arguments}
        for name in PICTURES:
            if name in given:
                pictures = [_open(path, name) for path in _paths(name, given[name], first.folder)]
                given[name] = pictures if isinstance(given[name], list) else pictures[0]
        for name, value in given.items():
            if _is_listed(name, value) and len(rows) > 1:
                given[name] = [row.arguments.get(name, value) for row in rows]
        if first.prompt is not None:
            given["prompt"] = first.prompt if len(rows) == 1 else [row.prompt for row in rows]
        return given

    def _problem_of(self, name: str) -> str | None:
        if name in _OURS:
            return f"{name} cannot be given: {_OURS[name]}"
        if name.startswith("callback"):
            return f"{name} cannot be given: it is a function"
        if not self._any and name not in self._names:
            return f"{self.name} has no argument {name!r}; it has {', '.join(n for n in self._names if n not in _OURS)}"
        return None


def _class_of(pipe: Any) -> Any:
    """The pipeline's class, without the guard's part."""
    return getattr(type(pipe), "_unguarded", type(pipe))


def _is_listed(name: str, value: Any) -> bool:
    return isinstance(value, str) and _LISTED.fullmatch(name) is not None


def _paths(name: str, value: Any, folder: Path) -> list[Path]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) and one for one in values):
        raise ImageError(f"{name} is {value!r}; expected the path of a picture, relative to the prompt file")
    return [folder / one for one in values]


def _open(path: Path, name: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("L" if name == "mask_image" else "RGB")
    except Exception as error:  # Pillow's readers raise nearly anything
        raise ImageError(f"{name} is {path}, which cannot be read as a picture: {error}") from error
