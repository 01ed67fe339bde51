"""A GRPO trainer whose checkpoints are written whole or not at all."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.trainer_utils import rotate_checkpoints
from trl.trainer.grpo_trainer import GRPOTrainer

from internal_policy.train import checkpoints


class SavingTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, which renames a checkpoint to its final name only when it is complete on disk."""

    saving = False
    """Whether a checkpoint is being written."""
    writing = False
    """Whether it is written under a temporary name."""

    def _get_output_dir(self, trial: Any) -> str:
        """The folder for checkpoints; a temporary one while one is being written there."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / checkpoints.PARTIAL) if self.writing else folder

    def create_model_card(self, *args: Any, **more: Any) -> None:
        """Write TRL's card into the folder of the run; for a checkpoint only if it goes to the hub."""
        if self.args.push_to_hub or not self.saving:
            super().create_model_card(*args, **more)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, and rename it to its final name only when it is complete on disk."""
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        partial, writes = run / checkpoints.PARTIAL, self.accelerator.is_local_main_process
        named = self.args.push_to_hub or self.args.metric_for_best_model  # TRL keeps the name for later
        if writes:
            checkpoints.clear(run)
            if not named:
                partial.mkdir(exist_ok=True)  # fails if the run was removed; saving would make half of its folder again
        self.accelerator.wait_for_everyone()
        self.saving, self.writing = True, not named
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.saving = self.writing = False
        if writes:  # nothing reads it, and it holds every field of the configuration
            ((run if named else partial) / name / checkpoints.PICKLE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        if writes and named:
            checkpoints.seal(run / name)
        elif writes:
            with suppress(FileNotFoundError):  # another node sharing this disk was faster
                checkpoints.put(partial / name, run / name)
                partial.rmdir()
        self.accelerator.wait_for_everyone()
        self._rotate(run)

    def train(self, *args: Any, **more: Any) -> Any:
        """Train, and remove older checkpoints that a killed process left after it had written its last one."""
        output = super().train(*args, **more)
        self._rotate(Path(self._get_output_dir(None)))
        return output

    def _rotate(self, run: Path) -> None:
        """Remove all but the newest checkpoints of a run, by their updates, because clocks may go backwards."""
        if self.args.should_save:
            rotate_checkpoints(str(run), self.args.save_total_limit, self.state.best_model_checkpoint)
