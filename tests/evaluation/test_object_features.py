import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmselfsup.models.utils import SelfSupDataPreprocessor
from torch import nn

from ccop_mm.evaluation import extract_object_features
from ccop_mm.utils.errors import InputError

MEAN, STD = (110.0, 120, 130), (50.0, 60, 70)


class ColorModel(nn.Module):
    """Model whose features are colors: every stage is the input averaged over cells.

    The embedding of a box is the box as passed to the model, followed by the color at its center.
    """

    def __init__(self, bgr_to_rgb=True):
        super().__init__()
        self.data_preprocessor = SelfSupDataPreprocessor(mean=MEAN, std=STD, bgr_to_rgb=bgr_to_rgb)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.modes, self.shapes = [], []

    def backbone(self, x):
        self.modes.append((self.training, self.frozen.training, torch.is_grad_enabled()))
        self.shapes.append(tuple(x.shape))
        return tuple(F.avg_pool2d(x, stride) for stride in (4, 8, 16, 32))

    def neck(self, stages):
        return stages

    def embed_objects(self, pyramid, boxes, batch_index):
        x, y = ((boxes[:, :2] + boxes[:, 2:]) / 8).long().unbind(1)
        return torch.cat([boxes, pyramid[0][batch_index, :, y, x]], dim=1)


class RandomNet(ColorModel):
    """Model whose output depends on the whole input, including the padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 5, 4, 2)] + [nn.Conv2d(8, 8, 3, 2, 1) for _ in range(3)]
        self.layers = nn.ModuleList(nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU()) for layer in layers)
        for layer in self.layers:
            layer[1].running_mean.normal_()

    def backbone(self, x):
        stages = []
        for layer in self.layers:
            x = layer(x)
            stages.append(x)
        return tuple(stages)


def write_images(folder, specs):
    """Writes PNG images with uniform rectangles; ``specs`` is a list of (height, width, [(xywh box, RGB color)])."""
    images, annotations = [], []
    for number, (height, width, objects) in enumerate(specs, 1):
        image = np.full((height, width, 3), 40, np.uint8)
        for label, ((x, y, w, h), color) in enumerate(objects, 10 * number):
            image[y : y + h, x : x + w] = color
            annotations.append({'image_id': number, 'bbox': [x, y, w, h], 'category_id': label})
        name = f'{number}.png'
        cv2.imwrite(str(folder / name), image[..., ::-1])
        images.append({'id': number, 'file_name': name, 'height': height, 'width': width})
    path = folder / 'instances.json'
    path.write_text(json.dumps({'images': images, 'annotations': annotations}))
    return path


def random_specs(seed, shapes):
    rng = np.random.default_rng(seed)
    return [
        (h, w, [((4, 4, 28, 24), rng.integers(256, size=3)), ((36, 36, 24, 24), rng.integers(256, size=3))])
        for h, w in shapes
    ]


def shrink_boxes(path, margin):
    """Shrinks every box, so that bilinear samples inside it do not mix with pixels outside the rectangle."""
    data = json.loads(path.read_text())
    for annotation in data['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['bbox'] = [x + margin, y + margin, w - 2 * margin, h - 2 * margin]
    path.write_text(json.dumps(data))


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_features_are_the_colors_of_the_objects(tmp_path, batch_size, bgr_to_rgb):
    # The short side is 64, so nothing is resized. Three padded shapes are mixed, so batches are not in file order.
    specs = random_specs(0, [(64, 96), (64, 100), (64, 90), (112, 64), (64, 96), (64, 128)])
    path = write_images(tmp_path, specs)
    shrink_boxes(path, 4)
    features = extract_object_features(ColorModel(bgr_to_rgb), path, tmp_path, 64, batch_size, stage=0)
    colors = np.array([color for _, _, objects in specs for _, color in objects], np.float32)
    colors = colors if bgr_to_rgb else colors[:, ::-1]
    expected = torch.from_numpy((colors - MEAN) / STD).float()
    torch.testing.assert_close(features['backbone'], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(features['embedding'][:, 4:], expected, atol=1e-4, rtol=0)
    assert features['labels'].tolist() == [10 * image + number for image in range(1, 7) for number in (0, 1)]


def test_size_padding_and_boxes(tmp_path):
    path = write_images(tmp_path, [(50, 75, [((10, 20, 30, 15), (9, 9, 9))]), (90, 45, [((5, 6, 7, 8), (9, 9, 9))])])
    model = ColorModel()
    features = extract_object_features(model, path, tmp_path, size=100)
    # 50 x 75 -> 100 x 150 -> 128 x 160; 90 x 45 -> 200 x 100 -> 224 x 128
    assert model.shapes == [(1, 3, 128, 160), (1, 3, 224, 128)]
    expected = torch.tensor([[20, 40, 80, 70], [5, 6, 12, 14]]) * torch.tensor([[1.0], [100 / 45]])
    torch.testing.assert_close(features['embedding'][:, :4], expected)
    assert features['backbone'].shape == (2, 3)


def test_result_does_not_depend_on_batch_size(tmp_path):
    path = write_images(tmp_path, random_specs(1, [(64, 96), (80, 100), (64, 90), (90, 128), (64, 96), (72, 120)]))
    results = [extract_object_features(RandomNet(), path, tmp_path, size=64, batch_size=size) for size in (1, 4)]
    for name in ('backbone', 'embedding', 'labels'):
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-5, rtol=1e-5)
    assert results[0]['backbone'].std(dim=0).max() > 0.01  # the compared features are not constant


def test_modes_are_restored(tmp_path):
    path = write_images(tmp_path, random_specs(2, [(64, 96)]))
    model = ColorModel().train()
    model.frozen.eval()  # as norm_eval does
    extract_object_features(model, path, tmp_path, size=64)
    assert model.modes == [(False, False, False)]
    assert model.training
    assert not model.frozen.training
    assert model.data_preprocessor.training


def test_unreadable_images_are_logged_and_skipped(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('ccop_mm.evaluation.object_features.print_log', lambda line, *_: lines.append(line))
    path = write_images(tmp_path, random_specs(3, [(64, 96)] * 4))
    (tmp_path / '1.png').unlink()
    (tmp_path / '2.png').write_bytes((tmp_path / '3.png').read_bytes()[:80])
    cv2.imwrite(str(tmp_path / '4.png'), np.zeros((96, 64, 3), np.uint8))
    features = extract_object_features(ColorModel(), path, tmp_path, size=64)
    assert features['labels'].tolist() == [30, 31]
    assert all(name in line for name, line in zip(('1.png', '2.png', '4.png'), lines, strict=False))
    assert '64 x 96' in lines[2] and '96 x 64' in lines[2]
    assert len(lines) == 4 and '3 of 4' in lines[3]
    (tmp_path / '3.png').unlink()
    with pytest.raises(InputError, match='instances.json'):
        extract_object_features(ColorModel(), path, tmp_path, size=64)


def test_bad_arguments(tmp_path):
    path = write_images(tmp_path, random_specs(4, [(64, 96)]))
    with pytest.raises(InputError, match='0 and 16'):
        extract_object_features(ColorModel(), path, tmp_path, size=0)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match='cuda'):
            extract_object_features(ColorModel(), path, tmp_path, device='cuda')


class NoPyramid(RandomNet):
    """Model without a neck and embeddings, as mmselfsup's MoCo."""

    embed_objects = property()
    neck = None


