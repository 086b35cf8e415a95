"""Scales transfer configs down with config options: narrow networks, few and small images, one iteration."""

import copy
import functools
import json
from pathlib import Path
from xml.etree import ElementTree

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ccop_mm.compat import prepare_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SCALE = (96, 64)
WIDTH, FPN_WIDTH = 8, 32  # base channels of the ResNet, channels of the FPN


@functools.cache
def _read(path):
    return Config.fromfile(path)


def read_config(path):
    """Returns a copy of the config in a file, which is read only once since that takes most of a second."""
    return copy.deepcopy(_read(path))


def channels(depth):
    """Returns the channels of C2 to C5 of a ResNet with ``WIDTH`` base channels."""
    return [WIDTH * 2**stage * (4 if depth >= 50 else 1) for stage in range(4)]


def narrow_model(cfg, num_classes):
    """Returns options that make backbone, FPN and heads of a detector narrow.

    Args:
        cfg (Config): Mask R-CNN, Faster R-CNN or RetinaNet config of configs/transfer/.
        num_classes (int): Number of classes of the dataset.
    """
    options = {
        'model.backbone.base_channels': WIDTH,
        'model.neck.in_channels': channels(cfg.model.backbone.depth),
        'model.neck.out_channels': FPN_WIDTH,
    }
    if 'roi_head' not in cfg.model:
        head = {'in_channels': FPN_WIDTH, 'feat_channels': 64, 'stacked_convs': 1, 'num_classes': num_classes}
        options.update({f'model.bbox_head.{key}': value for key, value in head.items()})
        # Random weights give low scores; without a threshold there are detections to evaluate.
        return {**options, 'model.test_cfg.score_thr': 0.0, 'model.test_cfg.max_per_img': 5}
    options.update({f'model.rpn_head.{key}': FPN_WIDTH for key in ('in_channels', 'feat_channels')})
    for kind in ('bbox', 'mask'):
        if f'{kind}_head' not in cfg.model.roi_head:
            continue
        options[f'model.roi_head.{kind}_roi_extractor.out_channels'] = FPN_WIDTH
        head = {'in_channels': FPN_WIDTH, 'conv_out_channels': 16, 'num_classes': num_classes}
        options.update({f'model.roi_head.{kind}_head.{key}': value for key, value in head.items()})
    return {
        **options,
        'model.roi_head.bbox_head.fc_out_channels': 32,
        'model.train_cfg.rpn_proposal.nms_pre': 100,
        'model.train_cfg.rcnn.sampler.num': 16,
        'model.test_cfg.rpn.nms_pre': 50,
        'model.test_cfg.rpn.max_per_img': 20,
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 5,
    }


def small_images(pipeline, resize):
    """Returns options that set a small image size in the resize transform of a pipeline."""
    (index,) = [number for number, step in enumerate(pipeline) if 'Resize' in step.type]
    key = 'scales' if 'scales' in pipeline[index] else 'scale'
    return {f'{resize}.pipeline.{index}.{key}': [SCALE] if key == 'scales' else SCALE}


def coco_data(cfg, images, annotations, num_images=2):
    """Returns options that set the images and annotations of all datasets of a config in COCO format."""
    classes = [category['name'] for category in json.loads(annotations.read_text())['categories']]
    options = {'val_evaluator.ann_file': str(annotations), 'test_evaluator.ann_file': str(annotations)}
    for part in ('train', 'val', 'test'):
        dataset = f'{part}_dataloader.dataset'
        options |= {
            f'{dataset}.data_root': '',
            f'{dataset}.ann_file': str(annotations),
            f'{dataset}.data_prefix.img': str(images),
            f'{dataset}.metainfo.classes': classes,
            f'{dataset}.indices': num_images,
            **small_images(cfg[f'{part}_dataloader'].dataset.pipeline, dataset),
        }
    return options


