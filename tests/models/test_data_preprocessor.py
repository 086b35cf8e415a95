import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmselfsup.models.utils import SelfSupDataPreprocessor
from mmselfsup.structures import SelfSupDataSample

from ccop_mm.models import TwoViewDataPreprocessor
from ccop_mm.models import batch_photometric as photometric

SETTINGS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def make_batch(generator):
    views = [torch.randint(0, 256, (3, 3, 8, 9), dtype=torch.uint8, generator=generator) for _ in range(2)]
    samples = [SelfSupDataSample() for _ in range(3)]
    for sample in samples:
        boxes = torch.rand(2, 4, generator=generator)
        sample.pseudo_label = InstanceData(boxes_q=boxes, boxes_k=boxes)
    return dict(inputs=views, data_samples=samples)


def test_views_equal_those_of_mmselfsup(generator):
    data = make_batch(generator)
    expected, _ = SelfSupDataPreprocessor(**SETTINGS)(dict(data))
    result = TwoViewDataPreprocessor(**SETTINGS)(data)
    for view, other in zip(result['inputs'], expected, strict=True):
        torch.testing.assert_close(view, other, rtol=0, atol=0)


def test_data_samples_are_unchanged_for_any_order_of_keys(generator):
    data = make_batch(generator)
    swapped = dict(data_samples=data['data_samples'], inputs=data['inputs'])
    result = TwoViewDataPreprocessor(**SETTINGS)(swapped)
    assert result['data_samples'] is data['data_samples']
    assert [view.dtype for view in result['inputs']] == [torch.float32] * 2


def test_values_are_unchanged_without_normalization(generator):
    data = make_batch(generator)
    result = TwoViewDataPreprocessor()(data)
    assert torch.equal(result['inputs'][0], data['inputs'][0].float())


def make_photometric_batch(generator):
    data = make_batch(generator)
    params = torch.tensor(photometric.NEUTRAL).repeat(3, 2, 1)
    params[0, 0, photometric.GRAY] = 1
    params[1, 1, photometric.FACTORS] = torch.tensor([0.7, 1.2, 0.9, 0.05])
    params[2, :, photometric.SIGMA] = 0.8
    return dict(data, photometric=params)


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_photometric_parameters_are_applied_to_rgb_before_normalization(generator, monkeypatch, bgr_to_rgb):
    data = make_photometric_batch(generator)
    chunk = 2 * data['inputs'][0][0].numel()  # two of three images, so that the last chunk is smaller
    monkeypatch.setattr('ccop_mm.models.data_preprocessor.CPU_CHUNK', chunk)
    settings = dict(SETTINGS, bgr_to_rgb=bgr_to_rgb)
    result = TwoViewDataPreprocessor(**settings)(data)
    mean, std = (torch.tensor(SETTINGS[name]).view(3, 1, 1) for name in ('mean', 'std'))
    for number, view in enumerate(data['inputs']):
        rgb = photometric.apply(view.flip(1).float(), data['photometric'][:, number])
        expected = ((rgb if bgr_to_rgb else rgb.flip(1)) - mean) / std
        torch.testing.assert_close(result['inputs'][number], expected, rtol=0, atol=1e-5)


def test_neutral_parameters_equal_no_parameters(generator):
    data = make_batch(generator)
    neutral = dict(data, photometric=torch.tensor(photometric.NEUTRAL).repeat(3, 2, 1))
    ours, plain = (TwoViewDataPreprocessor(**SETTINGS)(each)['inputs'] for each in (neutral, data))
    for view, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(view, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name, tolerance', [('float16', 0.02), ('bfloat16', 0.1)])
def test_photometric_dtype_does_not_change_the_output_dtype(generator, name, tolerance):
    data = make_photometric_batch(generator)
    exact = TwoViewDataPreprocessor(**SETTINGS)(data)['inputs']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        full = TwoViewDataPreprocessor(**SETTINGS)(data)['inputs']
    half = TwoViewDataPreprocessor(**SETTINGS, photometric_dtype=name)(data)['inputs']
    for number in range(2):
        assert torch.equal(full[number], exact[number]), 'autocast does not affect the photometric augmentation'
        assert half[number].dtype == torch.float32
        assert (half[number] - exact[number]).abs().max() < tolerance


def test_unknown_photometric_dtype_raises():
    with pytest.raises(ValueError, match="'int8'"):
        TwoViewDataPreprocessor(photometric_dtype='int8')


@pytest.mark.parametrize(
    'settings',
    [
        dict(**SETTINGS, pad_size_divisor=32),
        dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], bgr_to_rgb=False),  # RTMDet
        dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False, pad_size_divisor=32),  # caffe
        dict(pad_size_divisor=16, pad_value=114),  # YOLOX
        dict(mean=[0, 0, 0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True, pad_size_divisor=32),  # YOLOv3
        dict(mean=[1, 2, 3], std=[4, 5, 6], rgb_to_bgr=True),
    ],
)
@pytest.mark.parametrize('augmented', [False, True])
def test_views_are_those_that_a_detector_receives(generator, settings, augmented):
    """With augmentation, up to rounding: the neutral parameters change nothing."""
    data = make_batch(generator)
    if augmented:
        data['photometric'] = torch.tensor(photometric.NEUTRAL).repeat(3, 2, 1)
    samples = [DetDataSample(metainfo=dict(img_shape=(8, 9))) for _ in range(3)]
    detector = DetDataPreprocessor(**settings)(dict(inputs=list(data['inputs'][1]), data_samples=samples))
    result = TwoViewDataPreprocessor(**settings)(data)
    assert torch.equal(result['inputs'][1], detector['inputs']) or augmented
    torch.testing.assert_close(result['inputs'][1], detector['inputs'], rtol=1e-5, atol=1e-4)
