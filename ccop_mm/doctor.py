"""Checks whether pre-training can run in this environment and prints a fix for each problem.

Usage: ``python -m ccop_mm.doctor``. It has to run where an upstream library is missing or broken, so this module must
only import the standard library and modules that do the same.
"""

import glob
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from ccop_mm.utils.text import single_line

PACKAGES = (
    'torch',
    'torchvision',
    'numpy',
    'mmcv',
    'mmengine',
    'mmdet',
    'mmcls',
    'mmselfsup',
    'cv2',
    'numba',
    'ccop_mm',
)
PRETRAINING = ('mmselfsup.models', 'mmdet.models', 'ccop_mm.models', 'ccop_mm.datasets', 'ccop_mm.engine')
TRANSFER = ('mmdet.datasets', 'mmdet.evaluation')
# Distributions that install the same files: `import` finds those of the distribution that was installed last.
CONFLICTING_DISTRIBUTIONS = (
    ('opencv-contrib-python', 'opencv-contrib-python-headless', 'opencv-python', 'opencv-python-headless'),
    ('mmcv', 'onedl-mmcv'),
    ('mmengine', 'onedl-mmengine'),
    ('mmdet', 'onedl-mmdetection'),
)
#: Bytes of shared memory that the data loader needs: 8 workers prepare two batches of 32 pairs of views each, 38 MB.
MIN_SHARED_MEMORY = 2**30
#: Bytes on disk for a ResNet-50: a checkpoint takes 0.75 GB, three are kept, and a fourth is written before the oldest
#: is deleted.
MIN_FREE_DISK = 4 * 750_000_000
#: Lowest driver that runs programs built for a major version of CUDA. Source: NVIDIA's "CUDA Compatibility", minor
#: version compatibility.
MIN_DRIVERS = {'12': 525, '13': 580}
#: Where the NVIDIA driver lists its GPUs.
DRIVER_FOLDER = '/proc/driver/nvidia'
#: What mmcv reports as its CUDA version if it is compiled for the CPU only.
NO_CUDA = 'not available'
MAKE_ENV = 'create the environment with `make env`, which installs matching versions in the required order'
REINSTALL_OPENCV = (
    'pip uninstall -y opencv-python opencv-python-headless; '
    'pip install --no-deps --force-reinstall opencv-contrib-python'
)
# Fixes for import names whose distribution has another name or needs special options.
INSTALL = {
    'attr': 'pip install attrs',
    'cv2': REINSTALL_OPENCV,
    'imgaug': 'pip install --no-deps imaug (its dependencies would replace opencv-contrib-python)',
    'PIL': 'pip install pillow',
    'skimage': 'pip install scikit-image',
    'sklearn': 'pip install scikit-learn',
    'yaml': 'pip install pyyaml',
    **dict.fromkeys(('torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmcls', 'mmselfsup', 'ccop_mm'), MAKE_ENV),
}


@dataclass(frozen=True)
class Problem:
    """A problem of the environment.

    Args:
        description (str): The problem, in one line.
        fix (str): How to fix it, in one line.
        fatal (bool): Whether the problem prevents pre-training.
        cpu_only (bool): Whether pre-training runs on the CPU because of it, although there is a GPU.
    """

    description: str
    fix: str
    fatal: bool = True
    cpu_only: bool = False


def main() -> int:
    """Runs all checks and prints a report.

    Returns:
        int: Exit code: 1 if pre-training cannot run in this environment, else 0.
    """
    problems: list[Problem] = []
    for name in PACKAGES:
        print(f'{name:18}{describe_version(name)}')
    print(f'{"python":18}{platform.python_version()} ({sys.executable})')
    for title, check in CHECKS:
        results = list(check())
        found = [result for result in results if isinstance(result, Problem)]
        print(f'{title:18}{"see below" if found else "; ".join(map(str, results))}')
        problems += found
    for problem in problems:
        print(f'{"ERROR" if problem.fatal else "WARNING"}: {problem.description}. Fix: {problem.fix}')
    broken = any(problem.fatal for problem in problems)
    if not broken and any(problem.cpu_only for problem in problems):
        print('pre-training would run on the CPU here: the GPU cannot be used')
    else:
        print(f'pre-training {"cannot" if broken else "can"} run here')
    return int(broken)


def describe_version(name: str) -> str:
    """Returns the versions and names of the distributions that provide a package, without importing it.

    Args:
        name (str): Import name.

    Returns:
        str: For example ``'2.3.6 (onedl-mmcv)'``, or ``'missing'``.
    """
    # Python 3.10 does not list distributions without top_level.txt, for example numpy and onedl-mmengine.
    candidates = metadata.packages_distributions().get(name) or next(
        (names for names in CONFLICTING_DISTRIBUTIONS if name in names), [name]
    )
    installed = sorted(filter(is_installed, set(candidates)))
    versions = [metadata.version(owner) + (f' ({owner})' if owner != name else '') for owner in installed]
    return ', '.join(versions) or 'missing'