def write_voc_tree(root, images, annotations, num_images=2):
    """Writes a VOCdevkit folder with links to images and XML files.

    Images are assigned to VOC2007 and VOC2012 in turn. VOC2007 has the same images in trainval and test.

    Args:
        root (Path): VOCdevkit folder to write.
        images (Path): Folder of the images.
        annotations (Path): COCO json of the images, with VOC's class names.
        num_images (int): Number of images per year.
    """
    content = json.loads(annotations.read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    listed = {2007: [], 2012: []}
    for number, image in enumerate(content['images'][: 2 * num_images]):
        year = (2007, 2012)[number % 2]
        stem = f'{number:06d}'
        listed[year].append(stem)
        for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (root / f'VOC{year}' / folder).mkdir(parents=True, exist_ok=True)
        (root / f'VOC{year}/JPEGImages/{stem}.jpg').symlink_to(images / image['file_name'])
        tree = ElementTree.Element('annotation')
        size = ElementTree.SubElement(tree, 'size')
        for key in ('width', 'height'):
            ElementTree.SubElement(size, key).text = str(image[key])
        for annotation in content['annotations']:
            if annotation['image_id'] == image['id']:
                left, top, width, height = annotation['bbox']
                element = ElementTree.SubElement(tree, 'object')
                ElementTree.SubElement(element, 'name').text = names[annotation['category_id']]
                ElementTree.SubElement(element, 'difficult').text = '0'
                box = ElementTree.SubElement(element, 'bndbox')
                # VOC's pixel indices start at 1 and include the last pixel.
                corners = dict(xmin=left + 1, ymin=top + 1, xmax=left + width, ymax=top + height)
                for key, value in corners.items():
                    ElementTree.SubElement(box, key).text = str(round(value))
        ElementTree.ElementTree(tree).write(root / f'VOC{year}/Annotations/{stem}.xml')
    for year, stems in listed.items():
        for split in ('trainval', 'test') if year == 2007 else ('trainval',):
            (root / f'VOC{year}/ImageSets/Main/{split}.txt').write_text('\n'.join(stems))


def voc_data(cfg, root):
    """Returns options that set the VOCdevkit folder of all datasets of a config in VOC format."""
    options = {}
    datasets = [f'train_dataloader.dataset.datasets.{number}' for number in (0, 1)]
    for dataset in (*datasets, 'val_dataloader.dataset', 'test_dataloader.dataset'):
        options[f'{dataset}.data_root'] = f'{root}/'
    for dataset in datasets:
        options |= small_images(cfg.train_dataloader.dataset.datasets[0].pipeline, dataset)
    for part in ('val', 'test'):
        options |= small_images(cfg[f'{part}_dataloader'].dataset.pipeline, f'{part}_dataloader.dataset')
    return options


def one_step(work_dir):
    """Returns options for one training iteration and one evaluation, without workers and checkpoints."""
    options = {'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1, 'default_hooks.checkpoint': None}
    options['param_scheduler'] = []  # the learning rate of the warm-up is too small to change the weights
    for part in ('train', 'val', 'test'):
        options |= {f'{part}_dataloader.num_workers': 0, f'{part}_dataloader.persistent_workers': False}
    return {**options, 'work_dir': str(work_dir), 'experiment_name': Path(work_dir).name}


def make_small(path, options, work_dir):
    """Returns the config of a file with options set as by ``--cfg-options``, prepared for this machine."""
    cfg = read_config(path)
    cfg.merge_from_dict({**one_step(work_dir), **options})
    return prepare_config(cfg)


@functools.cache
def pretraining(depth):
    """Builds a narrow CCOP from its own config, with random weights and norm statistics in the query encoder."""
    cfg = read_config(CONFIGS / f'ccop/ccop_r{depth}_fpn_800e_coco.py')
    model = cfg.model
    model.update(queue_len=8, object_queue_len=8)
    # Zero-init residual: with untrained norm statistics the activations of a hundred layers would grow without bound.
    model.backbone.update(base_channels=WIDTH, zero_init_residual=True)
    model.neck.update(in_channels=channels(depth), out_channels=FPN_WIDTH)
    model.image_projector.update(in_channels=channels(depth)[-1], hid_channels=8)
    model.object_projector.update(in_channels=FPN_WIDTH * 49, hid_channels=8)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        encoder = MODELS.build(model)
    encoder.init_weights()
    generator = torch.Generator().manual_seed(depth)
    for name, tensor in encoder.state_dict().items():
        if name.startswith(('backbone.', 'neck.')) and '.conv' not in name and tensor.is_floating_point():
            # Makes the statistics of all norm layers differ, as after training.
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.2)
    return encoder.eval()
