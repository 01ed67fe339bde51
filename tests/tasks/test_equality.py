"""Answers are compared by their mathematical meaning, whatever a model wrote."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from internal_policy.tasks import equality
from internal_policy.tasks.equality import equal
from internal_policy.tasks.marking import reward

FACTS = [
    (r"\frac12", "0.5", True),
    ("1/2", "0.5", True),
    (r"\frac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    ("(1,2]", "(1,2)", False),
    ("{1,2}", "{2,1}", True),
    (r"\{1, 2\}", r"\{2, 1\}", True),
    ("1, 2", "2, 1", True),
    (r"\{1, 2\}", r"\{1, 2, 3\}", False),
    ("x=5", "5", True),
    ("1,000", "1000", True),
    (r"10\%", "0.1", True),
    (r"10\%", "10", True),  # math-verify accepts a percentage for either
    (r"90^\circ", "90", True),
    (r"\text{(A)}", "A", True),
    (r"\text{(A)}", "B", False),
    ("p - q", "-q + p", True),
    ("p - q", "q - p", False),
    ("x^2 + 2x + 1", "(x+1)^2", True),
    (r"x \in [-2, 7]", "[-2,7]", True),
    ("2x - y = 0", "y = 2x", True),
    ("0.3333", r"\frac13", False),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}", False),
    (r"\infty", "432", False),
    (r"\frac{1}{0}", "432", False),
]


@pytest.mark.parametrize(("given", "answer", "same"), FACTS)
def test_answers_are_compared_by_meaning(given, answer, same):
    assert equal(given, answer) is same


HOSTILE = {
    "power": "9^9^9^9",
    "tower": "9^{9^{9^9}}",
    "factorial": "10^{10^{10}}!",
    "sum": r"\sum_{n=1}^{10^9} \frac{1}{n}",
    "braces": "{" * 100 + "5" + "}" * 100,
    "fractions": r"\frac{1}{" * 25 + "2" + "}" * 25,
    "roots": r"\sqrt{" * 40 + "2" + "}" * 40,
    "long": "1+" * 50_000 + "1",
    "deep": "{" * 50_000 + "}" * 50_000,
    "unclosed": r"\boxed{5",
    "several": r"\boxed{5} \boxed{6}",
    "nested": r"\boxed{\boxed{5}}",
    "null": "\0",
    "surrogate": "\ud800",
    "emoji": "🙂",
    "file": r"\input{/etc/passwd}",
    "backslashes": "\\" * 299,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_incorrect_and_the_next_pair_is_still_marked(name, monkeypatch):
    monkeypatch.setattr(equality, "TIME_LIMIT", 1.0)
    assert not equal(HOSTILE[name], "x + 432")
    assert reward(rf"so \boxed{{{HOSTILE[name]}}}", "432") == 0.0
    monkeypatch.undo()
    assert equal(r"\frac24", "1/2")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the limit of another process")
def test_memory_has_a_limit():
    import resource

    assert equal("1/2", "0.5")
    assert resource.prlimit(worker_pid(), resource.RLIMIT_AS)[0] == equality.MEMORY_LIMIT


def test_nothing_is_executed(tmp_path):
    code = f"__import__('os').system('touch {tmp_path}/here')"
    assert not equal(code, "432")
    assert not equal(rf"\text{{{code}}}", "432")
    assert not list(tmp_path.iterdir())


def test_a_long_answer_is_not_parsed(monkeypatch):
    monkeypatch.setattr(equality, "_worker", None)
    assert not equal("1" * 301, "1")
    assert not equal("1", "1" * 301)


def test_threads_share_the_worker():
    found = {}
    threads = [
        threading.Thread(
            target=lambda n=n: found.__setitem__(n, equal(rf"\frac{{{n}}}{{7}}", rf"\frac{{{2 * n}}}{{14}}"))
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == dict.fromkeys(range(8), True)


def ran(tmp_path, code: str) -> subprocess.CompletedProcess[str]:
    """A separate script, without `if __name__ == "__main__"`."""
    (tmp_path / "script.py").write_text("from internal_policy.tasks.equality import equal\n" + code)
    script = [sys.executable, str(tmp_path / "script.py")]
    return subprocess.run(script, capture_output=True, text=True, timeout=60)


PLATFORMS = {
    "macos": """
        import resource
        def refuse(*_): raise ValueError("current limit exceeds maximum limit")
        resource.setrlimit = refuse
    """,
    "windows": """
        import os, psutil, sys  # psutil needs `resource` on Linux alone
        del os.fork, os.register_at_fork
        sys.modules["resource"] = None
    """,
    "limited": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
    """,
}
"""What every Python process finds there: no limit of memory, no fork either, or a limit that may not be raised."""


@pytest.mark.parametrize("platform", PLATFORMS)
def test_answers_are_marked_on_platforms_without_memory_limits_or_fork(tmp_path, monkeypatch, platform):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(PLATFORMS[platform]))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = ran(tmp_path, r"print(equal('1/2', '0.5'), equal('9^9^9^9', '5'), equal(r'\frac24', '0.5'))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True False True\n", "")


@pytest.mark.slow
def test_the_platform_check_passes_without_memory_limits(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(PLATFORMS["macos"]))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    script = Path(__file__).parents[2] / ".ci" / "imports.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_without_a_guard_runs_once_and_ends(tmp_path):
    done = ran(tmp_path, "print('once', equal('1/2', '0.5'), flush=True)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "once True\n", "")


def test_a_fork_gets_its_own_worker_and_leaves_its_parents_alone(tmp_path):
    code = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"  # Python 3.12 warns about forking with threads
        "assert equal('1/2', '0.5')\n"
        "pid = os.fork()\n"
        "assert equal('1/2', '0.5')\n"
        "if pid:\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "    assert equal('2/4', '0.5')\n"
    )
    done = ran(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("daemon", [True, False])
def test_answers_are_marked_in_a_data_loader(tmp_path, daemon):
    code = (
        "import multiprocessing, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "context = multiprocessing.get_context('fork')\n"
        "queue = context.SimpleQueue()\n"
        f"child = context.Process(target=lambda: queue.put(equal('1/2', '0.5')), daemon={daemon})\n"
        "child.start()\n"
        "assert queue.get() is True\n"
        "child.join()\n"
        "assert child.exitcode == 0\n"
    )
    done = ran(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_was_killed_is_replaced():
    assert equal("1/2", "0.5")
    killed = worker_pid()
    os.kill(killed, signal.SIGKILL)
    assert equal("2/4", "0.5")
    assert worker_pid() != killed


def worker_pid() -> int:
    return equality._worker.process.pid


def test_marking_loads_math_verify_only_in_the_worker():
    assert equal("1/2", "0.5")
    run = "from internal_policy.tasks.equality import equal; equal('1/2', '0.5')"
    code = f"import sys; {run}; print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
