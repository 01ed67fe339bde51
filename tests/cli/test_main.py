"""From arguments to an exit code."""

import pytest

from internal_policy.__main__ import main

pytestmark = pytest.mark.usefixtures("here")


def test_options_are_accepted_with_underscores_too(asked):
    assert main([*asked, "--dry_run", "--top_k", "2"]) == 0


def test_no_progress_bar_is_drawn_without_a_terminal(asked, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    read, advice, begun, ended = capsys.readouterr().err.splitlines()
    assert read.startswith("Read through the chat template as: ")
    assert advice.startswith("For plain text, add ")
    assert begun == "Writing the scan to mine."
    assert ended.startswith("Measured in ")


def test_wrong_usage_exits_2():
    assert main(["scan", "--nonsense"]) == 2
