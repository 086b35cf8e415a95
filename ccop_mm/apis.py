"""The four steps as functions: propose, pre-train, transfer, inspect.

The command-line tools under ``tools/`` do the same. The examples below run in order in one folder (tests/test_apis.py):
``my_images/`` contains images, ``instances.json`` is a COCO json with boxes of some of them, and ``my_ccop.py`` is a
pre-training config that names ``my_images/`` and ``proposals.npz``. ``model`` and ``checkpoint`` come from earlier
examples; ``detector_checkpoint`` is a checkpoint of ``my_detector.py``, a detector config. ``my_labels/`` contains
labeled images, listed by ``train.json`` and ``val.json``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccop_mm.engine import launch
from ccop_mm.engine.work_dir import claim_work_dir
from ccop_mm.evaluation import (
    extract_object_features,
    knn_report,
    load_model,
    measure_pointing_accuracy,
)
from ccop_mm.label_efficiency import StudyResult, run_study
from ccop_mm.pretrain import PretrainResult
from ccop_mm.pretrain import pretrain as _pretrain
from ccop_mm.proposals.runner.run import generate_proposals as _generate_proposals
from ccop_mm.proposals.runner.summary import Summary
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import list_images
from ccop_mm.weights import BackbonePretrained, CCOPPretrained, convert, newest_checkpoint

__all__ = [
    'export_checkpoint',
    'extract_object_features',
    'generate_proposals',
    'knn_recall',
    'label_efficiency',
    'load_model',
    'load_pretrained',
    'pointing_accuracy',
    'pretrain',
    'test',
    'train',
]


def generate_proposals(
    source: str | Path,
    out: str | Path,
    image_root: str | Path | None = None,
    workers: int | None = None,
    annotations: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> Summary:
    """Generates object proposals for a set of images and writes a proposals file.

    An interrupted call resumes when it is repeated. The file does not depend on the number of workers.

    Args:
        source (str | Path): Folder of images, COCO json, or text file with one path per line.
        out (str | Path): Proposals file to write (``.npz``).
        image_root (str | Path, optional): Folder that the paths in a json or text file are relative to.
        workers (int, optional): Number of processes; one per core by default.
        annotations (str | Path, optional): COCO json with ground-truth boxes, for ``method='ground-truth'`` only.
        progress (bool): Show a progress bar on stderr.
        overwrite (bool): Replace a finished file that contains proposals of other images or settings.
        **settings: Fields of :class:`ccop_mm.proposals.settings.ProposalSettings`, such as ``max_boxes=50``.

    Returns:
        Summary: Counts, skipped images and times; ``str()`` formats it as a table.

    Raises:
        InputError: The source is invalid, a setting is out of range, ``out`` cannot be written, or it contains
            proposals of other images or settings.

    Example:
        >>> from ccop_mm import apis
        >>> summary = apis.generate_proposals('my_images', 'proposals.npz', progress=False)
        >>> len(summary.records), summary.skipped
        (8, {})
    """
    images = list_images(source, image_root)
    return _generate_proposals(
        images,
        out,
        workers=workers,
        annotations=annotations,
        progress=progress,
        overwrite=overwrite,
        **settings,
    )


def pretrain(
    detector_config: str | Path,
    images: str | Path,
    out: str | Path,
    weights: str | Path | None = None,
    epochs: int | str = 'auto',
    view_size: int | None = None,
    batch_size: int | None = None,
    image_root: str | Path | None = None,
    workers: int | None = None,
    options: dict | None = None,
    dry_run: bool = False,
    progress: bool = True,
    weights_prefix: str | None = None,
    num_gpus: int = 1,
) -> PretrainResult:
    """Pre-trains the backbone and the neck of a detector on images without labels, from its config alone.

    Writes ``proposals.npz``, the pre-training config ``pretrain.py``, the checkpoints in ``pretrain/``, the weights of
    backbone and neck ``weights.pth``, and ``finetune.py``, the detector's own config initialized with them. Finished
    steps are skipped, so the same call resumes after an interruption. Both configs may be edited.

    Args:
        detector_config (str | Path): Config of an mmdet detector: a file, or ``package::path`` such as
            ``mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py``.
        images (str | Path): Folder of images, COCO json, or text file with one path per line.
        out (str | Path): Output folder.
        weights (str | Path, optional): Initial weights: a checkpoint for
            :class:`ccop_mm.weights.EncoderPretrained`, or ``'init_cfg'`` for the one that the detector's own backbone
            starts from. Random weights by default.
        epochs (int | str): Number of epochs; ``'auto'`` chooses it by the number of images
            (:mod:`ccop_mm.pretrain.sizes`).
        view_size (int, optional): Side of the views in pixels; by default 224, or less for small images.
        batch_size (int, optional): Images per step and process, at least 2; by default 32 on a CPU, and up to 256 over
            all processes by the memory of a GPU.
        image_root (str | Path, optional): Folder that the paths in a json or text file are relative to.
        workers (int, optional): Number of processes for proposals and data loading; by default one per core, and at
            most 8 for data loading.
        options (dict, optional): Settings of the pre-training config to override, by dotted key. They are written to
            ``pretrain.py``. Epochs, batch size and work directory have arguments of their own.
        dry_run (bool): Only write the configs, measure one training step and estimate the duration.
        progress (bool): Show a progress bar of the proposals on stderr.
        weights_prefix (str, optional): Prefix of the backbone's keys in ``weights``, such as ``'backbone.'``; only the
            backbone is loaded then. Found from the keys by default.
        num_gpus (int): Number of processes that train. With more than one, the call generates the proposals, writes the
            configs and returns the command that trains; repeating the call after it writes the weights.

    Returns:
        PretrainResult: Paths of the configs, the checkpoint and the weights; ``str()`` formats a summary with the
        command for fine-tuning.

    Raises:
        InputError: The detector, the images, the weights or an argument are invalid or do not fit each other, or
            ``out`` belongs to another call, is in use or cannot be written.
        StoppedBySignal: SIGTERM, SIGUSR1 or Ctrl-C stopped the training, and its state was saved to a checkpoint. A
            ``SystemExit`` (:class:`ccop_mm.engine.hooks.stop_hook.StoppedBySignal`), not an ``Exception``.

    Example:
        >>> result = apis.pretrain(
        ...     'my_detector.py', 'my_images', 'work_dirs/any', epochs=1, batch_size=4, progress=False
        ... )
        >>> result.weights.name, result.finetune_config.name
        ('weights.pth', 'finetune.py')
    """
    return _pretrain(
        detector_config,
        images,
        out,
        weights=weights,
        epochs=epochs,
        view_size=view_size,
        batch_size=batch_size,
        image_root=image_root,
        workers=workers,
        options=options,
        dry_run=dry_run,
        progress=progress,
        weights_prefix=weights_prefix,
        num_gpus=num_gpus,
    )


def train(
    config: str | Path,
    work_dir: str | Path | None = None,
    options: dict | None = None,
    resume: bool | str = False,
    overwrite: bool = False,
    amp: bool = False,
    auto_scale_lr: bool = False,
) -> str:
    """Runs a training config: CCOP pre-training, or fine-tuning of a detector.

    Args:
        config (str | Path): Config file.
        work_dir (str | Path, optional): Work directory; ``work_dirs/<name of the config>`` by default.
        options (dict, optional): Settings to override, by dotted key: ``{'train_cfg.max_epochs': 1}``.
        resume (bool | str): True: resume from the newest readable checkpoint in the work directory, if there is one.
            A string: resume from that checkpoint.
        overwrite (bool): Start a new run in a work directory that contains checkpoints of an earlier run, and delete
            these.
        amp (bool): Use automatic mixed precision (requires a GPU).
        auto_scale_lr (bool): Scale the learning rate by the ratio of the batch size to
            ``auto_scale_lr.base_batch_size``.

    Returns:
        str: Path of the last checkpoint.

    Raises:
        InputError: The config, the data, the weights or the checkpoint to resume from are invalid or do not fit each
            other; another run uses the work directory; it contains checkpoints, and the run neither resumes nor
            overwrites; the disk is full; or no checkpoint was saved.
        StoppedBySignal: SIGTERM, SIGUSR1 or Ctrl-C stopped the run, and its state was saved to a checkpoint. A
            ``SystemExit`` (:class:`ccop_mm.engine.hooks.stop_hook.StoppedBySignal`), not an ``Exception``.

    Example:
        >>> checkpoint = apis.train('my_ccop.py', work_dir='work_dirs/my_ccop')
        >>> checkpoint.endswith('epoch_1.pth')
        True
    """
    cfg = launch.load_config(config, work_dir, options, amp=amp, auto_scale_lr=auto_scale_lr)
    checkpoint = resume if isinstance(resume, str) else 'auto' if resume else None
    with claim_work_dir(cfg, checkpoint, overwrite):
        launch.set_resume(cfg, checkpoint)
        runner = launch.train(cfg, overwrite)
    newest = newest_checkpoint.find_newest(runner.work_dir)
    if newest is None:
        raise InputError(f'{config}: the run saved no checkpoint in {runner.work_dir}; set default_hooks.checkpoint')
    return newest[0]


def test(
    config: str | Path, checkpoint: str, work_dir: str | Path | None = None, options: dict | None = None
) -> dict[str, float]:
    """Evaluates a detector on the test dataset of its config.

    Args:
        config (str | Path): Config file of the detector.
        checkpoint (str): Checkpoint of the detector, a file or URL.
        work_dir (str | Path, optional): Work directory; ``work_dirs/<name of the config>`` by default.
        options (dict, optional): Settings to override, by dotted key.

    Returns:
        dict[str, float]: Metrics, such as ``coco/bbox_mAP``.

    Raises:
        InputError: The checkpoint or the data is missing, they do not fit the config, or it has no test dataset.

    Example:
        >>> metrics = apis.test('my_detector.py', detector_checkpoint, work_dir='work_dirs/my_detector')
        >>> 0 <= metrics['coco/bbox_mAP_50'] <= 1
        True
    """
    return launch.test(launch.load_config(config, work_dir, options), checkpoint)


def load_pretrained(detector: nn.Module, checkpoint: str, backbone_only: bool = False) -> nn.Module:
    """Loads pre-trained weights into an mmdet detector: all keys of its backbone and FPN, or none.

    Args:
        detector (nn.Module): Detector with a ResNet and, unless ``backbone_only``, an FPN.
        checkpoint (str): Checkpoint of a CCOP pre-training, or any format that the tools import; a file or URL.
        backbone_only (bool): Load the backbone only, from a checkpoint without an FPN (ImageNet, MoCo v2).

    Returns:
        nn.Module: ``detector``.

    Raises:
        InputError: The checkpoint cannot be read, or keys are missing, unused or of another shape.

    Example:
        >>> detector = apis.load_model('my_detector.py')
        >>> apis.load_pretrained(detector, checkpoint) is detector
        True
    """
    initializer = BackbonePretrained(checkpoint) if backbone_only else CCOPPretrained(checkpoint)
    initializer(detector)
    return detector


def export_checkpoint(checkpoint: str | Path, out: str | Path, to: str = 'ccop') -> str:
    """Writes the backbone and the FPN of a checkpoint in another format.

    Args:
        checkpoint (str | Path): Checkpoint to read.
        out (str | Path): File to write: ``.pth``, ``.pt`` or ``.safetensors``.
        to (str): ``'ccop'`` (mmdet's names), ``'torchvision'``, ``'timm'`` or ``'detectron2'``.

    Returns:
        str: One line that describes the written file.

    Raises:
        InputError: The checkpoint cannot be read, is incomplete or of an unknown format, or ``to`` is unknown.

    Example:
        >>> print(apis.export_checkpoint(checkpoint, 'backbone.safetensors', to='torchvision'))  # doctest: +ELLIPSIS
        backbone.safetensors: ResNet-18...
    """
    return convert(checkpoint, to, out)


def knn_recall(
    model: nn.Module,
    annotation_file: str | Path,
    image_root: str | Path,
    size: int = 224,
    stage: int | str = -1,
    max_objects: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Computes object kNN recall of backbone features and object embeddings (paper, Table 9).

    Args:
        model (nn.Module): From :func:`load_model`.
        annotation_file (str | Path): COCO json with boxes.
        image_root (str | Path): Folder that its file names are relative to.
        size (int): Short side in pixels to which images are resized.
        stage (int | str): Backbone stage: its name, such as ``'C4'``, or its index; -1 is the last.
        max_objects (int, optional): Approximate number of objects to use, a random subset of the images.
        device (torch.device | str, optional): Device to run on; the model's own by default.

    Returns:
        dict[str, float]: ``num_objects``, ``num_classes``, ``chance``, and ``backbone@k`` and ``embedding@k`` in [0, 1]
        for several k.

    Raises:
        InputError: The annotations or images are invalid, or there are fewer than two objects.

    Example:
        >>> recall = apis.knn_recall(model, 'instances.json', 'my_images', size=64)
        >>> recall['num_objects'], recall['num_classes']
        (16, 2)
    """
    features: dict[str, Tensor] = extract_object_features(
        model, annotation_file, image_root, size=size, stage=stage, max_objects=max_objects, device=device
    )
    return knn_report(features)


def pointing_accuracy(
    model: nn.Module,
    annotation_file: str | Path,
    image_root: str | Path,
    size: int = 224,
    max_images: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Computes pointing game accuracy: how often the most similar cell of another view lies in the same object.

    Args:
        model (nn.Module): From :func:`load_model`.
        annotation_file (str | Path): COCO json with boxes.
        image_root (str | Path): Folder that its file names are relative to.
        size (int): Side of the views in pixels.
        max_images (int, optional): Number of images to use, a random subset.
        repeats (int): Pairs of views per image.
        seed (int): Seed of the views and of the subset.
        device (torch.device | str, optional): Device to run on; the model's own by default.

    Returns:
        dict[str, float]: Accuracy per level in [0, 1], chance, and bootstrap intervals.

    Raises:
        InputError: The annotations or images are invalid.

    Example:
        >>> accuracy = apis.pointing_accuracy(model, 'instances.json', 'my_images', size=64)
        >>> 0 <= accuracy['C4'] <= 1
        True
    """
    result = measure_pointing_accuracy(
        model, annotation_file, image_root, size=size, max_images=max_images, repeats=repeats, seed=seed, device=device
    )
    return result.report()


def label_efficiency(
    detector_config: str | Path,
    weights: Sequence[str],
    out: str | Path,
    shares: Sequence[float] = (10, 100),
    num_images: Sequence[int] = (),
    seeds: Sequence[int] = (0, 1, 2),
    lr_factors: Sequence[float] = (0.3, 1, 3),
    extend: bool = False,
    class_agnostic: bool = False,
    iterations: Sequence[int] = (),
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    val_annotations: str | Path | None = None,
    val_images: str | Path | None = None,
    jobs: int = 1,
    options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> StudyResult:
    """Trains a detector from several initial weights on parts of its labels, and measures its AP.

    For each initial weights and each share, the learning rate is chosen with the first seed on images that are not
    measured. All layers are trained. Each run is a process of its own; finished runs are not repeated, so the same call
    resumes after an interruption. Writes ``results.json``, ``results.md`` and ``results.png``.

    Args:
        detector_config (str | Path): Config of an mmdet detector: a file, or ``mmdet::FOLDER/NAME.py``.
        weights (Sequence[str]): ``'random'``, ``'NAME=init_cfg'`` (what the config loads) or ``'NAME=FILE'`` each; with
            ``{seed}`` in FILE, one file per seed. Differences are from the first.
        out (str | Path): Output folder.
        shares (Sequence[float]): Shares of the training images in percent.
        num_images (Sequence[int]): Numbers of training images instead of ``shares``.
        seeds (Sequence[int]): Random seeds.
        lr_factors (Sequence[float]): Multiples of the detector's learning rate to choose from; a single one is used
            without a choice.
        extend (bool): Whether one more learning rate is tried beyond an edge of the grid that is the best.
        class_agnostic (bool): Whether all boxes become one class.
        iterations (Sequence[int]): Length of the runs, one for all shares or one per share; by default the epochs of
            the config, from 300 to 1,000 iterations.
        annotations (str | Path, optional): COCO json of the training data instead of that of the config. With it, the
            next three are required.
        images (str | Path, optional): Folder of its images.
        val_annotations (str | Path, optional): COCO json of the images that AP is measured on.
        val_images (str | Path, optional): Folder of these images.
        jobs (int): Number of runs at a time.
        options (Mapping, optional): Settings of the detector's config to override, by dotted key.
        dry_run (bool): Only check everything, and estimate the duration.

    Returns:
        StudyResult: Metrics of all runs; ``str()`` formats the tables. ``failed`` lists the runs that failed.

    Raises:
        InputError: The config, the data, the weights or an argument are invalid or do not fit each other, or ``out``
            belongs to another study or is in use.

    Example:
        >>> files = dict(annotations='my_labels/train.json', images='my_labels')
        >>> files |= dict(val_annotations='my_labels/val.json', val_images='my_labels')
        >>> weights = ['random', f'ccop={checkpoint}']
        >>> result = apis.label_efficiency('my_detector.py', weights, 'work_dirs/labels', dry_run=True, **files)
        >>> result.names, [share.num_images for share in result.shares]
        (['random', 'ccop'], [1, 12])
    """
    return run_study(
        detector_config,
        weights,
        out,
        shares=shares,
        num_images=num_images,
        seeds=seeds,
        lr_factors=lr_factors,
        extend=extend,
        class_agnostic=class_agnostic,
        iterations=iterations,
        annotations=annotations,
        images=images,
        val_annotations=val_annotations,
        val_images=val_images,
        jobs=jobs,
        options=options,
        dry_run=dry_run,
    )
