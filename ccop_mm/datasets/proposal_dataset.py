"""Dataset of images with their object proposals."""

import logging
import os
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import get_local_path, join_path
from mmengine.logging import print_log
from mmselfsup.registry import DATASETS

from ccop_mm.datasets.sampler import SampleKey, seeded_from
from ccop_mm.datasets.unreadable_images import UnreadableImageTracker
from ccop_mm.proposals.store import load_proposals
from ccop_mm.utils.coco_json import read_images, read_json
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import UnreadableImageError, list_images
from ccop_mm.utils.text import format_truncated


@DATASETS.register_module()
class ProposalDataset(BaseDataset):
    """Images of a folder or of a COCO json, each with its own proposals.

    Proposals are looked up by image id and verified by file name, never by position. An image without proposals is
    valid: it contributes to the image loss. Images that were unreadable during proposal generation are left out. An
    image that becomes unreadable later is logged once and replaced by another one (:class:`UnreadableImageTracker`).

    Images can be stored remotely: with a prefix such as ``s3://`` or ``http://``, or with ``backend_args``, they are
    read by the corresponding storage backend of mmengine. Remote folders are not listed; the images are those of the
    COCO json or, without one, those of the proposals file.

    The workers of a data loader share the file names and proposals of the process that starts them, so that the memory
    of a worker does not grow with the number of images.

    Args:
        proposal_file (str): Proposals written by tools/propose.py, or their export to COCO json. The file must be on
            disk, also if the images are remote.
        num_proposals (int, optional): Maximum number of proposals per image. Proposals are stored in random order, so
            the first ones are an unbiased sample. All are used by default.
        ann_file (str): COCO json that lists the images. If empty, all images under ``data_prefix`` are used.
            Annotations in the json are ignored.
        data_root (str, optional): Root folder of relative paths.
        data_prefix (dict): Image folder as ``img_path``.
        allow_ground_truth (bool): Whether to accept annotated boxes as proposals, to measure an upper bound.
        backend_args (dict, optional): Arguments of the storage backend of the images. Must be equal to those of
            ``LoadUnlabeledImage``.
        max_unreadable_ratio (float): Maximum ratio of unreadable images, above which the run is stopped.
        **kwargs: Arguments of mmengine's ``BaseDataset``.
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
        max_unreadable_ratio: float = 0.01,
        **kwargs: Any,
    ) -> None:
        self.proposal_file = proposal_file
        self.num_proposals = num_proposals
        self.allow_ground_truth = allow_ground_truth
        self.backend_args = backend_args
        self.max_unreadable_ratio = max_unreadable_ratio
        super().__init__(
            ann_file=ann_file, data_root=data_root, data_prefix=data_prefix or dict(img_path='images/'), **kwargs
        )

    def _join_prefix(self) -> None:
        """Also resolves ``proposal_file`` relative to ``data_root``."""
        super()._join_prefix()
        if self.data_root and '://' not in self.data_root and not os.path.isabs(self.proposal_file):
            # Resolve ".." lexically, as list_images does; the file system would follow a linked folder first.
            self.proposal_file = os.path.normpath(os.path.join(self.data_root, self.proposal_file))
        root = self.data_prefix['img_path']
        self._remote = '://' in root or self.backend_args is not None
        self._image_root = root if self._remote else os.path.abspath(root)

    def full_init(self) -> None:
        """Loads the list of images on the first call."""
        if not self._fully_initialized:
            super().full_init()
            self._unreadable_images = UnreadableImageTracker(len(self), self.max_unreadable_ratio)

    def _list_images(self) -> list[tuple[int, str]]:
        """Lists id and file name of each image in ascending order of id."""
        if self._remote and self.ann_file:
            with get_local_path(self.ann_file) as path:
                images = read_images(read_json(path), self.ann_file)
            return sorted((image['id'], image['file_name']) for image in images)
        if self._remote:
            return [(image_id, self.store.file_name(image_id)) for image_id in self.store.image_ids.tolist()]
        files = list_images(self.ann_file, self._image_root) if self.ann_file else list_images(self._image_root)
        return [(image_file.image_id, image_file.file_name) for image_file in files]

    def load_data_list(self) -> list[dict]:
        """Lists the images and checks that each one has proposals.

        Returns:
            list[dict]: ``img_id`` of each image. File names and proposals stay in the proposal store, which all
            processes of a machine can share.

        Raises:
            InputError: If the image folder, the json or the proposals file is missing or empty, or if the proposals
                belong to other images.
        """
        source = self.ann_file or self.data_prefix['img_path']
        self.store = load_proposals(self.proposal_file, self.allow_ground_truth)
        images = self._list_images()
        unreadable = self.store.skipped
        skipped = [name for _, name in images if name in unreadable]
        readable = [(image_id, name) for image_id, name in images if name not in unreadable]
        unmatched = [
            (image_id, name)
            for image_id, name in readable
            if image_id not in self.store or self.store.file_name(image_id) != name
        ]
        if unmatched:
            image_id, name = unmatched[0]
            raise InputError(
                f'{self.proposal_file} contains no proposals for {len(unmatched)} of the {len(images)} images of '
                f'{source}, the first is {name} (id {image_id}); generate them in a new file '
                f'(python tools/propose.py {source} --out NEW_FILE) and set proposal_file, or correct the folder'
            )
        if skipped:
            print_log(
                f'{len(skipped)} of {len(images)} images are left out because they were unreadable during proposal '
                f'generation: {format_truncated(skipped, limit=10)}',
                logger='current',
                level=logging.WARNING,
            )
        if not readable:
            raise InputError(
                f'all {len(images)} images of {source} were unreadable during proposal generation; check the files, '
                'then generate the proposals again'
            )
        num_empty = sum(len(self.store.boxes(image_id)) == 0 for image_id, _ in readable)
        print_log(
            f'{len(readable)} images, {num_empty} of them without proposals (these train the image loss only)',
            logger='current',
        )
        return [dict(img_id=image_id) for image_id, _ in readable]

    def get_data_info(self, idx: int) -> dict:
        """Adds path, proposals and size of an image to its entry of the data list.

        Args:
            idx (int): Index of the image.

        Returns:
            dict: ``img_id``, ``img_path``, ``proposals`` ``(n, 4)`` float32, ``proposal_ids`` ``(n,)``, the row number
            of each proposal, and ``proposal_img_shape``, height and width at which the proposals were generated.
        """
        info = super().get_data_info(idx)
        join = join_path if self._remote else os.path.join
        info['img_path'] = join(self._image_root, self.store.file_name(info['img_id']))
        boxes = self.store.boxes(info['img_id'])[: self.num_proposals]
        info['proposals'] = np.array(boxes, dtype=np.float32)
        info['proposal_ids'] = np.arange(len(boxes))
        info['proposal_img_shape'] = self.store.size(info['img_id'])
        return info

    def mean_proposals(self) -> float:
        """Returns the mean number of proposals per image, limited by ``num_proposals``, before cropping removes any."""
        limit = self.num_proposals if self.num_proposals is not None else float('inf')
        counts = [
            len(self.store.boxes(super(ProposalDataset, self).get_data_info(i)['img_id'])) for i in range(len(self))
        ]
        return sum(min(count, limit) for count in counts) / len(counts)

    def __getitem__(self, idx: int | SampleKey) -> dict:
        """Returns one sample.

        Args:
            idx (int | SampleKey): Index of the image. With a :class:`ccop_mm.datasets.SampleKey`, all random numbers
                depend on the key only, including those that select the replacement of an unreadable image.
        """
        if not isinstance(idx, SampleKey):
            return super().__getitem__(idx)
        with seeded_from(idx):
            return super().__getitem__(int(idx))

    def prepare_data(self, idx: int) -> dict | None:
        """Runs the pipeline; returns None if the image is unreadable, for which BaseDataset samples another image."""
        try:
            data = super().prepare_data(idx)
        except UnreadableImageError as error:
            self._unreadable_images.mark_unreadable(idx, self.get_data_info(idx)['img_path'], error)
            return None
        self._unreadable_images.mark_readable(idx)
        return data
