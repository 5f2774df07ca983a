"""3D models before outputs: the pictures on their surfaces are looked at."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from nsfw_guard.errors import ImageError

_MAGIC, _JSON, _BINARY = b"glTF", 0x4E4F534A, 0x004E4942
_EXPECTED = "expected GLB or glTF with its pictures inside, and no colours at its vertices"


def is_model_file(value: Any) -> bool:
    """Whether a value is one of ComfyUI's ``FILE_3D``."""
    return type(value).__name__ == "File3D" and hasattr(value, "get_data") and hasattr(value, "format")


def textures(value: Any) -> list[bytes | str]:
    """Return the pictures in a 3D model, as files or as data: URLs.

    Args:
        value: A ``FILE_3D``. Formats: glTF 2.0, as JSON or binary
            (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html).

    Raises:
        ImageError: Another format; pictures in other files; colours at its vertices; or it is broken.
    """
    data = value.get_data().read()
    try:
        described, binary = _parts(data)
        if any("COLOR_" in name for mesh in described.get("meshes", ()) for name in _attributes(mesh)):
            raise ImageError(f"The 3D model has colours at its vertices, which cannot be looked at; {_EXPECTED}.")
        return [_picture(image, described, binary) for image in described.get("images", ())]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        kind = str(value.format)[:8] or "unknown"
        raise ImageError(f"A 3D model of the format {kind!r} cannot be looked at; {_EXPECTED}.") from error


def look_at_model(value: Any, look: Callable[[bytes | str], Any]) -> Any:
    """Return a 3D model none of whose pictures is flagged.

    Raises:
        ImageError: One is, or cannot be looked at.
    """
    for picture in textures(value):
        if look(picture) is not picture:
            raise ImageError("A picture on the surface of the 3D model is flagged; it is held back.")
    return value


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    if data[:4] != _MAGIC:
        return json.loads(data), b""
    described, binary, at = None, b"", 12
    while at < len(data):
        length, kind = struct.unpack_from("<II", data, at)
        content = data[at + 8 : at + 8 + length]
        described = json.loads(content) if kind == _JSON else described
        binary = content if kind == _BINARY else binary
        at += 8 + length
    if not isinstance(described, dict):
        raise ValueError("no JSON")
    return described, binary


def _attributes(mesh: dict[str, Any]) -> list[str]:
    return [name for primitive in mesh["primitives"] for name in primitive["attributes"]]


def _picture(image: dict[str, Any], described: dict[str, Any], binary: bytes) -> bytes | str:
    if "bufferView" not in image:
        if not str(image["uri"]).startswith("data:"):
            raise ValueError("a picture in another file")
        return str(image["uri"])
    view = described["bufferViews"][image["bufferView"]]
    if view["buffer"] != 0 or not binary:
        raise ValueError("a picture in another file")
    start = view.get("byteOffset", 0)
    return binary[start : start + view["byteLength"]]
