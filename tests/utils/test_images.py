"""Listing, ids and decoding of images."""

import hashlib
import io
import json
import os
import sys

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ccop_mm.datasets.load_image import decode_image as load_for_training
from ccop_mm.datasets.load_image import fetch_image_bytes
from ccop_mm.utils import images as images_module
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import (
    LINK,
    NO_SUFFIX,
    UnreadableImageError,
    count_value_bits,
    decode_image,
    format_passed_over,
    image_id_from_path,
    list_images,
    load_image,
)


def write_json(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'images': images}))
    return path


@pytest.fixture
def assert_rejected():
    """``assert_rejected(match, *args)``: ``list_images(*args)`` must raise an InputError with a one-line message."""

    def call(match, *args):
        with pytest.raises(InputError, match=match) as caught:
            list_images(*args)
        assert '\n' not in str(caught.value)

    return call


def test_folder_is_listed_recursively_in_order_of_id(image_folder):
    (image_folder / 'notes.txt').write_text('not an image')
    (image_folder / '._scene_0.png').write_bytes(b'hidden')
    images = list_images(image_folder)
    expected = ['a/b/scene_6.png', 'a/scene_5.png', *(f'scene_{i}.png' for i in range(5))]
    assert sorted(image.file_name for image in images) == expected
    assert [image.image_id for image in images] == sorted(image.image_id for image in images)
    for image in images:
        digest = hashlib.blake2b(image.file_name.encode(), digest_size=32).hexdigest()
        assert image.image_id == int(digest[:12], 16) == image_id_from_path(image.file_name)
        assert image.path == image_folder / image.file_name


def test_ids_do_not_change_when_images_are_added_or_removed(image_folder):
    before = {image.file_name: image.image_id for image in list_images(image_folder)}
    (image_folder / 'scene_0.png').unlink()
    (image_folder / 'a' / 'new.JPG').write_bytes(b'')
    after = {image.file_name: image.image_id for image in list_images(image_folder)}
    assert set(after) == set(before) - {'scene_0.png'} | {'a/new.JPG'}
    assert all(after[name] == before[name] for name in set(after) & set(before))


