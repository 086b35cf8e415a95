"""Lists of photos, their ids, and how one is read."""

import hashlib
import json
import os

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from ccop_mm.errors import InputError
from ccop_mm.proposals import BadPhoto, image_id_of, list_photos, load_photo, sources


def write_json(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'images': images}))
    return path


@pytest.fixture
def refuse():
    """``refuse(match, *args)``: :func:`list_photos` must raise an InputError of one line."""

    def call(match, *args):
        with pytest.raises(InputError, match=match) as caught:
            list_photos(*args)
        assert '\n' not in str(caught.value)

    return call


def test_folder_is_listed_with_subfolders_by_id(photo_folder):
    (photo_folder / 'notes.txt').write_text('no photo')
    (photo_folder / '._scene_0.png').write_bytes(b'hidden')
    photos = list_photos(photo_folder)
    expected = ['a/b/scene_6.png', 'a/scene_5.png', *(f'scene_{i}.png' for i in range(5))]
    assert sorted(photo.file_name for photo in photos) == expected
    assert [photo.image_id for photo in photos] == sorted(photo.image_id for photo in photos)
    for photo in photos:
        digest = hashlib.blake2b(photo.file_name.encode(), digest_size=32).hexdigest()
        assert photo.image_id == int(digest[:12], 16) == image_id_of(photo.file_name)
        assert photo.path == photo_folder / photo.file_name


def test_ids_do_not_shift_when_photos_come_and_go(photo_folder):
    before = {photo.file_name: photo.image_id for photo in list_photos(photo_folder)}
    (photo_folder / 'scene_0.png').unlink()
    (photo_folder / 'a' / 'new.JPG').write_bytes(b'')
    after = {photo.file_name: photo.image_id for photo in list_photos(photo_folder)}
    assert set(after) == set(before) - {'scene_0.png'} | {'a/new.JPG'}
    assert all(after[name] == before[name] for name in set(after) & set(before))


def test_links_are_followed_and_cannot_loop(photo_folder, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (photo_folder / 'scene_0.png').rename(elsewhere / 'far.png')
    os.symlink(elsewhere, photo_folder / 'linked')
    os.symlink(photo_folder, photo_folder / 'a' / 'loop')
    names = [photo.file_name for photo in list_photos(photo_folder)]
    assert len(names) == 7
    assert 'linked/far.png' in names


def test_names_that_are_not_utf8_are_listed(tmp_path):
    name = os.fsdecode(b'caf\xe9.png')
    try:
        (tmp_path / name).write_bytes(b'')
    except (OSError, UnicodeError):
        pytest.skip('this file system refuses names that are not UTF-8')
    (photo,) = list_photos(tmp_path)
    assert photo.image_id == int(hashlib.blake2b(b'caf\xe9.png', digest_size=32).hexdigest()[:12], 16)


def test_colliding_ids_are_refused(photo_folder, monkeypatch, refuse):
    monkeypatch.setattr(sources, 'image_id_of', lambda path: len(path) % 2)
    refuse('share the id', photo_folder)


def test_missing_and_empty_folders(tmp_path, refuse):
    refuse('does not exist', tmp_path / 'nowhere')
    (tmp_path / 'text.txt').write_text('x')
    refuse('holds no photo', tmp_path)
    (tmp_path / 'table.csv').write_text('x')
    refuse('neither a folder nor', tmp_path / 'table.csv')
    refuse('goes with a COCO json or a list', tmp_path, tmp_path)


@pytest.mark.parametrize('layout', ['set/images', 'images', 'train2017', 'set'])
def test_json_s_image_root_is_guessed(tmp_path, layout):
    root = tmp_path / layout
    root.mkdir(parents=True)
    (root / 'b.png').write_bytes(b'')
    images = [{'id': 9, 'file_name': 'b.png'}, {'id': 4, 'file_name': 'absent.png'}]
    photos = list_photos(write_json(tmp_path / 'set' / 'instances_train2017.json', images))
    assert [(photo.image_id, photo.path) for photo in photos] == [(4, root / 'absent.png'), (9, root / 'b.png')]


def test_json_s_image_root_given(tmp_path, refuse):
    path = write_json(tmp_path / 'x.json', [{'id': 0, 'file_name': 'sub/b.png'}])
    refuse('--image-root', path)
    refuse('not a folder', path, tmp_path / 'nowhere')
    (photo,) = list_photos(path, tmp_path / 'set' / '..')
    assert photo.path == tmp_path / 'sub' / 'b.png'


def test_text_list_has_the_ids_of_its_folder(photo_folder, tmp_path, refuse):
    path = tmp_path / 'list.txt'
    lines = [
        '# two photos',
        '',
        ' scene_1.png ',
        './a/../a/b/scene_6.png',
        'absent.png',
        '#scene_2.png',
        'caf\udce9.png',
    ]
    path.write_bytes(b'\xef\xbb\xbf' + os.fsencode('\r\n'.join(lines)))
    photos = list_photos(path, photo_folder)
    assert [photo.image_id for photo in photos] == sorted(photo.image_id for photo in photos)
    expected = {'scene_1.png', 'a/b/scene_6.png', 'absent.png', os.fsdecode(b'caf\xe9.png')}
    assert {photo.file_name for photo in photos} == expected
    of_folder = {photo.file_name: photo for photo in list_photos(photo_folder)}
    assert {photo.file_name for photo in photos if photo == of_folder.get(photo.file_name)} == {
        'scene_1.png',
        'a/b/scene_6.png',
    }
    # Relative to the list's own folder, and absolute paths.
    path.write_text(f'photos/scene_1.png\n{photo_folder}/scene_2.png\n')
    assert {photo.file_name for photo in list_photos(path)} == {'photos/scene_1.png', 'photos/scene_2.png'}
    refuse('is not below', path, photo_folder / 'a')
    refuse('not a folder', path, tmp_path / 'nowhere')
    path.write_text('# nothing\n')
    refuse('lists no photo', path)
    path.write_text('photos/scene_1.png\n./photos/scene_1.png\n')
    refuse("lists 'photos/scene_1.png' 2 times", path)
    path.unlink()
    refuse('cannot read', path)
    path.mkdir()
    refuse('holds no photo', path)


def test_faulty_jsons(tmp_path, refuse):
    refuse('cannot read', tmp_path / 'absent.json', tmp_path)
    for text, match in (
        ('not json', 'is not JSON'),
        ('[]', 'not a COCO json'),
        ('{}', 'lists no photo'),
        ('{"images": []}', 'lists no photo'),
        ('{"images": [{"id": 1}]}', 'needs a "file_name"'),
        ('{"images": [{"id": "1", "file_name": "a.jpg"}]}', 'needs a "file_name"'),
        ('{"images": [{"id": -1, "file_name": "a.jpg"}]}', 'needs a "file_name"'),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}', 'share the id 1'),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]}', "lists 'a.jpg' 2 times"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "a.jpg"}]}', "lists 'a.jpg' 2 times"),
    ):
        (tmp_path / 'x.json').write_text(text)
        refuse(match, tmp_path / 'x.json', tmp_path)


