import http.server
import io
import threading

import cv2
import numpy as np
import pytest
from mmengine.fileio import BaseStorageBackend, register_backend
from PIL import Image

from ccop_mm.datasets import LoadUnlabeledImage
from ccop_mm.datasets.load_image import decode_image, fetch_image_bytes, is_jpeg
from ccop_mm.utils.images import UnreadableImageError, load_image


@pytest.fixture(scope='module')
def pixels():
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(noise, (56, 40), interpolation=cv2.INTER_CUBIC)


def encode(pixels, kind):
    image, buffer = Image.fromarray(pixels[..., ::-1]), io.BytesIO()
    if kind == 'exif':
        exif = Image.Exif()
        exif[274] = 6  # orientation: rotated by 90 degrees
        image.save(buffer, 'JPEG', exif=exif)
    else:
        mode, file_format = {
            'gray': ('L', 'JPEG'),
            'cmyk': ('CMYK', 'JPEG'),
            'rgba': ('RGBA', 'PNG'),
            'palette': ('P', 'PNG'),
            'gray-alpha': ('LA', 'PNG'),
            'rgb': ('RGB', 'JPEG'),
        }[kind]
        image.convert(mode).save(buffer, file_format)
    return buffer.getvalue()


KINDS = ['exif', 'gray', 'cmyk', 'rgba', 'palette', 'gray-alpha', 'rgb']


@pytest.mark.parametrize('kind', KINDS)
def test_images_equal_those_of_proposal_generation(tmp_path, pixels, kind):
    path = tmp_path / 'image.img'
    path.write_bytes(encode(pixels, kind))
    expected, _ = load_image(path)
    assert expected.shape == ((56, 40, 3) if kind == 'exif' else (40, 56, 3))
    np.testing.assert_array_equal(decode_image(fetch_image_bytes(str(path))), expected)
    results = LoadUnlabeledImage()(dict(img_path=str(path), proposal_img_shape=expected.shape[:2]))
    np.testing.assert_array_equal(results['img'], expected)
    undecoded = LoadUnlabeledImage(decode=False)(dict(img_path=str(path)))
    assert undecoded['img_bytes'] == path.read_bytes() and 'img' not in undecoded


@pytest.mark.parametrize('kind', ['exif', 'gray', 'cmyk', 'rgb'])
def test_reduced_decoding_approximates_downscaling(pixels, kind):
    content = encode(cv2.resize(pixels, (403, 301)), kind)
    assert is_jpeg(content)
    full = decode_image(content)
    for reduction in (2, 4, 8):
        reduced = decode_image(content, full.shape[:2], reduction)
        expected = cv2.resize(full, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(reduced.astype(int) - expected).mean() < 4
    width, height = -(-full.shape[1] // 2), -(-full.shape[0] // 2)
    with pytest.raises(UnreadableImageError, match=f'{width}x{height} .*9x8'):
        decode_image(content, (8, 9), 2)


@pytest.mark.parametrize('content, reason', [(b'', 'empty'), (b'no image', 'image'), (None, 'truncated')])
def test_invalid_content_raises(pixels, content, reason):
    if content is None:
        content = encode(pixels, 'rgb')[:-500]
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(content)


def test_missing_and_unreadable_files_raise(tmp_path):
    with pytest.raises(UnreadableImageError, match='not exist'):
        fetch_image_bytes(str(tmp_path / 'absent.jpg'))
    with pytest.raises(UnreadableImageError, match='Is a directory'):
        fetch_image_bytes(str(tmp_path))


class KeyValueBackend(BaseStorageBackend):
    """Returns None for an unknown key, like the LMDB backend."""

    def __init__(self, content):
        self.content = bytes(content, 'ascii')

    def get(self, filepath):
        return self.content if filepath == 'known' else None

    def get_text(self, filepath):
        raise NotImplementedError


def test_storage_backend_of_mmengine():
    register_backend('key_value', KeyValueBackend, force=True)
    arguments = dict(backend='key_value', content='image')
    assert fetch_image_bytes('known', arguments) == b'image'
    with pytest.raises(UnreadableImageError, match='not exist'):
        fetch_image_bytes('unknown', arguments)


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server_url(tmp_path):
    """URL of a web server for the files in ``tmp_path``."""
    handler = lambda *args: SilentHandler(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_images_over_http(tmp_path, server_url, pixels):
    (tmp_path / 'image.jpg').write_bytes(encode(pixels, 'rgb'))
    results = LoadUnlabeledImage()(dict(img_path=f'{server_url}/image.jpg'))
    np.testing.assert_array_equal(results['img'], load_image(tmp_path / 'image.jpg')[0])
    with pytest.raises(UnreadableImageError, match='404|Not Found|not exist'):
        LoadUnlabeledImage()(dict(img_path=f'{server_url}/absent.jpg'))
