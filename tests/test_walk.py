"""The walk: what it visits, what passes, and that it gives back what it was given."""

from __future__ import annotations

import functools
import itertools
import types
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nsfw_guard import ImageError
from nsfw_guard.encoded import coded_in, holds_pictures
from nsfw_guard.layouts import layouts, ranges_of
from nsfw_guard.leaves import look_at
from nsfw_guard.walk import MANY, walk

PICTURE, OTHER = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def visited(value, **more):
    """Where the walk finds something."""
    found = []
    walk(value, lambda leaf, place: found.append(str(place)) or leaf, **more)
    return found


def exchanged(value):
    """The same with another picture wherever there is one."""
    return walk(value, lambda leaf, place: OTHER if leaf is PICTURE else leaf)


Pair = namedtuple("Pair", "seed image")


def test_places_are_said_as_one_types_them():
    value = {"k": [types.SimpleNamespace(a=(1, PICTURE)), Pair(1, torch.rand(3, 8, 8))], 5: {"a b": OTHER}}
    assert visited(value, name="out") == ["out['k'][0].a[1]", "out['k'][1].image", "out[5]['a b']"]


def test_a_leaf_is_visited_once_however_often_it_is_there():
    """An output has its fields as items and as attributes."""
    value = OrderedDict(a=PICTURE, b=[PICTURE])
    value.a = PICTURE
    assert len(visited(value)) == 2  # and the list of nothing but pictures
    done = exchanged(value)
    assert done["a"] is done.a is OTHER


def test_lists_of_pictures_are_one_leaf():
    for value in ([PICTURE], (PICTURE, OTHER), [[PICTURE], [OTHER, OTHER]]):
        assert visited(value) == ["output"]
    assert visited([PICTURE, None]) == ["output[0]"]
    assert visited([[], [PICTURE]]) == ["output[1]"]


@given(
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary(max_size=60),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=5), inner, max_size=4)
            | st.tuples(inner, inner)
            | st.builds(lambda x: types.SimpleNamespace(x=x), inner)
        ),
        max_leaves=30,
    )
)
def test_plain_values_are_the_same_object(value):
    assert visited(value) == []
    assert walk(value, lambda leaf, place: None) is value
    done = exchanged([value, (PICTURE, 1)])
    assert done[0] is value
    assert done[1] == (OTHER, 1)


def test_what_a_caller_declares_is_not_looked_into():
    value = {"audio": torch.rand(2, 100), "images": [PICTURE]}
    assert visited(value, passes=lambda value, place: place.steps == ("audio",)) == ["output['images']"]


def test_numbers_are_counted():
    assert visited([0.1] * MANY) == []
    assert visited([0.1] * (MANY + 1)) == ["output"]
    assert visited([[0.1] * 50] * 100) == ["output"]
    rows = [torch.zeros(60) for _ in range(69)]
    for value in ({"a": [1] * MANY, "b": [2]}, [{"x": 1.0} for _ in range(MANY + 1)], rows):
        with pytest.raises(ImageError, match=f"more than {MANY} loose numbers"):
            visited(value)


def test_what_has_no_end_and_no_bottom():
    with pytest.raises(ImageError, match="without a near end"):
        visited(itertools.count())
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ImageError, match="too deep"):
        visited(deep)


def test_what_is_not_written_in_python_is_not_seen_into():
    for value in (functools.partial(print), ValueError(1), torch.nn.Linear(1, 1), lambda: 1):
        with pytest.raises(ImageError, match="cannot be seen into"):
            visited([value])
    assert visited([int, np.float32, object()]) == []


# --- Layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "tensor", "array"),
    [
        ((8, 8), 1, 1), ((7, 8), 0, 0), ((3, 8, 8), 1, 2), ((8, 8, 3), 2, 1), ((8, 8, 4), 2, 2), ((4, 8, 8), 2, 2),
        ((2, 9, 8), 1, 1), ((5, 9, 8), 1, 1), ((9, 9, 8), 0, 0), ((9, 9, 9), 2, 2), ((2, 3, 8, 8), 1, 2),
        ((2, 8, 8, 3), 2, 1), ((2, 5, 8, 8), 0, 0), ((1, 3, 9, 8, 8), 1, 1), ((8, 8, 5), 0, 0), ((64,), 0, 0),
        ((1, 1, 1, 3, 8, 8), 1, 2), ((8, 8, 2, 3), 2, 2), ((0, 3, 8, 8), 0, 0), ((3, 8, 7), 0, 0),
    ],
)  # fmt: skip
def test_how_many_ways_there_are_to_read_a_shape(shape, tensor, array):
    assert len(layouts(torch.zeros(shape), "it")) == tensor
    assert len(layouts(np.zeros(shape, np.float32), "it")) == array


@pytest.mark.parametrize(
    "value",
    [
        torch.rand(3, 9, 8), torch.rand(9, 8, 3), torch.rand(2, 9, 8, 4), torch.rand(1, 3, 9, 10, 8),
        torch.randint(0, 256, (3, 9, 8)), torch.rand(9, 8) > 0.5, np.random.rand(3, 9, 8), np.random.rand(9, 8, 4),
        np.random.randint(0, 65536, (9, 8)).astype(np.uint16), np.random.rand(9, 8, 3).astype(">f8")[::-1],
        np.random.rand(9, 8, 3).tolist(), torch.rand(3, 9, 8).half(), np.random.rand(8, 9).astype(np.longdouble),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')} {tuple(np.shape(value))}",
)  # fmt: skip
def test_an_array_comes_back_from_each_way_to_read_it(value):
    for layout in layouts(value, "it"):
        assert layout.pixels.shape[-3] in (1, 3, 4)
        back = layout.restore(layout.pixels)
        assert type(back) is type(value)
        assert np.array_equal(np.asarray(back), np.asarray(value))
        assert getattr(back, "dtype", None) == getattr(value, "dtype", None)


def test_ranges():
    assert ranges_of(torch.tensor([0.0, 1.2]), "it") == [(0, 1)]
    assert ranges_of(torch.tensor([-0.01, 1.0]), "it") == [(0, 1), (-1, 1)]
    assert ranges_of(torch.tensor([-0.5, 1.0]), "it") == [(-1, 1), (0, 1)]
    with pytest.raises(ImageError, match="it: the host returned values from 0 to 255"):
        ranges_of(torch.tensor([0.0, 255.0]), "it")


def test_what_is_flagged_in_two_ways_is_black():
    """Whatever else it would be in the other one."""
    looks = []

    def check(pixels):
        looks.append(tuple(pixels.shape))
        return pixels * 0.5 if pixels.any() else pixels

    assert not look_at(torch.rand(4, 8, 8), check, "it").any()
    assert looks == [(4, 8, 8), (4, 1, 8, 8)]


# --- Text ------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=400) | st.text("abcdefABCDEF0123456789+/=- \n", max_size=400))
def test_ordinary_text_holds_no_picture(text):
    assert not holds_pictures(text)
    assert list(coded_in(text)) == []
