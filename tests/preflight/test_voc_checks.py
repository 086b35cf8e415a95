"""Faults of data in the format of Pascal VOC."""

import cv2
import numpy as np
import pytest
from detector_checks import check_training
from mmengine.config import ConfigDict
from small_detector import CLASSES, HEIGHT, WIDTH, detector_config

from ccop_mm.preflight.findings import Level

OBJECT = '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
SIZE = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>'


def write_xml(path, objects, size=SIZE):
    path.write_text(f'<annotation>{size}{"".join(OBJECT.format(*item) for item in objects)}</annotation>')


@pytest.fixture
def voc(tmp_path):
    """Folder with twelve images with an object of each class."""
    root = tmp_path / 'VOC2007'
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    names = [f'{number:06d}' for number in range(12)]
    for name in names:
        cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
        write_xml(root / f'Annotations/{name}.xml', [(kind, 1, 1, WIDTH, 20) for kind in CLASSES])
    (root / 'ImageSets/Main/train.txt').write_text('\n'.join(names) + '\n')
    return root


def find(voc, classes=CLASSES, **options):
    """Checks a training on the folder; returns the lines of the report."""
    cfg = detector_config(voc)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset = ConfigDict(
        type='XMLDataset',
        data_root=f'{voc.parent}/',
        ann_file='VOC2007/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        metainfo=dict(classes=classes),
        pipeline=pipeline,
    )
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.model.roi_head.bbox_head.num_classes = len(classes)
    cfg.merge_from_dict(options)
    return check_training(cfg)


def the_finding(report, level):
    (finding,) = report.findings
    assert finding.level is level, finding
    return str(finding)


def test_valid_data_has_no_findings(voc):
    assert not find(voc).findings


@pytest.mark.parametrize(('number', 'level'), [(1, Level.WARNING), (2, Level.ERROR), (12, Level.ERROR)])
def test_missing_images(voc, number, level):
    for path in sorted((voc / 'JPEGImages').iterdir())[:number]:
        path.unlink()
    line = the_finding(find(voc), level)
    assert f'{number} of the 12' in line and '000000.jpg' in line and f'{voc}/JPEGImages' in line


def test_missing_annotation(voc):
    (voc / 'Annotations/000003.xml').unlink()
    line = the_finding(find(voc), Level.ERROR)
    assert '1 of the 12' in line and '000003.xml' in line


def test_images_of_another_suffix(voc):
    for path in (voc / 'JPEGImages').iterdir():
        path.rename(path.with_suffix('.png'))
    line = the_finding(find(voc), Level.ERROR)
    assert '12 of the 12' in line and '000000.png' in line and 'XMLDataset' in line


def test_blank_line_in_the_list(voc):
    path = voc / 'ImageSets/Main/train.txt'
    path.write_text(path.read_text() + '\n')
    lines = [str(finding) for finding in find(voc).errors]
    assert len(lines) == 1 and f'1 of the 13 XML files of {path}' in lines[0]


def test_files_without_objects(voc):
    for path in (voc / 'Annotations').iterdir():
        write_xml(path, [])
    assert '12 XML files' in the_finding(find(voc), Level.ERROR)


@pytest.mark.parametrize('text', ['', '000001 1\n'], ids=['empty', 'list of a class'])
def test_list_of_other_names(voc, text):
    (voc / 'ImageSets/Main/train.txt').write_text(text)
    assert f'{voc}/ImageSets/Main/train.txt' in str(find(voc).errors[0])


@pytest.mark.parametrize(
    ('change', 'value'),
    [
        (lambda text: text[:-5], 'line 1'),
        (lambda text: text.replace('<xmax>', '<x2>').replace('</xmax>', '</x2>'), 'bndbox/xmax'),
        (lambda text: text.replace(f'>{WIDTH}</width>', '>wide</width>'), 'wide'),
    ],
    ids=['truncated', 'no xmax', 'text as width'],
)
def test_file_that_mmdet_cannot_read(voc, change, value):
    path = voc / 'Annotations/000005.xml'
    path.write_text(change(path.read_text()))
    line = the_finding(find(voc), Level.ERROR)
    assert path.name in line and value in line


@pytest.mark.parametrize('name', ['hrose', 'Horse', 'horse '])
def test_misspelt_class(voc, name):
    line = the_finding(find(voc, classes=('cat', 'dog', name)), Level.ERROR)
    assert repr(name) in line and "'horse'" in line


def test_no_class_matches(voc):
    line = the_finding(find(voc, classes=('airplane',)), Level.ERROR)
    assert "'cat', 'dog', 'horse'" in line and 'airplane' in line


def test_objects_of_another_class(voc):
    line = the_finding(find(voc, classes=('cat', 'dog')), Level.WARNING)
    assert "'horse' (12 objects)" in line


@pytest.mark.parametrize(
    ('box', 'value'),
    [
        ((0.1, 0.1, 0.9, 0.5), '000000.xml, object 1'),  # relative to the image
        (('nan', 1, 20, 20), '000000.xml, object 1'),
        ((WIDTH + 5, 1, WIDTH + 20, 20), '000000.xml, object 1'),
    ],
)
def test_boxes_of_another_convention(voc, box, value):
    for path in (voc / 'Annotations').iterdir():
        write_xml(path, [(kind, *box) for kind in CLASSES])
    assert value in the_finding(find(voc), Level.ERROR)


def test_sizes_that_are_not_those_of_the_images(voc):
    for path in (voc / 'Annotations').iterdir():
        path.write_text(path.read_text().replace(SIZE, SIZE.replace(str(WIDTH), str(WIDTH + 20))))
    assert '12 of 12' in the_finding(find(voc), Level.ERROR)
    for path in (voc / 'Annotations').iterdir():  # mmdet reads the images
        path.write_text(path.read_text().replace('<size>', '<other>').replace('</size>', '</other>'))
    assert not find(voc).findings
