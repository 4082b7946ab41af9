"""Pictures: whole or not there, with and without the truth."""

import matplotlib.image
import numpy as np
import pytest
from fake_decoder import SURVEY

from central.export.render import Row, draw_comparison, draw_map

DEPTH = np.linspace(1500, 4500, SURVEY.n_depth, dtype=np.float32)
VELOCITY = np.repeat(DEPTH[:, None], SURVEY.n_width, axis=1)
UNCERTAINTY = VELOCITY / 20


def pixels(path):
    """The picture ``(height, width, 3)``, 0 to 1."""
    return matplotlib.image.imread(path)[..., :3]


def only_file(folder):
    (path,) = folder.iterdir()
    return path.name


def test_a_map_is_drawn_and_nothing_else_is_left(tmp_path):
    draw_map(tmp_path / "map.png", VELOCITY, UNCERTAINTY, SURVEY, range(5), "event 1")
    assert only_file(tmp_path) == "map.png"
    image = pixels(tmp_path / "map.png")
    assert image.shape[1] > image.shape[0] > 200
    # A perceptual colour map over a gradient has many colours; an empty picture has a handful.
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100


def test_depth_is_downwards_and_colours_mean_the_same_in_every_picture(tmp_path):
    for name, value in (("slow", 1500.0), ("fast", 4500.0)):
        flat = np.full_like(VELOCITY, value)
        draw_map(tmp_path / f"{name}.png", flat, UNCERTAINTY, SURVEY, range(5))
    draw_map(tmp_path / "both.png", VELOCITY, UNCERTAINTY, SURVEY, range(5))
    slow, fast, both = (pixels(tmp_path / f"{name}.png") for name in ("slow", "fast", "both"))
    height, width, _ = both.shape
    top, bottom = (height * 3 // 10, width // 5), (height * 7 // 10, width // 5)
    # Colours of the limits, well within the left map; at the top the gradient is nearer to the slow one.
    for place, nearer, farther in ((top, slow, fast), (bottom, fast, slow)):
        assert np.abs(both[place] - nearer[place]).sum() < np.abs(both[place] - farther[place]).sum()
    assert not np.allclose(slow[top], fast[top])


def test_a_device_that_was_not_heard_is_marked(tmp_path):
    draw_map(tmp_path / "all.png", VELOCITY, UNCERTAINTY, SURVEY, range(5))
    draw_map(tmp_path / "four.png", VELOCITY, UNCERTAINTY, SURVEY, [0, 1, 3, 4])

    def red(path):
        image = pixels(path)
        return ((image - np.array([0xCC, 0x33, 0x11]) / 255) ** 2).sum(axis=-1) < 0.01

    assert red(tmp_path / "four.png").sum() > red(tmp_path / "all.png").sum()


def test_a_map_without_uncertainty_is_drawn(tmp_path):
    draw_map(tmp_path / "map.png", VELOCITY, np.zeros_like(VELOCITY), SURVEY, [])
    assert only_file(tmp_path) == "map.png"


def test_a_comparison_has_a_row_an_event_with_and_without_the_truth(tmp_path):
    known = Row("event 1", VELOCITY, VELOCITY, UNCERTAINTY)
    unknown = Row("event 2", None, VELOCITY, UNCERTAINTY)
    draw_comparison(tmp_path / "one.png", [known], SURVEY)
    draw_comparison(tmp_path / "two.png", [known, unknown], SURVEY)
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert two.shape[0] == pytest.approx(2 * one.shape[0], abs=2)
    half, third = two.shape[0] // 2, two.shape[1] // 3

    def coloured(image):
        """Share of the pixels that are not grey, as labels and empty paper are."""
        return (np.ptp(image, axis=-1) > 0.1).mean()

    assert coloured(two[:half, :third]) > 0.3
    assert coloured(two[half:, :third]) < 0.01
    assert coloured(two[half:, third : 2 * third]) > 0.3


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "map.png").mkdir()
    with pytest.raises(OSError):
        draw_map(tmp_path / "map.png", VELOCITY, UNCERTAINTY, SURVEY, range(5))
    assert only_file(tmp_path) == "map.png"