def test_links_are_followed_and_cycles_are_ignored(image_folder, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (image_folder / 'scene_0.png').rename(elsewhere / 'far.png')
    os.symlink(elsewhere, image_folder / 'linked')
    os.symlink(image_folder, image_folder / 'a' / 'loop')
    names = [image.file_name for image in list_images(image_folder)]
    assert len(names) == 7
    assert 'linked/far.png' in names


def test_names_that_are_not_valid_utf8_are_listed(tmp_path):
    name = os.fsdecode(b'caf\xe9.png')
    try:
        (tmp_path / name).write_bytes(b'')
    except (OSError, UnicodeError):
        pytest.skip('this file system assert_rejecteds names that are not UTF-8')
    (image,) = list_images(tmp_path)
    assert image.image_id == int(hashlib.blake2b(b'caf\xe9.png', digest_size=32).hexdigest()[:12], 16)


def test_colliding_ids_are_rejected(image_folder, monkeypatch, assert_rejected):
    monkeypatch.setattr(images_module, 'image_id_from_path', lambda path: len(path) % 2)
    assert_rejected('have the same id', image_folder)


def test_missing_and_empty_folders_are_rejected(tmp_path, assert_rejected):
    assert_rejected('nowhere', tmp_path / 'nowhere')
    (tmp_path / 'text.txt').write_text('x')
    assert_rejected(str(tmp_path), tmp_path)
    (tmp_path / 'table.csv').write_text('x')
    assert_rejected('table.csv', tmp_path / 'table.csv')
    assert_rejected(f'{tmp_path} is a folder', tmp_path, tmp_path)


@pytest.mark.parametrize('layout', ['set/images', 'images', 'train2017', 'set'])
def test_image_root_of_a_json_is_guessed(tmp_path, layout):
    root = tmp_path / layout
    root.mkdir(parents=True)
    (root / 'b.png').write_bytes(b'')
    images = [{'id': 9, 'file_name': 'b.png'}, {'id': 4, 'file_name': 'absent.png'}]
    listed = list_images(write_json(tmp_path / 'set' / 'instances_train2017.json', images))
    assert [(image.image_id, image.path) for image in listed] == [(4, root / 'absent.png'), (9, root / 'b.png')]


def test_image_root_of_a_json_is_given(tmp_path, assert_rejected):
    path = write_json(tmp_path / 'x.json', [{'id': 0, 'file_name': 'sub/b.png'}])
    assert_rejected('--image-root', path)
    assert_rejected('nowhere', path, tmp_path / 'nowhere')
    (image,) = list_images(path, tmp_path / 'set' / '..')
    assert image.path == tmp_path / 'sub' / 'b.png'


def test_text_file_has_the_ids_of_its_folder(image_folder, tmp_path, assert_rejected):
    path = tmp_path / 'list.txt'
    lines = [
        '# two images',
        '',
        ' scene_1.png ',
        './a/../a/b/scene_6.png',
        'absent.png',
        '#scene_2.png',
        'caf\udce9.png',
    ]
    path.write_bytes(b'\xef\xbb\xbf' + os.fsencode('\r\n'.join(lines)))
    images = list_images(path, image_folder)
    assert [image.image_id for image in images] == sorted(image.image_id for image in images)
    expected = {'scene_1.png', 'a/b/scene_6.png', 'absent.png', os.fsdecode(b'caf\xe9.png')}
    assert {image.file_name for image in images} == expected
    image_by_name = {image.file_name: image for image in list_images(image_folder)}
    assert {image.file_name for image in images if image == image_by_name.get(image.file_name)} == {
        'scene_1.png',
        'a/b/scene_6.png',
    }
    # Paths relative to the folder of the text file, and absolute paths.
    path.write_text(f'images/scene_1.png\n{image_folder}/scene_2.png\n')
    assert {image.file_name for image in list_images(path)} == {'images/scene_1.png', 'images/scene_2.png'}
    assert_rejected(f"'{image_folder}/scene_2.png'.* {image_folder}/a", path, image_folder / 'a')
    assert_rejected('nowhere', path, tmp_path / 'nowhere')
    path.write_text('# nothing\n')
    assert_rejected('list.txt', path)
    path.write_text('images/scene_1.png\n./images/scene_1.png\n')
    assert_rejected("'images/scene_1.png' 2 times", path)
    path.unlink()
    assert_rejected('list.txt', path)
    path.mkdir()
    assert_rejected('list.txt', path)


def test_invalid_jsons_are_rejected(tmp_path, assert_rejected):
    assert_rejected('absent.json', tmp_path / 'absent.json', tmp_path)
    for text, match in (
        ('not json', 'x.json is not JSON'),
        ('[]', 'x.json .*list'),
        ('{}', 'x.json .*"images"'),
        ('{"images": []}', 'x.json .*"images"'),
        ('{"images": [{"id": 1}]}', 'x.json.* {"id": 1}'),
        ('{"images": [{"id": "1", "file_name": "a.jpg"}]}', 'x.json.* {"id": "1"'),
        ('{"images": [{"id": -1, "file_name": "a.jpg"}]}', 'x.json.* {"id": -1'),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}', 'same id 1'),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]}', "'a.jpg' 2 times"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "a.jpg"}]}', "'a.jpg' 2 times"),
    ):
        (tmp_path / 'x.json').write_text(text)
        assert_rejected(match, tmp_path / 'x.json', tmp_path)


def test_image_is_loaded_as_by_the_training_pipeline(tmp_path, scene):
    path = tmp_path / 'rotated.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise for display
    Image.fromarray(scene(1)[..., ::-1].copy()).save(path, exif=exif)
    image, num_bytes = load_image(path)
    assert image.shape == (96, 72, 3)
    assert num_bytes == path.stat().st_size
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    np.testing.assert_array_equal(image, np.rot90(stored, -1))
    loaded = mmcv.transforms.LoadImageFromFile().transform({'img_path': str(path)})['img']
    np.testing.assert_array_equal(image, loaded)


@pytest.mark.parametrize(
    ('suffix', 'mode', 'options'),
    [
        ('.jpg', 'RGB', {}),
        ('.jpg', 'RGB', {'progressive': True}),
        ('.jpg', 'CMYK', {}),
        ('.png', 'RGB', {}),
        ('.png', 'P', {}),
        ('.webp', 'RGB', {}),
        ('.bmp', 'RGB', {}),
        ('.tiff', 'RGB', {}),
    ],
)
def test_truncated_images_are_rejected(tmp_path, scene, suffix, mode, options):
    path = tmp_path / f'image{suffix}'
    Image.fromarray(scene(2)[..., ::-1].copy()).convert(mode).save(path, **options)
    content = path.read_bytes()
    assert load_image(path)[0].shape == (72, 96, 3)
    for length in (len(content) - 60, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableImageError, match='truncated or damaged|not a whole image'):
            load_image(path)
    if suffix == '.jpg':  # zeros from the cut on, as left by a download that preallocates the file
        path.write_bytes(content[:length] + bytes(len(content) - length))
        with pytest.raises(UnreadableImageError, match='truncated or damaged JPEG'):
            load_image(path)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_other_pixel_formats_are_converted_to_bgr(tmp_path, scene, dtype, channels):
    image = scene(3)
    image = {1: image[..., :1], 3: image, 4: np.dstack([image, image[..., 0]])}[channels]
    cv2.imwrite(str(tmp_path / 'x.png'), image.astype(dtype) * (257 if dtype == np.uint16 else 1))
    loaded, _ = load_image(tmp_path / 'x.png')
    np.testing.assert_array_equal(loaded, image[..., :3] if channels > 1 else image.repeat(3, axis=2))


