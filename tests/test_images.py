"""The image contract: every kind of input, what comes back, and what is refused."""

import io
import os
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from nsfw_guard import ImageError
from nsfw_guard.images import read_images
from nsfw_guard.images.batch import Reading, Stack


def only(images, **options):
    """The pixels and extent of a batch that is one run."""
    batch = read_images(images, **options)
    (frames,) = batch.stored(0, len(batch.owners))
    return frames.pixels(), frames.extent()


def gray_ramp(*shape):
    return torch.linspace(0, 1, int(np.prod(shape))).view(*shape)


RAMP = gray_ramp(3, 4, 5)
RAMP_8 = (RAMP * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (RAMP[None], {}),
        (RAMP, {}),
        ([RAMP], {}),
        ((RAMP,), {}),
        (RAMP * 2 - 1, {"value_range": (-1, 1)}),
        (RAMP.half(), {}),
        (RAMP.bfloat16(), {}),
        (RAMP.double(), {}),
        (RAMP_8, {}),
        (RAMP.movedim(0, -1).numpy(), {}),
        (RAMP.movedim(0, -1).numpy()[None], {}),
        (RAMP.movedim(0, -1).numpy().astype(np.float16), {}),
        (RAMP.movedim(0, -1).numpy().astype(">f4"), {}),
        (RAMP_8.movedim(0, -1).numpy(), {}),
        (np.flip(RAMP_8.movedim(0, -1).numpy(), 0)[::-1], {}),
        ([RAMP_8.movedim(0, -1).numpy()], {}),
        (Image.fromarray(RAMP_8.movedim(0, -1).contiguous().numpy()), {}),
        (RAMP.clone().requires_grad_(), {}),
        (RAMP[None].expand(1, 3, 4, 5).to(memory_format=torch.channels_last), {}),
        (torch.stack([RAMP, RAMP], -1)[..., 0], {}),
    ],
)
def test_every_kind_of_input_gives_the_same_pixels(images, options):
    pixels, extent = only(images, **options)
    assert pixels.shape == (1, 3, 4, 5)
    assert pixels.dtype == torch.float32
    assert not pixels.requires_grad
    torch.testing.assert_close(pixels[0], RAMP, atol=0.003, rtol=0)
    assert extent.shape == (1, 2)


def test_inference_tensors_are_read():
    with torch.inference_mode():
        images = RAMP[None] * 1.0
    torch.testing.assert_close(only(images)[0][0], RAMP)


def test_one_channel_is_gray_and_a_fourth_is_alpha_on_white():
    assert torch.equal(only(RAMP[:1])[0][0], RAMP[:1].expand(3, -1, -1))
    rgba = torch.cat([torch.zeros(3, 2, 2), torch.tensor([[[0.0, 1.0], [0.25, 0.5]]])])
    assert torch.equal(only(rgba)[0][0, 0], torch.tensor([[1.0, 0.0], [0.75, 0.5]]))


def test_host_channels_are_no_alpha():
    deep = torch.cat([RAMP, torch.zeros(1, 4, 5)])
    assert torch.equal(only(deep, alpha=False)[0][0], RAMP)
    assert torch.equal(only(torch.cat([RAMP, RAMP]), alpha=False)[0][0], RAMP)


