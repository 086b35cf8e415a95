import torch
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import nn

from ccop_mm.utils.model import inference_mode, to_device, unwrap_model


def wrap(module):
    """Wraps a module without the process group that the constructor requires."""
    wrapper = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = module
    assert is_model_wrapper(wrapper)
    return wrapper


def test_plain_model_is_returned():
    model = nn.Linear(1, 1)
    assert unwrap_model(model) is model


def test_nested_wrappers_are_removed():
    model = nn.Linear(1, 1)
    assert unwrap_model(wrap(model)) is model
    assert unwrap_model(wrap(wrap(model))) is model


def test_attribute_named_module_is_not_a_wrapper():
    model = nn.Sequential()
    model.module = nn.Linear(1, 1)
    assert unwrap_model(model) is model


def test_compiled_modules_run_uncompiled_in_inference_mode():
    graphs = []

    def backend(graph, inputs):
        graphs.append(tuple(inputs[-1].shape))
        return graph.forward

    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    model = nn.Sequential(Double())
    model[0].compile(backend=backend, dynamic=False)
    with inference_mode(model):
        for side in range(4, 20):  # more shapes than torch keeps compiled versions
            model(torch.zeros(1, 3, side, side))
    assert not graphs
    model(torch.zeros(1, 3, 8, 8))
    assert len(graphs) == 1


def test_automatic_device():
    model = nn.Linear(2, 2)
    assert to_device(model, 'auto') is model
    assert model.weight.device.type == ('cuda' if torch.cuda.is_available() else 'cpu')
