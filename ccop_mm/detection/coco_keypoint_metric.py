"""Box AP and keypoint AP, computed with pycocotools."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCOeval
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.fileio import dump, load
from mmengine.logging import MMLogger

from ccop_mm.utils.errors import InputError

#: Index of each keypoint metric in ``COCOeval.stats``, in the order of ``COCOeval.summarize``.
STATS = {
    name: index
    for index, name in enumerate(('mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l'))
}


@METRICS.register_module()
class CocoKeypointMetric(CocoMetric):
    """Extends mmdet's ``CocoMetric`` with ``'keypoints'``, COCO's AP over object keypoint similarity (OKS).

    The sigmas, ``keypoint_offset`` and ``classes`` are read from the metainfo of the dataset, so that any skeleton and
    any categories are supported. As in COCO's evaluation, detections are ranked by the box score, at most 20 per
    category and image are evaluated, and objects without labeled keypoints are ignored. The keys are
    ``coco/keypoints_mAP`` and so on, see :data:`STATS`; ``classwise`` adds ``coco/NAME_keypoints_precision``.

    Args:
        metric (str | Sequence[str]): ``'keypoints'`` and any metric of mmdet's ``CocoMetric``.
        keypoint_max_dets (int): Maximum number of evaluated detections per category and image.
        **kwargs: Arguments of mmdet's ``CocoMetric``. ``metric_items`` does not apply to ``'keypoints'``. Without
            ``ann_file`` the ground truth is taken from the dataset; ``'instances'`` must then be in the ``meta_keys``
            of the packing transform.
    """

    def __init__(
        self,
        *args: Any,
        metric: str | Sequence[str] = ('bbox', 'keypoints'),
        keypoint_max_dets: int = 20,
        **kwargs: Any,
    ) -> None:
        metrics = [metric] if isinstance(metric, str) else list(metric)
        self.with_keypoints = 'keypoints' in metrics
        self.keypoint_max_dets = keypoint_max_dets
        super().__init__(*args, metric=[name for name in metrics if name != 'keypoints'], **kwargs)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Stores the predictions of a batch, with keypoints converted to the coordinates of the annotations."""
        start = len(self.results)
        super().process(data_batch, data_samples)
        if not self.with_keypoints:
            return
        for (_, result), sample in zip(self.results[start:], data_samples, strict=True):
            predictions = sample['pred_instances']
            result['keypoints'] = predictions['keypoints'].cpu().numpy() - self.dataset_meta['keypoint_offset']
            result['keypoint_scores'] = predictions['keypoint_scores'].cpu().numpy()

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """Writes the result files of mmdet and ``PREFIX.keypoints.json`` in the format of COCO's evaluation server."""
        files = super().results2json(results, outfile_prefix)
        if self.with_keypoints:
            files['keypoints'] = f'{outfile_prefix}.keypoints.json'
            dump(self._to_coco(results), files['keypoints'])
        return files

    def gt_to_coco_json(self, gt_dicts: Sequence[dict], outfile_prefix: str) -> str:
        """Writes the ground truth of the dataset, keypoints and areas included, when there is no annotation file."""
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
        """Computes the metrics of mmdet and the keypoint metrics.

        Args:
            results (list[tuple[dict, dict]]): Ground truth and prediction of each image, from :meth:`process`.

        Returns:
            dict[str, float]: Metrics by name.

        Raises:
            InputError: If the number of keypoints in the metainfo differs from the annotations or the predictions.
        """
        metrics = super().compute_metrics(results)
        if self.with_keypoints and not self.format_only:
            MMLogger.get_current_instance().info('Evaluating keypoints...')
            metrics.update(self._evaluate([result for _, result in results]))
        return metrics

    def _to_coco(self, results: Sequence[dict]) -> list[dict]:
        """Converts detections to COCO's result format; the third value of each keypoint is its score."""
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
        """Computes the keypoint metrics of all predictions."""
        self._complete_annotations()
        detections = self._to_coco(results)
        num_keypoints = len(self.dataset_meta['sigmas'])
        if detections and len(detections[0]['keypoints']) != 3 * num_keypoints:
            raise InputError(
                f'the model predicts {len(detections[0]["keypoints"]) // 3} keypoints, but the metainfo of the dataset '
                f'has {num_keypoints}: set model.roi_head.keypoint_head.num_keypoints to {num_keypoints}'
            )
        if not detections:
            MMLogger.get_current_instance().warning('no object was detected: keypoint AP is 0')
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
        metrics = {f'keypoints_{name}': round(float(evaluation.stats[index]), 3) for name, index in STATS.items()}
        if self.classwise:
            metrics.update(self._compute_classwise(evaluation))
        return metrics

    def _compute_classwise(self, evaluation: COCOeval) -> dict[str, float]:
        """Returns the AP of each category, -1 for a category without ground truth."""
        precision = evaluation.eval['precision']  # (T, R, categories, areas, 1), -1 where there is no ground truth
        metrics = {}
        # pycocotools sorts the categories by id; the dataset may have another order.
        for index, category in enumerate(self._coco_api.load_cats(evaluation.params.catIds)):
            values = precision[:, :, index, 0, -1]
            values = values[values > -1]
            metrics[f'{category["name"]}_keypoints_precision'] = round(float(values.mean()), 3) if values.size else -1.0
        return metrics

    def _complete_annotations(self) -> None:
        """Fills in ``keypoints`` (zeros) and ``num_keypoints``, which pycocotools requires, where they are missing."""
        num_keypoints = len(self.dataset_meta['sigmas'])
        for annotation in self._coco_api.anns.values():
            keypoints = annotation.get('keypoints') or [0] * (3 * num_keypoints)
            if annotation['category_id'] in self.cat_ids and len(keypoints) != 3 * num_keypoints:
                raise InputError(
                    f'annotation {annotation["id"]} has {len(keypoints)} values in "keypoints", expected '
                    f'{3 * num_keypoints} for the {num_keypoints} keypoints of the metainfo'
                )
            annotation['keypoints'] = keypoints
            annotation.setdefault('num_keypoints', sum(flag > 0 for flag in keypoints[2::3]))
