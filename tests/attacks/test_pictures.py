"""Pictures that were made to get past the guard: none passes, and the same with a harmless shape does."""

import warnings

import pytest
from PIL import Image

from nsfw_guard import ImageError
from nsfw_guard.images import read_images
from nsfw_guard.images.looks import with_alpha

from .pictures import CASES

pytestmark = pytest.mark.usefixtures("one_thread")

warnings.filterwarnings("ignore", category=UserWarning)


def outcome(guard, source):
    """True: flagged, or refused."""
    try:
        return any(verdict.flagged for verdict in guard.check(source))
    except ImageError:
        return True


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.tries}" for case in CASES])
def test_the_shape_does_not_pass_and_a_harmless_one_does(demo, case):
    assert outcome(demo, case.make("triangle")), case.tries
    assert not outcome(demo, case.make("circle")), case.tries


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.tries}" for case in CASES])
def test_what_comes_out_instead_passes_and_is_opaque(demo, case):
    result = demo.apply(case.make("triangle"))
    assert not outcome(demo, result.images)
    if isinstance(result.images, Image.Image):
        assert with_alpha(result.images).getchannel("A").getextrema() == (255, 255)
    else:
        assert all(len(looks) == 1 for looks in read_images(result.images).looks(0, 1))
