"""A run in a notebook: its bar, its interruption, and the page about Python in a real kernel; and the other examples."""

import ast
import doctest
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from scenes import CASES, PATIENCE, make_model, make_scenes

import segpipe
from segpipe.api import command_line, results, running
from segpipe.api import model as model_module
from segpipe.api.notebook import NotebookBar, in_notebook
from segpipe.formats.case import Case
from segpipe.jobs.tasks import Outcome

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/howto/python.md"


def blocks(page):
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a checkout, in which examples write."""
    for name in ("examples", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_the_page_about_python_runs_in_a_notebook(checkout):
    cells = [nbformat.v4.new_code_cell(block) for block in blocks(PAGE)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3").execute()
    outputs = [cell.outputs for cell in notebook.cells]
    kinds = {output.output_type for one in outputs for output in one}
    assert kinds == {"stream", "display_data"}
    assert not [output for one in outputs for output in one if output.get("name") == "stderr"]
    (bar,) = [output for one in outputs for output in one if output.output_type == "display_data"]
    assert bar.data["text/plain"].startswith("3/3 cases, ")
    assert '<progress value="1.000"' in bar.data["text/html"]
    said = ["".join(output.text for output in one if output.output_type == "stream") for one in outputs]
    assert "7 classes" in said[0]
    assert said[1].startswith(f"{checkout / 'segpipe-out'}: 3 done, 0 skipped, 0 failed")
    assert said[4].startswith("('y', 'x') 16.5")
    assert said[5].startswith("the array must have shape (4, rows, cols), got (3, ")


class Kernel:
    """A kernel of Jupyter and what its cells leave."""

    def __init__(self, folder):
        self._manager = KernelManager(kernel_name="python3")
        self._manager.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": str(ROOT)})
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE)

    def interrupt(self):
        self._manager.interrupt_kernel()

    def end(self):
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def execute(self, code, meanwhile=lambda: None):
        """Kind and content of each message of a cell."""
        sent, found = self._client.execute(code), []
        meanwhile()
        while True:
            message = self._client.get_iopub_msg(timeout=PATIENCE)
            content, kind = message["content"], message["msg_type"]
            if message["parent_header"].get("msg_id") != sent:
                continue
            if kind == "status" and content["execution_state"] == "idle":
                return found
            found.append((kind, content))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("kernel")
    make_scenes(root)
    make_model(root / "plain.onnx")
    return root


@pytest.fixture(scope="module")
def kernel(root):
    kernel = Kernel(root)
    yield kernel
    kernel.end()


LEFT = "(multiprocessing.active_children(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
RUN = 'result = segpipe.run("in", "plain.onnx", "{}", workers=2, device="cpu"{}); result.done, result.skipped'


@pytest.mark.slow
@pytest.mark.parametrize(("out", "grace"), [("plain", ""), ("graceful", ", grace=60")])
def test_an_interrupted_kernel_stops_a_run_and_the_next_call_goes_on(out, grace, kernel, root):
    kernel.execute("import segpipe, multiprocessing, signal")

    def interrupt():
        limit = time.monotonic() + PATIENCE
        while not any((root / out / f"{case}.json").is_file() for case in CASES):
            assert time.monotonic() < limit, "no case came to its end"
            time.sleep(0.01)
        kernel.interrupt()

    cell = kernel.execute(RUN.format(out, grace), interrupt)
    (error,) = [content for kind, content in cell if kind == "error"]
    assert error["ename"] == "KeyboardInterrupt"
    assert re.fullmatch(r"\d of 6 cases are not done: the same call continues", error["evalue"])
    assert value(kernel.execute(LEFT)) == "([], True)"
    past = segpipe.open_run(root / out)
    assert past.interrupted
    done, skipped = ast.literal_eval(value(kernel.execute(RUN.format(out, ""))))
    assert skipped
    assert set(past.done) <= set(skipped)  # of each worker's last case the run may not have heard
    assert len(skipped) <= len(past.done) + 2
    assert sorted(done + skipped) == sorted(CASES)


def value(cell):
    """What a cell's last line gives, as text."""
    (found,) = [content["data"]["text/plain"] for kind, content in cell if kind == "execute_result"]
    return found


class Shown:
    """A display that keeps what it is shown."""

    def __init__(self):
        self.texts = []

    def update(self, bar):
        self.texts.append((repr(bar), bar._repr_html_()))


class Plan:
    done = ()
    pixels = 4_000_000


class Prepared:
    cases, plan = (Case("a", "a.tif"), Case("b", "b.tif")), Plan()


def test_a_bar_counts_pixels_and_names_what_failed():
    bar, shown = NotebookBar(Prepared()), Shown()
    bar._display, bar._shown = shown, 0.0
    bar.progress(1_000_000)
    bar.outcome(Outcome(Case("a", "a.tif"), 1.0, 1_000_000))
    bar.note("nothing")
    bar.outcome(Outcome(Case("b", "b.tif"), 1.0, error="<it> is bad"))
    bar.__exit__(None, None, None)
    assert (shown.texts[0][0][:20], bar.share) == ("0/2 cases, 1.0 Mpx, ", 1.0)
    assert 'value="0.250"' in shown.texts[0][1]
    text, page = shown.texts[-1]
    assert text.startswith("2/2 cases, 1 failed, 1.0 Mpx, ")
    assert "<br>failed  b: &lt;it&gt; is bad" in page


def test_this_process_is_no_notebook():
    assert not in_notebook()


def test_the_example_runs(checkout):
    command = [sys.executable, ROOT / "examples/python_api.py", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3/3" not in done.stdout
    assert re.search(r"^  maize: [\d,.]+ ha$", done.stdout, re.MULTILINE)
    assert "<xarray.DataArray 'labels' (y: 518, x: 603)>" in done.stdout
    assert segpipe.open_run("out").done == ["danube", "morava", "pirai"]


@pytest.mark.parametrize("module", [model_module, results, running, command_line], ids=lambda module: module.__name__)
def test_doctests_of_the_interface(module, checkout):
    done = checkout / "done"
    if module is results:
        segpipe.run("examples/scenes", "examples/crops.onnx", done, executor="serial")
    globs = {"out": checkout / "out", "done": done, **vars(module)}
    if module is model_module:
        globs["model"] = segpipe.load("examples/crops.onnx")
    found = doctest.testmod(module, globs=globs)
    assert found.attempted
    assert not found.failed
