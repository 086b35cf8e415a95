"""Evaluates the features of the network during pre-training."""

import logging
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS
from torch import nn

from ccop_mm.evaluation import extract_object_features, knn_report, measure_pointing_accuracy
from ccop_mm.evaluation.feature_maps import STAGES
from ccop_mm.utils.coco_json import read_annotated_images
from ccop_mm.utils.model import unwrap_model

PROBES = ('pointing', 'knn')


@HOOKS.register_module()
class ProbeHook(Hook):
    """Measures pointing game accuracy and object kNN recall on annotated images every few epochs.

    The results are logged and passed to the visualizer's backends (local json, TensorBoard, W&B) under ``probe/...``:

    - ``probe/C4``, ``probe/P2`` and so on are pointing game accuracies (Zhang et al., *Top-down Neural Attention by
      Excitation Backprop*, ECCV 2016); ``probe/chance`` is the accuracy of a random point.
    - ``probe/knn_C5@10`` and ``probe/knn_embedding@10`` are kNN recalls; ``probe/knn_chance`` is the recall of random
      neighbors.

    All values are fractions. Training is not affected: modules return to their previous mode, and the global random
    number generators are not used. Probes run on the first rank while the others wait. ``tools/train.py`` adds the hook
    if the config has the key ``probe`` with its arguments; a ``custom_hooks`` list would replace that of the base
    config, and with it the curriculum::

        probe = dict(ann_file='instances_val.json', img_root='val/', size=224)

    Args:
        ann_file (str): COCO json with boxes. Its images should not be part of the training data.
        img_root (str): Directory of the images in ``ann_file``.
        interval (int): Epochs, or iterations, between two probes. Probes also run at the end of the training.
        by_epoch (bool): Whether ``interval`` counts epochs.
        probes (tuple[str, ...]): Any of ``'pointing'`` and ``'knn'``. Pointing game accuracy changes within minutes of
            training, kNN recall after thousands of iterations.
        size (int): Side length of a view, and short side of an image, in pixels. The training resolution works best.
        stages (tuple[str, ...]): Backbone stages for kNN recall.
        ks (tuple[int, ...]): Numbers of neighbors.
        max_objects (int): Approximate number of objects for kNN recall, from a fixed random subset of the images. Each
            stage needs up to 4 bytes x channels x ``max_objects``, and the neighbor search 5 kB x ``max_objects``: 0.8
            and 0.5 GB for 100,000 objects of a ResNet-50.
        max_images (int): Number of images for the pointing game, a fixed random subset.
        batch_size (int): Images per batch.
        at_start (bool): Whether to probe before the first iteration, too. Random weights are the baseline for all later
            results.

    Raises:
        ValueError: An argument is out of range.
        InputError: The annotations cannot be used. Raised before training.
    """

    # After the checkpoint hook (VERY_LOW): an error in a probe must not lose the epoch.
    priority = 'LOWEST'

    def __init__(
        self,
        ann_file: str,
        img_root: str,
        interval: int = 10,
        by_epoch: bool = True,
        probes: tuple[str, ...] = PROBES,
        size: int = 224,
        stages: tuple[str, ...] = ('C4', 'C5'),
        ks: tuple[int, ...] = (10,),
        max_objects: int = 20_000,
        max_images: int = 2_000,
        batch_size: int = 32,
        at_start: bool = True,
    ) -> None:
        for argument, given, choices in (('probes', probes, PROBES), ('stages', stages, STAGES)):
            if set(given) - set(choices):
                raise ValueError(f'{argument} must be among {", ".join(choices)}, got {", ".join(given)}')
        if interval < 1 or max_objects < 2 or max_images < 1:
            raise ValueError(
                'interval and max_images must be at least 1 and max_objects at least 2, '
                f'got interval={interval}, max_images={max_images}, max_objects={max_objects}'
            )
        self.ann_file, self.img_root = Path(ann_file), Path(img_root)
        self.interval = interval
        self.by_epoch = by_epoch
        self.probes = tuple(probes)
        self.size = size
        self.stages = tuple(stages)
        self.ks = tuple(ks)
        self.max_objects = max_objects
        self.max_images = max_images
        self.batch_size = batch_size
        self.at_start = at_start
        self._last_step: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Checks the annotations; probes the initial weights unless the run is resumed."""
        read_annotated_images(self.ann_file, self.img_root)
        if self.at_start and runner.iter == 0:
            self._probe(runner, runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Probes every ``interval`` epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._probe(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Probes every ``interval`` iterations."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._probe(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Probes the final weights unless they were probed already."""
        self._probe(runner, runner.iter)

    def _probe(self, runner: Runner, step: int) -> None:
        if step == self._last_step:
            return
        self._last_step = step
        if is_main_process():
            scalars = self.measure(runner)
            runner.visualizer.add_scalars({f'probe/{name}': value for name, value in scalars.items()}, step=step)
            values = ', '.join(f'{name} {100 * value:.1f}' for name, value in scalars.items())
            runner.logger.log(logging.INFO, f'probe after {step} iterations, in %: {values}')
        barrier()

    def measure(self, runner: Runner) -> dict[str, float]:
        """Returns the results of all probes for the current weights, by name."""
        model = unwrap_model(runner.model)
        scalars = {}
        if 'pointing' in self.probes:
            result = measure_pointing_accuracy(
                model,
                self.ann_file,
                self.img_root,
                size=self.size,
                batch_size=self.batch_size,
                max_images=self.max_images,
            )
            scalars.update({level: float(hits.mean()) for level, hits in result.hits.items()})
            scalars['chance'] = float(result.area_fraction.mean())
        if 'knn' in self.probes:
            scalars.update(self._measure_knn_recall(model))
        return scalars

    def _measure_knn_recall(self, model: nn.Module) -> dict[str, float]:
        scalars, device = {}, next(model.parameters()).device
        for stage in self.stages:  # one at a time, to limit the memory for features
            features = extract_object_features(
                model,
                self.ann_file,
                self.img_root,
                size=self.size,
                batch_size=self.batch_size,
                stage=stage,
                max_objects=self.max_objects,
            )
            if stage != self.stages[0]:  # the embedding does not depend on the stage
                features.pop('embedding', None)
            report = knn_report({name: rows.to(device) for name, rows in features.items()}, self.ks)
            del features
            for name in ('backbone', 'embedding'):
                for k in [k for k in self.ks if f'{name}@{k}' in report]:
                    scalars[f'knn_{stage if name == "backbone" else name}@{k}'] = report[f'{name}@{k}']
            scalars['knn_chance'] = report['chance']
        return scalars