@pytest.mark.parametrize('flag', [cv2.IMREAD_COLOR, cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_COLOR_8])
@pytest.mark.parametrize(('suffix', 'mode'), [('.jpg', 'RGB'), ('.jpg', 'CMYK'), ('.png', 'P'), ('.png', 'LA')])
def test_pixels_equal_those_of_mmcv(tmp_path, scene, suffix, mode, flag):
    path = tmp_path / f'image{suffix}'
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(scene(4)[..., ::-1].copy()).convert(mode).save(path, exif=exif)
    expected = mmcv.imfrombytes(path.read_bytes(), flag=flag, backend='cv2')
    np.testing.assert_array_equal(decode_image(path.read_bytes(), flag), expected)


def test_files_that_are_not_images_are_rejected(tmp_path):
    path = tmp_path / 'x.jpg'
    for prepare, reason in (
        (lambda: None, 'does not exist'),
        (path.touch, 'the file is empty'),
        (lambda: path.write_text('not an image'), 'not a whole image'),
        (lambda: (path.unlink(), path.mkdir()), 'cannot be read'),
    ):
        prepare()
        with pytest.raises(UnreadableImageError, match=reason):
            load_image(path)


@pytest.fixture
def set_heif_package(monkeypatch):
    """``set_heif_package(module)`` replaces pillow-heif; None: it is not installed."""

    def replace(module):
        monkeypatch.setitem(sys.modules, 'pillow_heif', module)
        images_module._can_read_heif.cache_clear()

    yield replace
    images_module._can_read_heif.cache_clear()


def test_other_image_files_of_a_folder_are_counted_by_kind(tmp_path, scene, set_heif_package):
    set_heif_package(None)
    jpeg = cv2.imencode('.jpg', scene(1))[1].tobytes()
    for name in ('a.jpg', 'c.jfif', 'C2.JFIF', 'e', 'sub/f', 'sub/f2.JPG'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg)
    for name in (
        'b.HEIC',
        'b2.heif',
        'd.gif',
        'sub/d.GIF',
        'x.cr2',
        'notes.txt',
        'LICENSE',
        'labels.json',
        '.hidden.gif',
    ):
        (tmp_path / name).write_bytes(b'no image')
    os.mkfifo(tmp_path / 'pipe')
    images = list_images(tmp_path)
    assert sorted(image.file_name for image in images) == ['C2.JFIF', 'a.jpg', 'c.jfif', 'sub/f2.JPG']
    assert images.passed_over == {'.heic': 1, '.heif': 1, '.gif': 2, '.cr2': 1, NO_SUFFIX: 2}
    text = format_passed_over(images.passed_over)
    assert text.startswith('2 .gif, 2 without suffix, 1 .cr2, ') and 'pillow-heif' in text
    assert 'pillow-heif' not in format_passed_over({'.gif': 2}) and format_passed_over({}) == ''
    np.testing.assert_array_equal(load_image(tmp_path / 'c.jfif')[0], load_image(tmp_path / 'a.jpg')[0])


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tiff', '.webp', '.bmp'])
def test_images_without_suffix_are_recognized(tmp_path, scene, suffix):
    cv2.imwrite(str(tmp_path / f'x{suffix}'), scene(1))
    (tmp_path / f'x{suffix}').rename(tmp_path / 'x')
    (tmp_path / 'a.jpg').touch()
    assert list_images(tmp_path).passed_over == {NO_SUFFIX: 1}


def test_folder_of_other_image_files_only(tmp_path, assert_rejected):
    (tmp_path / 'a.gif').touch()
    assert_rejected('1 .gif', tmp_path)


