"""Writes the config of a pre-training and that of the fine-tuning after it, as files to read and edit."""

import keyword
import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from ccop_mm.models.encoder_layout import EncoderLayout
from ccop_mm.pretrain.detector_config import Detector
from ccop_mm.pretrain.sizes import Sizes

#: Files in the output folder, and its path as mmengine replaces it in a config. The folder can therefore be moved.
FOLDER = '{{ fileDirname }}'
PROPOSALS, WORK_DIR, WEIGHTS = 'proposals.npz', 'pretrain', 'weights.pth'

#: Longest line of a written config.
LINE_LENGTH = 120

#: Width of the projectors' hidden layers: that of the backbone's last map, within these bounds. 2,048 is the paper's
#: for ResNet-50; with it, the object projector of a narrow network would cost several times as much as the network.
MIN_HIDDEN, MAX_HIDDEN = 512, 2048
#: RoIAlign returns 7 x 7 bins.
ROI_BINS = 49
#: Proposals per image in each step: about 12 are visible in both views, as in the paper (docs/design.md).
NUM_PROPOSALS = 48

#: Checkpoints are saved after about this number of steps, and at least 10 times.
CHECKPOINT_STEPS, MIN_CHECKPOINTS = 500, 10

#: Comments on parts of the pre-training config, by dotted path.
COMMENTS = {
    'work_dir': 'checkpoints and logs',
    'model.data_preprocessor': "The network receives images as the detector's data_preprocessor prepares them.",
    'model.backbone': "The detector's backbone and neck.",
    'model.object_pool': 'Boxes up to 12 x stride belong to a level, larger ones to the last. Coarser levels of the '
    'neck have fewer than 5 x 5 cells in a view and are not trained.',
    'model.image_head': 'The losses of the paper (arXiv 2111.13651), Eq. 1 and 3, and the noise of the key boxes.',
    'model.queue_len': '0.55 epochs, as in the paper; a longer queue would contain earlier keys of the same image',
    'model.momentum': 'm of Eq. 2, the moving average of the key encoder',
    'model.init_cfg': 'weights that the pre-training starts from',
    'train_dataloader.batch_size': 'per process',
    'train_dataloader.dataset.num_proposals': 'per image, of which about a quarter is visible in both views',
    'auto_scale_lr': 'total batch size that the learning rate is for, see --auto-scale-lr of tools/train.py',
    'param_scheduler': 'the factors are multiplied; T_max is the number of epochs',
    'randomness': 'a resumed run needs the same seed',
}


@dataclass(frozen=True)
class ImageSource:
    """Where a dataset finds its images.

    Args:
        folder (str): Absolute path that the file names are relative to.
        list_file (str): COCO json or text file that lists the images; '' for all images of the folder.
    """

    folder: str
    list_file: str = ''


