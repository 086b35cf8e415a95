import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmselfsup.registry import TRANSFORMS
from scipy.stats import ks_2samp
from torchvision import transforms as tv

from ccop_mm import photometric as ph
from ccop_mm.datasets.photometric_recipe import PhotometricRecipe

JITTER = dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
MOCO = [
    dict(type='RandomApply', transforms=[JITTER], prob=0.8),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
]
SOLARIZE = dict(type='RandomSolarize', threshold=128, prob=0.2)


def recipe(configs):
    with TRANSFORMS.switch_scope_and_registry('mmselfsup'):
        return PhotometricRecipe.of([TRANSFORMS.build(config) for config in configs])


def test_what_the_config_says_is_drawn():
    assert recipe([*MOCO, SOLARIZE]) == PhotometricRecipe(
        factors=[[0.6, 1.4]] * 3 + [[-0.1, 0.1]],
        jitter=0.8,
        grey=0.2,
        blur=0.5,
        sigma=(0.1, 2.0),
        solarize=0.2,
        threshold=128,
    )
    assert recipe([JITTER]).jitter == 1
    np.testing.assert_array_equal(recipe([]).draw(), np.float32(ph.NEUTRAL))


def torchvisions_draws(count):
    """The same parameters, drawn by torchvision's own classes; shape as ours."""
    jitter = tv.ColorJitter(0.4, 0.4, 0.4, 0.1)
    blur = tv.GaussianBlur(23, (0.1, 2.0))
    params = torch.tensor(ph.NEUTRAL).repeat(count, 1)
    for row in params:
        if not tv.RandomApply([jitter], p=0.8).p < torch.rand(1):  # as RandomApply.forward decides
            order, *factors = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
            row[ph.ORDER], row[ph.FACTORS] = order.float(), torch.tensor(factors)
        row[ph.GREY] = float(torch.rand(1) < tv.RandomGrayscale(0.2).p)
        if not torch.rand(1) > 0.5:
            row[ph.SIGMA] = blur.get_params(*blur.sigma)
    return params.numpy()


def test_parameters_have_the_distribution_of_torchvisions():
    np.random.seed(0)
    torch.manual_seed(0)
    count, drawn = 20000, recipe(MOCO)
    ours, theirs = np.stack([drawn.draw() for _ in range(count)]), torchvisions_draws(count)
    for column in range(ph.NUM_PARAMS):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4, column
    # Together, too: the order as one number, and the factors where there is jitter at all.
    code = 4 ** np.arange(4)
    assert ks_2samp(ours[:, ph.ORDER] @ code, theirs[:, ph.ORDER] @ code).pvalue > 1e-4
    for column in range(4, 8):
        neutral = ph.NEUTRAL[column]
        pair = [params[:, column][params[:, column] != np.float32(neutral)] for params in (ours, theirs)]
        assert ks_2samp(*pair).pvalue > 1e-4
        assert len(pair[0]) == pytest.approx(0.8 * count, rel=0.02)
    # The factors of a view are independent of each other.
    jittered = ours[ours[:, 4] != 1][:, 4:8]
    assert np.abs(np.corrcoef(jittered.T) - np.eye(4)).max() < 0.03


@pytest.mark.parametrize(
    'configs, message',
    [
        (MOCO[::-1], 'in this order'),
        ([SOLARIZE, SOLARIZE], 'at most once'),
        ([dict(type='RandomFlip', prob=0.5)], 'RandomFlip cannot be left to the device'),
        ([dict(type='RandomGrayscale', prob=0.2)], 'keep_channels=True'),
    ],
)
def test_what_has_no_batched_form_is_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        recipe(configs)


def test_config_values_come_through(tmp_path):
    path = tmp_path / 'view.py'
    path.write_text(f'view = {MOCO!r}')
    view = Config.fromfile(path).view
    view[0]['transforms'][0]['saturation'] = 0.2
    assert recipe(view).factors[2] == [0.8, 1.2]
