"""Trains in the scopes of mmselfsup and mmdet, as one of the processes that a launcher started.

Run by test_mmengine_cpu.py: python train_two_scopes.py WORK_DIR
"""

import atexit
import sys
from pathlib import Path

from mmengine.dist import utils as dist_utils
from mmengine.runner import Runner
from toy_training import toy_config

import ccop_mm  # noqa: F401  applies the patches
from ccop_mm import compat


def count_gloo_threads() -> int:
    """Counts the threads of this process that belong to gloo, by their names (Linux)."""
    return sum('gloo' in name.read_text() for name in Path('/proc/self/task').glob('*/comm'))


def main(work_dir: str) -> None:
    # Registered before the handler of the patch and therefore executed after it.
    atexit.register(lambda: print(f'gloo threads at exit: {count_gloo_threads()}'))
    for scope in ('mmselfsup', 'mmdet'):
        cfg = toy_config(f'{work_dir}/{scope}', default_scope=scope, launcher='pytorch', experiment_name=scope)
        runner = Runner.from_cfg(compat.prepare_config(cfg))
        runner.train()
        assert type(runner.model).__name__ == 'MMDistributedDataParallel' and dist_utils.get_backend() == 'gloo'


if __name__ == '__main__':
    main(sys.argv[1])
