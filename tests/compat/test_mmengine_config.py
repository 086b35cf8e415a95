"""Config files of this package by name."""

import json
from importlib.util import find_spec as find
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.utils import get_installed_path
from mmselfsup.registry import MODELS

from ccop_mm.compat.mmengine import resolve_own_configs

ROOT = Path(__file__).resolve().parents[2]
DEMO = 'ccop/ccop_r18_fpn_demo.py'


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes mmengine find a package folder with ``.mim``, also if the package was not installed with pip."""
    mim = tmp_path / 'ccop_mm' / '.mim'
    mim.mkdir(parents=True)
    for name in ('configs', 'model-index.yml'):
        (mim / name).symlink_to(ROOT / name)
    for module in ('mmengine.config.config', 'mmengine.hub.hub'):
        monkeypatch.setattr(
            f'{module}.get_installed_path',
            lambda package: str(tmp_path / 'ccop_mm') if package == 'ccop_mm' else get_installed_path(package),
        )
    monkeypatch.setattr('mmengine.config.config.is_installed', lambda package: True)
    monkeypatch.setattr('mmengine.hub.hub.install_package', lambda package: None)


def plain(config):
    return json.loads(json.dumps(config.to_dict(), default=str))


def test_base_config(installed, tmp_path):
    """A config outside the repository inherits one of the package, and reads its variables."""
    path = tmp_path / 'my_ccop.py'
    path.write_text(
        f"_base_ = ['ccop_mm::{DEMO}']\n"
        'train_dataloader = dict(batch_size=8, sampler=_base_.train_dataloader.sampler)\n'
        'model = dict(backbone=_base_.model.backbone)\n'
    )
    config, expected = Config.fromfile(path), Config.fromfile(ROOT / 'configs' / DEMO)
    expected.train_dataloader.batch_size = 8
    assert plain(config) == plain(expected)  # no scope was added
    MODELS.build({**config.model, 'queue_len': 16, 'object_queue_len': 16})


def test_base_config_of_other_packages_keeps_its_scope():
    _, scope = Config._get_cfg_path('mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'detector.py')
    assert scope == 'mmdet'


def test_get_config(installed):
    assert plain(get_config(f'ccop_mm::{DEMO}')) == plain(Config.fromfile(ROOT / 'configs' / DEMO))
    keypoints = 'transfer/keypoint_rcnn/keypoint-rcnn_r50-fpn_ccop-800e_2x_coco.py'
    assert (ROOT / 'configs' / keypoints).is_file()
    assert get_config(f'ccop_mm::{keypoints}').model.type == Config.fromfile(ROOT / 'configs' / keypoints).model.type


def test_patch_may_be_repeated():
    before = Config._get_cfg_path
    resolve_own_configs()
    assert Config._get_cfg_path is before


def test_metafiles_list_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for name in index['Import']:
        content = yaml.safe_load((ROOT / name).read_text())
        collections = {collection['Name'] for collection in content['Collections']}
        assert all((ROOT / collection['README']).is_file() for collection in content['Collections'])
        files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / name).parent.glob('*.py'))
        assert [model['Config'] for model in content['Models']] == files
        for model in content['Models']:
            config = Config.fromfile(ROOT / model['Config'])
            world = config.auto_scale_lr.base_batch_size // config.train_dataloader.batch_size
            expected = dict(
                Epochs=config.train_cfg.max_epochs, **{'Batch Size': world * config.train_dataloader.batch_size}
            )
            assert model['Metadata'] == expected and model['In Collection'] in collections
            assert model['Name'] == Path(model['Config']).stem
    assert {Path(name).parent.name for name in index['Import']} == {'ccop', 'baselines', 'ablations'}


def test_packages_are_located_without_pkg_resources(monkeypatch):
    import mmengine.hub.hub
    from mmengine.config import config
    from mmengine.utils import package_utils

    from ccop_mm.compat import mmengine as patches

    def is_installed(package):
        import pkg_resources  # as in mmengine 0.10.7

        return bool(pkg_resources)

    modules = (package_utils, mmengine.utils, config, mmengine.hub.hub)
    for module in modules:
        for name in ('is_installed', 'get_installed_path'):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, is_installed)
    monkeypatch.setattr(
        patches.importlib.util, 'find_spec', lambda name: None if name == 'pkg_resources' else find(name)
    )
    patches.locate_packages()
    assert config.get_installed_path is mmengine.hub.hub.get_installed_path is patches.get_installed_path
    assert package_utils.is_installed is patches.is_installed
    assert patches.is_installed('mmdet') and not patches.is_installed('no-such-package')
    assert Path(patches.get_installed_path('mmdet')) == Path(find('mmdet').origin).parent
    with pytest.raises(ModuleNotFoundError, match='no-such-package'):
        patches.get_installed_path('no-such-package')


def test_distribution_with_another_name_than_its_package(monkeypatch):
    from types import SimpleNamespace

    from ccop_mm.compat import mmengine as patches

    distribution = SimpleNamespace(read_text=lambda name: 'json\n')
    monkeypatch.setattr(patches.metadata, 'distribution', lambda name: distribution)
    assert Path(patches.get_installed_path('json-distribution')) == Path(json.__file__).parent
