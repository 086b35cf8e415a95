import torch

from ccop_mm.models.host_copy import _pack, _unpack, copy_to_device

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(5),
    torch.rand(2, 3, 4, dtype=torch.float64),
    torch.zeros(0, 5),
    torch.tensor(7, dtype=torch.int16),
    torch.rand(6, 2).T,  # not contiguous
]


def test_the_cpu_needs_no_copy():
    moved = copy_to_device(TENSORS, torch.device('cpu'))
    assert all(a is b for a, b in zip(moved, TENSORS, strict=True))


def test_types_shapes_and_values_survive():
    packed = _pack(TENSORS, pin_memory=False)
    for view, tensor in zip(_unpack(packed, TENSORS), TENSORS, strict=True):
        assert view.dtype == tensor.dtype and torch.equal(view, tensor)
        assert view.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


def test_a_device_gets_the_same_types_and_shapes():
    moved = copy_to_device(TENSORS, torch.device('meta'))  # which has shapes and no values
    assert [(view.shape, view.dtype) for view in moved] == [(tensor.shape, tensor.dtype) for tensor in TENSORS]
