"""Converts keypoints to heatmap cells and back (pure functions).

Coordinates are continuous: pixel i covers [i, i + 1), and its center is i + 0.5. A heatmap cell decodes to its center,
so that encoding and decoding moves a point by at most half a cell.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def encode_keypoints(keypoints: Tensor, visible: Tensor, rois: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the heatmap cell of each keypoint in its RoI.

    The target of a keypoint is a one-hot m x m mask (Mask R-CNN, Sec. 5). A point on the right or bottom edge of the
    RoI is assigned to the last column or row.

    Args:
        keypoints (Tensor): Keypoints (R, K, 2), x and y in pixels.
        visible (Tensor): Visibility (R, K), positive where the keypoint is labeled.
        rois (Tensor): RoIs (R, 4), xyxy in pixels.
        size (int): Side length m of the heatmap in cells.

    Returns:
        tuple[Tensor, Tensor]: Cell indices y * m + x (R, K), int64, and a mask (R, K) of valid keypoints, which are
        labeled and inside the RoI. Invalid cells are 0. A RoI without area has no valid keypoint.
    """
    corner, opposite = rois[:, None, :2], rois[:, None, 2:]  # (R, 4) -> 2 x (R, 1, 2)
    cells = ((keypoints - corner) * (size / (opposite - corner))).floor()  # (R, K, 2)
    cells = torch.where(keypoints == opposite, size - 1, cells)
    # Compared before the conversion to int64: a RoI without area gives infinite or NaN cells.
    inside = ((cells >= 0) & (cells < size) & (opposite > corner)).all(-1)
    valid = inside & (visible > 0)
    cells = torch.where(valid[..., None], cells, 0).long()
    return cells[..., 1] * size + cells[..., 0], valid


def decode_keypoints(logits: Tensor, rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the most likely location of each keypoint, with a resolution of one image pixel.

    Each heatmap is resized (bicubic) to the size of its RoI, rounded up to whole pixels. The keypoint is the center of
    the pixel with the maximum value.

    Args:
        logits (Tensor): Heatmap logits (R, K, m, m).
        rois (Tensor): RoIs (R, 4), xyxy in pixels. Sides shorter than 1 pixel are treated as 1 pixel.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Points (R, K, 2) in pixels, maximum values (R, K) of the resized heatmaps, and
        scores (R, K) in (0, 1]. A score is the softmax at the maximum value. As in Detectron2, it is normalized over
        the m x m cells of the original heatmap, so that scores of large and small RoIs are comparable.
    """
    logits, rois = logits.float(), rois.float()
    extents = (rois[:, 2:] - rois[:, :2]).clamp(min=1)
    points, peaks = logits.new_zeros(*logits.shape[:2], 2), logits.new_zeros(logits.shape[:2])
    # tolist() copies the sizes of all RoIs in one device synchronization.
    for index, (width, height) in enumerate(extents.ceil().int().tolist()):
        resized = F.interpolate(logits[index, :, None], size=(height, width), mode='bicubic', align_corners=False)
        peaks[index], argmax = resized.flatten(1).max(dim=1)  # (K, 1, h, w) -> (K, h * w) -> (K,)
        points[index] = torch.stack((argmax % width, argmax // width), dim=-1) + 0.5
    pixel_size = extents / extents.ceil()  # size of a pixel of the resized heatmap in image pixels
    points = points * pixel_size[:, None] + rois[:, None, :2]
    scores = (peaks - logits.flatten(2).logsumexp(-1)).exp().clamp(max=1)
    return points, peaks, scores
