"""Object proposals: class-agnostic boxes of unlabeled images, generated once, before pre-training."""

from ccop_mm.utils.images import ImageFile, UnreadableImageError, image_id_from_path, list_images, load_image

from .candidates import find_candidates, propose
from .coco_format import export_coco, import_coco
from .image_record import ImageRecord, propose_image
from .runner.run import generate_proposals
from .runner.shards import merge
from .settings import ProposalSettings
from .store import ProposalStore, load_proposals

__all__ = [
    # images
    'ImageFile',
    'UnreadableImageError',
    'image_id_from_path',
    'list_images',
    'load_image',
    # boxes of one image
    'ProposalSettings',
    'propose',
    'find_candidates',
    'propose_image',
    'ImageRecord',
    # boxes of many images, and the file that stores them
    'generate_proposals',
    'merge',
    'ProposalStore',
    'load_proposals',
    'export_coco',
    'import_coco',
]
