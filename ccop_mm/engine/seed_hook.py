"""A fresh seed for every iteration, so that no generator's state needs to be saved."""

import numpy as np
from mmengine.hooks import DistSamplerSeedHook
from mmengine.runner import Runner, set_random_seed
from mmselfsup.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(DistSamplerSeedHook):
    """Seeds each process from (the run's seed, iteration), besides what mmengine's hook does: the sampler's epoch.

    A checkpoint holds no generator. The draws of an iteration (dropout, jitter, shuffled batches) therefore must not
    depend on how many came before: a resumed run makes those that the whole run would have made, with any number of
    workers (a loader that starts its workers anew takes a number from torch's generator, one whose workers live on does
    not). As in mmengine, all ranks have one seed, unless ``randomness.diff_rank_seed`` is set.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Seeds Python, numpy and torch, its devices included."""
        set_random_seed(int(np.random.SeedSequence([runner.seed, runner.iter]).generate_state(1)[0]))