def check_upstream() -> Iterator[str | Problem]:
    """Checks whether all modules for pre-training and transfer can be imported after the patches."""
    problems: dict[str, Problem] = {}
    for part in ('ccop_mm.compat', *PRETRAINING, *TRANSFER):
        try:
            module = importlib.import_module(part)
            if part == 'ccop_mm.compat':
                module.apply_patches()
        except Exception as error:  # a broken package may raise anything
            description = f'{part} cannot be used ({type(error).__name__}: {first_line(error)})'
            cause = missing_package(error) or first_line(error)
            problems.setdefault(cause, Problem(description, fix_for(error), fatal=part not in TRANSFER))
    yield from problems.values() or ['all modules can be imported']


def check_ops() -> Iterator[str | Problem]:
    """Checks whether mmcv's compiled RoIAlign and NMS return correct results on every available device."""
    try:
        import torch
        from mmcv.ops import get_compiling_cuda_version, nms, roi_align

        for device in ['cpu', *(['cuda'] if torch.cuda.is_available() and 0 not in list_unsupported_gpus() else [])]:
            if device == 'cuda' and get_compiling_cuda_version() == NO_CUDA:
                yield Problem("mmcv's ops were compiled for the CPU only, where no GPU was visible", rebuild_ops())
                return
            boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [5.0, 5.0, 8.0, 8.0]], device=device)
            kept = nms(boxes, torch.tensor([0.5, 0.9, 0.7], device=device), 0.5)[1]
            rois = torch.cat([torch.zeros(3, 1, device=device), boxes], dim=1)
            # Column x has the value x. The mean over an aligned box is therefore the x coordinate of its center - 0.5.
            feature = torch.arange(10.0, device=device).expand(1, 1, 10, 10).contiguous()
            pooled = roi_align(feature, rois[2:], 1, 1.0, 1, 'avg', True).flatten()
            if kept.tolist() != [1, 2] or not torch.allclose(pooled, torch.full_like(pooled, 6.0)):
                raise RuntimeError(f'wrong results on {device}: nms {kept.tolist()}, RoIAlign {pooled.tolist()}')
            yield f'RoIAlign and nms work on {device}'
        if torch.version.cuda and not torch.cuda.is_available() and get_compiling_cuda_version() == NO_CUDA:
            yield Problem(
                f"mmcv's ops were compiled for the CPU only, but torch {torch.__version__} is built with CUDA "
                f'{torch.version.cuda}: on a node with a GPU they would fail at the first step',
                f'to use a GPU later, {rebuild_ops(for_gpu=True)}',
                fatal=False,
            )
    except Exception as error:
        fix = fix_for(error) if missing_package(error) else rebuild_ops()
        yield Problem(f'the C++ ops of mmcv do not work ({type(error).__name__}: {first_line(error)})', fix)


def rebuild_ops(for_gpu: bool = False) -> str:
    """Returns the command that compiles mmcv's ops against the installed torch, for the visible GPUs if there are any.

    Args:
        for_gpu (bool): Compile them for GPUs even if none is visible.
    """
    cuda, capabilities = describe_torch()[1:3]
    prefix = note = ''
    if for_gpu or capabilities != 'none':
        prefix = f"FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST='{'8.0;9.0' if capabilities == 'none' else capabilities}' "
        note = f'; requires nvcc of CUDA {cuda.partition(".")[0]}, docs/install.md'
        if capabilities == 'none':
            note = f"; '8.0;9.0' is for A100 and H100, use the capabilities of your GPUs{note}"
    for name in filter(is_installed, ('onedl-mmcv', 'mmcv')):
        return (
            f'{prefix}pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir --no-binary {name} '
            f'{name}=={metadata.version(name)} (10-20 minutes, more with CUDA{note})'
        )
    return MAKE_ENV


def describe_torch() -> tuple[str, str, str, str]:
    """Describes the installed torch and the GPUs that it sees, for requirements/install.sh and for fixes.

    Returns:
        tuple[str, str, str, str]: Version of torch, its CUDA version, capabilities of the visible GPUs such as
        ``'8.0;9.0'``, and those of them without kernels in this torch. ``'none'`` stands for an empty entry.
    """
    try:
        import torch
    except Exception:  # check_cuda reports it
        return 'none', 'none', 'none', 'none'
    groups = range(torch.cuda.device_count() if torch.cuda.is_available() else 0), list_unsupported_gpus()
    capabilities = [
        ';'.join(f'{major}.{minor}' for major, minor in sorted({torch.cuda.get_device_capability(i) for i in group}))
        for group in groups
    ]
    return torch.__version__, torch.version.cuda or 'none', capabilities[0] or 'none', capabilities[1] or 'none'


