"""``attach`` on tiny real pipelines of every family, beside the same pipelines without a guard.

The weights are random, and the threshold lies between the scores of what is drawn: what is tested is what becomes of an
image, not whether it is flagged rightly.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from nsfw_guard.integrations.diffusers_pipeline import attach, is_guarded, table
from outputs import NOBODY, UNVERIFIED, identical, pixels
from PIL import Image
from pipelines import hand, images, modular, slots, videos
from pipelines.case import Case

from nsfw_guard import NsfwGuard, Policy
from nsfw_guard.redact import redact

CASES = {**slots.CASES, **images.CASES, **hand.CASES, **videos.CASES, **modular.CASES}

# Their clips are rounded to 8 bits between the check and the output, with any checker in the slot.
QUANTISED = ("cosmos_text_to_world", "cosmos2_text_to_image")
# Layers, or light beyond 1: what a redacted pixel must be is tested apart.
OTHER_PIXELS = ("qwen_image_layered", "ltx2_hdr")


@dataclass
class Pair:
    name: str
    case: Case
    guarded: object
    bare: object
    guard: NsfwGuard


pytestmark = pytest.mark.usefixtures("one_thread")

# All of them take minutes.
SOME = [pytest.param(name, marks=() if index % 3 == 0 else pytest.mark.slow) for index, name in enumerate(CASES)]


@pytest.fixture(scope="module", params=SOME)
def pair(request, tiny_folder):
    """A guarded pipeline that flags some of its items, and the same pipeline without a guard."""
    case = CASES[request.param]
    guard = NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY, redaction=UNVERIFIED)
    guarded = attach(case.build(), guard, min_run=1)
    out = case.run(guarded, case.output_types[-1])
    scores = sorted(verdict.score for verdict in out.verdicts)
    guard.policy = Policy(threshold=max(zip(scores, scores[1:], strict=False), key=gap, default=scores * 2)[1])
    return Pair(request.param, case, guarded, case.build(), guard)


def gap(two):
    return two[1] - two[0]


def items(out, pair, kind):
    """What a call returned, item by item: images, clips, or the layers of one picture."""
    value = getattr(out, pair.case.field)
    if kind == "pt" and table.returns_decoded(type(pair.bare)):
        value = value.movedim(1, 2)
    return [value] if pair.case.field == "video" else list(value)  # Cosmos 3: one clip without a batch


def frames(item, verdict, several):
    """The parts of an item that have verdicts of their own, with them."""
    parts = [item] if several is None else list(item)
    return list(zip(parts, several or [verdict], strict=True))


def output_types(case):
    return [kind for kind in ("pil", "np", "pt") if kind in case.output_types]


def test_flagged_items_are_redacted_and_the_others_are_bit_identical(pair):
    for kind in output_types(pair.case):
        out = pair.case.run(pair.guarded, kind)
        given, bare = items(out, pair, kind), items(pair.case.run(pair.bare, kind), pair, kind)
        assert len(given) == len(bare) == len(out.verdicts)
        assert out.nsfw_content_detected == [verdict.flagged for verdict in out.verdicts]
        assert any(out.nsfw_content_detected)
        assert len(bare) == 1 or not all(out.nsfw_content_detected)
        for index, (item, original) in enumerate(zip(given, bare, strict=True)):
            if not out.verdicts[index].flagged:
                assert pair.name in QUANTISED or identical(item, original)
                continue
            several = out.frame_verdicts[index] if hasattr(out, "frame_verdicts") else None
            shown, before = (frames(x, out.verdicts[index], several) for x in (item, original))
            for (frame, verdict), (was, _) in zip(shown, before, strict=True):
                if not verdict.flagged:
                    assert pair.name in QUANTISED or identical(frame, was)
                    continue
                assert not identical(frame, was)
                if pair.name not in OTHER_PIXELS:
                    blurred = redact(signed(pair, kind, pixels(was)), pair.guard.redaction)
                    off = (signed(pair, kind, pixels(frame)) - blurred).abs().max()
                    assert off <= (3 / 255 if kind == "pil" or pair.name in QUANTISED else 1e-3)


def signed(pair, kind, image):
    """In [0, 1]: the "pt" of some families is in [-1, 1] and not clamped."""
    cls = type(pair.bare)
    in_both_signs = kind == "pt" and (table.returns_signed(cls) or table.returns_decoded(cls))
    return (image / 2 + 0.5).clamp(0, 1) if in_both_signs else image


def test_no_more_pil_conversions_than_without_a_guard(pair, monkeypatch):
    if "pil" not in pair.case.output_types or pair.name.startswith("onnx"):
        pytest.skip("makes no PIL images, or by itself")
    convert = Image.fromarray

    def count(pipe):
        made = []
        monkeypatch.setattr(Image, "fromarray", lambda *args, **kwargs: made.append(1) or convert(*args, **kwargs))
        pair.case.run(pipe, "pil")
        return len(made)

    counts = {"guarded": count(pair.guarded), "bare": count(pair.bare)}
    # A composite is made after the check: if it is flagged, its redaction is a picture made anew.
    composites = len(pair.guard.last_verdicts) if pair.name in ("sd_inpaint_crop", "modular_qwen_inpaint") else 0
    assert 0 < counts["guarded"] <= counts["bare"] + composites, counts


def test_is_guarded(pair):
    assert is_guarded(pair.guarded)
    assert not is_guarded(pair.bare)
