"""What step.py measures: training steps of equal backbones on equal batches, each a call without arguments."""

import contextlib
import copy
from dataclasses import dataclass, replace
from pathlib import Path

import ccop_mm  # noqa: F401  first: it makes mmselfsup importable

# isort: split
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmselfsup.registry import MODELS
from mmselfsup.structures import SelfSupDataSample
from step_released import ReleasedWay
from torch import nn
from torch.utils._pytree import tree_leaves

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'ccop'
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@dataclass(frozen=True)
class Setting:
    """What a step works on; ``jitter`` is J, ``queue`` is K, ``batch`` counts photos."""

    depth: int = 50
    size: int = 224
    batch: int = 4
    objects: int = 12
    jitter: int = 10
    queue: int = 65536
    precision: str = 'fp32'
    channels_last: bool = False
    compile: bool = False
    device: str = 'cpu'

    def but(self, **changes):
        """The same with some values replaced."""
        return replace(self, **changes)


def preset(name, setting):
    """A pre-training config of this project with the setting's sizes."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    changes = {
        'model.backbone.depth': setting.depth,
        'model.box_jitter.num_jitter': setting.jitter,
        'model.channels_last': setting.channels_last,
        'model.queue_len': setting.queue,
        'model.object_queue_len': setting.queue,
    }
    if setting.depth < 50:
        changes['model.neck.in_channels'] = [64, 128, 256, 512]
        changes['model.image_projector.in_channels'] = 512
    cfg.merge_from_dict(changes)
    return cfg


def batch_of(setting, seed=0):
    """Two random views, normalized, on the device; boxes on the CPU, their sides spread over all four levels."""
    generator = torch.Generator().manual_seed(seed)
    size, samples = setting.size, []

    def boxes():
        sides = 16 * (size / 16) ** torch.rand(setting.objects, 2, generator=generator)  # 16 px to the whole view
        corner = torch.rand(setting.objects, 2, generator=generator) * (size - sides)
        return torch.cat([corner, corner + sides], dim=1)

    for _ in range(setting.batch):
        samples.append(SelfSupDataSample())
        samples[-1].pseudo_label = InstanceData(boxes_q=boxes(), boxes_k=boxes())
    shape = (setting.batch, 3, size, size)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    views = [torch.randn(shape, generator=generator).to(setting.device, memory_format=layout) for _ in range(2)]
    return views, samples


class Step:
    """A training step, from the network's input to the new weights (the floor's: to the gradients).

    Args:
        setting (Setting): Sizes, precision and device.
        module (nn.Module): What it trains.
        forward (Callable): Gives the losses, a dict of which those named "loss" count.
        optimizer (dict, optional): Arguments of SGD.

    Attributes:
        clock (optional): A :class:`step_meters.Clock` that measures the stages.
    """

    def __init__(self, setting, module, forward, optimizer):
        self.setting, self.module, self.clock = setting, module, None
        self._forward = forward
        self.optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], **optimizer)
        self._scaler = torch.amp.GradScaler(setting.device, enabled=setting.precision == 'fp16')

    def __call__(self):
        """Runs one."""
        with autocast(self.setting):
            losses = self._forward()
        total = self._scaler.scale(sum(value for name, value in losses.items() if 'loss' in name))
        with self._stage('backward'):
            total.backward()
        with self._stage('optimizer'):
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _stage(self, name):
        return self.clock.stage(name) if self.clock else contextlib.nullcontext()

    @property
    def resident(self):
        """Bytes that stay from step to step: weights, buffers, the optimizer's state."""
        tensors = [*self.module.parameters(), *self.module.buffers(), *tree_leaves(list(self.optimizer.state.values()))]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


