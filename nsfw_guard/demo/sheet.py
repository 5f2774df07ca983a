"""The contact sheet: every picture before and after the guard, with its score and verdict."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from . import NOTICE
from .generate import Drawing

_SIDE = 224
_GAP = 12
_PAD = 18
_CARD = (2 * _SIDE + 3 * _GAP, _SIDE + 108)
_INK, _DIM, _PAPER, _WHITE, _LINE = "#1c2230", "#6b7385", "#eef0f4", "#ffffff", "#dfe3ea"
_FLAGGED, _PASSED = "#d03b3b", "#2c8a57"
_DONE = {
    "blur": "blurred",
    "pixelate": "pixelated",
    "fill": "filled",
    "replace": "replaced",
    "none": "reported only",
}


def contact_sheet(drawings: list[Drawing], *, redaction: str) -> Image.Image:
    """Draw the sheet, two cards in a row.

    Args:
        drawings: What the demo drew.
        redaction: The kind of redaction, for the captions.
    """
    columns = min(2, len(drawings))
    rows = -(-len(drawings) // columns)
    width = max(columns * (_CARD[0] + _PAD) + _PAD, 720)
    sheet = Image.new("RGB", (width, 96 + rows * (_CARD[1] + _PAD)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_PAD, 18), "nsfw_guard", fill=_INK, font=_font(28))
    flagged = sum(drawing.verdict.flagged for drawing in drawings)
    draw.text((_PAD + 170, 27), f"{len(drawings)} pictures, {flagged} flagged", fill=_DIM, font=_font(18))
    draw.text((_PAD, 58), NOTICE, fill=_FLAGGED, font=_font(18))
    for index, drawing in enumerate(drawings):
        left = _PAD + (index % columns) * (_CARD[0] + _PAD)
        top = 96 + (index // columns) * (_CARD[1] + _PAD)
        sheet.paste(_card(drawing, redaction), (left, top))
    return sheet


def _card(drawing: Drawing, redaction: str) -> Image.Image:
    card = Image.new("RGB", _CARD, _WHITE)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, _CARD[0] - 1, _CARD[1] - 1), outline=_LINE)
    for column, (title, picture) in enumerate((("before", drawing.before), ("after", drawing.after))):
        left = _GAP + column * (_SIDE + _GAP)
        draw.text((left, 8), title, fill=_DIM, font=_font(15))
        card.paste(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (left, 30))
    verdict = drawing.verdict
    top = _SIDE + 40
    draw.text((_GAP, top), _fit(draw, drawing.prompt, _CARD[0] - 2 * _GAP), fill=_INK, font=_font(17))
    color = _FLAGGED if verdict.flagged else _PASSED
    chip = f"flagged, {_DONE[redaction]}" if verdict.flagged else "passed, untouched"
    chip_width = draw.textlength(chip, font=_font(16)) + 20
    draw.rounded_rectangle((_GAP, top + 28, _GAP + chip_width, top + 54), 13, fill=color)
    draw.text((_GAP + 10, top + 31), chip, fill=_WHITE, font=_font(16))
    # The score as a bar, with a tick at the threshold.
    start, end = _GAP + chip_width + 16, _CARD[0] - _GAP - 64
    draw.rounded_rectangle((start, top + 37, end, top + 45), 4, fill=_LINE)
    if verdict.score * (end - start) > 4:
        draw.rounded_rectangle((start, top + 37, start + verdict.score * (end - start), top + 45), 4, fill=color)
    tick = start + verdict.threshold * (end - start)
    draw.line((tick, top + 33, tick, top + 49), fill=_INK, width=2)
    draw.text((end + 12, top + 31), f"{verdict.score:.3f}", fill=_INK, font=_font(16))
    return card


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    if draw.textlength(text, font=_font(17)) <= width:
        return text
    while text and draw.textlength(text + "…", font=_font(17)) > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
