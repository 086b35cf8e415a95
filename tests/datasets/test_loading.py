import http.server
import io
import threading

import cv2
import numpy as np
import pytest
from mmengine.fileio import BaseStorageBackend, register_backend
from PIL import Image

from ccop_mm.datasets import LoadPhoto
from ccop_mm.datasets.loading import decode_photo, is_jpeg, read_photo
from ccop_mm.proposals.sources import BadPhoto, load_photo


@pytest.fixture(scope='module')
def pixels():
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(noise, (56, 40), interpolation=cv2.INTER_CUBIC)


def encode(pixels, kind):
    image, buffer = Image.fromarray(pixels[..., ::-1]), io.BytesIO()
    if kind == 'exif':
        exif = Image.Exif()
        exif[274] = 6  # rotated by 90 degrees
        image.save(buffer, 'JPEG', exif=exif)
    else:
        mode, form = {
            'grey': ('L', 'JPEG'),
            'cmyk': ('CMYK', 'JPEG'),
            'rgba': ('RGBA', 'PNG'),
            'palette': ('P', 'PNG'),
            'grey-alpha': ('LA', 'PNG'),
            'rgb': ('RGB', 'JPEG'),
        }[kind]
        image.convert(mode).save(buffer, form)
    return buffer.getvalue()


KINDS = ['exif', 'grey', 'cmyk', 'rgba', 'palette', 'grey-alpha', 'rgb']


@pytest.mark.parametrize('kind', KINDS)
def test_any_kind_is_read_as_by_the_search_for_proposals(tmp_path, pixels, kind):
    path = tmp_path / 'photo.img'
    path.write_bytes(encode(pixels, kind))
    expected, _ = load_photo(path)
    assert expected.shape == ((56, 40, 3) if kind == 'exif' else (40, 56, 3))
    np.testing.assert_array_equal(decode_photo(read_photo(str(path))), expected)
    results = LoadPhoto()(dict(img_path=str(path), proposal_img_shape=expected.shape[:2]))
    np.testing.assert_array_equal(results['img'], expected)
    lazy = LoadPhoto(decode=False)(dict(img_path=str(path)))
    assert lazy['img_bytes'] == path.read_bytes() and 'img' not in lazy


@pytest.mark.parametrize('kind', ['exif', 'grey', 'cmyk', 'rgb'])
def test_a_reduced_photo_shows_the_same_upright(pixels, kind):
    content = encode(cv2.resize(pixels, (403, 301)), kind)
    assert is_jpeg(content)
    whole = decode_photo(content)
    for reduction in (2, 4, 8):
        reduced = decode_photo(content, whole.shape[:2], reduction)
        expected = cv2.resize(whole, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(reduced.astype(int) - expected).mean() < 4
    with pytest.raises(BadPhoto, match='pixels now .reduced 2 times., 9x8 when its proposals were made'):
        decode_photo(content, (8, 9), 2)


@pytest.mark.parametrize(
    'content, message', [(b'', 'the file is empty'), (b'no image', 'not a whole image'), (None, 'truncated')]
)
def test_what_is_no_photo(pixels, content, message):
    if content is None:
        content = encode(pixels, 'rgb')[:-500]
    with pytest.raises(BadPhoto, match=message):
        decode_photo(content)


def test_absent_and_unreadable_files(tmp_path):
    with pytest.raises(BadPhoto, match='does not exist'):
        read_photo(str(tmp_path / 'absent.jpg'))
    with pytest.raises(BadPhoto, match='cannot be read: Is a directory'):
        read_photo(str(tmp_path))


class Shelf(BaseStorageBackend):
    """A key-value store that gives None for what it lacks, as LMDB does."""

    def __init__(self, content):
        self.content = bytes(content, 'ascii')

    def get(self, filepath):
        return self.content if filepath == 'known' else None

    def get_text(self, filepath):
        raise NotImplementedError


def test_any_file_backend_of_mmengine():
    register_backend('shelf', Shelf, force=True)
    arguments = dict(backend='shelf', content='photo')
    assert read_photo('known', arguments) == b'photo'
    with pytest.raises(BadPhoto, match='does not exist'):
        read_photo('unknown', arguments)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """A web server over ``tmp_path``; its address."""
    handler = lambda *args: Quiet(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_photos_over_http(tmp_path, web, pixels):
    (tmp_path / 'photo.jpg').write_bytes(encode(pixels, 'rgb'))
    results = LoadPhoto()(dict(img_path=f'{web}/photo.jpg'))
    np.testing.assert_array_equal(results['img'], load_photo(tmp_path / 'photo.jpg')[0])
    with pytest.raises(BadPhoto, match='cannot be read: .*(404|Not Found)|does not exist'):
        LoadPhoto()(dict(img_path=f'{web}/absent.jpg'))
