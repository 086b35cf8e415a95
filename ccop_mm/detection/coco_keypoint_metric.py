"""Box AP and keypoint AP by pycocotools."""

from collections.abc import Sequence

import numpy as np
from mmdet.datasets.api_wrappers import COCOeval
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.fileio import dump, load
from mmengine.logging import MMLogger

from ccop_mm.errors import InputError

#: Places in ``COCOeval.stats`` for keypoints (``COCOeval.summarize``).
STATS = {
    name: place
    for place, name in enumerate(('mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l'))
}


@METRICS.register_module()
class CocoKeypointMetric(CocoMetric):
    """mmdet's ``CocoMetric`` that also knows ``'keypoints'``: COCO's AP over object keypoint similarity (OKS).

    The sigmas, ``keypoint_offset`` and ``classes`` come from the data set's metainfo, so any skeleton and categories
    will do. Keypoint results are ranked by the box score, at most 20 of a category in a photo count, and objects
    without labeled keypoints neither help nor harm, all as COCO has it. Keys are ``coco/keypoints_mAP`` and so on, see
    :data:`STATS`; ``classwise`` adds ``coco/NAME_keypoints_precision``.

    Args:
        metric (str | Sequence[str]): ``'keypoints'`` and mmdet's.
        keypoint_max_dets (int): Detections of a category in a photo that count; COCO's is 20.
        **kwargs: Of mmdet's ``CocoMetric``; ``metric_items`` is for the other metrics alone. Without ``ann_file`` the
            truth comes from the data set: ``'instances'`` has to be among the packed ``meta_keys``.
    """

    def __init__(
        self, *args, metric: str | Sequence[str] = ('bbox', 'keypoints'), keypoint_max_dets: int = 20, **kwargs
    ) -> None:
        metrics = [metric] if isinstance(metric, str) else list(metric)
        self.with_keypoints = 'keypoints' in metrics
        self.keypoint_max_dets = keypoint_max_dets
        super().__init__(*args, metric=[name for name in metrics if name != 'keypoints'], **kwargs)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keeps the predictions of a batch; keypoints go back to the annotations' coordinates."""
        start = len(self.results)
        super().process(data_batch, data_samples)
        if not self.with_keypoints:
            return
        for (_, result), sample in zip(self.results[start:], data_samples, strict=True):
            predicted = sample['pred_instances']
            result['keypoints'] = predicted['keypoints'].cpu().numpy() - self.dataset_meta['keypoint_offset']
            result['keypoint_scores'] = predicted['keypoint_scores'].cpu().numpy()

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """Writes ``PREFIX.keypoints.json``, which COCO's server takes, beside mmdet's files."""
        files = super().results2json(results, outfile_prefix)
        if self.with_keypoints:
            files['keypoints'] = f'{outfile_prefix}.keypoints.json'
            dump(self._to_coco(results), files['keypoints'])
        return files

    def gt_to_coco_json(self, gt_dicts: Sequence[dict], outfile_prefix: str) -> str:
        """Where no annotation file is given: the data set's instances, with their keypoints and areas."""
        path = super().gt_to_coco_json(gt_dicts, outfile_prefix)
        content = load(path)
        content.setdefault('annotations', [])
        instances = (instance for gt in gt_dicts for instance in gt['anns'])
        for annotation, instance in zip(content['annotations'], instances, strict=True):
            keypoints = np.array(instance['keypoints'], dtype=np.float64)
            keypoints[:, :2] -= self.dataset_meta['keypoint_offset']
            annotation.update(keypoints=keypoints.ravel().tolist(), area=instance['area'])
        dump(content, path)
        return path

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Mmdet's figures, and those of the keypoints.

        Raises:
            InputError: If the metainfo has another number of keypoints than the annotations or the predictions.
        """
        metrics = super().compute_metrics(results)
        if self.with_keypoints and not self.format_only:
            MMLogger.get_current_instance().info('Evaluating keypoints...')
            metrics.update(self._evaluate([result for _, result in results]))
        return metrics

    def _to_coco(self, results: Sequence[dict]) -> list[dict]:
        """One entry for each detection, in COCO's result format; the third number of a keypoint is its score."""
        return [
            dict(
                image_id=result['img_id'],
                category_id=self.cat_ids[label],
                keypoints=np.concatenate((points, scores[:, None]), axis=1).astype(float).ravel().tolist(),
                score=float(score),
            )
            for result in results
            for points, scores, label, score in zip(
                result['keypoints'], result['keypoint_scores'], result['labels'], result['scores'], strict=True
            )
        ]

    def _evaluate(self, results: Sequence[dict]) -> dict[str, float]:
        self._complete_truth()
        detections = self._to_coco(results)
        num_keypoints = len(self.dataset_meta['sigmas'])
        if detections and len(detections[0]['keypoints']) != 3 * num_keypoints:
            raise InputError(
                f'the model predicts {len(detections[0]["keypoints"]) // 3} keypoints, the metainfo has {num_keypoints}'
            )
        if not detections:
            MMLogger.get_current_instance().warning('there is no detection at all: keypoint AP is 0')
            return {f'keypoints_{name}': 0.0 for name in STATS}
        evaluation = COCOeval(self._coco_api, self._coco_api.loadRes(detections), 'keypoints')
        evaluation.params.catIds = self.cat_ids
        evaluation.params.imgIds = self.img_ids
        evaluation.params.maxDets = [self.keypoint_max_dets]
        evaluation.params.iouThrs = np.asarray(self.iou_thrs)
        evaluation.params.kpt_oks_sigmas = np.array(self.dataset_meta['sigmas'])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures = {f'keypoints_{name}': round(float(evaluation.stats[place]), 3) for name, place in STATS.items()}
        if self.classwise:
            figures.update(self._by_category(evaluation))
        return figures

    def _by_category(self, evaluation: COCOeval) -> dict[str, float]:
        """AP of each category, -1 where there is no truth."""
        precision = evaluation.eval['precision']  # (T, R, categories, areas, 1), below 0 where there is no truth
        figures = {}
        # Of the evaluation, not of the data set: pycocotools sorts them by id.
        for place, category in enumerate(self._coco_api.load_cats(evaluation.params.catIds)):
            values = precision[:, :, place, 0, -1]
            values = values[values > -1]
            figures[f'{category["name"]}_keypoints_precision'] = round(float(values.mean()), 3) if values.size else -1.0
        return figures

    def _complete_truth(self) -> None:
        """Gives annotations what pycocotools asks for and files may lack: zeros for no keypoints, and their number."""
        num_keypoints = len(self.dataset_meta['sigmas'])
        for annotation in self._coco_api.anns.values():
            keypoints = annotation.get('keypoints') or [0] * (3 * num_keypoints)
            if annotation['category_id'] in self.cat_ids and len(keypoints) != 3 * num_keypoints:
                raise InputError(
                    f'annotation {annotation["id"]} has {len(keypoints)} numbers under "keypoints"; the metainfo has '
                    f'{num_keypoints} keypoints'
                )
            annotation['keypoints'] = keypoints
            annotation.setdefault('num_keypoints', sum(flag > 0 for flag in keypoints[2::3]))
