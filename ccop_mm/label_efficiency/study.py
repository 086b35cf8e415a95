"""A label-efficiency study: one detector, several initial weights, several parts of the labels, several seeds."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from ccop_mm.engine import launch
from ccop_mm.evaluation import load_model
from ccop_mm.label_efficiency.annotations import AnnotationFile
from ccop_mm.label_efficiency.detector import StudyDetector, read_study_detector
from ccop_mm.label_efficiency.estimate import time_run
from ccop_mm.label_efficiency.pool import RunPool
from ccop_mm.label_efficiency.report import FinishedRun, StudyResult, write_report
from ccop_mm.label_efficiency.runs import (
    Run,
    RunData,
    RunFolder,
    default_iterations,
    describe_failure,
    run_settings,
)
from ccop_mm.label_efficiency.search import (
    ChosenRate,
    check_factors,
    choose_factor,
    choose_metric,
    extend_factors,
)
from ccop_mm.label_efficiency.splits import Share, choose_shares, select_subset, selection_split
from ccop_mm.label_efficiency.study_folder import StudyFolder
from ccop_mm.label_efficiency.weights import OWN, InitialWeights, read_weights
from ccop_mm.pretrain.output_folder import claim_folder, resolve_output
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_duration, single_line
from ccop_mm.visualization.label_efficiency_plot import plot_label_efficiency

#: Defaults: shares in percent, seeds, and multiples of the learning rate.
SHARES, SEEDS, LR_FACTORS = (10.0, 100.0), (0, 1, 2), (0.3, 1.0, 3.0)


def run_study(
    detector_config: str | Path,
    weights: Sequence[str],
    out: str | Path,
    shares: Sequence[float] = SHARES,
    num_images: Sequence[int] = (),
    seeds: Sequence[int] = SEEDS,
    lr_factors: Sequence[float] = LR_FACTORS,
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
    measured. Runs that are finished are not repeated. Writes ``results.json``, ``results.md`` and ``results.png``.

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
        iterations (Sequence[int]): Length of the runs, one for all shares or one per share; by default by
            :func:`ccop_mm.label_efficiency.runs.default_iterations`.
        annotations (str | Path, optional): COCO json of the training data instead of that of the config. With it, the
            next three are required.
        images (str | Path, optional): Folder of its images.
        val_annotations (str | Path, optional): COCO json of the validation data.
        val_images (str | Path, optional): Folder of its images.
        jobs (int): Number of runs at a time.
        options (Mapping, optional): Settings of the detector's config to override, by dotted key.
        dry_run (bool): Only check everything, and estimate the duration.

    Returns:
        StudyResult: Metrics of all runs; ``str()`` formats the tables.

    Raises:
        InputError: The config, the data, the weights or an argument are invalid or do not fit each other, or the
            output folder belongs to another study or is in use.
    """
    check_numbers(seeds, iterations, jobs)
    factors = check_factors(lr_factors)
    files = _data_files(annotations, images, val_annotations, val_images)
    folder = StudyFolder(resolve_output(out))
    initial = read_weights(weights, seeds)
    detector = read_study_detector(detector_config, files, class_agnostic, options)
    if any(each.source == OWN for each in initial) and not detector.checkpoints:
        raise InputError(f'{detector_config} loads no weights: NAME={OWN} would be random, use "random" instead')
    chosen_shares = choose_shares(len(detector.train.image_ids), shares, num_images)
    if len(iterations) > 1 and len(iterations) != len(chosen_shares):
        raise InputError(
            f'--iterations has {len(iterations)} numbers for {len(chosen_shares)} shares: pass one for each'
        )
    lengths = {
        share.num_images: iterations[number % len(iterations)] if iterations else _default_length(detector, share)
        for number, share in enumerate(chosen_shares)
    }
    with claim_folder(folder.path):
        study = Study(
            detector=detector,
            weights=initial,
            shares=sorted(chosen_shares, key=lambda share: share.num_images),
            seeds=list(seeds),
            factors=factors,
            lengths=lengths,
            class_agnostic=class_agnostic,
            folder=folder,
        )
        study.prepare()
        if dry_run:
            return study.estimate(jobs)
        return study.execute(jobs, extend)


