"""Photos -> boxes that may hold an object, offline, once."""

from .coco import export_coco, import_coco, load_proposals
from .search import propose
from .sources import BadPhoto, Photo, image_id_of, list_photos, load_photo
from .store import ProposalStore

__all__ = [
    'BadPhoto',
    'Photo',
    'ProposalStore',
    'export_coco',
    'image_id_of',
    'import_coco',
    'list_photos',
    'load_photo',
    'load_proposals',
    'propose',
]
