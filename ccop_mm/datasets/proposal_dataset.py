"""Photos with their proposals."""

import logging
import os

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import get_local_path, join_path
from mmengine.logging import print_log
from mmselfsup.registry import DATASETS

from ccop_mm.datasets.bad_photos import BadPhotoRecord
from ccop_mm.datasets.sampler import SampleKey, drawing_from
from ccop_mm.errors import InputError
from ccop_mm.proposals.coco import load_proposals
from ccop_mm.proposals.sources import BadPhoto, list_photos, read_images, read_json


@DATASETS.register_module()
class ProposalDataset(BaseDataset):
    """A folder of photos, or the photos of a COCO json, each with its own proposals.

    Proposals are looked up by image id and checked by file name, never by position. A photo without any proposal is
    normal: it trains the image loss. Photos that could not be read when proposals were made are left out; one that
    cannot be read now is named once in the log and another takes its place (:class:`BadPhotoRecord`).

    Photos need not be on disk: with a prefix such as ``s3://`` or ``http://``, or ``backend_args``, they are read by
    mmengine's file backend of that name. They are not listed there: the json names them, or else the proposals file.

    Each worker of a loader shares the paths and proposals of the process that starts it; what it holds for itself does
    not grow with their number.

    Args:
        proposal_file (str): What tools/propose.py wrote, or its export to COCO json; on disk, wherever the photos are.
        num_proposals (int, optional): At most so many of a photo's boxes. They are stored in random order, so the first
            are an unbiased sample. All by default.
        ann_file (str): COCO json that lists the photos; empty: every photo under ``data_prefix``. Its annotations are
            not read.
        data_root (str, optional): Prefix of relative paths.
        data_prefix (dict): ``img_path``: the photos' folder.
        allow_ground_truth (bool): Take annotated boxes for proposals, an upper bound; refused by default.
        backend_args (dict, optional): Where photos are kept if not on disk; the same as ``LoadPhoto``'s.
        max_bad_share (float): More than this share of photos that cannot be read ends the run.
        **kwargs: As mmengine's ``BaseDataset``.
    """

    METAINFO = dict(dataset_type='ccop_proposals')

    def __init__(
        self,
        proposal_file: str,
        num_proposals: int | None = None,
        ann_file: str = '',
        data_root: str | None = None,
        data_prefix: dict | None = None,
        allow_ground_truth: bool = False,
        backend_args: dict | None = None,
        max_bad_share: float = 0.01,
        **kwargs,
    ) -> None:
        self.proposal_file = proposal_file
        self.num_proposals = num_proposals
        self.allow_ground_truth = allow_ground_truth
        self.backend_args = backend_args
        self.max_bad_share = max_bad_share
        super().__init__(
            ann_file=ann_file, data_root=data_root, data_prefix=data_prefix or dict(img_path='images/'), **kwargs
        )

    def _join_prefix(self) -> None:
        """Resolves the proposals' path like the others: relative to ``data_root``."""
        super()._join_prefix()
        if self.data_root and '://' not in self.data_root and not os.path.isabs(self.proposal_file):
            # As written, which is how list_photos takes paths: the system would follow a linked folder before its "..".
            self.proposal_file = os.path.normpath(os.path.join(self.data_root, self.proposal_file))
        root = self.data_prefix['img_path']
        self._remote = '://' in root or self.backend_args is not None
        self._photo_root = root if self._remote else os.path.abspath(root)

    def full_init(self) -> None:
        """Loads the list of photos, once."""
        if not self._fully_initialized:
            super().full_init()
            self._bad_photos = BadPhotoRecord(len(self), self.max_bad_share)

    def _list_photos(self) -> list[tuple[int, str]]:
        """Id and file name of each photo, by ascending id."""
        if self._remote and self.ann_file:
            with get_local_path(self.ann_file) as path:
                images = read_images(read_json(path), self.ann_file)
            return sorted((image['id'], image['file_name']) for image in images)
        if self._remote:
            return [(image_id, self.store.file_name(image_id)) for image_id in self.store.image_ids.tolist()]
        photos = list_photos(self.ann_file, self._photo_root) if self.ann_file else list_photos(self._photo_root)
        return [(photo.image_id, photo.file_name) for photo in photos]

    def load_data_list(self) -> list[dict]:
        """Lists the photos and finds each one's proposals.

        Raises:
            InputError: The folder, json or proposals file is missing or empty, or the proposals are not these photos'.
        """
        root = self.data_prefix['img_path']
        self.store = load_proposals(self.proposal_file, self.allow_ground_truth)
        photos = self._list_photos()
        unreadable = self.store.skipped
        skipped = [name for _, name in photos if name in unreadable]
        known = [(image_id, name) for image_id, name in photos if name not in unreadable]
        strangers = [
            (image_id, name)
            for image_id, name in known
            if image_id not in self.store or self.store.file_name(image_id) != name
        ]
        if strangers:
            raise InputError(
                f'{self.proposal_file} holds no proposals for {len(strangers)} of the {len(photos)} photos of '
                f'{self.ann_file or root} (the first: {strangers[0][1]}, id {strangers[0][0]}); make them '
                f'with: python tools/propose.py {self.ann_file or root} --out {self.proposal_file}'
            )
        if skipped:
            names = ', '.join(skipped[:10])
            print_log(
                f'{len(skipped)} of {len(photos)} photos are left out, they could not be read when proposals were '
                f'made: {names}{" ..." if len(skipped) > 10 else ""}',
                logger='current',
                level=logging.WARNING,
            )
        if not known:
            raise InputError(f'none of the {len(photos)} photos of {self.ann_file or root} could be read')
        bare = sum(len(self.store.boxes(image_id)) == 0 for image_id, _ in known)
        print_log(
            f'{len(known)} photos, {bare} of them without any proposal (they train the image loss alone)',
            logger='current',
        )
        # No path: the store holds the names already, and all processes of a machine can share it.
        return [dict(img_id=image_id) for image_id, _ in known]

    def get_data_info(self, idx: int) -> dict:
        """A photo's path, id and proposals: float32 ``(n, 4)`` and their row numbers ``(n,)``."""
        info = super().get_data_info(idx)
        join = join_path if self._remote else os.path.join
        info['img_path'] = join(self._photo_root, self.store.file_name(info['img_id']))
        boxes = self.store.boxes(info['img_id'])[: self.num_proposals]
        info['proposals'] = np.array(boxes, dtype=np.float32)
        info['proposal_ids'] = np.arange(len(boxes))
        info['proposal_img_shape'] = self.store.size(info['img_id'])
        return info

    def mean_proposals(self) -> float:
        """Boxes that a photo brings to a step, on average over all photos, before views drop some."""
        limit = self.num_proposals if self.num_proposals is not None else float('inf')
        counts = [
            len(self.store.boxes(super(ProposalDataset, self).get_data_info(i)['img_id'])) for i in range(len(self))
        ]
        return sum(min(count, limit) for count in counts) / len(counts)

    def __getitem__(self, idx: int | SampleKey) -> dict:
        """One sample.

        Args:
            idx (int | SampleKey): Number of the photo. With a :class:`ccop_mm.datasets.SampleKey` every draw depends on
                it alone, that of the photo that replaces an unreadable one included.
        """
        if not isinstance(idx, SampleKey):
            return super().__getitem__(idx)
        with drawing_from(idx):
            return super().__getitem__(int(idx))

    def prepare_data(self, idx: int) -> dict | None:
        """Runs the pipeline. None, for which BaseDataset draws another photo, if this one cannot be read."""
        try:
            data = super().prepare_data(idx)
        except BadPhoto as error:
            self._bad_photos.bad(idx, self.get_data_info(idx)['img_path'], error)
            return None
        self._bad_photos.good(idx)
        return data
