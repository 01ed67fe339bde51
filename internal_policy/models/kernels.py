"""Say once, in one sentence, that transformers runs recurrent layers without fast kernels."""

import logging

SENTENCE = (
    "Recurrent layers run in plain PyTorch, which is correct but slow. On an NVIDIA GPU, the packages causal-conv1d, "
    "mamba-ssm and flash-linear-attention make them faster."
)
LOGGER = "transformers.integrations.hub_kernels"
"""The logger that warns of each missing kernel."""


class OneSentence(logging.Filter):
    """Replace the first warning of a missing kernel by SENTENCE, and drop the others."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print `record`."""
        if "falling back to its reference PyTorch implementation" not in record.getMessage():
            return True
        first, self.said = not self.said, True
        record.msg, record.args = SENTENCE, ()
        return first


_filter = OneSentence()


def one_sentence() -> None:
    """Print one sentence about missing kernels from now on, however many are missing."""
    logging.getLogger(LOGGER).addFilter(_filter)  # adding it again changes nothing