def test_values_outside_the_range_are_clamped_in_a_copy_for_hosts():
    raw = torch.tensor([-1.7, 0.0, 1.3]).view(1, 3, 1, 1)
    kept = raw.clone()
    pixels, extent = only(raw, value_range=(-1, 1), clamp=True)
    assert pixels.flatten().tolist() == [0.0, 0.5, 1.0]
    assert extent[0].tolist() == pytest.approx([-0.35, 1.15])
    read_images(raw, value_range=(-1, 1), clamp=True).refuse_out_of_range(extent.tolist())
    assert torch.equal(raw, kept)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (RAMP * 2 - 1, {}, r"images\[0\] has values from -1 to 1; expected \[0, 1\].*value_range=\(-1, 1\)"),
        (RAMP * 255, {}, r"values from 0 to 255; expected \[0, 1\]. If they are 0 to 255, pass a uint8 array"),
        (RAMP * 3 - 1, {}, r"values from -1 to 2; expected \[0, 1\].*clamp"),
        (RAMP * 3, {"value_range": (-1, 1)}, r"values from 0 to 3; expected \[-1, 1\]"),
        ([RAMP, RAMP + 1], {}, r"images\[1\] has values from 1 to 2"),
        (torch.stack([RAMP, RAMP + 1]), {}, r"images\[1\] has values from 1 to 2"),
    ],
)
def test_values_outside_the_range_are_refused(images, options, message):
    batch = read_images(images, **options)
    extents = [row for frames in batch.stored(0, len(batch.owners)) for row in frames.extent().tolist()]
    with pytest.raises(ImageError, match=message):
        batch.refuse_out_of_range(extents)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, r"images is a NoneType; expected a torch tensor"),
        ((RAMP for _ in range(2)), r"images is a generator; expected a torch tensor"),
        (3.5, r"images is a float"),
        ({"image": RAMP}, r"images is a dict"),
        ([RAMP, None], r"images\[1\] is a NoneType"),
        (RAMP[0], r"images has 2 dimensions \(shape \(4, 5\)\); expected \[B, C, H, W\] or \[C, H, W\]"),
        (RAMP[None, None], r"images has 5 dimensions"),
        ([RAMP[None]], r"images\[0\] has 4 dimensions .* expected \[C, H, W\], one image per list entry"),
        (torch.zeros(1, 2, 4, 4), r"images has 2 channels \(shape \(1, 2, 4, 4\)\); expected 1, 3, 4"),
        (torch.zeros(1, 5, 4, 4), r"images has 5 channels"),
        (torch.zeros(1, 64, 64, 3), r"64 channels .*It looks like channels last: pass images.movedim\(-1, -3\)"),
        (np.zeros((3, 64, 64), np.uint8), r"64 channels .*It looks like channels first"),
        (np.zeros((64, 64, 2), np.uint8), r"images has 2 channels"),
        (np.zeros((64, 64), np.uint8), r"images has 2 dimensions"),
        (torch.zeros(1, 3, 0, 4), r"images has no pixels \(shape \(1, 3, 0, 4\)\)"),
        (np.zeros((2, 4, 0, 3), np.uint8), r"images has no pixels"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), r"dtype torch.int64; expected floating point or uint8"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int8), r"dtype torch.int8"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), r"dtype torch.bool"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.complex64), r"dtype torch.complex64"),
        (np.zeros((4, 4, 3), np.int32), r"dtype int32"),
        (np.zeros((4, 4, 3), object), r"dtype object"),
        (torch.zeros(1, 3, 4, 4, device="meta"), r"images is on the meta device"),
        (torch.zeros(1, 3, 4, 4).to_sparse(), r"layout torch.sparse_coo; expected a dense tensor"),
        (Image.new("F", (4, 4)), r"mode F, whose range is unknown"),
    ],
)
def test_what_cannot_be_checked_is_refused(images, message):
    with pytest.raises(ImageError, match=message):
        read_images(images)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="no longer than a double here")
def test_long_doubles_are_refused():
    with pytest.raises(ImageError, match=r"has the dtype .*; expected floating point or uint8"):
        read_images(np.zeros((4, 4, 3), np.longdouble))


@pytest.mark.parametrize("value_range", [(0, 255), "0-1", None, (0, 1, 2), 1])
def test_other_ranges_are_refused(value_range):
    with pytest.raises(ImageError, match=r"expected \(0, 1\) or \(-1, 1\)"):
        read_images(RAMP, value_range=value_range)


def test_an_empty_batch_is_read():
    for empty in (torch.zeros(0, 3, 8, 8), [], (), np.zeros((0, 8, 8, 3), np.uint8)):
        batch = read_images(empty)
        assert len(batch) == 0
        assert batch.replace({}) is empty


def test_nothing_replaced_gives_the_callers_own_object():
    for images in (RAMP[None], RAMP, [RAMP, RAMP], RAMP_8.movedim(0, -1).numpy(), Image.new("RGB", (4, 4))):
        assert read_images(images).replace({}) is images


@given(
    channels=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8]),
    signed=st.booleans(),
    batched=st.booleans(),
    seed=st.integers(0, 100),
)
def test_replacing_one_image_keeps_everything_else(channels, dtype, signed, batched, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3 if batched else 1, channels, 4, 5, generator=generator)
    span = (-1, 1) if signed and dtype != torch.uint8 else (0, 1)
    images = (images * 255).to(dtype) if dtype == torch.uint8 else (images * (span[1] - span[0]) + span[0]).to(dtype)
    given_images = images if batched else images[0]
    kept = given_images.clone()
    red = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand(3, 4, 5)
    out = read_images(given_images, value_range=span).replace({0: [red]})
    assert out.shape == given_images.shape
    assert out.dtype == dtype
    assert torch.equal(given_images, kept)
    first = out[0] if batched else out
    if batched:
        assert torch.equal(out[1:], given_images[1:])
    if channels == 4:  # a silhouette in the alpha would show what was taken away
        assert first[3].unique().tolist() == [255 if dtype == torch.uint8 else 1]
    values = first.double() / 255 if dtype == torch.uint8 else (first.double() - span[0]) / (span[1] - span[0])
    expected = [1.0, 0.5, 0.0] if channels != 1 else [0.299 + 0.587 * 0.5]
    for channel, value in enumerate(expected):
        torch.testing.assert_close(values[channel], torch.full((4, 5), value).double(), atol=0.005, rtol=0)


