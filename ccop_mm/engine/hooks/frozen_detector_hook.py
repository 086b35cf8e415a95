"""Measures the box AP of a light detection head on the frozen features of the network during pre-training."""

from collections.abc import Sequence

from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.engine.hooks.periodic_probe_hook import PeriodicProbeHook
from ccop_mm.evaluation.frozen_detector import (
    TASKS,
    FrozenDetectorData,
    measure_frozen_detector,
    read_frozen_detector_data,
)
from ccop_mm.evaluation.frozen_detector_features import SOURCES
from ccop_mm.evaluation.frozen_detector_head import HeadRecipe
from ccop_mm.utils.model import unwrap_model


@HOOKS.register_module()
class FrozenDetectorHook(PeriodicProbeHook):
    """Trains a light detection head on the frozen features of the network every few epochs and logs its box AP.

    The results are logged and passed to the visualizer's backends (local json, TensorBoard, W&B):
    ``frozen_detector/AP``, ``frozen_detector/AP50`` and ``frozen_detector/AP75`` with all boxes as one class, and
    ``frozen_detector/class_AP`` and so on for the task ``classes``. All values are fractions.

    Training is not affected: modules return to their previous mode, and the global random number generators are not
    changed. The probe runs on the first rank while the others wait: minutes for a few thousand images on a CPU, so
    ``interval`` should be long. The features of all images are kept in memory meanwhile. Add the hook to
    ``default_hooks``; a ``custom_hooks`` list would replace that of the base config, and with it the curriculum::

        default_hooks = dict(
            frozen_detector=dict(
                type='FrozenDetectorHook',
                train_ann_file='instances_train.json',
                train_img_root='train/',
                ann_file='instances_val.json',
                img_root='val/',
            )
        )

    Args:
        train_ann_file (str): COCO json with the boxes that the head is trained on.
        train_img_root (str): Directory of its images. They may be part of the training data.
        ann_file (str): COCO json with the boxes that AP is measured on.
        img_root (str): Directory of its images, which should not be part of the training data.
        interval (int): Epochs, or iterations, between two measurements. AP is also measured at the end of the training.
        by_epoch (bool): Whether ``interval`` counts epochs.
        size (int): Short side of the images in pixels.
        features (str): ``'backbone'`` to train on C3 to C5, ``'neck'`` to train on P3 to P5.
        tasks (Sequence[str]): Any of ``'objects'`` and ``'classes'``.
        seed (int): Random seed of the head.
        epochs (int, optional): Epochs of training the head; by default 8, and more for few images.
        flip (bool): Whether to train on mirrored images, too.
        max_train_images (int, optional): Train the head on a fixed random subset of this many images.
        max_images (int, optional): Measure AP on a fixed random subset of this many images.
        max_memory (float): Maximum memory for the features in GB.
        batch_size (int): Images per batch when the features are computed.
        at_start (bool): Whether to measure before the first iteration, too. Random weights are the baseline for all
            later results.

    Raises:
        ValueError: An argument is out of range.
        InputError: The annotations cannot be used. Raised before training.
    """

    title = 'frozen detector'
    prefix = 'frozen_detector'

    def __init__(
        self,
        train_ann_file: str,
        train_img_root: str,
        ann_file: str,
        img_root: str,
        interval: int = 50,
        by_epoch: bool = True,
        size: int = 224,
        features: str = 'backbone',
        tasks: Sequence[str] = ('objects',),
        seed: int = 0,
        epochs: int | None = None,
        flip: bool = True,
        max_train_images: int | None = None,
        max_images: int | None = None,
        max_memory: float = 8.0,
        batch_size: int = 32,
        at_start: bool = True,
    ) -> None:
        if features not in SOURCES or not tasks or not set(tasks) <= set(TASKS):
            raise ValueError(
                f'features must be {" or ".join(SOURCES)} and tasks among {", ".join(TASKS)}, got {features} and '
                f'{", ".join(tasks) or "none"}'
            )
        if interval < 1 or size < 1:
            raise ValueError(f'interval and size must be at least 1, got interval={interval}, size={size}')
        super().__init__(interval, by_epoch, at_start)
        self.files = (train_ann_file, train_img_root, ann_file, img_root)
        self.limits = (max_train_images, max_images)
        self.settings = dict(
            size=size,
            features=features,
            tasks=tuple(tasks),
            seeds=(seed,),
            recipe=HeadRecipe() if epochs is None else HeadRecipe(epochs=epochs, min_steps=0),
            flip=flip,
            max_memory=max_memory,
            batch_size=batch_size,
        )
        self._data: FrozenDetectorData | None = None

    def read_annotations(self) -> None:
        """Reads the annotations."""
        self._data = read_frozen_detector_data(*self.files, *self.limits)

    def measure(self, runner: Runner) -> dict[str, float]:
        """Returns AP, AP50 and AP75 of the current weights, and the same with the prefix ``class_`` for the classes."""
        result = measure_frozen_detector(unwrap_model(runner.model), self._data, **self.settings)
        return {
            f'{"class_" if task == "classes" else ""}{name}': values[0]
            for task, metrics in result.metrics.items()
            for name, values in metrics.items()
        }
