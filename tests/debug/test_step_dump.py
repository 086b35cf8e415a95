import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmselfsup.structures import SelfSupDataSample

from ccop_mm.debug.step_dump import batch_images, read_dump, write_dump
from ccop_mm.utils.errors import InputError


def sample(cls=SelfSupDataSample):
    element = cls(metainfo=dict(img_id=np.int64(7), img_path='a.png', crop_box=(1, 2.5), flip=None))
    element.pseudo_label = InstanceData(boxes_q=torch.tensor([[1.0, 2, 3, float('nan')]]), rows=np.array([4]))
    return element


def test_batch_round_trip(tmp_path):
    views = [torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)]
    write_dump(tmp_path / 'step.pth', batch=dict(inputs=views, data_samples=[sample()]), config=dict(a=(1, [True])))
    dump = read_dump(tmp_path / 'step.pth')
    assert dump['config'] == dict(a=(1, [True]))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(dump['batch']['inputs'], views, strict=True))
    (loaded,) = dump['batch']['data_samples']
    assert type(loaded) is SelfSupDataSample
    assert loaded.metainfo == dict(img_id=7, img_path='a.png', crop_box=(1, 2.5), flip=None)
    assert type(loaded.pseudo_label) is InstanceData
    assert torch.equal(loaded.pseudo_label.boxes_q.isnan(), torch.tensor([[False, False, False, True]]))
    assert loaded.pseudo_label.rows.tolist() == [4]


def test_other_values_are_stored_in_a_safe_form(tmp_path):
    write_dump(tmp_path / 'step.pth', batch=[sample(DetDataSample)], config=dict(function=print, kind=torch.float16))
    dump = read_dump(tmp_path / 'step.pth')
    assert dump['config'] == dict(function='<built-in function print>', kind='torch.float16')
    assert type(dump['batch'][0]).__name__ == 'BaseDataElement' and dump['batch'][0].img_id == 7


def test_unknown_data_element_is_rejected(tmp_path):
    write_dump(tmp_path / 'step.pth', batch=dict(element='Popen', metainfo={}, data={}))
    with pytest.raises(InputError, match='Popen'):
        read_dump(tmp_path / 'step.pth')


def test_batch_images():
    assert batch_images(dict(data_samples=[sample()])) == [dict(img_id=7, img_path='a.png')]
    assert batch_images(dict(data_samples=[SelfSupDataSample()])) == [dict(img_id=None, img_path=None)]
    assert batch_images(dict(inputs=[])) == batch_images([torch.zeros(1)]) == []
