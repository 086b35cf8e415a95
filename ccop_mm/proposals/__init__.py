"""Photos -> boxes that may hold an object, offline, once."""

from .search import propose
from .sources import BadPhoto, Photo, image_id_of, list_photos, load_photo
from .store import ProposalStore

__all__ = ['BadPhoto', 'Photo', 'ProposalStore', 'image_id_of', 'list_photos', 'load_photo', 'propose']