def test_images_found_through_several_links_are_listed_once(image_folder, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (image_folder / 'scene_0.png').rename(elsewhere / 'far.png')
    os.symlink(elsewhere, image_folder / 'link_2')
    os.symlink(elsewhere, image_folder / 'link_1')
    os.symlink(image_folder / 'a', image_folder / '0_same_folder')
    os.symlink(image_folder / 'scene_1.png', image_folder / '0_same_file.png')
    os.symlink(elsewhere / 'far.png', image_folder / 'near.png')
    os.symlink(tmp_path / 'gone.png', image_folder / 'broken.png')
    images = list_images(image_folder)
    expected = [
        'a/b/scene_6.png',
        'a/scene_5.png',
        'broken.png',
        'link_1/far.png',
        *(f'scene_{i}.png' for i in range(1, 5)),
    ]
    assert sorted(image.file_name for image in images) == expected
    assert images.passed_over == {LINK: 5}
    # A folder that is a link itself.
    os.symlink(image_folder, tmp_path / 'alias')
    assert sorted(image.file_name for image in list_images(tmp_path / 'alias')) == expected


def test_other_sources_pass_no_file_over(image_folder, tmp_path):
    (image_folder / 'x.gif').touch()
    (image_folder / 'list.txt').write_text('scene_1.png\n')
    assert list_images(image_folder / 'list.txt').passed_over == {}
    json_file = write_json(tmp_path / 'x.json', [{'id': 0, 'file_name': 'scene_1.png'}])
    assert list_images(json_file, image_folder).passed_over == {}


#: Start of a HEIF file.
HEIF_HEADER = b'\0\0\0\x18ftypheic\0\0\0\0'


def test_heif_requires_a_package(set_heif_package):
    set_heif_package(None)
    for content in (HEIF_HEADER, HEIF_HEADER.replace(b'heic', b'mif1')):
        with pytest.raises(UnreadableImageError, match='pillow-heif'):
            decode_image(content)
    with pytest.raises(UnreadableImageError, match='not a whole image'):
        decode_image(HEIF_HEADER.replace(b'heic', b'avif'))


def test_heif_is_decoded_by_pillow(tmp_path, scene, monkeypatch, set_heif_package):
    """With a stand-in for the package, whose files are a HEIF header followed by a PNG file."""

    class StandIn:
        @staticmethod
        def register_heif_opener():
            def open_png(file, name):
                file.seek(len(HEIF_HEADER))
                return PngImagePlugin.PngImageFile(io.BytesIO(file.read()))

            monkeypatch.setattr(Image, 'ID', [*Image.ID, 'STANDIN'])
            monkeypatch.setitem(Image.OPEN, 'STANDIN', (open_png, lambda prefix: prefix[4:12] == b'ftypheic'))

    set_heif_package(StandIn)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(scene(3)[..., ::-1].copy()).save(buffer, 'PNG', exif=exif)
    (tmp_path / 'x.HEIC').write_bytes(HEIF_HEADER + buffer.getvalue())
    images = list_images(tmp_path)
    assert [image.file_name for image in images] == ['x.HEIC'] and images.passed_over == {}
    expected = np.rot90(scene(3), -1)
    np.testing.assert_array_equal(load_image(images[0].path)[0], expected)
    np.testing.assert_array_equal(load_for_training(fetch_image_bytes(str(images[0].path))), expected)
    reduced = decode_image(images[0].path.read_bytes(), cv2.IMREAD_REDUCED_COLOR_4)
    assert reduced.shape == (24, 18, 3)
    with pytest.raises(UnreadableImageError, match='truncated or damaged'):
        decode_image(images[0].path.read_bytes()[:-400])


def test_heif_of_the_package(tmp_path, scene):
    pillow_heif = pytest.importorskip('pillow_heif')
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(scene(3)[..., ::-1].copy())
    upright.save(tmp_path / 'x.heic', quality=100, exif=exif.tobytes())
    (image,) = list_images(tmp_path)
    loaded, _ = load_image(image.path)
    assert loaded.shape == (96, 72, 3)
    assert np.abs(loaded.astype(int) - np.rot90(scene(3), -1)).mean() < 8  # of noise and subsampled chroma
    np.testing.assert_array_equal(load_for_training(fetch_image_bytes(str(image.path))), loaded)
    (tmp_path / 'cut.heic').write_bytes(image.path.read_bytes()[:-400])
    with pytest.raises(UnreadableImageError):
        load_image(tmp_path / 'cut.heic')


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 15, 16])
def test_bits_of_values_in_16_bits(scene, suffix, bits):
    image = scene(3).astype(np.uint16)
    image[0, 0] = 255  # the largest value
    image <<= bits - 8
    for stored in (image, image[..., 0], np.dstack([image, np.full_like(image[..., 0], 65535)])):
        content = cv2.imencode(suffix, stored)[1].tobytes()
        assert count_value_bits(content) == bits


def test_other_images_have_no_value_bits(scene):
    for suffix in ('.png', '.tiff', '.jpg', '.webp'):
        assert count_value_bits(cv2.imencode(suffix, scene(1))[1].tobytes()) == 0
    black = np.zeros((9, 9), np.uint16)
    for content in (cv2.imencode('.png', black)[1].tobytes(), b'', b'\x89PNG', b'II*\0damaged'):
        assert count_value_bits(content) == 0
    assert count_value_bits(cv2.imencode('.tiff', scene(1).astype(np.float32))[1].tobytes()) == 0
