"""Packages ccop_mm, with configs/ and tools/ under ccop_mm/.mim, where OpenMMLab's MIM and ccop-mm find them."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_ENTRIES = ('configs', 'tools', 'model-index.yml')


def version() -> str:
    """Reads the version without importing the package, which needs torch."""
    text = (ROOT / 'ccop_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '(.+)'", text).group(1)


def requirements(name: str) -> list[str]:
    """Reads the requirements in a file, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith('#')]


class BuildWithMim(build_py):
    """Adds ``.mim`` to the build: copies in a wheel, symbolic links in an editable install."""

    def run(self) -> None:
        super().run()
        mim = (ROOT if self.editable_mode else Path(self.build_lib)) / 'ccop_mm' / '.mim'
        if mim.exists():
            shutil.rmtree(mim)  # removes links, not their targets
        mim.mkdir(parents=True)
        for name in MIM_ENTRIES:
            if self.editable_mode:
                (mim / name).symlink_to(Path('..', '..', name))
            elif (ROOT / name).is_file():
                shutil.copy(ROOT / name, mim)
            else:
                shutil.copytree(ROOT / name, mim / name, ignore=shutil.ignore_patterns('__pycache__'))

    def get_source_files(self) -> list[str]:
        """Lists the files of a source archive: the modules, and the files that this script reads."""
        roots = [ROOT / name for name in (*MIM_ENTRIES, 'requirements')]
        files = [path for root in roots for path in (root, *root.rglob('*'))]
        extra = [path for path in files if path.is_file() and '__pycache__' not in path.parts]
        return super().get_source_files() + [str(path.relative_to(ROOT)) for path in extra]


setup(
    name='ccop_mm',
    version=version(),
    description='Curricular Contrastive Object-level Pre-training (CCOP) for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['ccop_mm', 'ccop_mm.*']),
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10,<3.13',
    # Without mm packages and OpenCV: the stacks in requirements/ provide the module mmcv under different distribution
    # names, and a requirement on one of them would install a second mmcv over that of the other stack.
    # mmselfsup and mmcls require no other mm package, and mmdet environments lack them.
    install_requires=['torch>=2.6', 'torchvision', 'mmcls==1.0.0rc6', 'mmselfsup==1.0.0', *requirements('runtime')],
    entry_points={'console_scripts': ['ccop-mm = ccop_mm.cli:main']},
    extras_require={'cluster': requirements('cluster')},
    zip_safe=False,
)
