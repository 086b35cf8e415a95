"""Data sets in COCO's keypoint format."""

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ccop_mm.detection.skeleton import complete_metainfo
from ccop_mm.errors import InputError


@DATASETS.register_module()
class CocoKeypointDataset(CocoDataset):
    """mmdet's ``CocoDataset`` with keypoints; by default COCO's persons, by its metainfo any categories and skeleton.

    All categories share the K keypoints of the metainfo; an annotation without ``keypoints`` has none labeled. Each
    instance has ``keypoints`` (K, 3) float32: x and y, continuous (``keypoint_offset`` is added), and COCO's flag, 0
    where not labeled.

    Args:
        metainfo (dict, optional): ``classes`` and the entries that
            :func:`ccop_mm.detection.skeleton.complete_metainfo` lists.
        filter_cfg (dict, optional): Of mmdet's ``CocoDataset``, and ``min_keypoints``: photos with fewer labeled
            keypoints are left out of the training (Detectron2: 1, torchvision: 10).
        **kwargs: Of mmdet's ``CocoDataset``.

    Raises:
        InputError: If metainfo and annotations do not agree.
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
        # The 19 links of COCO's person_keypoints files.
        skeleton=(
            *(('left_ankle', 'left_knee'), ('left_knee', 'left_hip'), ('right_ankle', 'right_knee')),
            *(('right_knee', 'right_hip'), ('left_hip', 'right_hip'), ('left_shoulder', 'left_hip')),
            *(('right_shoulder', 'right_hip'), ('left_shoulder', 'right_shoulder'), ('left_shoulder', 'left_elbow')),
            *(('right_shoulder', 'right_elbow'), ('left_elbow', 'left_wrist'), ('right_elbow', 'right_wrist')),
            *(('left_eye', 'right_eye'), ('nose', 'left_eye'), ('nose', 'right_eye'), ('left_eye', 'left_ear')),
            *(('right_eye', 'right_ear'), ('left_ear', 'left_shoulder'), ('right_ear', 'right_shoulder')),
        ),
        # pycocotools.cocoeval.Params.
        sigmas=(
            *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
            *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
        ),
        keypoint_offset=0.5,
    )

    _unchecked = False

    @classmethod
    def _load_metainfo(cls, metainfo=None) -> dict:
        return complete_metainfo(super()._load_metainfo(metainfo))

    def load_data_list(self) -> list[dict]:
        self._unchecked = True
        return super().load_data_list()

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """One photo's annotations, as mmdet's, with keypoints.

        mmdet leaves annotations out by rules of its own, so they are handed to it one by one.
        """
        if self._unchecked:  # the annotation file is at hand only while mmdet walks over its photos
            self._check_names()
        annotations = raw_data_info['raw_ann_info']
        data_info = super().parse_data_info(dict(raw_data_info, raw_ann_info=[]))
        for annotation in annotations:
            kept = super().parse_data_info(dict(raw_data_info, raw_ann_info=[annotation]))['instances']
            for instance in kept:
                # The area is the object's, not the box's: what OKS is measured by where no annotation file is given.
                instance.update(keypoints=self._parse_keypoints(annotation), area=annotation['area'])
                data_info['instances'].append(instance)
        return data_info

    def _check_names(self) -> None:
        """Compares the file's categories, and its names of keypoints where it has them, with the metainfo's.

        mmdet numbers the categories in the file's order, whatever the order of ``classes``.
        """
        classes, keypoint_names = list(self.metainfo['classes']), list(self.metainfo['keypoint_names'])
        categories = self.coco.load_cats(self.cat_ids)
        found = [category['name'] for category in categories]
        if found != classes:
            raise InputError(
                f'{self.ann_file}: of the classes {classes} it has {found}; list in metainfo.classes the categories '
                'that you want, all of them in the file, in its order'
            )
        for category in categories:
            names = category.get('keypoints') or keypoint_names
            if list(names) != keypoint_names:
                raise InputError(
                    f'{self.ann_file}: category {category["name"]} has the keypoints {names}, and keypoint_names of '
                    f'the metainfo are {keypoint_names}; make them equal, in this order'
                )
        self._unchecked = False

    def _parse_keypoints(self, annotation: dict) -> np.ndarray:
        num_keypoints = len(self.metainfo['keypoint_names'])
        values = annotation.get('keypoints')
        if not values:
            return np.zeros((num_keypoints, 3), dtype=np.float32)
        if len(values) != 3 * num_keypoints:
            raise InputError(
                f'{self.ann_file}: annotation {annotation["id"]} has {len(values)} numbers under "keypoints"; '
                f'{num_keypoints} keypoint_names need {3 * num_keypoints}'
            )
        keypoints = np.array(values, dtype=np.float32).reshape(num_keypoints, 3)
        keypoints[:, :2] += self.metainfo['keypoint_offset']
        return keypoints

    def filter_data(self) -> list[dict]:
        data_list = super().filter_data()
        least = (self.filter_cfg or {}).get('min_keypoints', 0)
        if self.test_mode or not least:
            return data_list
        return [info for info in data_list if _count_labeled(info['instances']) >= least]

    def get_data_info(self, idx: int) -> dict:
        return dict(super().get_data_info(idx), flip_indices=self.metainfo['flip_indices'])


def _count_labeled(instances: list[dict]) -> int:
    """Labeled keypoints of the instances that train."""
    return sum(int((one['keypoints'][:, 2] > 0).sum()) for one in instances if not one['ignore_flag'])
