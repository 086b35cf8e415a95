"""Data preprocessor: photometric augmentation and normalization of two views on the training device."""

from typing import Any

import torch
import torch.nn.functional as F
from mmselfsup.models.utils import SelfSupDataPreprocessor
from mmselfsup.registry import MODELS
from torch import Tensor

from ccop_mm.models import batch_photometric as photometric

#: Number of elements processed at a time on the CPU: 4 images of 224 px, 2.4 MB in float32, which fit into the cache of
#: a core.
CPU_CHUNK = 4 * 3 * 224 * 224


@MODELS.register_module()
class TwoViewDataPreprocessor(SelfSupDataPreprocessor):
    """Moves both views to the device, applies their photometric augmentation, and normalizes them.

    The parameters of the augmentation, ``data['photometric']``, are sampled in the data loader by
    :class:`ccop_mm.datasets.SplitTwoObjectViews`; nothing is random here. Views without them are only normalized, for
    pipelines that augment image by image.

    The boxes stay on the CPU, where :class:`ccop_mm.models.CCOP` jitters them and assigns them to pyramid levels before
    it copies them to the device. mmselfsup's preprocessor would copy the boxes of every image separately.

    Args:
        *args: Positional arguments of mmengine's ``ImgDataPreprocessor``.
        photometric_dtype (str, optional): Dtype of photometric augmentation and normalization: ``'float32'``,
            ``'float16'`` or ``'bfloat16'``; torch's default dtype by default. In bfloat16, values of 128 and more are
            integers. The returned views always have torch's default dtype.
        **kwargs: Keyword arguments of mmengine's ``ImgDataPreprocessor``: ``mean``, ``std`` (without them, the network
            receives 0 to 255), ``bgr_to_rgb``, ``rgb_to_bgr``, ``pad_size_divisor``, ``pad_value``. With those of an
            mmdet detector, the network receives the same values as in the detector. Input views are BGR, as loaded by
            ``LoadUnlabeledImage``.
    """

    def __init__(self, *args: Any, photometric_dtype: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if photometric_dtype not in (None, 'float32', 'float16', 'bfloat16'):
            raise ValueError(f"photometric_dtype must be 'float32', 'float16' or 'bfloat16', got {photometric_dtype!r}")
        self._dtype = photometric_dtype and getattr(torch, photometric_dtype)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepares a batch for the network.

        Args:
            data (dict): ``inputs``: list of the views, uint8 ``(B, 3, H, W)`` each, as collated by ``default_collate``;
                ``data_samples``: list of B data samples; ``photometric`` (optional): ``(B, views, NUM_PARAMS)``.
            training (bool): Unused; training and test batches are prepared identically.

        Returns:
            dict: ``inputs``: list of the views, floating point ``(B, 3, H, W)`` each, padded at the right and the
            bottom to multiples of ``pad_size_divisor``; ``data_samples``: unchanged.
        """
        views = self.cast_data(data['inputs'])
        params = data.get('photometric')
        with torch.autocast(views[0].device.type, enabled=False):
            views = [self._prepare(view, None if params is None else params[:, i]) for i, view in enumerate(views)]
        views = [pad_to_multiple(view, self.pad_size_divisor, self.pad_value) for view in views]
        return dict(inputs=views, data_samples=data.get('data_samples'))

    def _prepare(self, view: Tensor, params: Tensor | None) -> Tensor:
        """Augments and normalizes one view ``(B, 3, H, W)`` with the parameters ``(B, NUM_PARAMS)``, if given."""
        dtype = torch.get_default_dtype()
        if params is None:
            view = (view.flip(1) if self._channel_conversion else view).to(dtype)  # BGR to RGB
            return (view - self.mean) / self.std if self._enable_normalize else view
        out = torch.empty(view.shape, dtype=dtype, device=view.device)
        chunk = max(CPU_CHUNK // view.shape[1:].numel() if view.device.type == 'cpu' else len(view), 1)
        for start in range(0, len(view), chunk):
            rows = slice(start, start + chunk)
            part = photometric.apply(view[rows].flip(1).to(self._dtype or dtype), params[rows])  # BGR to RGB
            part = part if self._channel_conversion else part.flip(1)
            if self._enable_normalize:
                part = part.sub_(self.mean.to(part.dtype)).div_(self.std.to(part.dtype))
            out[rows] = part
        return out


def pad_to_multiple(images: Tensor, divisor: int, value: float = 0) -> Tensor:
    """Pads images at the right and the bottom, like mmdet's ``DetDataPreprocessor``.

    Args:
        images (Tensor): ``(B, C, H, W)``.
        divisor (int): Height and width of the result are multiples of it.
        value (float): Padding value.

    Returns:
        Tensor: ``(B, C, H', W')``; ``images`` itself if nothing is padded.
    """
    bottom, right = (-side % divisor for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, bottom), value=value) if bottom or right else images