def test_photo_is_loaded_as_the_pipeline_loads_it(tmp_path, scene):
    path = tmp_path / 'rotated.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(scene(1)[..., ::-1].copy()).save(path, exif=exif)
    image, num_bytes = load_photo(path)
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
def test_truncated_photos_are_refused(tmp_path, scene, suffix, mode, options):
    path = tmp_path / f'photo{suffix}'
    Image.fromarray(scene(2)[..., ::-1].copy()).convert(mode).save(path, **options)
    content = path.read_bytes()
    assert load_photo(path)[0].shape == (72, 96, 3)
    for length in (len(content) - 60, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(BadPhoto, match='truncated or damaged|not a whole image'):
            load_photo(path)
    if suffix == '.jpg':  # as a download that reserved its space first leaves it: zeros from the cut on
        path.write_bytes(content[:length] + bytes(len(content) - length))
        with pytest.raises(BadPhoto, match='truncated or damaged JPEG'):
            load_photo(path)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_other_pixel_formats_become_bgr(tmp_path, scene, dtype, channels):
    image = scene(3)
    image = {1: image[..., :1], 3: image, 4: np.dstack([image, image[..., 0]])}[channels]
    cv2.imwrite(str(tmp_path / 'x.png'), image.astype(dtype) * (257 if dtype == np.uint16 else 1))
    loaded, _ = load_photo(tmp_path / 'x.png')
    np.testing.assert_array_equal(loaded, image[..., :3] if channels > 1 else image.repeat(3, axis=2))


def test_files_that_are_no_photos(tmp_path):
    path = tmp_path / 'x.jpg'
    for prepare, reason in (
        (lambda: None, 'does not exist'),
        (path.touch, 'the file is empty'),
        (lambda: path.write_text('not a photo at all'), 'not a whole image'),
        (lambda: (path.unlink(), path.mkdir()), 'cannot be read'),
    ):
        prepare()
        with pytest.raises(BadPhoto, match=reason):
            load_photo(path)
