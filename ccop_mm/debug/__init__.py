"""Non-finite losses: the hook that stops a run, the dump of the training step, and its replay."""

from .finite_loss_hook import FiniteLossHook, NonFiniteLossError

__all__ = ['FiniteLossHook', 'NonFiniteLossError']
