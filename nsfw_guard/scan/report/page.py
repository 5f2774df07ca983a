"""The HTML page: a template, its style and script, and what is shown as JSON, in one file that asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from .thumbnails import Thumbnail

# The first line of every page: what does not begin with it is not ours to overwrite.
MARK = "<!doctype html><!-- nsfw-guard report -->\n"
# In the order in which they are run, in one scope.
SCRIPTS = ("text.js", "decisions.js", "overview.js", "filters.js", "gallery.js", "detail.js", "main.js")


def build_page(title: str, headline: str, data: Mapping[str, Any], pictures: Sequence[Thumbnail]) -> bytes:
    """Put a page together.

    Nothing that is not part of this package is ever markup: what files are called is JSON, and the title is escaped.
    The page's own security policy lets this style and this script run, ``data:`` pictures be shown, and nothing else.

    Args:
        title: Of the page; plain text.
        headline: What was found, in one line; plain text.
        data: What ``describe`` returned.
        pictures: One per item of ``data``.

    Returns:
        The file's content.
    """
    style = _own("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_own, SCRIPTS)) + "})();\n"
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    slots = {
        "policy": policy,
        "title": html.escape(title),
        "headline": html.escape(headline),
        "style": style,
        "script": script,
        "data": to_json(data),
        "pictures": to_json([picture.data for picture in pictures]),
    }
    body = re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match.group(1)], _own("page.html"))
    return (MARK + body).encode("utf-8", "replace")


def to_json(value: Any) -> str:
    """Return JSON that cannot end the script element that it is in, and that holds text of any kind.

    Raises:
        ValueError: It holds a number that JSON does not have.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: lone surrogates are no UTF-8
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
