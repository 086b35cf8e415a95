import torch
from mmengine.structures import InstanceData
from mmselfsup.models.utils import SelfSupDataPreprocessor
from mmselfsup.structures import SelfSupDataSample

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
