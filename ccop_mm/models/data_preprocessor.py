"""From the loader's batch to the network's input."""

import torch
from mmselfsup.models.utils import SelfSupDataPreprocessor
from mmselfsup.registry import MODELS
from torch import Tensor

from ccop_mm import photometric

#: Array elements worked on at a time on the CPU: 4 images of 224 px, 2.4 MB in float32, stay in a core's cache.
CPU_CHUNK = 4 * 3 * 224 * 224


@MODELS.register_module()
class TwoViewDataPreprocessor(SelfSupDataPreprocessor):
    """Moves both views to the device, does there the photometric part of their augmentation, and normalizes them.

    The photometric part is what ``data['photometric']`` says for each image (:mod:`ccop_mm.photometric`), drawn by
    :class:`ccop_mm.datasets.SplitTwoObjectViews` in the loader; nothing is drawn here. Views without it come from a
    pipeline that did it per image. The boxes stay on the CPU: mmselfsup's preprocessor would move every image's by
    itself, a small copy each. CCOP jitters them and assigns them to pyramid levels on the CPU and then copies them
    (:class:`ccop_mm.models.CCOP`).

    Args:
        photometric_dtype (str, optional): Type that the photometric part and normalization are computed in:
            ``'float32'``, ``'float16'`` or ``'bfloat16'``. torch's default type by default. bfloat16 has no finer steps
            than one grey level from 128 on. Views reach the network in torch's default type all the same; autocast
            takes it from there.
        **kwargs: As mmengine's ``ImgDataPreprocessor``. Views are BGR, as ``LoadPhoto`` gives them.
    """

    def __init__(self, *args, photometric_dtype: str | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if photometric_dtype not in (None, 'float32', 'float16', 'bfloat16'):
            raise ValueError(f"photometric_dtype must be 'float32', 'float16' or 'bfloat16', got {photometric_dtype!r}")
        self._dtype = photometric_dtype and getattr(torch, photometric_dtype)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepares a batch.

        Args:
            data (dict): ``inputs``: list of the views, each a uint8 tensor ``(B, 3, H, W)``, as ``default_collate``
                gives them; ``data_samples``: list of B data samples; ``photometric``, where the loader leaves it to the
                device: ``(B, views, NUM_PARAMS)``.
            training (bool): Unused; both phases are prepared alike.

        Returns:
            dict: ``inputs``, a list of float tensors ``(B, 3, H, W)``, and ``data_samples`` as they came.
        """
        views = self.cast_data(data['inputs'])
        params = data.get('photometric')
        with torch.autocast(views[0].device.type, enabled=False):
            views = [self._prepare(view, None if params is None else params[:, i]) for i, view in enumerate(views)]
        return dict(inputs=views, data_samples=data.get('data_samples'))

    def _prepare(self, view: Tensor, params: Tensor | None) -> Tensor:
        dtype = torch.get_default_dtype()
        if params is None:
            view = (view.flip(1) if self._channel_conversion else view).to(dtype)  # BGR to RGB
            return (view - self.mean) / self.std if self._enable_normalize else view
        out = torch.empty(view.shape, dtype=dtype, device=view.device)
        step = max(CPU_CHUNK // view.shape[1:].numel() if view.device.type == 'cpu' else len(view), 1)
        for first in range(0, len(view), step):
            rows = slice(first, first + step)
            part = photometric.apply(view[rows].flip(1).to(self._dtype or dtype), params[rows])
            part = part if self._channel_conversion else part.flip(1)
            if self._enable_normalize:
                part = part.sub_(self.mean.to(part.dtype)).div_(self.std.to(part.dtype))
            out[rows] = part
        return out