def list_unsupported_gpus() -> list[int]:
    """Lists the visible GPUs for which this build of torch has no kernels.

    Binary kernels (``sm_80``) run on GPUs of the same major and the same or a higher minor capability; intermediate
    code (``compute_80``) is compiled for any GPU of the same or a higher capability.
    """
    import torch

    unsupported: list[int] = []
    if not torch.version.cuda or not torch.cuda.is_available():
        return unsupported
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_capability(index)
        for built in torch.cuda.get_arch_list():
            kind, _, digits = built.partition('_')
            digits = ''.join(filter(str.isdigit, digits))
            capability = int(digits[:-1]), int(digits[-1])
            if capability <= gpu and (kind == 'compute' or capability[0] == gpu[0]):
                break
        else:
            unsupported.append(index)
    return unsupported


def check_selective_search() -> Iterator[str | Problem]:
    """Checks numba, for the native engine of selective search, and OpenCV's ximgproc, for ``--engine opencv``."""
    try:
        importlib.import_module('numba')
    except Exception as error:
        description = f'proposals cannot be generated: numba cannot be imported ({first_line(error)})'
        yield Problem(description, 'pip install numba', fatal=False)
    else:
        yield 'numba works'
    try:
        import cv2
        import numpy as np

        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.zeros((16, 16, 3), np.uint8))
    except Exception as error:
        description = f'tools/propose.py --engine opencv cannot run: OpenCV has no ximgproc ({first_line(error)})'
        yield Problem(description, fix_for(error) if missing_package(error) else REINSTALL_OPENCV, fatal=False)
    else:
        yield 'cv2.ximgproc works'


def check_conflicts() -> Iterator[str | Problem]:
    """Checks whether each package is provided by a single distribution."""
    found = False
    for names in CONFLICTING_DISTRIBUTIONS:
        installed = [name for name in names if is_installed(name)]
        if len(installed) > 1:
            found = True
            fix = REINSTALL_OPENCV if 'opencv-python' in names else f'{MAKE_ENV} (VENV=NEW_FOLDER)'
            description = f'{" and ".join(installed)} install the same files; the one installed last is used'
            yield Problem(description, fix, fatal=False)
    if not found:
        yield 'one distribution per package'


