"""Loads images from any storage backend of mmengine, decoded exactly as for proposal generation."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import get
from mmselfsup.registry import TRANSFORMS

from ccop_mm.utils import images as image_utils
from ccop_mm.utils.images import UnreadableImageError

#: Factors by which libjpeg can downscale an image while decoding it, with the flag of OpenCV for each.
REDUCTION_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def fetch_image_bytes(path: str, backend_args: dict | None = None) -> bytes:
    """Reads an image file from disk or from a storage backend of mmengine.

    Args:
        path (str): Path, URL or key of the image.
        backend_args (dict, optional): Arguments of the backend, see ``mmengine.fileio.get``. By default the backend is
            inferred from the prefix of the path.

    Returns:
        bytes: Content of the file.

    Raises:
        UnreadableImageError: If the file is missing or cannot be read.
    """
    try:
        content = get(path, backend_args=backend_args)
    except FileNotFoundError:
        raise UnreadableImageError('the file does not exist') from None
    except OSError as error:  # includes HTTP errors
        raise UnreadableImageError(f'cannot be read: {error.strerror or error}') from None
    except Exception as error:  # the clients of other backends define their own exceptions
        if backend_args is None and '://' not in path:
            raise
        raise UnreadableImageError(f'cannot be read: {type(error).__name__}: {error}') from None
    if content is None:  # returned by LMDB and Petrel for an unknown key
        raise UnreadableImageError('the file does not exist')
    return bytes(content)


def decode_image(content: bytes, shape: tuple[int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Decodes an image file to BGR and optionally checks its size.

    The EXIF orientation is applied. Grayscale, CMYK and transparent images are converted to BGR.

    Args:
        content (bytes): Content of the image file.
        shape (tuple[int, int], optional): Expected height and width at full resolution.
        reduction (int): Factor of 1, 2, 4 or 8 by which both sides are divided, rounded up. A reduction saves time for
            JPEG files only, see :func:`is_jpeg`.

    Returns:
        np.ndarray: BGR image ``(H, W, 3)`` uint8. Without reduction it is identical to the result of
        :func:`ccop_mm.proposals.load_image`.

    Raises:
        UnreadableImageError: If the file is truncated, is not an image, or does not have the expected size.
    """
    image = image_utils.decode_image(content, REDUCTION_FLAGS[reduction])
    if shape is not None and image.shape[:2] != tuple(-(-side // reduction) for side in shape):
        height, width = image.shape[:2]
        reduced = f' after a reduction by {reduction}' if reduction > 1 else ''
        raise UnreadableImageError(
            f'the image has {width}x{height} pixels{reduced}, but its proposals were generated at '
            f'{shape[1]}x{shape[0]}; run tools/propose.py again'
        )
    return image


def is_jpeg(content: bytes) -> bool:
    """Returns whether the content of a file starts with the JPEG signature."""
    return content[:3] == b'\xff\xd8\xff'


@TRANSFORMS.register_module()
class LoadUnlabeledImage(BaseTransform):
    """Loads ``results['img_path']`` with the same decoder as proposal generation.

    Required keys: ``img_path``, ``proposal_img_shape`` (optional).
    Added keys: ``img`` and ``img_shape``, or ``img_bytes`` only with ``decode=False``.

    Args:
        backend_args (dict, optional): Arguments of the storage backend, such as ``dict(backend='petrel')``, see
            ``mmengine.fileio.get``. By default the backend is inferred from the prefix of the path.
        decode (bool): Whether to decode the image. With False the file content is stored as ``img_bytes`` and
            :class:`ccop_mm.datasets.SplitTwoObjectViews` decodes it, possibly at a lower resolution.

    Raises:
        UnreadableImageError: If the file is missing, truncated, not an image, or not of the size at which its
            proposals were generated.
    """

    def __init__(self, backend_args: dict | None = None, decode: bool = True) -> None:
        self.backend_args = backend_args
        self.decode = decode

    def transform(self, results: dict) -> dict:
        """Adds ``img``, BGR uint8, and ``img_shape``; checks the size against ``proposal_img_shape`` if present."""
        content = fetch_image_bytes(results['img_path'], self.backend_args)
        if not self.decode:
            results['img_bytes'] = content
            return results
        results['img'] = decode_image(content, results.get('proposal_img_shape'))
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(backend_args={self.backend_args}, decode={self.decode})'
