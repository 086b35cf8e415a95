"""The training steps that step.py measures; all have equal backbones and equal batches."""

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ccop_mm  # noqa: F401  must be first: it makes mmselfsup importable

# isort: split
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmselfsup.registry import MODELS
from mmselfsup.structures import SelfSupDataSample
from step_reference_implementation import ReferenceImplementation
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'ccop'
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@dataclass(frozen=True)
class Setting:
    """Sizes of a step.

    Attributes:
        depth (int): Depth of the ResNet.
        size (int): Side of a view in pixels.
        batch (int): Images per batch; each has two views.
        objects (int): Objects per image.
        jitter (int): Jittered boxes per object, J.
        queue (int): Length of both queues, K.
        precision (str): Key of :data:`DTYPES`; mixed precision unless ``'fp32'``.
        channels_last (bool): Whether the image encoders run in channels-last memory format.
        compile (bool): Whether the image encoders are compiled.
        device (str): ``'cpu'`` or ``'cuda'``.
    """

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


def load_preset(name: str, setting: Setting) -> Config:
    """Reads a pre-training config of this repository and applies the sizes of a setting."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    changes: dict[str, Any] = {
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


def make_batch(setting: Setting, seed: int = 0) -> tuple[list[Tensor], list[SelfSupDataSample]]:
    """Creates two views of random values on the device, and boxes on the CPU whose sides cover all pyramid levels."""
    generator = torch.Generator().manual_seed(seed)
    size, samples = setting.size, []

    def boxes() -> Tensor:
        sides = 16 * (size / 16) ** torch.rand(setting.objects, 2, generator=generator)  # from 16 px to the whole view
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
    """A training step, from the network's input to the updated weights.

    Args:
        setting (Setting): Sizes, precision and device.
        module (nn.Module): Model to train.
        forward (Callable): Returns a dict of losses; values whose names contain "loss" are summed.
        optimizer (dict): Arguments of ``torch.optim.SGD``.

    Attributes:
        clock (step_meters.Clock, optional): Measures the stages of the step.
    """

    def __init__(
        self,
        setting: Setting,
        module: nn.Module,
        forward: Callable[[], dict[str, Tensor]] | None,
        optimizer: dict[str, Any],
    ) -> None:
        self.setting, self.module, self.clock = setting, module, None
        self._forward = forward
        self.optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], **optimizer)
        self._scaler = torch.amp.GradScaler(setting.device, enabled=setting.precision == 'fp16')

    def __call__(self) -> None:
        """Runs one step."""
        with autocast(self.setting):
            losses = self._forward()
        total = self._scaler.scale(sum(value for name, value in losses.items() if 'loss' in name))
        with self._stage('backward'):
            total.backward()
        with self._stage('optimizer'):
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _stage(self, name: str) -> AbstractContextManager:
        return self.clock.stage(name) if self.clock else contextlib.nullcontext()

    @property
    def resident(self) -> int:
        """Bytes that remain allocated between steps: weights, buffers and optimizer state."""
        tensors = [*self.module.parameters(), *self.module.buffers(), *tree_leaves(list(self.optimizer.state.values()))]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


class Floor(Step):
    """The two encoders only: key forward, query forward, query backward from fixed gradients of P2 to P5."""

    def __init__(self, setting: Setting) -> None:
        cfg = load_preset('ccop_r50_fpn_800e_coco', setting)
        module = nn.ModuleDict(dict(backbone=build_module(cfg.model.backbone), neck=build_module(cfg.model.neck)))
        module['key_backbone'], module['key_neck'] = (
            copy.deepcopy(module[name]).requires_grad_(False) for name in ('backbone', 'neck')
        )
        super().__init__(setting, prepare(module, setting), None, dict(lr=0.0))
        self._views, _ = make_batch(setting)
        self._gradients: list[Tensor] | None = None

    def __call__(self) -> None:
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


def ccop(setting: Setting, name: str = 'ccop_r50_fpn_800e_coco', **changes: Any) -> Step:
    """Builds the step of a CCOP preset with the preset's optimizer, halfway through the curriculum."""
    cfg = load_preset(name, setting)
    cfg.model.update(changes)
    model = prepare(build_module(cfg.model), setting)
    model.box_jitter.progress = 0.5
    views, samples = make_batch(setting)
    optimizer = {key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != 'type'}
    return Step(setting, model, lambda: model.loss(views, samples), optimizer)


def ccop_reference(setting: Setting) -> Step:
    """Builds the step of CCOP with the ``reference`` preset."""
    return ccop(setting, 'ccop-reference_r50_fpn_800e_coco')


def ccop_whole(setting: Setting) -> Step:
    """Builds the step of CCOP with batch norm statistics over the whole batch, like the floor in one process.

    By default CCOP splits the batch into groups there, because shared statistics give away the positive pairs.
    """
    return ccop(setting, key_batch='none')


def released(setting: Setting) -> Step:
    """Builds the step of the reference implementation; see step_reference_implementation.py."""
    cfg = load_preset('ccop-reference_r50_fpn_800e_coco', setting)
    model = prepare(build_module(cfg.model), setting)
    model.box_jitter.progress = 0.5
    views, samples = make_batch(setting)
    reference = ReferenceImplementation(model)
    return Step(setting, model, lambda: reference.loss(views, samples), dict(lr=0.3, momentum=0.9, weight_decay=1e-4))


def moco(setting: Setting) -> Step:
    """Builds the step of mmselfsup's MoCo v2 with the same backbone; it has no FPN and no objects."""
    backbone = {**load_preset('ccop_r50_fpn_800e_coco', setting).model.backbone, 'out_indices': [3]}
    width = 2048 if setting.depth >= 50 else 512
    model = build_module(
        dict(
            type='MoCo',
            queue_len=setting.queue // setting.batch * setting.batch,  # MoCo requires a multiple of the batch size
            backbone=backbone,
            neck=dict(type='MoCoV2Neck', in_channels=width, hid_channels=2048, out_channels=128, with_avg_pool=True),
            head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
        )
    )
    model = prepare(model, setting)
    views, samples = make_batch(setting)
    return Step(setting, model, lambda: model.loss(views, samples), dict(lr=0.03, momentum=0.9, weight_decay=1e-4))


VARIANTS: dict[str, Callable[[Setting], Step]] = dict(
    floor=Floor, moco=moco, released=released, ccop_reference=ccop_reference, ccop_whole=ccop_whole, ccop=ccop
)


def build_module(cfg: dict[str, Any]) -> nn.Module:
    """Builds a module from mmselfsup's registry."""
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        return MODELS.build(cfg)


def autocast(setting: Setting) -> torch.autocast:
    """Returns the autocast context of the setting's precision."""
    dtype = DTYPES[setting.precision]
    return torch.autocast(setting.device, dtype=dtype, enabled=dtype is not torch.float32)


def prepare(module: nn.Module, setting: Setting) -> nn.Module:
    """Moves a module to the device, sets training mode, and compiles its image encoders if the setting says so."""
    module = module.to(setting.device).train()
    if setting.compile:
        for name, part in module.named_modules():
            if name.split('.')[-1].removeprefix('key_') in ('backbone', 'neck') and isinstance(part, nn.Module):
                part.compile(dynamic=False)  # as CompileHook does
    return module
