import pytest
import torch
from mmdet.models import ResNet

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.key_mapping import check_pretraining, resnet_depth, strip_wrappers


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_depth_of_an_mmdet_resnet_from_its_keys(depth):
    with torch.device('meta'):
        keys = [f'backbone.{key}' for key in ResNet(depth).state_dict()]
    assert resnet_depth(keys) == depth


def test_an_incomplete_resnet_has_no_depth():
    keys = ['backbone.conv1.weight', 'backbone.layer1.0.conv1.weight', 'neck.fpn_convs.0.conv.bias']
    assert resnet_depth(keys) is None


def test_prefixes_of_ddp_and_compile_are_removed():
    wrapped = {
        'module._orig_mod.backbone._orig_mod.conv1.weight': 1,
        'module._orig_mod.encoder_k.module.conv1.weight': 2,
        'module._orig_mod.neck.not_orig_mod.x': 3,
    }
    assert strip_wrappers(wrapped) == {
        'backbone.conv1.weight': 1,
        'encoder_k.module.conv1.weight': 2,
        'neck.not_orig_mod.x': 3,
    }
    # If only some keys start with "module.", it is a submodule of that name.
    assert strip_wrappers({'module.x': 1, 'y': 2}) == {'module.x': 1, 'y': 2}


def test_keys_that_become_equal_are_an_error():
    with pytest.raises(InputError, match='backbone.conv1.weight'):
        strip_wrappers({'backbone.conv1.weight': 1, 'backbone._orig_mod.conv1.weight': 2})


@pytest.mark.parametrize(
    'head',
    [
        'rpn_head.rpn_conv.weight',
        'roi_head.bbox_head.fc_cls.bias',
        'bbox_head.retina_cls.bias',
        'panoptic_head.conv.weight',
    ],
)
def test_a_detection_checkpoint_is_an_error(head):
    with pytest.raises(InputError, match=f'{head}.*load_from'):
        check_pretraining(['backbone.conv1.weight', head])


def test_keys_of_another_model_are_an_error():
    with pytest.raises(InputError, match=r'2 of 3 keys.*CCOP.*conv1\.weight'):
        check_pretraining(['conv1.weight', 'fc.bias', 'encoder_k.backbone.conv1.weight'])
