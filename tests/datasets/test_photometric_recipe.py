import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmselfsup.registry import TRANSFORMS
from scipy.stats import ks_2samp
from torchvision import transforms as tv

from ccop_mm.datasets.photometric_recipe import PhotometricRecipe
from ccop_mm.models import batch_photometric as photometric

JITTER = dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
MOCO = [
    dict(type='RandomApply', transforms=[JITTER], prob=0.8),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
]
SOLARIZE = dict(type='RandomSolarize', threshold=128, prob=0.2)


def build_recipe(configs):
    with TRANSFORMS.switch_scope_and_registry('mmselfsup'):
        return PhotometricRecipe.from_transforms([TRANSFORMS.build(config) for config in configs])


def test_recipe_has_the_parameters_of_the_transforms():
    assert build_recipe([*MOCO, SOLARIZE]) == PhotometricRecipe(
        factors=[[0.6, 1.4]] * 3 + [[-0.1, 0.1]],
        jitter_prob=0.8,
        gray_prob=0.2,
        blur_prob=0.5,
        blur_sigma=(0.1, 2.0),
        solarize_prob=0.2,
        solarize_threshold=128,
    )
    assert build_recipe([JITTER]).jitter_prob == 1
    np.testing.assert_array_equal(build_recipe([]).sample(), np.float32(photometric.NEUTRAL))


def sample_with_torchvision(count):
    """Samples ``(count, NUM_PARAMS)`` with torchvision's transforms."""
    jitter = tv.ColorJitter(0.4, 0.4, 0.4, 0.1)
    blur = tv.GaussianBlur(23, (0.1, 2.0))
    params = torch.tensor(photometric.NEUTRAL).repeat(count, 1)
    for row in params:
        if not tv.RandomApply([jitter], p=0.8).p < torch.rand(1):  # the condition in RandomApply.forward
            order, *factors = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
            row[photometric.ORDER], row[photometric.FACTORS] = order.float(), torch.tensor(factors)
        row[photometric.GRAY] = float(torch.rand(1) < tv.RandomGrayscale(0.2).p)
        if not torch.rand(1) > 0.5:
            row[photometric.SIGMA] = blur.get_params(*blur.sigma)
    return params.numpy()


def test_parameters_have_the_distribution_of_torchvision():
    np.random.seed(0)
    torch.manual_seed(0)
    count, recipe = 20000, build_recipe(MOCO)
    ours, theirs = np.stack([recipe.sample() for _ in range(count)]), sample_with_torchvision(count)
    for column in range(photometric.NUM_PARAMS):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4, column
    # Joint distributions: the order encoded as one number, and the factors of the views with color jitter.
    code = 4 ** np.arange(4)
    assert ks_2samp(ours[:, photometric.ORDER] @ code, theirs[:, photometric.ORDER] @ code).pvalue > 1e-4
    for column in range(4, 8):
        neutral = np.float32(photometric.NEUTRAL[column])
        pair = [params[:, column][params[:, column] != neutral] for params in (ours, theirs)]
        assert ks_2samp(*pair).pvalue > 1e-4
        assert len(pair[0]) == pytest.approx(0.8 * count, rel=0.02)
    # The factors of a view are independent of each other.
    jittered = ours[ours[:, 4] != 1][:, 4:8]
    assert np.abs(np.corrcoef(jittered.T) - np.eye(4)).max() < 0.03


def test_samples_are_reproducible():
    # Pinned, because a run that is resumed with another version must see the same views.
    np.random.seed(0)
    recipe = build_recipe([*MOCO, SOLARIZE])
    first = [3, 0, 1, 2, 1.1721514, 1.0822107, 1.0359066, -0.01526904, 0, 1.7943687, 256]
    second = [0, 1, 2, 3, 1, 1, 1, 0, 0, 1.9185948, 128]
    np.testing.assert_array_equal([recipe.sample(), recipe.sample()], np.float32([first, second]))


@pytest.mark.parametrize(
    'configs, value',
    [
        (MOCO[::-1], 'RandomGrayscale'),
        ([SOLARIZE, SOLARIZE], 'RandomSolarize'),
        ([dict(type='RandomFlip', prob=0.5)], 'RandomFlip'),
        ([dict(type='RandomGrayscale', prob=0.2)], 'keep_channels=False'),
    ],
)
def test_unsupported_transforms_raise(configs, value):
    with pytest.raises(ValueError, match=value):
        build_recipe(configs)


def test_values_of_a_config_file_are_used(tmp_path):
    path = tmp_path / 'view.py'
    path.write_text(f'view = {MOCO!r}')
    view = Config.fromfile(path).view
    view[0]['transforms'][0]['saturation'] = 0.2
    assert build_recipe(view).factors[2] == [0.8, 1.2]
