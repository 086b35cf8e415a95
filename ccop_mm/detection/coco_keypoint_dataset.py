"""Dataset for annotations in COCO's keypoint format."""

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ccop_mm.detection.skeleton import complete_metainfo
from ccop_mm.utils.errors import InputError


@DATASETS.register_module()
class CocoKeypointDataset(CocoDataset):
    """Extends mmdet's ``CocoDataset`` with keypoints.

    The default metainfo describes COCO's person keypoints; other categories and skeletons are set through ``metainfo``.
    All categories share the same K keypoints. An annotation without ``keypoints`` is treated as having no labeled
    keypoint. Each instance has ``keypoints``, a (K, 3) float32 array of x, y and COCO's visibility flag (0: not
    labeled). Coordinates are continuous: ``keypoint_offset`` is added to the annotated values.

    Args:
        metainfo (dict, optional): ``classes`` and the entries listed in
            :func:`ccop_mm.detection.skeleton.complete_metainfo`.
        filter_cfg (dict, optional): Options of mmdet's ``CocoDataset`` and ``min_keypoints``: training images with
            fewer labeled keypoints are dropped (Detectron2: 1, torchvision: 10).
        **kwargs: Arguments of mmdet's ``CocoDataset``.

    Raises:
        InputError: If the metainfo and the annotation file do not match.
    """

    METAINFO = dict(
        classes=('person',),
        palette=[(220, 20, 60)],
        keypoint_names=(
            *('nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder'),
            *('left_elbow', 'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip'),
            *('left_knee', 'right_knee', 'left_ankle', 'right_ankle'),
        ),
        flip_pairs=tuple(
            (f'left_{part}', f'right_{part}')
            for part in ('eye', 'ear', 'shoulder', 'elbow', 'wrist', 'hip', 'knee', 'ankle')
        ),
        # The 19 links in COCO's person_keypoints files.
        skeleton=(
            *(('left_ankle', 'left_knee'), ('left_knee', 'left_hip'), ('right_ankle', 'right_knee')),
            *(('right_knee', 'right_hip'), ('left_hip', 'right_hip'), ('left_shoulder', 'left_hip')),
            *(('right_shoulder', 'right_hip'), ('left_shoulder', 'right_shoulder'), ('left_shoulder', 'left_elbow')),
            *(('right_shoulder', 'right_elbow'), ('left_elbow', 'left_wrist'), ('right_elbow', 'right_wrist')),
            *(('left_eye', 'right_eye'), ('nose', 'left_eye'), ('nose', 'right_eye'), ('left_eye', 'left_ear')),
            *(('right_eye', 'right_ear'), ('left_ear', 'left_shoulder'), ('right_ear', 'right_shoulder')),
        ),
        # From pycocotools.cocoeval.Params.
        sigmas=(
            *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
            *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
        ),
        keypoint_offset=0.5,
    )

    _check_pending = False

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        return complete_metainfo(super()._load_metainfo(metainfo))

    def load_data_list(self) -> list[dict]:
        """Loads the annotation file and checks it against the metainfo."""
        self._check_pending = True
        return super().load_data_list()

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parses the annotations of one image as mmdet does and adds ``keypoints`` and ``area`` to each instance.

        mmdet drops some annotations without reporting which ones, so they are passed to it one at a time.
        """
        if self._check_pending:  # self.coco exists only while mmdet iterates over the images
            self._check_names()
        annotations = raw_data_info['raw_ann_info']
        data_info = super().parse_data_info(dict(raw_data_info, raw_ann_info=[]))
        for annotation in annotations:
            kept = super().parse_data_info(dict(raw_data_info, raw_ann_info=[annotation]))['instances']
            for instance in kept:
                # OKS uses the area of the object, not of the box. CocoKeypointMetric reads it from here if it has no
                # annotation file.
                instance.update(keypoints=self._parse_keypoints(annotation), area=annotation['area'])
                data_info['instances'].append(instance)
        return data_info

    def _check_names(self) -> None:
        """Checks category names and, where the file has them, keypoint names against the metainfo.

        The file may list the categories in any order (:func:`ccop_mm.compat.pycocotools.number_classes_by_name`).
        """
        classes, keypoint_names = list(self.metainfo['classes']), list(self.metainfo['keypoint_names'])
        categories = self.coco.load_cats(self.cat_ids)
        found = [category['name'] for category in categories]
        if found != classes:
            raise InputError(
                f'{self.ann_file}: the categories that match metainfo.classes {classes} are {found}: set '
                'metainfo.classes to categories of this file'
            )
        for category in categories:
            names = category.get('keypoints') or keypoint_names
            if list(names) != keypoint_names:
                raise InputError(
                    f'{self.ann_file}: category {category["name"]} has the keypoints {names}, but '
                    f'metainfo.keypoint_names is {keypoint_names}: use the same names in the same order'
                )
        self._check_pending = False

    def _parse_keypoints(self, annotation: dict) -> np.ndarray:
        """Returns the keypoints (K, 3) of an annotation in continuous coordinates; zeros if it has none."""
        num_keypoints = len(self.metainfo['keypoint_names'])
        values = annotation.get('keypoints')
        if not values:
            return np.zeros((num_keypoints, 3), dtype=np.float32)
        if len(values) != 3 * num_keypoints:
            raise InputError(
                f'{self.ann_file}: annotation {annotation["id"]} has {len(values)} values in "keypoints", expected '
                f'{3 * num_keypoints} for the {num_keypoints} names in metainfo.keypoint_names'
            )
        keypoints = np.array(values, dtype=np.float32).reshape(num_keypoints, 3)
        keypoints[:, :2] += self.metainfo['keypoint_offset']
        return keypoints

    def filter_data(self) -> list[dict]:
        """Drops training images as mmdet does and those with fewer than ``min_keypoints`` labeled keypoints."""
        data_list = super().filter_data()
        min_keypoints = (self.filter_cfg or {}).get('min_keypoints', 0)
        if self.test_mode or not min_keypoints:
            return data_list
        return [info for info in data_list if _count_labeled(info['instances']) >= min_keypoints]

    def get_data_info(self, idx: int) -> dict:
        """Returns the annotations of one image and ``flip_indices``, which ``LoadKeypointAnnotations`` reads."""
        return dict(super().get_data_info(idx), flip_indices=self.metainfo['flip_indices'])


def _count_labeled(instances: list[dict]) -> int:
    """Counts the labeled keypoints of all instances that are not ignored in training."""
    return sum(int((instance['keypoints'][:, 2] > 0).sum()) for instance in instances if not instance['ignore_flag'])
