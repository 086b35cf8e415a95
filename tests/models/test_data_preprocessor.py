import pytest
import torch
from mmengine.structures import InstanceData
from mmselfsup.models.utils import SelfSupDataPreprocessor
from mmselfsup.structures import SelfSupDataSample

from ccop_mm import photometric
from ccop_mm.models import TwoViewDataPreprocessor

SETTINGS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def batch(generator):
    views = [torch.randint(0, 256, (3, 3, 8, 9), dtype=torch.uint8, generator=generator) for _ in range(2)]
    samples = [SelfSupDataSample() for _ in range(3)]
    for sample in samples:
        boxes = torch.rand(2, 4, generator=generator)
        sample.pseudo_label = InstanceData(boxes_q=boxes, boxes_k=boxes)
    return dict(inputs=views, data_samples=samples)


def test_views_equal_mmselfsups(generator):
    data = batch(generator)
    expected, _ = SelfSupDataPreprocessor(**SETTINGS)(dict(data))
    result = TwoViewDataPreprocessor(**SETTINGS)(data)
    for view, other in zip(result['inputs'], expected, strict=True):
        torch.testing.assert_close(view, other, rtol=0, atol=0)


def test_data_samples_stay_as_they_are_whatever_the_order_of_keys(generator):
    data = batch(generator)
    swapped = dict(data_samples=data['data_samples'], inputs=data['inputs'])
    result = TwoViewDataPreprocessor(**SETTINGS)(swapped)
    assert result['data_samples'] is data['data_samples']
    assert [view.dtype for view in result['inputs']] == [torch.float32] * 2


def test_without_normalization_values_are_kept(generator):
    data = batch(generator)
    result = TwoViewDataPreprocessor()(data)
    assert torch.equal(result['inputs'][0], data['inputs'][0].float())


def with_photometric(generator):
    data = batch(generator)
    params = torch.tensor(photometric.NEUTRAL).repeat(3, 2, 1)
    params[0, 0, photometric.GREY] = 1
    params[1, 1, photometric.FACTORS] = torch.tensor([0.7, 1.2, 0.9, 0.05])
    params[2, :, photometric.SIGMA] = 0.8
    return dict(data, photometric=params)


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_photometric_parameters_are_applied_to_rgb_before_normalization(generator, monkeypatch, bgr_to_rgb):
    data = with_photometric(generator)
    per_part = 2 * data['inputs'][0][0].numel()  # two images: an uneven last part
    monkeypatch.setattr('ccop_mm.models.data_preprocessor.CPU_CHUNK', per_part)
    settings = dict(SETTINGS, bgr_to_rgb=bgr_to_rgb)
    result = TwoViewDataPreprocessor(**settings)(data)
    mean, std = (torch.tensor(SETTINGS[name]).view(3, 1, 1) for name in ('mean', 'std'))
    for number, view in enumerate(data['inputs']):
        rgb = photometric.apply(view.flip(1).float(), data['photometric'][:, number])
        expected = ((rgb if bgr_to_rgb else rgb.flip(1)) - mean) / std
        torch.testing.assert_close(result['inputs'][number], expected, rtol=0, atol=1e-5)


def test_neutral_parameters_are_no_parameters(generator):
    data = batch(generator)
    neutral = dict(data, photometric=torch.tensor(photometric.NEUTRAL).repeat(3, 2, 1))
    ours, plain = (TwoViewDataPreprocessor(**SETTINGS)(each)['inputs'] for each in (neutral, data))
    for view, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(view, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name, tolerance', [('float16', 0.02), ('bfloat16', 0.1)])
def test_half_precision_is_for_the_work_alone(generator, name, tolerance):
    data = with_photometric(generator)
    exact = TwoViewDataPreprocessor(**SETTINGS)(data)['inputs']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        full = TwoViewDataPreprocessor(**SETTINGS)(data)['inputs']
    half = TwoViewDataPreprocessor(**SETTINGS, photometric_dtype=name)(data)['inputs']
    for number in range(2):
        assert torch.equal(full[number], exact[number]), 'autocast does not reach the photometric part'
        assert half[number].dtype == torch.float32
        assert (half[number] - exact[number]).abs().max() < tolerance


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match='photometric_dtype'):
        TwoViewDataPreprocessor(photometric_dtype='int8')
