"""Views and the one preprocessing path. The match with the reference processors is in test_fidelity.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nsfw_guard import PreprocessSpec, SettingError
from nsfw_guard.images import Frames, read_images
from nsfw_guard.preprocess import MAX_SQUASH, MAX_VIEWS, OVERLAP, View, ViewBatch, model_input, plan_views

SQUASH = PreprocessSpec(32, "squash")
CROP = PreprocessSpec(32, "crop", "bicubic")
SIZES = st.integers(1, 4000)


def boxes(plan, height, width):
    return [view for view in plan if (view.height, view.width) != (height, width)]


@given(height=SIZES, width=SIZES, spec=st.sampled_from([SQUASH, CROP]))
def test_the_views_cover_every_pixel_or_say_that_they_cannot(height, width, spec):
    plan = plan_views(height, width, spec)
    if plan is None:
        # Eight tiles of 2:1, or seven beside the whole, with an overlap of an eighth, reach no further than this.
        assert max(height, width) / min(height, width) > 12
        return
    assert 1 <= len(plan) <= MAX_VIEWS
    seen = torch.zeros(2, max(height, width), dtype=torch.bool)
    for view in plan:
        assert 0 <= view.top <= view.top + view.height <= height
        assert 0 <= view.left <= view.left + view.width <= width
        assert max(view.height, view.width) <= math.ceil(MAX_SQUASH * min(view.height, view.width)) or spec is SQUASH
        assert height == view.height or width == view.width  # one of the sides is seen whole
        seen[0, view.top : view.top + view.height] = True
        seen[1, view.left : view.left + view.width] = True
    assert seen[0, :height].all()
    assert seen[1, :width].all()
    tiles = [view for view in plan if (view.height, view.width) != (height, width)]
    starts = sorted(max(view.top, view.left) for view in tiles)
    for a, b in zip(starts, starts[1:], strict=False):
        side = max(tiles[0].height, tiles[0].width) if height != width else height
        assert b - a <= (1 - OVERLAP) * side + 1  # neighbours overlap by an eighth, to the pixel


@pytest.mark.parametrize(
    ("spec", "size", "tiles", "whole"),
    [
        (SQUASH, (512, 512), 0, True),
        (SQUASH, (720, 1280), 0, True),  # 16:9 is squashed as the card says
        (SQUASH, (512, 1024), 0, True),
        (SQUASH, (512, 1025), 3, True),  # beyond 2:1 tiles are added
        (SQUASH, (300, 900), 4, True),
        (SQUASH, (256, 2048), 7, True),
        (CROP, (512, 512), 0, True),  # the card's own view
        (CROP, (720, 1280), 2, False),
        (CROP, (1280, 720), 2, False),
        (CROP, (300, 900), 4, False),
        (CROP, (256, 2048), 8, False),
    ],
)
def test_how_many_views(spec, size, tiles, whole):
    plan = plan_views(*size, spec)
    assert len(boxes(plan, *size)) == tiles
    assert (View(0, 0, *size) in plan) is whole


def test_tiles_are_square_while_eight_views_suffice_and_longer_beyond():
    assert {(view.height, view.width) for view in boxes(plan_views(100, 700, CROP), 100, 700)} == {(100, 100)}
    (side,) = {view.width for view in plan_views(100, 800, CROP)}
    assert 100 < side <= 115


@pytest.mark.parametrize(("height", "width"), [(3, 8192), (8192, 3), (1, 16), (100, 1500)])
def test_what_eight_views_cannot_cover_has_no_plan(height, width):
    assert plan_views(height, width, SQUASH) is None
    assert plan_views(height, width, CROP) is None


def test_the_cards_view_is_its_own_preprocessing():
    assert plan_views(300, 900, SQUASH, views="card") == (View(0, 0, 300, 900, own=True),)
    assert plan_views(3, 8192, CROP, views="card") is None  # its resize alone would be a thousand times the picture
    with pytest.raises(SettingError, match='views is \'all\'; expected "auto" or "card"'):
        plan_views(1, 1, SQUASH, views="all")


def test_a_centre_crop_with_a_margin_is_never_the_only_view():
    spec = PreprocessSpec(32, "crop", crop_pct=0.875)
    assert plan_views(64, 64, spec) == (View(0, 0, 64, 64),)


def test_a_margin_is_cut_off_around_the_centre_crop():
    """As in torchvision: the shorter side to 40, the centre 32 of it."""
    spec = PreprocessSpec(32, "crop", crop_pct=0.8, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = torch.zeros(1, 3, 40, 80)
    pixels[..., 4:36, 24:56] = 1
    assert model_input(Frames(pixels), View(0, 0, 40, 80, own=True), spec).unique().tolist() == [1.0]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 5), (32, 32), (200, 90), (1000, 700)])
def test_a_constant_image_stays_constant(mode, size):
    spec = PreprocessSpec(32, "squash", mode, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    pixels = torch.tensor([0.2, 0.4, 1.0]).view(1, 3, 1, 1).expand(1, 3, *size)  # multiples of 1/255
    out = model_input(Frames(pixels), View(0, 0, *size), spec)
    assert out.shape == (1, 3, 32, 32)
    expected = torch.tensor([0.2, 0.8, 0.7]).view(1, 3, 1, 1).expand_as(out)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_a_view_shows_its_part_and_nothing_else():
    pixels = torch.rand(1, 3, 40, 120)
    view = View(0, 30, 40, 40)
    alone = model_input(Frames(pixels[..., 30:70].contiguous()), View(0, 0, 40, 40), CROP)
    assert torch.equal(model_input(Frames(pixels), view, CROP), alone)


def test_a_non_finite_pixel_stays_visible_and_stays_in_its_image():
    pixels = torch.rand(2, 3, 40, 40)
    pixels[0, 0, 3, 3] = math.nan
    out = model_input(Frames(pixels), View(0, 0, 40, 40), SQUASH)
    assert not torch.isfinite(out[0]).all()
    assert torch.isfinite(out[1]).all()


def test_loading_goes_frame_by_frame():
    images = [torch.rand(3, 40, 40), torch.rand(3, 40, 120), torch.rand(3, 3, 900), torch.rand(1, 8, 8)]
    views = ViewBatch(read_images(images), CROP)
    inputs, extents, counts = views.load(0, 4)
    assert counts == [1, 4, 0, 1]
    assert inputs.shape == (6, 3, 32, 32)
    assert extents.shape == (4, 2)
    inputs, extents, counts = views.load(2, 3)
    assert (inputs.shape, extents.shape, counts) == ((0, 3, 32, 32), (1, 2), [0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0; expected a positive number"),
        ({"size": "224"}, "size is '224'"),
        ({"size": 8, "resize": "pad"}, 'resize is \'pad\'; expected "squash" or "crop"'),
        ({"size": 8, "interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"size": 8, "mean": (0.5,)}, "mean is .* expected three numbers"),
        ({"size": 8, "std": (0.5, 0.0, 0.5)}, "std is .* expected three numbers"),
        ({"size": 8, "crop_pct": 0}, "crop_pct is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        PreprocessSpec(**settings)


@pytest.mark.parametrize("low_only", [False, True])
def test_what_is_out_of_range_is_clamped_before_it_is_mixed_with_its_neighbours(low_only):
    pixels = torch.rand(2, 3, 60, 60) * 3 - 2
    if low_only:
        pixels = pixels.clamp(max=1)
    given = ViewBatch(read_images(pixels, value_range=(-1, 1), clamp=True), SQUASH).load(0, 2)[0]
    expected = ViewBatch(read_images(pixels.clamp(-1, 1), value_range=(-1, 1)), SQUASH).load(0, 2)[0]
    torch.testing.assert_close(given, expected)
