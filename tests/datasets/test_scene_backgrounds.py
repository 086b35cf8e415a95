import cv2
import numpy as np
import pytest

from ccop_mm.datasets import scene_backgrounds as backgrounds


def test_noise_has_equal_energy_per_octave():
    noise = backgrounds.fractal_noise((256, 256), np.random.default_rng(0))
    assert (noise.min(), noise.max(), noise.dtype) == (0, 1, np.float32)
    again = backgrounds.fractal_noise((256, 256), np.random.default_rng(0))
    np.testing.assert_array_equal(noise, again)
    # Octaves of cells a side, from Gaussians of half and twice a width: none holds ten times as much as another.
    blurred = [cv2.GaussianBlur(noise, (0, 0), 256 / cells / 4) for cells in (4, 8, 16, 32, 64, 128)]
    energy = [np.var(fine - coarse) for coarse, fine in zip(blurred, blurred[1:], strict=False)]
    assert max(energy) < 10 * min(energy)


@pytest.mark.parametrize('name', backgrounds.SURFACES)
def test_a_file_that_is_not_there_becomes_noise_of_the_same_tint(name, tmp_path):
    surface = backgrounds.surface(name, tmp_path)
    np.testing.assert_array_equal(surface, backgrounds.surface(name, None))
    dark, bright = np.array(backgrounds.SURFACES[name][2] or ((25, 45, 80), (90, 130, 190)), np.float32)
    np.testing.assert_allclose(surface.min(axis=(0, 1)), np.minimum(dark, bright), atol=0.01)
    np.testing.assert_allclose(surface.max(axis=(0, 1)), np.maximum(dark, bright), atol=0.01)


def test_photos_are_tinted_from_their_darkest_to_their_brightest_grey(tmp_path):
    grey = np.random.default_rng(0).integers(40, 200, (50, 60), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'brick.png'), grey)
    surface = backgrounds.surface('brick', tmp_path)
    dark, bright = np.array(backgrounds.SURFACES['brick'][2], np.float32)
    share = (grey.astype(np.float64) - grey.min()) / (int(grey.max()) - int(grey.min()))
    np.testing.assert_allclose(surface, dark + (bright - dark) * share[..., None], atol=0.01)


def test_upright_strips_of_color_photos_are_mirrored(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (80, 488 + 30, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'coffee.png'), photo)
    wood = backgrounds.surface('wood', tmp_path)
    np.testing.assert_array_equal(wood[:, :30], photo[:, 488:])
    np.testing.assert_array_equal(wood[:, 30:], photo[:, :487:-1])


def test_backgrounds_and_grain_are_of_the_size_and_the_generator():
    size = (70, 110)
    one, same, other = (backgrounds.draw_background(size, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (*size, 3)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    grain = backgrounds.draw_grain(size, np.random.default_rng(3))
    assert grain.shape == size and abs(grain.mean() - 1) < 0.05
    assert 0.7 <= grain.min() < grain.max() <= 1.3  # 0.6 of a relief that is cut off at a half