def pretraining_settings(
    detector: Detector,
    layout: EncoderLayout,
    sizes: Sizes,
    view_size: int,
    images: ImageSource,
    init_cfg: Mapping[str, Any] | None,
    num_workers: int,
    pin_memory: bool,
    num_gpus: int = 1,
) -> dict[str, Any]:
    """Returns the config of a pre-training: the paper's recipe with the detector's network and the chosen sizes.

    Args:
        detector (Detector): From :func:`ccop_mm.pretrain.detector_config.read_detector`.
        layout (EncoderLayout): Layout of its backbone and neck.
        sizes (Sizes): From :func:`ccop_mm.pretrain.sizes.choose_sizes`.
        view_size (int): Side of the views in pixels.
        images (ImageSource): Images.
        init_cfg (Mapping, optional): Initializer of the model; random weights by default.
        num_workers (int): Processes of the data loader.
        pin_memory (bool): Whether the data loader pins memory, for a GPU.
        num_gpus (int): Number of processes, which share the batch of ``sizes``.
    """
    strides = layout.pooled_strides(view_size)
    hidden = min(max(layout.image_channels, MIN_HIDDEN), MAX_HIDDEN)
    object_channels = layout.object_channels(strides)
    model = dict(
        type='CCOP',
        data_preprocessor=dict(**detector.data_preprocessor, non_blocking=pin_memory),
        backbone=detector.backbone,
        neck=detector.neck,
        image_projector=dict(type='ProjectionMLP', in_channels=layout.image_channels, hid_channels=hidden),
        object_projector=dict(type='ProjectionMLP', in_channels=object_channels * ROI_BINS, hid_channels=hidden),
        object_pool=dict(strides=strides),
        image_head=dict(type='ImageContrastHead', temperature=0.2),
        object_head=dict(type='ObjectContrastHead', temperature=0.2),
        intra_loss=dict(type='IntraImageLoss', alpha=0.4, iou_thr=0.05, mode='hinge'),
        box_jitter=dict(type='SCSBoxJitter', num_jitter=10, noise=(0.3, 1.0), min_iou=(0.8, 0.3), anchor='top_left'),
        queue_len=sizes.queue_len,
        object_queue_len=sizes.object_queue_len,
        momentum=sizes.momentum,
    )
    if init_cfg is not None:
        model['init_cfg'] = dict(init_cfg)
    return dict(
        default_scope='mmselfsup',
        custom_imports=_custom_imports(detector),
        work_dir=f'{FOLDER}/{WORK_DIR}',
        model=model,
        **_data_settings(sizes.batch_size // num_gpus, view_size, images, num_workers, pin_memory),
        **_schedule_settings(sizes),
        **_runtime_settings(sizes),
    )


def _custom_imports(detector: Detector) -> dict[str, Any]:
    imports = ['ccop_mm', *(module for module in detector.imports if module != 'ccop_mm')]
    return dict(imports=imports, allow_failed_imports=False)


def _data_settings(
    batch_size: int, view_size: int, images: ImageSource, num_workers: int, pin_memory: bool
) -> dict[str, Any]:
    view_pipeline = [
        dict(type='ObjectResizedCrop', size=view_size, scale=(0.2, 1.0)),
        dict(
            type='RandomApply',
            transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
            prob=0.8,
        ),
        dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
        dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
        dict(type='ObjectFlip', prob=0.5),
    ]
    dataset = dict(
        type='ProposalDataset',
        ann_file=images.list_file,
        data_prefix=dict(img_path=images.folder),
        proposal_file=f'{FOLDER}/{PROPOSALS}',
        num_proposals=NUM_PROPOSALS,
        pipeline=[
            dict(type='LoadUnlabeledImage', decode=False),
            dict(type='SplitTwoObjectViews', transforms=view_pipeline),
            dict(type='PackObjectViews', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
        ],
    )
    loader = dict(
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        drop_last=True,
        sampler=dict(type='EpochIndexSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dataset,
    )
    return dict(train_dataloader=loader)


def _schedule_settings(sizes: Sizes) -> dict[str, Any]:
    is_sgd = sizes.optimizer == 'SGD'
    momentum = dict(momentum=0.9) if is_sgd else {}
    optimizer = dict(type=sizes.optimizer, lr=sizes.lr, **momentum, weight_decay=sizes.weight_decay, fused=True)
    # Without batch normalization, as for MoBY.
    exceptions = {} if is_sgd else dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
    cosine = dict(type='CosineAnnealingLR', T_max=sizes.epochs, eta_min=0.0, by_epoch=True, convert_to_iter_based=True)
    warmup = dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=sizes.warmup)
    return dict(
        optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer, **exceptions),
        auto_scale_lr=dict(enable=False, base_batch_size=sizes.batch_size),
        param_scheduler=[warmup, cosine] if sizes.warmup else [cosine],
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=sizes.epochs),
        randomness=dict(seed=0),
    )