def check_numbers(seeds: Sequence[int], iterations: Sequence[int], jobs: int) -> None:
    """Checks seeds, numbers of iterations and number of jobs.

    Raises:
        InputError: There is no seed, one occurs twice, or a number is out of range.
    """
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
        raise InputError(f'seeds must be different integers from 0 to 2^31 - 1, got {list(seeds)}')
    if any(number < 2 for number in iterations):
        raise InputError(f'the number of iterations must be at least 2, got {list(iterations)}')
    if jobs < 1:
        raise InputError(f'the number of jobs must be at least 1, got {jobs}')


def _data_files(*paths: str | Path | None) -> tuple[AnnotationFile, AnnotationFile] | None:
    if not any(paths):
        return None
    if not all(paths):
        raise InputError(
            'pass all of --annotations, --images, --val-annotations and --val-images, or none of them to use the data '
            'of the config'
        )
    train, train_images, val, val_images = map(str, paths)
    return AnnotationFile(train, train_images), AnnotationFile(val, val_images)


def _default_length(detector: StudyDetector, share: Share) -> int:
    total, train_cfg = len(detector.train.image_ids), detector.settings.get('train_cfg') or {}
    return default_iterations(share.num_images, total, detector.batch_size, train_cfg)


@dataclass
class Study:
    """A study in its folder, which this process has locked.

    Args:
        detector (StudyDetector): Detector and data.
        weights (list[InitialWeights]): Initial weights.
        shares (list[Share]): Shares in ascending order.
        seeds (list[int]): Random seeds.
        factors (list[float]): Multiples of the learning rate, in ascending order.
        lengths (dict[int, int]): Number of images -> iterations.
        class_agnostic (bool): Whether all boxes are one class.
        folder (StudyFolder): Output folder.

    Attributes:
        selection (list[int]): Ids of the training images that learning rates are chosen on.

    Raises:
        InputError: There are too few training images.
    """

    detector: StudyDetector
    weights: list[InitialWeights]
    shares: list[Share]
    seeds: list[int]
    factors: list[float]
    lengths: dict[int, int]
    class_agnostic: bool
    folder: StudyFolder
    selection: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.selection = selection_split(self.detector.train.image_ids)

    def prepare(self) -> None:
        """Checks everything that can be wrong before a run starts.

        Raises:
            InputError: A subset has no boxes, an image is in the training and in the validation data, the weights do
                not fit, the data has errors, or the folder belongs to another study.
        """
        search, finals = self.plan_search(), self.plan_final({})
        subsets = {f'the {run.num_images} training images of seed {run.seed}': self._subset(run) for run in finals}
        if search:
            subsets[f'the {len(self.selection)} images for the choice of the learning rates'] = self.selection
        for run in search:
            subsets[f'the {run.num_images} images that learning rates are tried with'] = self._subset(run)
        for title, subset in subsets.items():
            if not self.detector.train.annotated_ids.intersection(subset):
                raise InputError(f'{title} have no box: pass larger shares, or label more images')
        shared = sorted(self.detector.train.paths & self.detector.val.paths)
        if shared:
            raise InputError(
                f'{len(shared)} images are in the training and in the validation data, for example {shared[0]}: '
                'measure AP on images that are not trained on'
            )
        self.folder.claim(self.detector, self.weights, self.class_agnostic)
        for each in self.weights:
            self._check_weights(each, next(run for run in finals if run.weights == each))
        self._check_data(max(finals, key=lambda run: run.num_images))

    def _subset(self, run: Run) -> list[int]:
        excluded = () if run.is_final else self.selection
        return select_subset(self.detector.train.image_ids, run.num_images, run.seed, excluded)

    def settings(self, run: Run) -> dict[str, Any]:
        """Returns the config of a run, whose json files are written unless they exist."""
        kind, train, val = 'final' if run.is_final else 'rate', self.detector.train, self.detector.val
        file = train.write(self.folder.data / f'{kind}-{run.num_images}-seed{run.seed}.json', self._subset(run))
        if run.is_final:
            data = RunData(file, val.write(self.folder.data / 'val.json'), val.image_root)
        else:
            selection = train.write(self.folder.data / 'selection.json', self.selection)
            data = RunData(file, selection, train.image_root)
        return run_settings(run, self.detector, data, self.folder.run_path(run))

    def _check_weights(self, weights: InitialWeights, run: Run) -> None:
        """Builds and initializes the detector; raises :class:`InputError` if that fails."""
        cfg = Config(self.settings(run))
        try:
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                load_model(cfg)
        except InputError as error:
            raise InputError(f'weights {weights.name}: {error}') from None
        except Exception as error:  # constructors and downloads raise anything
            raise InputError(
                f'the detector cannot be built with the weights {weights.name}: {type(error).__name__}: '
                f'{single_line(error)}'
            ) from error
        names = ', '.join(self.detector.checkpoints)
        own = f' ({names})' if weights.source == OWN else ''
        print_log(f'weights {weights.name}: {weights.describe()}{own}', logger='current')

    def _check_data(self, run: Run) -> None:
        """Runs the checks of a training on the data of a run, with the test data as validation data."""
        cfg = Config(self.settings(run))
        cfg.model = self.detector.random_model
        cfg.load_from = None
        cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator
        cfg.val_cfg = dict(type='ValLoop')
        report = launch.check(cfg)
        report.log()
        report.raise_errors()

    def plan_search(self) -> list[Run]:
        """Returns the runs that learning rates are chosen by; none for a single factor."""
        if len(self.factors) == 1:
            return []
        return [
            self._run(weights, share, factor, self.seeds[0], is_final=False)
            for share in self.shares
            for weights in self.weights
            for factor in self.factors
        ]

    def plan_final(self, chosen: Mapping[tuple[str, int], ChosenRate]) -> list[Run]:
        """Returns the runs that are measured on the validation data.

        Args:
            chosen (Mapping): Learning rates; without them, all have the first factor. If there are some, initial
                weights without one are left out.
        """
        runs = []
        for share in self.shares:
            for seed in self.seeds:
                for weights in self.weights:
                    rate = chosen.get((weights.name, share.num_images))
                    if rate is not None or not chosen:
                        factor = self.factors[0] if rate is None else rate.factor
                        runs.append(self._run(weights, share, factor, seed, is_final=True))
        return runs

    def _run(self, weights: InitialWeights, share: Share, factor: float, seed: int, is_final: bool) -> Run:
        return Run(weights, share.num_images, factor, seed, self.lengths[share.num_images], is_final)

    def _result(self) -> StudyResult:
        detector = self.detector
        settings = dict(
            detector=detector.reference,
            num_train_images=len(detector.train.image_ids),
            num_selection_images=len(self.selection),
            num_val_images=len(detector.val.image_ids),
            class_agnostic=self.class_agnostic,
            batch_size=detector.batch_size,
            learning_rate=detector.rate,
            lr_factors=self.factors,
            iterations={str(number): length for number, length in self.lengths.items()},
            weights={each.name: dict(source=each.source, initializer=each.initializer) for each in self.weights},
        )
        return StudyResult(settings, [each.name for each in self.weights], self.shares, self.seeds, detector.rate)

    def estimate(self, jobs: int) -> StudyResult:
        """Measures a training step, and returns a result with lines that describe the runs and their duration."""
        result, search, finals = self._result(), self.plan_search(), self.plan_final({})
        duration = time_run(self.settings(finals[0]))
        seconds = sum(duration.estimate(run.iterations, len(self.selection)) for run in search)
        seconds += sum(duration.estimate(run.iterations, len(self.detector.val.image_ids)) for run in finals)
        with_jobs = f' with {jobs} jobs' if jobs > 1 else ''
        result.lines = [
            f'detector   {self.detector.reference}',
            f'data       {len(self.detector.train.image_ids)} training images, of which {len(self.selection)} for the '
            f'choice of the learning rates; {len(self.detector.val.image_ids)} to measure AP',
            f'weights    {", ".join(each.name for each in self.weights)}',
            *(f'share      {share}: {self.lengths[share.num_images]} iterations' for share in self.shares),
            f'batch size {self.detector.batch_size}',
            f'rates      {", ".join(f"{self.detector.rate * factor:.3g}" for factor in self.factors)}',
            f'would run  {len(search)} + {len(finals)} runs of {duration.step.step:.2f} s per iteration, '
            f'{duration.step.loading:.2f} s to load a batch, and {duration.test:.2f} s per tested image',
            f'duration   {format_duration(seconds / jobs)}{with_jobs}',
        ]
        return result

    def execute(self, jobs: int, extend: bool = False) -> StudyResult:
        """Executes all runs that are not finished, and writes the report.

        Args:
            jobs (int): Number of runs at a time.
            extend (bool): Whether to try one more learning rate beyond an edge.
        """
        result = self._result()
        search = self.plan_search()
        num_finals = len(self.plan_final({}))
        with RunPool(jobs) as pool:
            progress = Progress(len(search) + num_finals, jobs)
            self._execute(search, pool, result, progress)
            result.chosen = self.choose(result.finished)
            if extend:
                further = self.plan_extension(result.chosen)
                progress.total += len(further)
                self._execute(further, pool, result, progress)
                result.chosen = self.choose(result.finished)
            finals = self.plan_final(result.chosen) if result.chosen else []
            progress.total -= num_finals - len(finals)
            self._execute(finals, pool, result, progress)
        write_report(result, self.folder.path)
        curves = {metric: result.curves(metric) for metric in ('AP50', 'AP')}
        if any(values for curve in curves['AP'].values() for values in curve.values()):
            plot_label_efficiency(curves, self.folder.path / 'results.png')
        return result

    def choose(self, finished: Sequence[FinishedRun]) -> dict[tuple[str, int], ChosenRate]:
        """Chooses a learning rate for each initial weights and share with a finished run."""
        if len(self.factors) == 1:
            only = ChosenRate(self.factors[0])
            return {(each.name, share.num_images): only for share in self.shares for each in self.weights}
        chosen = {}
        for share in self.shares:
            runs = [each for each in finished if not each.run.is_final and each.run.num_images == share.num_images]
            metric = choose_metric([each.metrics for each in runs])
            for weights in self.weights:
                results = {each.run.factor: each.metrics for each in runs if each.run.weights == weights}
                if results:
                    chosen[weights.name, share.num_images] = choose_factor(results, metric)
        return chosen

    def plan_extension(self, chosen: Mapping[tuple[str, int], ChosenRate]) -> list[Run]:
        """Returns a run beyond each edge that was chosen."""
        runs = []
        for share in self.shares:
            for weights in self.weights:
                rate = chosen.get((weights.name, share.num_images))
                if rate is not None and rate.edge:
                    factor = extend_factors(sorted(rate.values or {}), rate.edge)
                    runs.append(self._run(weights, share, factor, self.seeds[0], is_final=False))
        return runs

    def _execute(self, runs: Sequence[Run], pool: RunPool, result: StudyResult, progress: 'Progress') -> None:
        """Executes the runs that are not finished, and adds all to the result."""
        folders = {run: self.folder.run_folder(run, self.settings(run)) for run in runs}
        waiting = {}
        for run, folder in folders.items():
            stored = folder.read_metrics()
            if stored is None:
                waiting[folder] = run
            else:
                result.finished.append(_finish(run, stored))
                progress.skip()
        if len(waiting) < len(runs):
            print_log(f'{len(runs) - len(waiting)} runs are finished', logger='current')

        def report(folder: RunFolder, code: int, seconds: float) -> None:
            run, stored = waiting[folder], folder.read_metrics()
            if stored is None:
                result.failed.append((run, str(folder.log)))
                end = f'exit code {code}' if code >= 0 else f'signal {-code}'
                outcome = f'failed with {end}: {describe_failure(folder.log)}; log: {folder.log}'
            else:
                result.finished.append(_finish(run, stored))
                metrics = ', '.join(f'{name} {100 * stored["metrics"][name]:.1f}' for name in ('AP', 'AP50'))
                outcome = f'{metrics}{", diverged" if stored["diverged"] else ""}'
            print_log(progress.describe(f'{run}: {outcome}', seconds), logger='current')

        pool.execute(list(waiting), report)


def _finish(run: Run, stored: Mapping[str, Any]) -> FinishedRun:
    return FinishedRun(run, stored['metrics'], stored['diverged'], stored['seconds'])


class Progress:
    """Counts runs, and estimates the time that is left.

    Args:
        total (int): Number of all runs.
        jobs (int): Number of runs at a time.
    """

    def __init__(self, total: int, jobs: int) -> None:
        self.total = total
        self._jobs = jobs
        self._done = 0
        self._measured: list[float] = []

    def skip(self) -> None:
        """Counts a run that is finished already."""
        self._done += 1

    def describe(self, text: str, seconds: float) -> str:
        """Counts a run and formats its line."""
        self._done += 1
        self._measured.append(seconds)
        left = (self.total - self._done) * sum(self._measured) / len(self._measured) / self._jobs
        rest = f', about {format_duration(left)} left' if self._done < self.total else ''
        return f'run {self._done} of {self.total}: {text} ({format_duration(seconds)}{rest}, {time.strftime("%H:%M")})'
