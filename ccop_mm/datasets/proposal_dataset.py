"""Photos with their proposals."""

import logging
import os

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmselfsup.registry import DATASETS

from ccop_mm.datasets.sampler import SampleKey, drawing_from
from ccop_mm.errors import InputError
from ccop_mm.proposals.coco import load_proposals
from ccop_mm.proposals.sources import BadPhoto, list_photos


@DATASETS.register_module()
class ProposalDataset(BaseDataset):
    """A folder of photos, or the photos of a COCO json, each with its own proposals.

    Proposals are looked up by image id and checked by file name, never by position. A photo without any proposal is
    normal: it trains the image loss. Photos that could not be read when proposals were made are left out; one that
    cannot be read now is named once in the log and another takes its place.

    Args:
        proposal_file (str): What tools/propose.py wrote, or its export to COCO json.
        num_proposals (int, optional): At most so many of a photo's boxes. They are stored in random order, so the first
            are an unbiased sample. All by default.
        ann_file (str): COCO json that lists the photos; empty: every photo under ``data_prefix``. Its annotations are
            not read.
        data_root (str, optional): Prefix of relative paths.
        data_prefix (dict): ``img_path``: the photos' folder.
        allow_ground_truth (bool): Take annotated boxes for proposals, an upper bound; refused by default.
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
        **kwargs,
    ) -> None:
        self.proposal_file = proposal_file
        self.num_proposals = num_proposals
        self.allow_ground_truth = allow_ground_truth
        self._bad_photos: set[str] = set()  # of this worker process
        super().__init__(
            ann_file=ann_file, data_root=data_root, data_prefix=data_prefix or dict(img_path='images/'), **kwargs
        )

    def _join_prefix(self) -> None:
        """Resolves the proposals' path like the others: relative to ``data_root``."""
        super()._join_prefix()
        if self.data_root and '://' not in self.proposal_file and not self.proposal_file.startswith('/'):
            # As the words say: `..` of a folder that is a link is where the link lies, not where it leads.
            self.proposal_file = os.path.normpath(os.path.join(self.data_root, self.proposal_file))

    def load_data_list(self) -> list[dict]:
        """Lists the photos and finds each one's proposals.

        Raises:
            InputError: The folder, json or proposals file is missing or empty, or the proposals are not these photos'.
        """
        root = self.data_prefix['img_path']
        photos = list_photos(self.ann_file, root) if self.ann_file else list_photos(root)
        self.store = load_proposals(self.proposal_file, self.allow_ground_truth)
        skipped = [photo for photo in photos if photo.file_name in self.store.skipped]
        known = [photo for photo in photos if photo.file_name not in self.store.skipped]
        strangers = [
            photo
            for photo in known
            if photo.image_id not in self.store or self.store.file_name(photo.image_id) != photo.file_name
        ]
        if strangers:
            raise InputError(
                f'{self.proposal_file} holds no proposals for {len(strangers)} of the {len(photos)} photos of '
                f'{self.ann_file or root} (the first: {strangers[0].file_name}, id {strangers[0].image_id}); make them '
                f'with: python tools/propose.py {self.ann_file or root} --out {self.proposal_file}'
            )
        if skipped:
            names = ', '.join(photo.file_name for photo in skipped[:10])
            print_log(
                f'{len(skipped)} of {len(photos)} photos are left out, they could not be read when proposals were '
                f'made: {names}{" ..." if len(skipped) > 10 else ""}',
                logger='current',
                level=logging.WARNING,
            )
        if not known:
            raise InputError(f'none of the {len(photos)} photos of {self.ann_file or root} could be read')
        bare = sum(len(self.store.boxes(photo.image_id)) == 0 for photo in known)
        print_log(
            f'{len(known)} photos, {bare} of them without any proposal (they train the image loss alone)',
            logger='current',
        )
        return [dict(img_path=str(photo.path), img_id=photo.image_id) for photo in known]

    def get_data_info(self, idx: int) -> dict:
        """A photo's path, id and proposals: float32 ``(n, 4)`` and their row numbers ``(n,)``."""
        info = super().get_data_info(idx)
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
            return super().__getitem__(idx.index)

    def prepare_data(self, idx: int) -> dict | None:
        """Runs the pipeline. None, for which BaseDataset draws another photo, if this one cannot be read."""
        try:
            return super().prepare_data(idx)
        except BadPhoto as error:
            path = self.get_data_info(idx)['img_path']
            if path not in self._bad_photos:
                self._bad_photos.add(path)
                print_log(f'another photo replaces {path}: {error}', logger='current', level=logging.WARNING)
            if len(self._bad_photos) == len(self):
                raise InputError(f'none of the {len(self)} photos can be read; the last, {path}: {error}') from error
            return None