def _runtime_settings(sizes: Sizes) -> dict[str, Any]:
    interval = min(CHECKPOINT_STEPS, sizes.steps // MIN_CHECKPOINTS) * sizes.epochs // sizes.steps
    return dict(
        default_hooks=dict(
            runtime_info=dict(type='RuntimeInfoHook'),
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=50),
            param_scheduler=dict(type='ParamSchedulerHook'),
            checkpoint=dict(type='SafeCheckpointHook', interval=max(interval, 1), max_keep_ckpts=2),
            sampler_seed=dict(type='IterationSeedHook'),
            accumulation=dict(type='GradientAccumulationHook'),
        ),
        custom_hooks=[
            dict(type='SpatialCurriculumHook'),
            dict(type='FiniteLossHook'),
            dict(type='TrainingHealthHook'),
            dict(type='ViewStatisticsHook'),
        ],
        env_cfg=dict(
            cudnn_benchmark=True,
            mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
            dist_cfg=dict(backend='nccl', timeout=3600),
        ),
        log_processor=dict(window_size=10),
        visualizer=dict(type='SelfSupVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'),
        log_level='INFO',
    )


def format_pretraining(
    settings: Mapping[str, Any],
    detector: Detector,
    sizes: Sizes,
    notes: list[str],
    options: Iterable[str] = (),
    num_gpus: int = 1,
) -> str:
    """Formats the config of a pre-training as a Python file with comments.

    Args:
        settings (Mapping): From :func:`pretraining_settings`, possibly with options applied.
        detector (Detector): The detector.
        sizes (Sizes): The sizes, for a comment.
        notes (list[str]): Further choices to explain at the beginning.
        options (Iterable[str]): Dotted paths that options have set.
        num_gpus (int): Number of processes.
    """
    comments = dict(COMMENTS)
    for change in detector.changes:
        comments[f'model.{change.path}'] = f'{change.old!r} in the detector; {change.reason}'
    titles = {
        'model': f'{detector.title}.',
        'train_dataloader': "The paper's recipe: two MoCo v2 views of each image, and the boxes visible in both.",
        'optim_wrapper': f'{sizes.length}.',
        'default_hooks': 'Hooks and logs.',
    }
    for option in options:  # the comments explain the settings that were chosen
        related = [path for path in comments if f'{path}.'.startswith(f'{option}.') or option.startswith(f'{path}.')]
        comments = {path: text for path, text in comments.items() if path not in related}
        comments[option] = 'set by --cfg-options'
        if option.startswith('train_dataloader.dataset'):
            titles.pop('train_dataloader', None)
    header = [
        *_wrap(f'# CCOP pre-training of the backbone and the neck of {detector.reference}.', '# '),
        '# This file may be edited: tools/pretrain.py then keeps and uses it.',
        *_describe_processes(sizes, num_gpus),
        *(line for note in notes for line in _wrap(f'# {note[0].upper()}{note[1:]}.', '# ')),
    ]
    lines = header
    for name, value in settings.items():
        if name in titles:
            lines += ['', *_wrap(f'# {titles[name]}', '# ')]
        lines += _format_setting(name, value, name, 0, comments, ' = ', '')
    return '\n'.join(lines) + '\n'


def _describe_processes(sizes: Sizes, num_gpus: int) -> list[str]:
    if num_gpus == 1:
        return []
    return [
        f'# The sizes are for {num_gpus} processes of {sizes.batch_size // num_gpus} images each:',
        f'#     tools/dist_train.sh THIS_FILE {num_gpus} --resume',
    ]