class Floor(Step):
    """The two encoders alone: key forward, query forward, query backward from fixed gradients of P2 to P5."""

    def __init__(self, setting):
        cfg = preset('ccop_r50_fpn_800e_coco', setting)
        module = nn.ModuleDict(dict(backbone=build(cfg.model.backbone), neck=build(cfg.model.neck)))
        module['key_backbone'], module['key_neck'] = (
            copy.deepcopy(module[name]).requires_grad_(False) for name in ('backbone', 'neck')
        )
        super().__init__(setting, placed(module, setting), None, dict(lr=0.0))
        self._views, _ = batch_of(setting)
        self._gradients = None

    def __call__(self):
        module, (query, key) = self.module, self._views
        with autocast(self.setting):
            with self._stage('key images'), torch.no_grad():
                module['key_neck'](module['key_backbone'](key))
            with self._stage('query images'):
                pyramid = module['neck'](module['backbone'](query))
        if self._gradients is None:
            self._gradients = [torch.randn_like(level) for level in pyramid]
        with self._stage('backward'):
            torch.autograd.backward(pyramid, self._gradients)
        module.zero_grad(set_to_none=True)


def ccop(setting, name='ccop_r50_fpn_800e_coco', **changes):
    """CCOP as a preset has it, with the preset's optimizer."""
    cfg = preset(name, setting)
    cfg.model.update(changes)
    model = placed(build(cfg.model), setting)
    model.box_jitter.progress = 0.5  # halfway through the curriculum
    views, samples = batch_of(setting)
    optimizer = {key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != 'type'}
    return Step(setting, model, lambda: model.loss(views, samples), optimizer)


def ccop_reference(setting):
    """CCOP in the preset that equals the released code."""
    return ccop(setting, 'ccop-reference_r50_fpn_800e_coco')


def ccop_whole(setting):
    """CCOP with batch statistics over the whole batch, as the floor and the released way have them in one process.

    CCOP itself splits the batch in groups there: positives could be told by the statistics they share.
    """
    return ccop(setting, key_batch='none')


def released(setting):
    """The object work done the released code's way; see step_released.py."""
    cfg = preset('ccop-reference_r50_fpn_800e_coco', setting)
    model = placed(build(cfg.model), setting)
    model.box_jitter.progress = 0.5
    views, samples = batch_of(setting)
    way = ReleasedWay(model)
    return Step(setting, model, lambda: way.loss(views, samples), dict(lr=0.3, momentum=0.9, weight_decay=1e-4))


def moco(setting):
    """mmselfsup's MoCo v2 with the same backbone: neither FPN nor objects."""
    backbone = {**preset('ccop_r50_fpn_800e_coco', setting).model.backbone, 'out_indices': [3]}
    width = 2048 if setting.depth >= 50 else 512
    model = build(
        dict(
            type='MoCo',
            queue_len=setting.queue // setting.batch * setting.batch,  # it asserts so
            backbone=backbone,
            neck=dict(type='MoCoV2Neck', in_channels=width, hid_channels=2048, out_channels=128, with_avg_pool=True),
            head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
        )
    )
    model = placed(model, setting)
    views, samples = batch_of(setting)
    return Step(setting, model, lambda: model.loss(views, samples), dict(lr=0.03, momentum=0.9, weight_decay=1e-4))


VARIANTS = dict(
    floor=Floor, moco=moco, released=released, ccop_reference=ccop_reference, ccop_whole=ccop_whole, ccop=ccop
)


def build(cfg):
    """A part from mmselfsup's registry."""
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        return MODELS.build(cfg)


def autocast(setting):
    """Mixed precision as the setting asks for it."""
    dtype = DTYPES[setting.precision]
    return torch.autocast(setting.device, dtype=dtype, enabled=dtype is not torch.float32)


def placed(module, setting):
    """The module on the device, in training mode, its image encoders compiled if the setting asks for it."""
    module = module.to(setting.device).train()
    if setting.compile:
        for name, part in module.named_modules():
            if name.split('.')[-1].removeprefix('key_') in ('backbone', 'neck') and isinstance(part, nn.Module):
                part.compile(dynamic=False)  # as CompileHook
    return module
