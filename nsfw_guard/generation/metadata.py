"""PNG files that say what they are: prompt, seed, model, the verdict, and that a model made them (IPTC)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..images.looks import is_layered, with_alpha
from ..images.pictures import upright

VERDICT = "nsfw_guard"
XMP = "XML:com.adobe.xmp"
# https://cv.iptc.org/newscodes/digitalsourcetype/
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="{source}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def encode_png(picture: Image.Image, texts: Mapping[str, Any], *, composite: bool = False) -> bytes:
    """Return a PNG file of a picture, with nothing else of it than its pixels and what is given.

    Args:
        picture: In a mode that PNG can hold; else as RGB, with its alpha as RGBA.
        texts: Keyword → text, or plain values that are written as JSON. All are iTXt chunks, in UTF-8.
        composite: Whether a part of it is an older picture (in-painting), for IPTC's digital source type.
    """
    info = PngInfo()
    for name, value in texts.items():
        info.add_itxt(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    info.add_itxt(XMP, _PACKET.format(source=COMPOSITE if composite else GENERATED))
    picture = upright(picture)
    if picture.mode.startswith("I"):  # as many bits as were looked at
        picture = Image.fromarray(np.asarray(picture).clip(0, 65535).astype(np.uint16))
    elif picture.mode not in ("RGB", "RGBA", "L", "LA"):
        picture = with_alpha(picture) if is_layered(picture) else picture.convert("RGB")
    file = io.BytesIO()
    # Pillow would take these from the picture: what a pipeline hands on is pixels.
    picture.save(file, "PNG", pnginfo=info, icc_profile=None, exif=b"")
    return file.getvalue()