def test_a_host_gets_redacted_pixels_in_its_own_range_and_its_depth_emptied():
    images = torch.cat([RAMP * 2 - 1, torch.full((3, 4, 5), 0.7)])[None].repeat(2, 1, 1, 1)
    out = read_images(images, value_range=(-1, 1), clamp=True, alpha=False, written_range=(0, 1)).replace(
        {1: [torch.full((3, 4, 5), 0.25)]}
    )
    assert torch.equal(out[0], images[0])
    assert out[1, :3].unique().tolist() == [0.25]
    assert out[1, 3:].unique().tolist() == [0.0]


def test_redacted_bytes_are_rounded():
    assert read_images(RAMP_8).replace({0: [torch.full((3, 4, 5), 0.999)]}).unique().tolist() == [255]


def test_read_only_arrays_are_read_and_come_back_as_arrays(recwarn):
    array = RAMP_8.movedim(0, -1).numpy().copy()
    array.flags.writeable = False
    only(array)
    assert not recwarn.list
    out = read_images(array).replace({0: [torch.zeros(3, 4, 5)]})
    assert isinstance(out, np.ndarray)
    assert out.shape == array.shape
    assert out.dtype == np.uint8
    assert out.max() == 0


def test_tuples_stay_tuples(tmp_path):
    out = read_images((RAMP, RAMP)).replace({1: [torch.zeros(3, 4, 5)]})
    assert type(out) is tuple
    assert out[0] is RAMP
    path = tmp_path / "red.png"
    Image.new("RGB", (6, 3), "red").save(path)
    for redacted in ({}, {0: [torch.zeros(3, 3, 6)]}):
        assert type(read_images((path, path)).replace(redacted)) is tuple


def test_mixed_lists_keep_their_order_and_kinds():
    picture = Image.new("RGB", (6, 3), "red")
    images = [RAMP, picture, RAMP_8.movedim(0, -1).numpy()]
    batch = read_images(images)
    assert [tuple(frame.shape) for i in range(3) for frame in batch.frames(i)] == [(3, 4, 5), (3, 3, 6), (3, 4, 5)]
    out = batch.replace({1: [torch.zeros(3, 3, 6)]})
    assert out[0] is images[0]
    assert out[2] is images[2]
    assert out[1].getpixel((0, 0)) == (0, 0, 0)
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_paths_and_bytes_come_back_as_pictures(tmp_path):
    picture = Image.new("RGB", (6, 3), "red")
    path = tmp_path / "red.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        out = read_images(source).replace({})
        assert isinstance(out, Image.Image)
        assert out.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    listed = read_images([path, picture]).replace({})
    assert isinstance(listed[0], Image.Image)
    assert listed[1] is picture
    file = io.BytesIO(path.read_bytes())
    with pytest.raises(ImageError, match="BytesIO"):
        read_images(file)


def test_the_extent_is_that_of_the_callers_values():
    """Of transparent images not of what is composed of them; of further channels too."""
    rgba = torch.full((1, 4, 2, 2), 0.25)
    rgba[0, 3] = 0.5
    (frames,) = read_images(rgba).stored(0, 1)
    assert frames.extent().tolist() == [[0.25, 0.5]]
    depth = torch.full((1, 6, 2, 2), 0.25)
    depth[0, 5, 1, 1] = float("nan")
    (frames,) = read_images(depth, alpha=False).stored(0, 1)
    assert not frames.extent().isfinite().any()
    assert frames.data.shape[1] == 3


def test_large_frames_are_converted_one_by_one_and_small_ones_together():
    large = read_images(torch.zeros(3, 3, 1200, 1200, dtype=torch.uint8))
    assert [len(frames.data) for frames in large.stored(0, 3)] == [1, 1, 1]
    small = read_images(torch.zeros(3, 3, 12, 12))
    assert [len(frames.data) for frames in small.stored(0, 3)] == [3]
    assert [len(frames.data) for frames in small.stored(1, 2)] == [1]


