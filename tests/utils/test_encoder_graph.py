import pytest
import torch
from small_mmdet import detector_config, make_encoder  # noqa: F401  fixtures
from torch import nn

from ccop_mm.utils.encoder_graph import IMAGE_SIZE, find_without_influence, select_untrained
from ccop_mm.utils.errors import InputError
from ccop_mm.weights import checksum


def compute_outputs(encoder):
    """Returns the outputs of a neck by stride, and under 0 the last map of the backbone."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        features = encoder.backbone(images)
        pyramid = encoder.neck(tuple(features))
    return {0: features[-1], **{IMAGE_SIZE // level.shape[-1]: level for level in pyramid}}


def find_changed(encoder, key, before):
    """Changes one tensor of an encoder, and returns the strides of the outputs that differ from ``before``."""
    tensor = encoder.state_dict()[key]
    original = tensor.clone()
    tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(2)) * 0.5 + 0.5)
    after = compute_outputs(encoder)
    tensor.copy_(original)
    return {stride for stride in before if not torch.equal(before[stride], after[stride])}


@pytest.mark.parametrize('name', ['retinanet', 'rtmdet', 'deformable-detr', 'hrnet', 'yolov3'])
def test_tensors_without_influence_are_those_whose_change_changes_no_output(name, make_encoder):  # noqa: F811
    """Compares with the outputs after a change of each tensor of the neck."""
    encoder = make_encoder(name).double()
    found = find_without_influence(encoder.backbone, encoder.neck)
    keys = [key for key, value in encoder.state_dict().items() if value.is_floating_point() and key.startswith('neck.')]
    before = compute_outputs(encoder)
    influenced = {key: find_changed(encoder, key, before) for key in keys}
    strides = sorted({stride for changed in influenced.values() for stride in changed} - {0})
    assert len(found) == len(strides) >= 3
    for number, without in enumerate(found, start=1):
        expected = {key for key in keys if not influenced[key] & {0, *strides[:number]}}
        assert {key for key in without if key in keys} == expected
    assert found[0] >= found[-1] and (name == 'yolov3' or len(found[0]) > len(found[-1]))


def test_layers_that_are_not_connected_influence_nothing(make_encoder):  # noqa: F811
    encoder = make_encoder('yolov3')
    unused = {f'backbone.conv2.{key}' for key in encoder.backbone.conv2.state_dict()}
    assert find_without_influence(encoder.backbone, encoder.neck)[-1] == unused and len(unused) == 6


class Statistics(nn.Module):
    """Neck whose second output is normalized by a layer without parameters."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 2, 1)
        self.coarse = nn.Sequential(nn.Conv2d(3, 2, 1, stride=2), nn.BatchNorm2d(2, affine=False), nn.Dropout(0.5))

    def forward(self, features):
        return self.fine(features[0]), self.coarse(features[0])


def test_a_buffer_belongs_to_the_nearest_module_with_parameters():
    backbone = nn.Sequential(nn.Conv2d(3, 3, 1), Split())
    fine, all_levels = find_without_influence(backbone, Statistics())
    norm = {f'neck.coarse.1.{name}' for name in ('running_mean', 'running_var', 'num_batches_tracked')}
    assert fine == {'neck.coarse.0.weight', 'neck.coarse.0.bias', *norm} and not all_levels


class Split(nn.Module):
    def forward(self, image):
        return [image]


@pytest.mark.parametrize('name', ['retinanet', 'swin'])
def test_the_modules_are_not_changed(name, make_encoder):  # noqa: F811
    encoder = make_encoder(name, **{'backbone.with_cp': True, 'backbone.frozen_stages': 1}).train()
    encoder.neck.eval()
    modes = [module.training for module in encoder.modules()]
    frozen = [parameter.requires_grad for parameter in encoder.parameters()]
    before, random = checksum(encoder.state_dict()), torch.get_rng_state()
    find_without_influence(encoder.backbone, encoder.neck)
    assert checksum(encoder.state_dict()) == before and torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in encoder.modules()] == modes
    assert [parameter.requires_grad for parameter in encoder.parameters()] == frozen and not all(frozen)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert any(getattr(module, 'with_cp', False) for module in encoder.modules())


@pytest.mark.parametrize(('argument', 'value'), [('with_cp', True), ('frozen_stages', 2)])
@pytest.mark.parametrize('name', ['retinanet', 'swin'])
def test_activation_checkpointing_and_frozen_stages_hide_nothing(name, argument, value, make_encoder):  # noqa: F811
    plain, changed = make_encoder(name), make_encoder(name, **{f'backbone.{argument}': value})
    expected = find_without_influence(plain.backbone, plain.neck)
    assert find_without_influence(changed.backbone, changed.neck) == expected
    changed.train()
    assert find_without_influence(changed.backbone, changed.neck) == expected


def test_a_meta_model_is_inspected_without_memory(make_encoder):  # noqa: F811
    encoder = make_encoder('rtmdet')
    expected = find_without_influence(encoder.backbone, encoder.neck)
    encoder.to('meta')
    assert find_without_influence(encoder.backbone, encoder.neck) == expected


@pytest.mark.parametrize('neck', [nn.Identity(), nn.Linear(7, 7)])
def test_modules_that_return_no_maps_are_an_error_of_one_line(neck):
    backbone = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten())
    with pytest.raises(InputError) as caught:
        find_without_influence(backbone, neck)
    assert len(str(caught.value).splitlines()) == 1 and 'Sequential' in str(caught.value)


@pytest.mark.parametrize(
    ('missing', 'selected'),
    [
        ('', ''),
        ('p6 p7', 'p6 p7'),
        ('p7', 'p7'),
        ('p6', ''),
        ('p6 p7 dead', 'p6 p7 dead'),
        ('dead', 'dead'),
        ('p5 dead', 'dead'),
        ('p5 p6 p7', 'p5 p6 p7'),
        ('lateral p6 p7', ''),
    ],
)
def test_missing_keys_must_be_all_of_those_without_influence(missing, selected):
    levels = [{'p5', 'p6', 'p7', 'dead'}, {'p6', 'p7', 'dead'}, {'p7', 'dead'}, {'dead'}]
    found = select_untrained(frozenset(missing.split()), [frozenset(level) for level in levels])
    assert found == set(selected.split())
