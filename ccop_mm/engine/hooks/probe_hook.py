"""Evaluates the features of the network during pre-training."""

from pathlib import Path

from mmengine.runner import Runner
from mmselfsup.registry import HOOKS
from torch import nn

from ccop_mm.engine.hooks.periodic_probe_hook import PeriodicProbeHook
from ccop_mm.evaluation import extract_object_features, knn_report, measure_pointing_accuracy
from ccop_mm.evaluation.feature_maps import STAGES
from ccop_mm.utils.coco_json import read_annotated_images
from ccop_mm.utils.model import unwrap_model

PROBES = ('pointing', 'knn')


@HOOKS.register_module()
class ProbeHook(PeriodicProbeHook):
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

    title = 'probe'
    prefix = 'probe'

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
        super().__init__(interval, by_epoch, at_start)
        self.ann_file, self.img_root = Path(ann_file), Path(img_root)
        self.probes = tuple(probes)
        self.size = size
        self.stages = tuple(stages)
        self.ks = tuple(ks)
        self.max_objects = max_objects
        self.max_images = max_images
        self.batch_size = batch_size

    def read_annotations(self) -> None:
        """Checks the annotations."""
        read_annotated_images(self.ann_file, self.img_root)

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