def is_installed(distribution: str) -> bool:
    """Returns whether a distribution is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_cuda() -> Iterator[str | Problem]:
    """Reports the GPUs.

    Without a GPU the CPU is used, with BN instead of SyncBN, which is not a problem. A GPU that cannot be used is one.
    """
    try:
        import torch

        if torch.cuda.is_available():
            unsupported = list_unsupported_gpus()
            if unsupported:
                yield unsupported_gpus(unsupported)
                return
            name = torch.cuda.get_device_name()
            yield f'{torch.cuda.device_count()} x {name}, CUDA {torch.version.cuda}; SyncBN available'
            return
        build = f'with CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'
        hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
        gpu = find_gpu()
        if hidden is not None and (not hidden.strip() or hidden.startswith('-')):
            yield f'hidden by CUDA_VISIBLE_DEVICES={hidden}: runs on the CPU, with BN instead of SyncBN'
        elif gpu:
            reason, fix = explain_unusable_gpu()
            yield Problem(f'there is a GPU ({gpu}) that torch cannot use: {reason}', fix, fatal=False, cpu_only=True)
        else:
            yield f'no usable GPU (torch is built {build}): runs on the CPU, with BN instead of SyncBN'
    except Exception as error:
        yield Problem(f'torch cannot be used ({type(error).__name__}: {first_line(error)})', fix_for(error))


def unsupported_gpus(indices: list[int]) -> Problem:
    """Returns the problem of GPUs without kernels in this torch, fatal if the first GPU is one of them.

    Args:
        indices (list[int]): Result of :func:`list_unsupported_gpus`.
    """
    import torch

    names = ', '.join(
        '{} (capability {}.{})'.format(torch.cuda.get_device_name(index), *torch.cuda.get_device_capability(index))
        for index in indices
    )
    usable = [str(index) for index in range(torch.cuda.device_count()) if index not in indices]
    others = f'use the other GPUs with CUDA_VISIBLE_DEVICES={",".join(usable)}, or ' if usable else ''
    return Problem(
        f'torch {torch.__version__} has no kernels for {names}; it is built for {" ".join(torch.cuda.get_arch_list())}',
        f'{others}install a build of torch that supports the GPU in a new environment (for V100, P100 and older the '
        "build for CUDA 12.6), and compile mmcv's ops with that toolkit; or set CUDA_VISIBLE_DEVICES= to use the CPU",
        fatal=0 in indices,
    )


def find_gpu() -> str:
    """Returns name and driver of the first NVIDIA GPU, whether or not torch can use it; '' without one."""
    command = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if not done.returncode and done.stdout.strip():
            name, _, driver = done.stdout.strip().splitlines()[0].rpartition(', ')
            return f'{name}, driver {driver}'
    except (OSError, subprocess.SubprocessError):
        pass  # no nvidia-smi, for example in a container
    return f'listed in {DRIVER_FOLDER}/gpus' if glob.glob(os.path.join(DRIVER_FOLDER, 'gpus', '*')) else ''


def explain_unusable_gpu() -> tuple[str, str]:
    """Returns why torch cannot use a GPU that is there, and the fix."""
    import torch

    if not torch.version.cuda:
        return (
            f'torch {torch.__version__} is built without CUDA',
            'install a CUDA build of torch in a new environment (`make env VENV=NEW_FOLDER`)',
        )
    try:
        torch.cuda.init()
        reason = 'torch.cuda.is_available() is False'
    except Exception as error:
        reason = first_line(error).partition('. ')[0]
    major = torch.version.cuda.partition('.')[0]
    if 'too old' in reason:
        fix = (
            f'update the driver (CUDA {major} requires {MIN_DRIVERS.get(major, "a newer one")} or later), or install a '
            "build of torch for an older CUDA in a new environment, and compile mmcv's ops with that CUDA toolkit"
        )
    elif 'no NVIDIA driver' in reason:
        fix = 'start the container with --gpus all; outside a container, install the NVIDIA driver again'
    else:
        fix = 'run nvidia-smi and fix what it reports; after an update of the driver, restart the machine'
    return f'{reason} (torch {torch.__version__}, CUDA {torch.version.cuda})', fix


def check_torchvision() -> Iterator[str | Problem]:
    """Checks whether torchvision can be imported without this package, which patches it."""
    command = [sys.executable, '-c', 'import torchvision']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        yield 'can be imported without ccop_mm'
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else 'no message'
    yield Problem(
        f'`import torchvision` fails without ccop_mm, which does not affect training ({reason})',
        'in other programs, `import ccop_mm` first, or install the build of torchvision that belongs to this torch',
        fatal=False,
    )


def check_shared_memory(path: str = '/dev/shm') -> Iterator[str | Problem]:
    """Checks the size of the shared memory through which the workers of a data loader pass images."""
    if not os.path.isdir(path):
        yield f'{path} does not exist: its size cannot be checked'
        return
    free = shutil.disk_usage(path).free
    if free < MIN_SHARED_MEMORY:
        yield Problem(
            f'{path} has only {format_size(free)} free, with which data loader workers may die with a bus error',
            'start the container with --shm-size=8g or --ipc=host, or set train_dataloader.num_workers=0',
            fatal=False,
        )
    else:
        yield f'{format_size(free)} free in {path}'


def check_disk(path: str = '.') -> Iterator[str | Problem]:
    """Checks the free disk space for checkpoints in the current directory."""
    free = shutil.disk_usage(path).free
    folder = os.path.abspath(path)
    if free < MIN_FREE_DISK:
        yield Problem(
            f'{folder} has only {format_size(free)} free; pre-training a ResNet-50 needs {format_size(MIN_FREE_DISK)}',
            'free some space, pass --work-dir on another disk, or lower default_hooks.checkpoint.max_keep_ckpts',
            fatal=False,
        )
    else:
        yield f'{format_size(free)} free in {folder}'


def format_size(size: int) -> str:
    """Formats a number of bytes, in MB below 1 GB."""
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.0f} MB'


def fix_for(error: Exception) -> str:
    """Returns how to fix an exception that an import raised."""
    if getattr(error, 'name', None) == 'mmcv._ext':
        return rebuild_ops()
    package = missing_package(error)
    return INSTALL.get(package, f'pip install {package}') if package else MAKE_ENV


def missing_package(error: Exception) -> str | None:
    """Returns the top-level package that an import did not find, or None for any other exception."""
    return error.name.partition('.')[0] if isinstance(error, ModuleNotFoundError) and error.name else None


def first_line(error: Exception) -> str:
    """Returns the first line of an exception's message without the final period."""
    return single_line(error).rstrip('.')


CHECKS: tuple[tuple[str, Callable[[], Iterator[str | Problem]]], ...] = (
    ('imports', check_upstream),
    ('distributions', check_conflicts),
    ('mmcv ops', check_ops),
    ('selective search', check_selective_search),
    ('GPU', check_cuda),
    ('torchvision', check_torchvision),
    ('shared memory', check_shared_memory),
    ('disk', check_disk),
)

if __name__ == '__main__':
    sys.exit(main())
