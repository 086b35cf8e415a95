"""Keypoints to heat map cells and back; pure functions.

Coordinates are continuous: pixel i covers [i, i + 1), and its center is i + 0.5. A cell of a heat map is read back at
its center, too, so encoding and decoding a point moves it by half a cell at most.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def encode_keypoints(keypoints: Tensor, visible: Tensor, rois: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell of each RoI's heat map that each keypoint falls into.

    Mask R-CNN, Sec. 5: the target of a keypoint is one hot cell of an m x m map. A point on the right or lower edge of
    its RoI belongs to the last cell.

    Args:
        keypoints (Tensor): (R, K, 2) x, y in pixels.
        visible (Tensor): (R, K), above 0 where the keypoint is labeled.
        rois (Tensor): (R, 4) xyxy in pixels.
        size (int): Cells m along each side of the map.

    Returns:
        tuple[Tensor, Tensor]: Cells (R, K) long, y * m + x, and valid (R, K) bool: labeled and inside the RoI. Cells
        that are not valid are 0; a RoI without area has none that is.
    """
    corner, opposite = rois[:, None, :2], rois[:, None, 2:]  # (R, 4) -> 2 x (R, 1, 2)
    cells = ((keypoints - corner) * (size / (opposite - corner))).floor()  # (R, K, 2)
    cells = torch.where(keypoints == opposite, size - 1, cells)
    # Compared before the conversion: what a RoI without area gives, infinite or NaN, is no integer.
    inside = ((cells >= 0) & (cells < size) & (opposite > corner)).all(-1)
    valid = inside & (visible > 0)
    cells = torch.where(valid[..., None], cells, 0).long()
    return cells[..., 1] * size + cells[..., 0], valid


def decode_keypoints(logits: Tensor, rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely place of each keypoint, to a pixel of the image.

    Each map is resized (bicubic) to the size of its RoI, rounded up to whole pixels; the center of the highest pixel is
    the keypoint.

    Args:
        logits (Tensor): (R, K, m, m).
        rois (Tensor): (R, 4) xyxy in pixels; sides under 1 px count as 1 px.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Points (R, K, 2) in pixels; (R, K) the resized map's value there; and (R, K)
        scores in (0, 1], the map's softmax at that value. The softmax is normalized over the m x m cells, so that
        scores of large and small RoIs compare (as in Detectron2).
    """
    logits, rois = logits.float(), rois.float()
    extents = (rois[:, 2:] - rois[:, :2]).clamp(min=1)
    points, peaks = logits.new_zeros(*logits.shape[:2], 2), logits.new_zeros(logits.shape[:2])
    # One copy for all RoIs: a device is waited for once.
    for index, (width, height) in enumerate(extents.ceil().int().tolist()):
        resized = F.interpolate(logits[index, :, None], size=(height, width), mode='bicubic', align_corners=False)
        peaks[index], place = resized.flatten(1).max(dim=1)  # (K, 1, h, w) -> (K, h * w) -> (K,)
        points[index] = torch.stack((place % width, place // width), dim=-1) + 0.5
    pixel = extents / extents.ceil()  # of the resized map, in pixels of the image
    points = points * pixel[:, None] + rois[:, None, :2]
    scores = (peaks - logits.flatten(2).logsumexp(-1)).exp().clamp(max=1)
    return points, peaks, scores
