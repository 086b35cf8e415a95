"""Asks during pre-training whether the network learns."""

import logging
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.errors import InputError
from ccop_mm.evaluation import extract_object_features, knn_report, measure_pointing
from ccop_mm.evaluation.annotated_photos import read_annotated_photos
from ccop_mm.evaluation.feature_maps import STAGES

PROBES = ('pointing', 'knn')


@HOOKS.register_module()
class ProbeHook(Hook):
    """Measures box-query pointing and object kNN recall on annotated photos every few epochs.

    The numbers go to the log and, as ``probe/...``, to the visualizer's backends (a local json, TensorBoard, W&B) over
    the iteration: ``probe/C4``, ``probe/P2`` and so on are pointing accuracies beside ``probe/chance``;
    ``probe/knn_C5@10`` and ``probe/knn_embedding@10`` are recalls beside ``probe/knn_chance``. All are fractions.
    Training is not disturbed: modules return to their mode, and nothing is drawn from the global generators. It takes
    place on the first rank alone while the others wait. It is off unless a config names it::

        custom_hooks = [..., dict(type='ProbeHook', ann_file='instances_val.json', img_root='val/', size=224)]

    Args:
        ann_file (str): A COCO json with boxes; the photos should not be among those trained on.
        img_root (str): Folder that its file names are relative to.
        interval (int): Every so many epochs, or iterations; always at the end of the training too.
        by_epoch (bool): Whether ``interval`` counts epochs.
        probes (tuple[str, ...]): ``'pointing'``, ``'knn'``. Pointing moves within minutes of training, kNN recall after
            thousands of steps.
        size (int): Side of a view, and short side of a photo, in pixels; best the one that the network is trained at.
        stages (tuple[str, ...]): Backbone stages for kNN recall.
        ks (tuple[int, ...]): Numbers of neighbors.
        max_objects (int): kNN recall uses a fixed random subset of the photos with about so many objects. At most 4
            bytes x channels x this many are held per stage, and 5 kB x this many while neighbors are sought: for
            100,000 objects of a ResNet-50, 0.8 and 0.5 GB.
        max_photos (int): Pointing uses a fixed random subset of so many photos.
        batch_size (int): Photos a batch.
        at_start (bool): Also before the first iteration: random weights are what all later numbers compare with.

    Raises:
        InputError: If a setting is out of range; before training, if the annotations cannot be used.
    """

    # After the checkpoint hook (VERY_LOW), so that a fault in here costs no epoch.
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
        max_photos: int = 2_000,
        batch_size: int = 32,
        at_start: bool = True,
    ) -> None:
        for what, given, known in (('probes', probes, PROBES), ('stages', stages, STAGES)):
            if set(given) - set(known):
                raise InputError(f'ProbeHook: {what} are among {", ".join(known)}; got {", ".join(given)}')
        if interval < 1 or max_objects < 2 or max_photos < 1:
            raise InputError(
                'ProbeHook: interval and max_photos are at least 1 and max_objects at least 2, '
                f'got {interval}, {max_photos} and {max_objects}'
            )
        self.ann_file, self.img_root = Path(ann_file), Path(img_root)
        self.interval = interval
        self.by_epoch = by_epoch
        self.probes = tuple(probes)
        self.size = size
        self.stages = tuple(stages)
        self.ks = tuple(ks)
        self.max_objects = max_objects
        self.max_photos = max_photos
        self.batch_size = batch_size
        self.at_start = at_start
        self._last = None

    def before_train(self, runner: Runner) -> None:
        """Looks at the annotations before hours are spent; probes random weights unless the run is resumed."""
        read_annotated_photos(self.ann_file, self.img_root)
        if self.at_start and runner.iter == 0:
            self._probe(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Probes every ``interval`` epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._probe(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Probes every ``interval`` iterations."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._probe(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Probes the final weights, if that was not just done."""
        self._probe(runner)

    def _probe(self, runner: Runner, step: int | None = None) -> None:
        step = runner.iter if step is None else step
        if step == self._last:
            return
        self._last = step
        if is_main_process():
            scalars = self.measure(runner)
            runner.visualizer.add_scalars({f'probe/{name}': value for name, value in scalars.items()}, step=step)
            shown = ', '.join(f'{name} {100 * value:.1f}' for name, value in scalars.items())
            runner.logger.log(logging.INFO, f'probe after {step} iterations, in %: {shown}')
        barrier()

    def measure(self, runner: Runner) -> dict[str, float]:
        """The numbers of the present weights, by name."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        scalars = {}
        if 'pointing' in self.probes:
            result = measure_pointing(
                model,
                self.ann_file,
                self.img_root,
                size=self.size,
                batch_size=self.batch_size,
                max_photos=self.max_photos,
            )
            scalars.update({level: float(hits.mean()) for level, hits in result.hits.items()})
            scalars['chance'] = float(result.share.mean())
        if 'knn' in self.probes:
            scalars.update(self._knn(model))
        return scalars

    def _knn(self, model) -> dict[str, float]:
        scalars, device = {}, next(model.parameters()).device
        for stage in self.stages:  # one after the other: the features of one stage are held at a time
            features = extract_object_features(
                model,
                self.ann_file,
                self.img_root,
                size=self.size,
                batch_size=self.batch_size,
                stage=STAGES.index(stage),
                max_objects=self.max_objects,
            )
            if stage != self.stages[0]:  # the embedding does not depend on it
                features.pop('embedding', None)
            report = knn_report({name: rows.to(device) for name, rows in features.items()}, self.ks)
            del features
            for name in ('backbone', 'embedding'):
                for k in [k for k in self.ks if f'{name}@{k}' in report]:
                    scalars[f'knn_{stage if name == "backbone" else name}@{k}'] = report[f'{name}@{k}']
            scalars['knn_chance'] = report['chance']
        return scalars
