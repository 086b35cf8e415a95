"""Says whether pre-training can run here, and for each fault the cure: ``python -m ccop_mm.doctor``.

Only the standard library is imported at the top: this has to run where a host library is missing or broken.
"""

import importlib
import platform
import sys
from dataclasses import dataclass
from importlib import metadata

PACKAGES = ('torch', 'torchvision', 'numpy', 'mmcv', 'mmengine', 'mmdet', 'mmcls', 'mmselfsup', 'cv2', 'ccop_mm')
PRETRAINING = ('mmselfsup.models', 'mmdet.models', 'ccop_mm.models', 'ccop_mm.datasets', 'ccop_mm.engine')
TRANSFER = ('mmdet.datasets', 'mmdet.evaluation')
# Distributions that own the same files: `import` finds those of the one that was installed last.
RIVALS = (
    ('opencv-contrib-python', 'opencv-contrib-python-headless', 'opencv-python', 'opencv-python-headless'),
    ('mmcv', 'onedl-mmcv'),
    ('mmengine', 'onedl-mmengine'),
    ('mmdet', 'onedl-mmdetection'),
)
MAKE_ENV = 'make the environment with `make env`, which installs the versions that belong together, in the right order'
REINSTALL_OPENCV = (
    'pip uninstall -y opencv-python opencv-python-headless; '
    'pip install --no-deps --force-reinstall opencv-contrib-python'
)
# Import names whose distribution has another name or needs care.
INSTALL = {
    'attr': 'pip install attrs',
    'cv2': REINSTALL_OPENCV,
    'imgaug': 'pip install --no-deps imaug (with its dependencies it would replace opencv-contrib-python)',
    'PIL': 'pip install pillow',
    'skimage': 'pip install scikit-image',
    'sklearn': 'pip install scikit-learn',
    'yaml': 'pip install pyyaml',
    **dict.fromkeys(('torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmcls', 'mmselfsup', 'ccop_mm'), MAKE_ENV),
}


@dataclass(frozen=True)
class Fault:
    """One thing that does not work.

    Args:
        what (str): What is wrong, in one line.
        cure (str): What to do about it, in one line.
        fatal (bool): Whether pre-training cannot run because of it.
    """

    what: str
    cure: str
    fatal: bool = True


def main():
    """Prints the report.

    Returns:
        int: The exit code: 1 if pre-training cannot run here, else 0.
    """
    faults = []
    for name in PACKAGES:
        print(f'{name:18}{describe_version(name)}')
    print(f'{"python":18}{platform.python_version()} ({sys.executable})')
    for title, check in CHECKS:
        remarks = list(check())
        found = [remark for remark in remarks if isinstance(remark, Fault)]
        print(f'{title:18}{"; ".join(remarks) if not found else "see below"}')
        faults += found
    for fault in faults:
        print(f'{"FAULT" if fault.fatal else "WARNING"}: {fault.what}. Cure: {fault.cure}')
    broken = any(fault.fatal for fault in faults)
    print(f'pre-training {"cannot" if broken else "can"} run here')
    return int(broken)


def describe_version(name):
    """The version of an import name and the distributions that own it, without importing it."""
    # Python 3.10 does not list distributions without top_level.txt, numpy and onedl-mmengine among them.
    known = metadata.packages_distributions().get(name) or next((names for names in RIVALS if name in names), [name])
    owners = sorted(filter(is_installed, set(known)))
    versions = [metadata.version(owner) + (f' ({owner})' if owner != name else '') for owner in owners]
    return ', '.join(versions) or 'missing'


def check_hosts():
    """Whether everything that pre-training and transfer import can be imported, after the mends."""
    faults = {}
    for part in ('ccop_mm.hosts', *PRETRAINING, *TRANSFER):
        try:
            module = importlib.import_module(part)
            if part == 'ccop_mm.hosts':
                module.mend()
        except Exception as error:  # whatever a broken package raises
            what = f'{part} cannot be used ({type(error).__name__}: {first_line(error)})'
            cause = missing_package(error) or first_line(error)
            faults.setdefault(cause, Fault(what, cure_for(error), fatal=part not in TRANSFER))
    yield from faults.values() or ['everything']