def test_model_without_embeddings_returns_backbone_features_only(tmp_path):
    path = write_images(tmp_path, random_specs(6, [(64, 96), (80, 100)]))
    without_pyramid = extract_object_features(NoPyramid(), path, tmp_path, size=64)
    with_pyramid = extract_object_features(RandomNet(), path, tmp_path, size=64)
    assert set(without_pyramid) == {'backbone', 'labels'}
    torch.testing.assert_close(without_pyramid['backbone'], with_pyramid['backbone'])


class ThreeStages(ColorModel):
    """A backbone that returns C3 to C5 only; each stage has another offset."""

    def backbone(self, x):
        return tuple(F.avg_pool2d(x, stride) + stride for stride in (8, 16, 32))

    def embed_objects(self, pyramid, boxes, batch_index):
        return boxes


@pytest.mark.parametrize('stage, stride', [('C3', 8), (0, 8), ('C4', 16), ('C5', 32), (-1, 32)])
def test_stages_by_name_and_index(tmp_path, stage, stride):
    path = write_images(tmp_path, [(64, 64, [((0, 0, 64, 64), (10, 20, 30))])])
    features = extract_object_features(ThreeStages(), path, tmp_path, 64, stage=stage)
    expected = (torch.tensor([[10.0, 20, 30]]) - torch.tensor(MEAN)) / torch.tensor(STD) + stride
    torch.testing.assert_close(features['backbone'], expected)


@pytest.mark.parametrize('stage', ['C2', 'P3', 3, -4])
def test_unknown_stage(tmp_path, stage):
    path = write_images(tmp_path, random_specs(5, [(64, 64)]))
    with pytest.raises(InputError, match=f'{stage}.*C3, C4, C5'):
        extract_object_features(ThreeStages(), path, tmp_path, 64, stage=stage)


def test_max_objects_samples_whole_images_by_seed(tmp_path):
    path = write_images(tmp_path, random_specs(7, [(64, 96)] * 10))  # two objects each
    full = extract_object_features(RandomNet(), path, tmp_path, size=64)
    subsets = [
        extract_object_features(RandomNet(), path, tmp_path, size=64, max_objects=7, seed=s) for s in (0, 0, 1, 2)
    ]
    for part in subsets:
        assert len(part['labels']) == 8  # the image that reaches 7 is included as a whole
        assert len(set((part['labels'] // 10).tolist())) == 4
        rows = [full['labels'].tolist().index(label) for label in part['labels'].tolist()]
        assert rows == sorted(rows)
        torch.testing.assert_close(part['backbone'], full['backbone'][rows])
    assert torch.equal(subsets[0]['labels'], subsets[1]['labels'])
    assert len({tuple(part['labels'].tolist()) for part in subsets}) > 1
    assert len(extract_object_features(RandomNet(), path, tmp_path, size=64, max_objects=20)['labels']) == 20
