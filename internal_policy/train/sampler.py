"""The order in which problems are drawn."""

from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends only on seed and epoch: a resumed run draws the same prompts."""

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)
