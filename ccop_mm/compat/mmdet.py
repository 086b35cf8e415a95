"""mmdet: communication between processes."""

import json
from typing import Any

import torch


def exchange_names_as_json() -> None:
    """Makes mmdet's ``all_reduce_dict`` exchange tensor names as JSON.

    Problem (mmdet 3.3.0, onedl-mmdetection 3.5.1; CVE-2024-12044):
        ``all_reduce_dict``, which mmdet's ``SyncNormHook`` calls, unpickles what rank 0 broadcasts. Any process that
        joins the process group can therefore execute code on the others. The function also requires CUDA.

    Fix:
        Encode the names as JSON, in a tensor on the device that the process group communicates on.

    Remove when:
        ``mmdet.utils.dist_utils`` no longer imports pickle; until then this function leaves such versions unchanged.
    """
    from mmdet.utils import dist_utils
    from mmengine.dist.utils import get_comm_device

    if not hasattr(dist_utils, 'pickle'):
        return

    def to_tensor(names: list[str], device: Any = None) -> torch.Tensor:
        return torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8, device=get_comm_device())

    def from_tensor(tensor: torch.Tensor) -> list[str]:
        return json.loads(bytes(tensor.tolist()))

    dist_utils.obj2tensor, dist_utils.tensor2obj = to_tensor, from_tensor