def check_ops():
    """Whether mmcv's compiled RoIAlign and nms give the right result on every device here."""
    try:
        import torch
        from mmcv.ops import nms, roi_align

        for device in ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]:
            boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [5.0, 5.0, 8.0, 8.0]], device=device)
            kept = nms(boxes, torch.tensor([0.5, 0.9, 0.7], device=device), 0.5)[1]
            rois = torch.cat([torch.zeros(3, 1, device=device), boxes], dim=1)
            # Column x holds x, so that the mean over a box aligned to half pixels is its centre less a half.
            feature = torch.arange(10.0, device=device).expand(1, 1, 10, 10).contiguous()
            pooled = roi_align(feature, rois[2:], 1, 1.0, 1, 'avg', True).flatten()
            if kept.tolist() != [1, 2] or not torch.allclose(pooled, torch.full_like(pooled, 6.0)):
                raise RuntimeError(f'wrong results on {device}: nms {kept.tolist()}, RoIAlign {pooled.tolist()}')
            yield f'RoIAlign and nms run on {device}'
    except Exception as error:
        cure = cure_for(error) if missing_package(error) else rebuild_ops()
        yield Fault(f'the C++ ops of mmcv do not run ({type(error).__name__}: {first_line(error)})', cure)


def rebuild_ops():
    """The command that compiles mmcv's ops against the torch that is installed."""
    for name in filter(is_installed, ('onedl-mmcv', 'mmcv')):
        return (
            f'pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir --no-binary {name} '
            f'{name}=={metadata.version(name)} (10-20 minutes; for a GPU the CUDA toolkit must be there)'
        )
    return MAKE_ENV


def check_selective_search():
    """Whether OpenCV has the selective search that makes proposals."""
    try:
        import cv2
        import numpy as np

        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.zeros((16, 16, 3), np.uint8))
    except Exception as error:
        what = f'OpenCV has no selective search, so proposals cannot be made ({first_line(error)})'
        yield Fault(what, cure_for(error) if missing_package(error) else REINSTALL_OPENCV, fatal=False)
    else:
        yield 'cv2.ximgproc runs'


def check_owners():
    """Whether one distribution alone owns each package."""
    count = 0
    for names in RIVALS:
        installed = [name for name in names if is_installed(name)]
        if len(installed) > 1:
            count += 1
            cure = REINSTALL_OPENCV if 'opencv-python' in names else f'{MAKE_ENV} (VENV=a new folder)'
            yield Fault(f'{" and ".join(installed)} own the same files; the last installed is used', cure, fatal=False)
    if not count:
        yield 'one of each package'


def is_installed(distribution):
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_cuda():
    """Whether there is a GPU, and so SyncBN. None is no fault: then the CPU is used, and BN in the place of SyncBN."""
    try:
        import torch

        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            yield f'{torch.cuda.device_count()} x {name}, CUDA {torch.version.cuda}; SyncBN usable'
        else:
            built = f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'
            yield f'none usable (torch is built {built}): runs on the CPU, with BN in the place of SyncBN'
    except Exception as error:
        yield Fault(f'torch cannot be used ({type(error).__name__}: {first_line(error)})', cure_for(error))


def cure_for(error):
    """What to do about an exception that an import raised."""
    if getattr(error, 'name', None) == 'mmcv._ext':
        return rebuild_ops()
    package = missing_package(error)
    return INSTALL.get(package, f'pip install {package}') if package else MAKE_ENV


def missing_package(error):
    """The top-level package that an import did not find; None if the exception is another."""
    return error.name.partition('.')[0] if isinstance(error, ModuleNotFoundError) and error.name else None


def first_line(error):
    """The first line of an exception's message, without a full stop."""
    return (str(error).strip().splitlines() or [''])[0].rstrip('.')


CHECKS = (
    ('imports', check_hosts),
    ('installed', check_owners),
    ('mmcv ops', check_ops),
    ('selective search', check_selective_search),
    ('GPU', check_cuda),
)

if __name__ == '__main__':
    sys.exit(main())
