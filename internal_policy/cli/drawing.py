"""What the commands that draw do: one figure, a report, the dashboard."""

from importlib.util import find_spec
from urllib.parse import urlencode

from internal_policy import bundle, files
from internal_policy.cli import options, progress
from internal_policy.errors import InputError
from internal_policy.look.view import View, check, default
from internal_policy.scans import store


def plot(asked: options.Plot) -> None:
    """Write one figure."""
    _app("plotly")
    from internal_policy.look import catalogue, export

    export.check(asked.output)
    views = [_view(name, asked) for name in (asked.scan, *asked.against)]
    if asked.against and asked.figure != "compare":
        raise InputError(f"--against is for compare; {asked.figure} draws one scan.")
    choice = catalogue.Choice(
        asked.average, asked.site, asked.measure, asked.rollout, asked.position, asked.layer, asked.style
    )
    export.write(catalogue.draw(asked.figure, views, choice), asked.output)
    progress.note(f"Wrote {asked.output}.")


def report(asked: options.Report) -> None:
    """Write one HTML file about some scans."""
    _app("plotly")
    from internal_policy.look import report

    if asked.output.suffix != ".html" or not asked.output.parent.is_dir():
        raise InputError(f"--output is {asked.output}; give a .html file in a folder that exists.")
    if not asked.scans:
        raise InputError("No scan is given; name one, or more, such as demo-qwen3. `internal-policy ls` lists them.")
    page = report.report([_view(name, asked) for name in asked.scans])
    with files.replacing(asked.output) as temporary:
        temporary.write_text(page)
    progress.note(f"Wrote {asked.output}, {asked.output.stat().st_size / 1e6:.1f} MB.")


def dashboard(asked: options.Dashboard) -> None:
    """Serve the dashboard until it is interrupted."""
    _app("streamlit")
    folder = store.find(asked.scan).absolute() if asked.scan is not None else None
    if folder:
        check(default(folder))
    progress.note(
        f"http://127.0.0.1:{asked.port}/{'?' + urlencode({'scan': folder}) if folder else ''} (Ctrl-C ends it)"
    )
    from click import Abort
    from streamlit.web import cli

    try:  # in this process, so that the server ends with it, however it ends
        cli.main(["run", str(bundle.APP / "main.py"), "--server.port", str(asked.port)], standalone_mode=False)
    except Abort:  # how click reports Ctrl-C, which is how the server is stopped
        return
    except SystemExit as error:
        if error.code:
            raise InputError(
                f"The dashboard didn't start on port {asked.port}. If the port is in use, try another --port."
            ) from error


def _view(name: str, asked: options.ViewOptions) -> View:
    folder = store.find(name)
    first, last = positions(asked.positions)
    view = View(folder, asked.readout or default(folder).readout, asked.outcome, first, last)
    check(view)
    return view


def positions(text: str | None) -> tuple[int, int | None]:
    """Read `0-99`, `100-` or `7`: the first position and the last, None for the end. Raises InputError."""
    if text is None:
        return 0, None
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()) or (last and int(last) < int(first)):
        raise InputError(f"--positions is '{text}'; write for example 0-99, 100- or 7.")
    return int(first), int(last) if last else None if dash else int(first)


def _app(package: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"This needs {package}, which is not installed; `pip install 'internal-policy[app]'` adds it.")
