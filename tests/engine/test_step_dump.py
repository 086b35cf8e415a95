import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmselfsup.structures import SelfSupDataSample

from ccop_mm.engine.step_dump import images_of, read_dump, write_dump
from ccop_mm.errors import InputError


def sample(cls=SelfSupDataSample):
    element = cls(metainfo=dict(img_id=np.int64(7), img_path='a.png', window=(1, 2.5), flip=None))
    element.pseudo_label = InstanceData(boxes_q=torch.tensor([[1.0, 2, 3, float('nan')]]), rows=np.array([4]))
    return element


def test_a_batch_comes_back(tmp_path):
    views = [torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)]
    write_dump(tmp_path / 'step.pth', batch=dict(inputs=views, data_samples=[sample()]), config=dict(a=(1, [True])))
    dump = read_dump(tmp_path / 'step.pth')
    assert dump['config'] == dict(a=(1, [True]))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(dump['batch']['inputs'], views, strict=True))
    (back,) = dump['batch']['data_samples']
    assert type(back) is SelfSupDataSample
    assert back.metainfo == dict(img_id=7, img_path='a.png', window=(1, 2.5), flip=None)
    assert type(back.pseudo_label) is InstanceData
    assert torch.equal(back.pseudo_label.boxes_q.isnan(), torch.tensor([[False, False, False, True]]))
    assert back.pseudo_label.rows.tolist() == [4]


def test_other_values_become_what_loads_safely(tmp_path):
    write_dump(tmp_path / 'step.pth', batch=[sample(DetDataSample)], config=dict(function=print, kind=torch.float16))
    dump = read_dump(tmp_path / 'step.pth')
    assert dump['config'] == dict(function='<built-in function print>', kind='torch.float16')
    assert type(dump['batch'][0]).__name__ == 'BaseDataElement' and dump['batch'][0].img_id == 7


def test_an_element_of_another_class_is_refused(tmp_path):
    write_dump(tmp_path / 'step.pth', batch=dict(element='Popen', metainfo={}, data={}))
    with pytest.raises(InputError, match='Popen'):
        read_dump(tmp_path / 'step.pth')


def test_images_of_a_batch():
    assert images_of(dict(data_samples=[sample()])) == [dict(img_id=7, img_path='a.png')]
    assert images_of(dict(data_samples=[SelfSupDataSample()])) == [dict(img_id=None, img_path=None)]
    assert images_of(dict(inputs=[])) == images_of([torch.zeros(1)]) == []
