"""Photos from wherever they are kept, as the search for proposals reads them."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import get
from mmselfsup.registry import TRANSFORMS

from ccop_mm.proposals import sources
from ccop_mm.proposals.sources import BadPhoto

#: By how much a JPEG can be shrunk while it is decoded, and OpenCV's names for that.
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def read_photo(path: str, backend_args: dict | None = None) -> bytes:
    """A photo's file, from disk or through one of mmengine's file backends.

    Args:
        path (str): What the backend knows it by: a path, a URL, a key.
        backend_args (dict, optional): As of ``mmengine.fileio.get``; by the path's prefix by default.

    Raises:
        BadPhoto: There is no such file, or it cannot be read.
    """
    try:
        content = get(path, backend_args=backend_args)
    except FileNotFoundError:
        raise BadPhoto('the file does not exist') from None
    except OSError as error:  # those of HTTP included
        raise BadPhoto(f'cannot be read: {error.strerror or error}') from None
    except Exception as error:  # clients of other stores have exceptions of their own
        if backend_args is None and '://' not in path:
            raise
        raise BadPhoto(f'cannot be read: {type(error).__name__}: {error}') from None
    if content is None:  # LMDB and Petrel, of a key that they do not have
        raise BadPhoto('the file does not exist')
    return bytes(content)


def decode_photo(content: bytes, shape: tuple[int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Decodes a photo, with EXIF orientation applied; grey, CMYK and transparent ones become BGR.

    Args:
        content (bytes): The file.
        shape (tuple[int, int], optional): Height and width that it must have, unreduced.
        reduction (int): 1, 2, 4 or 8: the photo is made smaller by this factor, sides rounded up. It saves time with
            JPEG alone; see :func:`is_jpeg`.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 in BGR order, the very pixels of :func:`ccop_mm.proposals.load_photo` if not
        reduced.

    Raises:
        BadPhoto: It is truncated, no image, or of another size.
    """
    image = sources.decode_photo(content, REDUCED[reduction])
    if shape is not None and image.shape[:2] != tuple(-(-side // reduction) for side in shape):
        height, width = image.shape[:2]
        smaller = f' (reduced {reduction} times)' if reduction > 1 else ''
        raise BadPhoto(
            f'{width}x{height} pixels now{smaller}, {shape[1]}x{shape[0]} when its proposals were made: run '
            'tools/propose.py again'
        )
    return image


def is_jpeg(content: bytes) -> bool:
    """Whether a file is a JPEG, by how it begins."""
    return content[:3] == b'\xff\xd8\xff'


@TRANSFORMS.register_module()
class LoadPhoto(BaseTransform):
    """Reads ``results['img_path']`` into ``img`` (BGR uint8), exactly as the proposals' search reads it.

    Args:
        backend_args (dict, optional): Where photos are kept if not on disk, such as ``dict(backend='petrel')``; the
            path's prefix tells by default. As of ``mmengine.fileio.get``.
        decode (bool): False leaves decoding to :class:`ccop_mm.datasets.SplitTwoObjectViews`, which can do it at a
            smaller size: then ``img_bytes`` is added and nothing else.

    Raises:
        BadPhoto: The file is absent, cut short, no image, or of another size than when its proposals were made.
    """

    def __init__(self, backend_args: dict | None = None, decode: bool = True) -> None:
        self.backend_args = backend_args
        self.decode = decode

    def transform(self, results: dict) -> dict:
        """Adds ``img`` and ``img_shape``; checks the size against ``proposal_img_shape`` where that is known."""
        content = read_photo(results['img_path'], self.backend_args)
        if not self.decode:
            results['img_bytes'] = content
            return results
        results['img'] = decode_photo(content, results.get('proposal_img_shape'))
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(backend_args={self.backend_args}, decode={self.decode})'
