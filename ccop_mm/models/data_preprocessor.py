"""From the loader's batch to the network's input."""

import torch
from mmselfsup.models.utils import SelfSupDataPreprocessor
from mmselfsup.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class TwoViewDataPreprocessor(SelfSupDataPreprocessor):
    """Moves both views to the device and normalizes them; the boxes stay on the CPU.

    mmselfsup's preprocessor would move every image's boxes by itself, a small copy each. CCOP jitters them and assigns
    them to pyramid levels on the CPU and then copies them (:class:`ccop_mm.models.CCOP`). Arguments are those of
    mmengine's ``ImgDataPreprocessor``.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepares a batch.

        Args:
            data (dict): ``inputs``: list of the views, each a uint8 tensor ``(B, 3, H, W)``, as ``default_collate``
                gives them; ``data_samples``: list of B data samples.
            training (bool): Unused; both phases are prepared alike.

        Returns:
            dict: ``inputs``, a list of float tensors ``(B, 3, H, W)``, and ``data_samples`` as they came.
        """
        views = [self._normalize(view) for view in self.cast_data(data['inputs'])]
        return dict(inputs=views, data_samples=data.get('data_samples'))

    def _normalize(self, view: Tensor) -> Tensor:
        if self._channel_conversion:
            view = view[:, [2, 1, 0]]
        view = view.to(torch.get_default_dtype())
        return (view - self.mean) / self.std if self._enable_normalize else view
