"""Seeds every iteration, so that checkpoints need no generator states."""

import numpy as np
from mmengine.hooks import DistSamplerSeedHook
from mmengine.runner import Runner, set_random_seed
from mmselfsup.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(DistSamplerSeedHook):
    """Seeds each process from (seed of the run, iteration), in addition to the sampler's epoch that mmengine sets.

    A checkpoint stores no generator states. Random numbers of an iteration (dropout, jitter, shuffled batches) must
    therefore not depend on how many were generated before: a resumed run then uses the same ones as an uninterrupted
    run, with any number of workers. (A data loader that restarts its workers consumes one random number of torch's
    generator; a loader with persistent workers does not.) As in mmengine, all ranks share one seed unless
    ``randomness.diff_rank_seed`` is set.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Seeds Python, numpy and torch, including its devices."""
        set_random_seed(int(np.random.SeedSequence([runner.seed, runner.iter]).generate_state(1)[0]))