def format_finetuning(detector: Detector) -> str:
    """Formats the config of the fine-tuning: the detector's own, initialized with the pre-trained weights."""
    init_cfg = dict(type='CCOPPretrained', checkpoint=f'{FOLDER}/{WEIGHTS}')
    overrides = {name: dict(value) for name, value in detector.overrides.items()}
    model = {**overrides, 'init_cfg': {**overrides.get('init_cfg', {}), **init_cfg}}
    settings: dict[str, Any] = dict(custom_imports=_custom_imports(detector), model=model)
    comments = {
        'model.backbone': 'not loaded, since the line below replaces it',
        'model.init_cfg': 'loads backbone and neck, completely or not at all, and logs the number of keys',
    }
    if detector.load_from:
        settings['load_from'] = None
        comments['load_from'] = f'{detector.load_from} in the detector, which would replace the pre-trained weights'
    if detector.content is None:
        settings = dict(_base_=[detector.reference], **settings)
    else:
        whole = Config(detector.content)
        whole.merge_from_dict(settings)
        settings = whole.to_dict()
    lines = [
        '# The detector with its pre-trained backbone and neck, written by tools/pretrain.py. This file may be edited,',
        '# for example to set the datasets and the classes.',
    ]
    for name, value in settings.items():
        lines += _format_setting(name, value, name, 0, comments, ' = ', '')
    return '\n'.join(lines) + '\n'


def _format_setting(
    name: str, value: Any, path: str, indent: int, comments: Mapping[str, str], sign: str, end: str
) -> list[str]:
    """Formats ``name = value``, or ``name=value,`` in a ``dict(...)``, with its comment, as lines."""
    lines = _format(value, path, indent, comments, len(name) + len(sign) + len(end))
    lines[0] = f'{" " * indent}{name}{sign}{lines[0]}'
    lines[-1] += end
    comment = comments.get(path)
    if comment is None:
        return lines
    if len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= LINE_LENGTH:
        return [f'{lines[0]}  # {comment}']
    return [*_wrap(f'{" " * indent}# {comment}', f'{" " * indent}# '), *lines]


def _format(value: Any, path: str, indent: int, comments: Mapping[str, str], around: int) -> list[str]:
    """Formats a value as lines; the first has no indentation.

    Args:
        value (Any): Number, text, dict, list or tuple.
        path (str): Its dotted path.
        indent (int): Indentation of the statement.
        comments (Mapping): Comments by path.
        around (int): Characters before and after the value in its line.
    """
    inline = _inline(value)
    is_commented = any(key.startswith(f'{path}.') for key in comments)
    is_short = indent + around + len(inline) <= LINE_LENGTH
    if not isinstance(value, (dict, list, tuple)) or not value or (is_short and not is_commented):
        return [inline]
    items = value.items() if isinstance(value, dict) else [(number, item) for number, item in enumerate(value)]
    lines = []
    for key, item in items:
        name, sign = _key(value, key)
        lines += _format_setting(name, item, f'{path}.{key}', indent + 4, comments, sign, ',')
    opening, closing = _brackets(value)
    return [opening, *lines, f'{" " * indent}{closing}']


def _inline(value: Any) -> str:
    """Formats a value in one line."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if not isinstance(value, (dict, list, tuple)):
        return repr(value)
    opening, closing = _brackets(value)
    if isinstance(value, dict):
        items = [''.join(_key(value, key)) + _inline(item) for key, item in value.items()]
    else:
        items = [_inline(item) for item in value]
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    return f'{opening}{", ".join(items)}{comma}{closing}'


def _key(container: Any, key: Any) -> tuple[str, str]:
    """Returns how a key of a container is written, and the sign after it."""
    if not isinstance(container, dict):
        return '', ''
    return (key, '=') if _uses_keywords(container) else (repr(key), ': ')


def _brackets(value: Any) -> tuple[str, str]:
    if isinstance(value, dict):
        return ('dict(', ')') if _uses_keywords(value) else ('{', '}')
    return ('[', ']') if isinstance(value, list) else ('(', ')')


def _uses_keywords(value: dict) -> bool:
    """Returns whether a dict can be written as ``dict(key=...)``."""
    return all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)


def _wrap(text: str, prefix: str) -> list[str]:
    """Wraps a comment into lines."""
    return textwrap.wrap(text, LINE_LENGTH, subsequent_indent=prefix, break_long_words=False, break_on_hyphens=False)
