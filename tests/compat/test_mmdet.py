import pickle

import pytest
import torch
from mmdet.utils import dist_utils
from planted_code import Planted


def test_names_are_exchanged_as_json(tmp_path):
    names = ['backbone.bn.weight', 'neck.ü']
    assert dist_utils.tensor2obj(dist_utils.obj2tensor(names)) == names
    planted = torch.tensor(list(pickle.dumps(Planted(tmp_path / 'executed'))), dtype=torch.uint8)
    with pytest.raises(ValueError):
        dist_utils.tensor2obj(planted)
    assert not (tmp_path / 'executed').exists()