def test_what_is_stretched_is_looked_at_one_by_one_on_any_device():
    """Each from its own least to its own greatest value: another image beside it has no say in it."""
    stack = Stack(None, torch.empty(4, 3, 8, 8, device="meta"), Reading(stretch=True))
    assert stack.at_once == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.nested.nested_tensor([torch.rand(3, 4, 5)]), r"is a nested tensor; expected a list of single images"),
        (np.zeros((4, 5), dtype=[("r", "u1"), ("g", "u1")]), r"has the fields \['r', 'g'\]; expected plain numbers"),
        (np.zeros((4, 5, 3), dtype=bool), "has the dtype bool.* convert to float32"),
        (torch.zeros(3, 4, 5, dtype=torch.bool), "has the dtype torch.bool.* convert to float32"),
        (np.zeros((4, 5, 3), dtype=np.int32), "has the dtype int32.*convert to uint8"),
    ],
)
def test_what_holds_no_plain_numbers_is_refused_with_what_to_pass(image, message):
    with pytest.raises(ImageError, match=message):
        read_images(image)


@pytest.mark.parametrize(
    "text", ["data:image/png;base64," + "A" * 9_000_000, "iVBORw0KGgo" + "A" * 9_000_000, "/9j/" + "A" * 90]
)
def test_errors_never_carry_the_picture(text):
    with pytest.raises(ImageError, match=r"pass base64\.b64decode\(text\)") as caught:
        read_images([text])
    assert len(str(caught.value)) < 400
    assert text[:60] not in str(caught.value)


@pytest.mark.parametrize("length", [150, 300, 4000])
def test_long_names_are_cut(length):
    with pytest.raises(ImageError, match="cannot be opened|is no file path") as caught:
        read_images("a" * length)
    assert len(str(caught.value)) < 400


def test_a_profile_that_is_refused_is_said(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", icc_profile=b"none at all")
    with caplog.at_level("WARNING", logger="nsfw_guard"):
        looks = list(read_images(tmp_path / "a.png").looks(0, 1))
    assert len(looks) == 1
    assert "a.png: its ICC profile is refused" in caplog.text


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="it is a folder, pipe or device; expected a regular file"):
        read_images(tmp_path / "a.png")


RED = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 5)


@pytest.mark.parametrize("dtype", [">f4", ">f2", "<f8", "u1"])
def test_arrays_of_any_byte_order_come_back_as_they_were(dtype):
    array = np.full((2, 4, 5, 3), 1 if dtype == "u1" else 0.5).astype(dtype)
    out = read_images(array).replace({1: [RED]})
    assert out.dtype == array.dtype
    assert out.dtype.byteorder == array.dtype.byteorder
    assert np.array_equal(out[0], array[0])
    assert out[1, 0, 0].tolist() == [255 if dtype == "u1" else 1, 0, 0]


def test_masked_arrays_come_back_masked_but_where_they_are_redacted():
    array = np.ma.MaskedArray(np.full((2, 4, 5, 3), 0.5, np.float32), mask=False, fill_value=0.25)
    array[:, :2] = np.ma.masked
    out = read_images(array).replace({1: [RED]})
    assert isinstance(out, np.ma.MaskedArray)
    assert out.fill_value == 0.25
    assert np.array_equal(out.mask[0], array.mask[0])
    assert not out.mask[1].any()


def test_fields_of_an_array_are_read():
    array = np.zeros((4, 5), dtype=[("rgb", "f4", 3), ("more", "u1")])
    array["rgb"] = 0.5
    assert next(read_images(array["rgb"]).frames(0)).unique().tolist() == [0.5]


def test_a_tensor_of_a_subclass_comes_back_as_one():
    given = tv_tensors.Image(torch.rand(3, 4, 5))
    out = read_images(given).replace({0: [RED]})
    assert type(out) is tv_tensors.Image
    assert out[:, 0, 0].tolist() == [1, 0, 0]


def test_a_named_tuple_of_images_comes_back_as_one():
    Pair = namedtuple("Pair", "left right")
    out = read_images(Pair(torch.rand(3, 4, 5), torch.rand(3, 4, 5))).replace({1: [RED]})
    assert type(out) is Pair
    assert out.right[:, 0, 0].tolist() == [1, 0, 0]
    files = Pair(encode_png(), encode_png())
    assert type(read_images(files).replace({})) is Pair


def encode_png():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()
