"""Data of a detector against its config, and the description of pre-training data."""

import re
import shutil
from pathlib import Path

import pytest
from detector_checks import annotation, check, check_test, check_training, every, the_line
from mmengine.config import Config
from small_detector import detector_config, edit_json

from ccop_mm.preflight.detector_data import check_test_data
from ccop_mm.preflight.findings import Level
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.run_config import iterate_datasets

ROOT = Path(__file__).resolve().parents[2]


def test_valid_data_has_no_findings(root):
    report = check(root)
    assert report.findings == []
    assert report.seen == ['24 images', '3 classes', '72 boxes', 'FasterRCNN with ResNet-18-FPN', '18 steps of 4']
    report = check_test(root)
    assert report.findings == []
    assert report.seen == ['12 images', '3 classes', '36 boxes', 'FasterRCNN with ResNet-18-FPN']


@pytest.mark.parametrize(
    ('text', 'value'), [('{', 'not JSON'), ('[1]', 'list'), ('{"images": 5}', '"images"'), (None, 'does not exist')]
)
def test_annotation_file_that_is_no_coco_json(root, text, value):
    if text is None:
        (root / 'train.json').unlink()
    else:
        (root / 'train.json').write_text(text)
    line = the_line(check(root), Level.ERROR)
    assert value in line and f'{root}/train.json' in line


def test_byte_order_mark(root):
    path = root / 'train.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    line = the_line(check(root), Level.ERROR)
    assert f'{path}: ' in line and 'byte order mark' in line


def test_same_finding_is_listed_once(root):
    cfg = detector_config(root)
    cfg.val_dataloader.dataset.pipeline[1].with_mask = True
    cfg.val_evaluator.metric = ['bbox', 'segm']
    edit_json(root / 'val.json', every(lambda row: row.update(segmentation=[1, 2, 3])))
    assert '36 of 36 objects' in the_line(check_training(cfg), Level.ERROR)


def test_missing_image_folder(root):
    line = the_line(check(root, **{'train_dataloader.dataset.data_prefix.img': 'absent/'}), Level.ERROR)
    assert f'{root}/absent' in line


def test_annotation_id_0_with_the_parallel_evaluator(root):
    options = {'val_evaluator.use_mp_eval': True}
    assert check(root, **options).findings == []
    edit_json(root / 'val.json', annotation(id=0))
    assert 'val_evaluator.use_mp_eval' in the_line(check(root, **options), Level.ERROR)


def test_evaluator_reads_another_file(root):
    line = the_line(check(root, **{'val_evaluator.ann_file': f'{root}/train.json'}), Level.ERROR)
    assert 'val_evaluator.ann_file' in line and '12 images' in line
    shutil.copy(root / 'val.json', root / 'copy.json')
    options = {'val_evaluator.ann_file': f'{root}/copy.json'}
    assert check(root, **options).findings == []

    def remove_image(content):
        image = content['images'].pop(4)
        content['annotations'] = [row for row in content['annotations'] if row['image_id'] != image['id']]

    edit_json(root / 'copy.json', remove_image)
    line = the_line(check(root, **options), Level.ERROR)
    assert 'val_evaluator.ann_file' in line and re.search(r'\b1 images.*dataset only.*\b5\b', line)


def test_evaluator_counts_images_that_are_not_tested(root):
    line = the_line(check(root, **{'val_dataloader.dataset.indices': 4}), Level.WARNING)
    assert 'val_dataloader.dataset.indices' in line and f'{root}/val.json' in line


@pytest.mark.parametrize(('metric', 'nearest'), [('bbx', 'bbox'), (['bbox', 'seg'], 'segm'), ('keypoints', 'proposal')])
def test_unknown_metric(root, metric, nearest):
    line = the_line(check(root, **{'val_evaluator.metric': metric}), Level.ERROR)
    assert 'val_evaluator.metric' in line and nearest in line


CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


def test_configs_are_found():
    assert len(CONFIGS) > 40


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_missing_files_are_the_only_findings_without_data(path, tmp_path, monkeypatch):
    """No config of the project has another error, and none of its json files is left out."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    before = cfg.pretty_text
    report = check_training(cfg)
    if cfg.get('test_dataloader') is not None:
        check_test_data(cfg, report)
    assert all('does not exist' in str(finding) for finding in report.findings), report.findings
    expected = [
        f'{key}.data_prefix.img'
        for part in ('train', 'val', 'test')
        for key, dataset, _ in iterate_datasets(
            (cfg.get(f'{part}_dataloader') or {}).get('dataset'), f'{part}_dataloader.dataset'
        )
        if dataset.type.endswith(('CocoDataset', 'CocoKeypointDataset'))
    ]
    assert [finding.where for finding in report.findings if not finding.where.endswith('ann_file')] == expected
    assert any('ResNet-' in part for part in report.seen)
    assert cfg.pretty_text == before


def test_pretraining_is_described(tmp_path):
    boxes = [[0, 0, 20, 20], [5, 5, 30, 40]]
    ProposalStore([(number, f'{number}.png', (70, 90), boxes) for number in range(10)]).save(tmp_path / 'boxes.npz')
    dataset = dict(type='ProposalDataset', data_root=f'{tmp_path}/', proposal_file='boxes.npz')
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop_r18_fpn_demo.py')
    cfg.train_dataloader.update(dataset=dataset, batch_size=4)
    report = check_training(cfg)
    assert report.findings == []
    assert report.seen == ['10 images', '20 proposals', 'CCOP with ResNet-18-FPN', '60 steps of 4']  # drop_last


def test_proposals_of_several_files_are_added(tmp_path):
    for name, number in (('a', 10), ('b', 3)):
        entries = [(index, f'{index}.png', (70, 90), [[0, 0, 20, 20]]) for index in range(number)]
        ProposalStore(entries).save(tmp_path / f'{name}.npz')
    parts = [dict(type='ProposalDataset', data_root=str(tmp_path), proposal_file=f'{name}.npz') for name in 'ab']
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop_r18_fpn_demo.py')
    wrapped = dict(type='RepeatDataset', times=2, dataset=parts[1])
    cfg.train_dataloader.update(dataset=dict(type='ConcatDataset', datasets=[parts[0], wrapped]), batch_size=4)
    assert check_training(cfg).seen == ['16 images', '16 proposals', 'CCOP with ResNet-18-FPN', '120 steps of 4']
    (tmp_path / 'b.npz').write_bytes(b'PK')
    assert check_training(cfg).seen == ['CCOP with ResNet-18-FPN'], 'the number of images is not known'


def test_proposals_are_counted_without_reading_the_boxes(tmp_path, monkeypatch):
    ProposalStore([(1, '1.png', (70, 90), [[0, 0, 20, 20]])]).save(tmp_path / 'boxes.npz')
    monkeypatch.setattr('ccop_mm.proposals.npz_mmap.arrays_checksum', None)  # reads all arrays
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop_r18_fpn_demo.py')
    cfg.train_dataloader.dataset = dict(type='ProposalDataset', proposal_file=f'{tmp_path}/boxes.npz')
    assert check_training(cfg).seen[:2] == ['1 image', '1 proposal']
