"""Redaction is bounded by information: what is shown is computed from the cells' means alone."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from nsfw_guard import ImageError, Level, Redaction, SettingError, Verdict
from nsfw_guard.images import read_images
from nsfw_guard.redact import candidates, fill, is_filled_unseen, most_detailed, redact, redact_flagged


def same_cell_means(size, cells, seed=0):
    """Two images that differ in nearly every pixel, and not in the mean colour of any cell."""
    generator = torch.Generator().manual_seed(seed)
    side = size // cells
    means = 0.3 + 0.4 * torch.rand(3, cells, cells, generator=generator)
    coarse = means.repeat_interleave(side, 1).repeat_interleave(side, 2)
    noise = torch.rand(3, cells, side, cells, side, generator=generator) * 0.4 - 0.2
    noise -= noise.mean((2, 4), keepdim=True)
    stripes = 0.2 * (torch.arange(size) % 2 * 2 - 1).float()
    return coarse + noise.reshape(3, size, size), coarse + stripes.view(1, 1, size)


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
@pytest.mark.parametrize(("size", "cells"), [(64, 16), (64, 4), (512, 16), (4096, 16)])
def test_images_with_equal_cell_means_look_the_same(kind, size, cells):
    one, other = same_cell_means(size, cells)
    assert (one - other).abs().mean() > 0.05
    a, b = (redact(image, Redaction(kind, cells=cells)) for image in (one, other))
    assert (a - b).abs().max() <= 2 / 255
    # It is still a picture of the cells, not of nothing.
    assert a.std() > 0.02


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 37), (9, 90), (96, 128), (8, 8), (33, 120)])
def test_the_output_holds_no_more_than_the_cells(kind, height, width):
    # A linear map of the image whose rank is at most the number of cells carries no more than they do. The colour
    # channels are treated alike, so one tells all; clamping is out of play for values near one half.
    cells = 4
    rows = min(max(1, round(min(cells, min(height, width) // 4) * height / min(height, width))), height // 4)
    columns = min(max(1, round(min(cells, min(height, width) // 4) * width / min(height, width))), width // 4)
    generator = torch.Generator().manual_seed(0)
    count = rows * columns + 12
    # Coarse enough for the means of the cells to differ clearly, finer than the cells.
    noise = torch.rand(count, 3, height // 2, width // 2, generator=generator)
    images = 0.5 + 0.4 * (torch.nn.functional.interpolate(noise, size=(height, width)) - 0.5)
    outputs = torch.stack([redact(image, Redaction(kind, cells=cells))[0].flatten() for image in images]).double()
    assert torch.linalg.matrix_rank(outputs - outputs.mean(0), rtol=1e-3) <= rows * columns


def test_pixelate_shows_the_means():
    image = torch.rand(3, 64, 64)
    out = redact(image, Redaction("pixelate", cells=4))
    for row in range(4):
        for column in range(4):
            cell = (slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
            torch.testing.assert_close(out[cell], image[cell].mean((1, 2)).view(3, 1, 1).expand(3, 16, 16))


def test_cells_are_at_least_four_pixels():
    image = torch.rand(3, 20, 20)
    assert torch.equal(redact(image, Redaction("pixelate", cells=500)), redact(image, Redaction("pixelate", cells=5)))
    out = redact(torch.rand(3, 8, 11), Redaction("pixelate"))
    assert [len(line.unique_consecutive()) for line in (out[0, :, 0], out[0, 0])] == [2, 2]


@pytest.mark.parametrize("kind", ["pixelate", "blur"])
def test_by_default_sixteen_cells_are_shown(kind):
    image = torch.rand(3, 256, 256)
    assert torch.equal(redact(image, Redaction(kind)), redact(image, Redaction(kind, cells=16)))
    assert len(redact(image, Redaction("pixelate"))[0, 0].unique_consecutive()) == 16


def test_a_blur_smooths_the_cells_too():
    image = torch.zeros(3, 64, 64)
    image[:, 16:32, 16:32] = 1  # one cell of 4x4
    assert redact(image, Redaction("pixelate", cells=4)).max() == 1
    assert 0.1 < redact(image, Redaction("blur", cells=4)).max() < 0.5


def test_a_blur_stays_in_the_range():
    """Bicubic interpolation overshoots at an edge, and bytes would wrap around."""
    image = torch.zeros(3, 64, 64)
    image[:, :, 32:] = 1
    out = redact(image, Redaction("blur"))
    assert (out.min(), out.max()) == (0, 1)


def test_the_density_is_the_same_along_the_long_side():
    image = torch.rand(3, 32, 128)
    out = redact(image, Redaction("pixelate", cells=4))
    assert len(out[0, 0].unique_consecutive()) == 16
    assert len(out[0, :, 0].unique_consecutive()) == 4


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (7, 1000), (3, 8192)])
@pytest.mark.parametrize("kind", ["blur", "pixelate"])
def test_what_is_too_small_for_cells_is_filled(kind, size):
    out = redact(torch.rand(3, *size), Redaction(kind, color=(0.25, 0.5, 0.75)))
    assert out.flatten(1).unique(dim=1).flatten().tolist() == [0.25, 0.5, 0.75]


def test_one_cell_shows_nothing_but_a_colour():
    assert torch.equal(redact(torch.rand(3, 64, 64), Redaction("blur", cells=1)), torch.zeros(3, 64, 64))


def test_fill_and_none():
    image = torch.rand(3, 6, 5)
    assert fill(image, Redaction(color=(1, 0, 0.5)))[:, 2, 3].tolist() == [1.0, 0.0, 0.5]
    assert torch.equal(redact(image, Redaction("fill", color=(1, 0, 0.5))), fill(image, Redaction(color=(1, 0, 0.5))))
    assert redact(image, Redaction("none")) is image


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["blur", "pixelate", "fill", "replace"])
def test_any_float_goes_in_and_float32_comes_out_and_the_input_stays(kind, dtype):
    image = torch.rand(3, 40, 30).to(dtype)
    kept = image.clone()
    picture = torch.rand(3, 5, 5) if kind == "replace" else None
    out = redact(image, Redaction(kind, image=picture))
    assert (out.dtype, out.shape) == (torch.float32, (3, 40, 30))
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(image, kept)


def halves():
    """A replacement, 8 wide and 4 high: red left, blue right."""
    picture = Image.new("RGB", (8, 4), "red")
    picture.paste("blue", (4, 0, 8, 4))
    return picture


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        # of a 16x16 image: colours at the left edge, the centre-left, and the top centre-left
        ("stretch", ["red", "red", "red"]),
        ("cover", ["red", "red", "red"]),
        ("contain", ["red", "red", "green"]),
    ],
)
def test_a_replacement_is_fitted(fit, expected):
    out = redact(torch.rand(3, 16, 16), Redaction("replace", image=halves(), fit=fit, color=(0, 1, 0)))
    colors = {(1, 0, 0): "red", (0, 0, 1): "blue", (0, 1, 0): "green"}
    found = [colors[tuple(out[:, y, x].round().int().tolist())] for y, x in ((8, 0), (8, 5), (1, 5))]
    assert found == expected
    assert colors[tuple(out[:, 8, 12].round().int().tolist())] == "blue"


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (64, 64)])
def test_a_replacement_fits_any_size(fit, size):
    assert redact(torch.rand(3, *size), Redaction("replace", image=halves(), fit=fit)).shape == (3, *size)


def test_replacements_of_every_kind(tmp_path):
    path = tmp_path / "blocked.png"
    halves().save(path)
    array = np.asarray(halves())
    for picture in (path, str(path), path.read_bytes(), array, torch.from_numpy(array.copy()).movedim(-1, 0)):
        out = redact(torch.zeros(3, 4, 8), Redaction("replace", image=picture))
        assert torch.equal((out.movedim(0, -1) * 255).round().byte(), torch.from_numpy(array.copy()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mosaic"}, "redaction is 'mosaic'; expected one of 'blur', 'pixelate', 'fill', 'replace', 'none'"),
        ({"cells": 0}, "cells is 0; expected a whole number of at least 1"),
        ({"cells": 2.5}, "cells is 2.5"),
        ({"cells": True}, "cells is True"),
        ({"color": (0, 0)}, r"color is \(0, 0\); expected RGB in \[0, 1\]"),
        ({"color": (0, 0, 255)}, "expected RGB in"),
        ({"color": (0, 0, math.nan)}, "expected RGB in"),
        ({"color": "red"}, "color is 'red'; expected RGB"),
        ({"fit": "tile"}, "fit is 'tile'; expected one of 'cover', 'contain', 'stretch'"),
        ({"kind": "replace"}, 'kind="replace" and with nothing else'),
        ({"kind": "blur", "image": torch.rand(3, 4, 4)}, 'kind="replace" and with nothing else'),
        ({"kind": "replace", "image": torch.full((3, 4, 4), math.nan)}, "replacement has non-finite pixels"),
        ({"kind": "replace", "image": torch.rand(2, 3, 4, 4)}, "replacement is 2 images; expected one"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Redaction(**settings)


def test_redactions_are_compared_by_their_pictures_too():
    one, same = (Redaction("replace", image=halves()) for _ in range(2))
    assert one == same
    assert one != Redaction("replace", image=Image.new("RGB", (8, 4), "red"))
    assert hash(one) == hash(same)


def test_a_missing_replacement_fails_at_once():
    with pytest.raises(ImageError, match=r"nowhere.png cannot be opened"):
        Redaction("replace", image="nowhere.png")
    with pytest.raises(SettingError, match="redaction is 5; expected a Redaction or one of"):
        Redaction.parse(5)


@pytest.mark.parametrize("kind", ["blur", "pixelate", "fill"])
def test_a_hosts_autocast_makes_no_difference(kind):
    pixels = torch.rand(3, 64, 80)
    expected = redact(pixels, Redaction(kind))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = redact(pixels, Redaction(kind))
    assert given.dtype == torch.float32
    assert torch.equal(given, expected)


@pytest.mark.parametrize(("passing", "attempts"), [(0, [16]), (1, [16, 8]), (9, [16, 8, 4, 2, 0])])
def test_pictures_that_share_a_redaction(passing, attempts):
    """The first step that passes, and the last whatever is said of it; it is written all the same."""
    steps, tried = candidates(Redaction(), 64, 64), []

    def attempt(step):
        tried.append(step.cells if step.kind == "blur" else 0)
        return len(tried) > passing

    assert most_detailed(steps, attempt) is steps[len(attempts) - 1]
    assert tried == attempts


@pytest.mark.parametrize("reason", ["score", "non_finite", "early", "too_long"])
@pytest.mark.parametrize("kind", ["blur", "fill", "replace"])
def test_what_is_filled_and_not_looked_at(kind, reason):
    """A replacement can be looked at, unless the shape forbids it."""
    redaction = Redaction(kind, image=Image.new("RGB", (4, 4)) if kind == "replace" else None)
    unseen = reason == "too_long" or (reason != "score" and kind != "replace")
    assert is_filled_unseen(reason, redaction) is unseen
    judged = []
    verdict = Verdict(True, 1.0, 0.5, Level.HIGH, reason=reason)
    redacted = redact_flagged(
        read_images(torch.rand(1, 3, 32, 32)),
        [verdict],
        redaction,
        lambda batch: judged.append(len(batch)) or [True] * len(batch),
    )
    assert redacted.chosen[0].kind == ("fill" if unseen else kind)
    assert bool(judged) is not unseen


def test_what_is_flagged_is_redacted_one_image_at_a_time(monkeypatch):
    images = read_images(torch.rand(4, 3, 32, 32))
    flagged = [Verdict(index != 2, 1.0, 0.5, Level.HIGH, reason="score") for index in range(4)]
    redacted = redact_flagged(images, flagged, Redaction("blur"))
    assert (list(redacted), len(redacted), 2 in redacted, 3 in redacted) == ([0, 1, 3], 3, False, True)
    made = []
    monkeypatch.setattr("nsfw_guard.redact.redact", lambda frame, redaction: made.append(frame) or frame)
    assert not made
    assert len(redacted[1]) == len(made) == 1
    assert not redact_flagged(images, flagged, Redaction("none"))
