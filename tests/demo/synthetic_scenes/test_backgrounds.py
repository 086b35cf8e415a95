import cv2
import numpy as np
import pytest
from synthetic_scenes import backgrounds


def test_fractal_noise_has_equal_energy_per_octave():
    noise = backgrounds.fractal_noise((256, 256), np.random.default_rng(0))
    assert (noise.min(), noise.max(), noise.dtype) == (0, 1, np.float32)
    again = backgrounds.fractal_noise((256, 256), np.random.default_rng(0))
    np.testing.assert_array_equal(noise, again)
    # Energies per octave, from differences of Gaussian blurs whose widths double, differ by less than a factor of 10.
    blurred = [cv2.GaussianBlur(noise, (0, 0), 256 / cells / 4) for cells in (4, 8, 16, 32, 64, 128)]
    energy = [np.var(fine - coarse) for coarse, fine in zip(blurred, blurred[1:], strict=False)]
    assert max(energy) < 10 * min(energy)


@pytest.mark.parametrize('name', backgrounds.SURFACES)
def test_missing_file_is_replaced_by_noise_of_the_same_tint(name, tmp_path):
    surface = backgrounds.surface(name, tmp_path)
    np.testing.assert_array_equal(surface, backgrounds.surface(name, None))
    dark, bright = np.array(backgrounds.SURFACES[name][2] or ((25, 45, 80), (90, 130, 190)), np.float32)
    np.testing.assert_allclose(surface.min(axis=(0, 1)), np.minimum(dark, bright), atol=0.01)
    np.testing.assert_allclose(surface.max(axis=(0, 1)), np.maximum(dark, bright), atol=0.01)


def test_gray_levels_are_mapped_linearly_to_the_tint(tmp_path):
    gray = np.random.default_rng(0).integers(40, 200, (50, 60), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'brick.png'), gray)
    surface = backgrounds.surface('brick', tmp_path)
    dark, bright = np.array(backgrounds.SURFACES['brick'][2], np.float32)
    fraction = (gray.astype(np.float64) - gray.min()) / (int(gray.max()) - int(gray.min()))
    np.testing.assert_allclose(surface, dark + (bright - dark) * fraction[..., None], atol=0.01)


def test_portrait_color_images_are_extended_by_their_mirror_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (80, 488 + 30, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'coffee.png'), image)
    wood = backgrounds.surface('wood', tmp_path)
    np.testing.assert_array_equal(wood[:, :30], image[:, 488:])
    np.testing.assert_array_equal(wood[:, 30:], image[:, :487:-1])


def test_backgrounds_and_textures_depend_on_size_and_generator():
    size = (70, 110)
    first, same, other = (backgrounds.sample_background(size, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (*size, 3)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    texture = backgrounds.sample_texture(size, np.random.default_rng(3))
    assert texture.shape == size and abs(texture.mean() - 1) < 0.05
    assert 0.7 <= texture.min() < texture.max() <= 1.3  # 1 + 0.6 * relief, with the relief clipped to +-0.5
