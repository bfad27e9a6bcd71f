"""The make commands as a user meets them, in a folder with a space in its name, and when set-up can't go on.

Set-up runs for real (a venv, pip, the editable install), but with a requirements.txt that asks for one tiny
wheel made here, so that it takes seconds and no network. The few packages that it needs beside come from
wheels packed from what is installed.
"""

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from jupyter_lab import ROOT, free_port, wait_for

COPIED = ["Makefile", "pyproject.toml", "requirements.txt", "scripts", "minitransformer", "lessons"]
NO_INDEX = {  # a machine without a network, and without this one's pip configuration
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "PIP_NO_CACHE_DIR": "1",
}
MINE = ("PYTHON", "PROMPT", "ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VIRTUAL_ENV")
ECHO = "PY=echo"  # instead of running the program, show how it would be called
RAN = "-m minitransformer.course.demo"
SETTING_UP = "Setting up .venv, once: about 1 GB to download, some minutes."


def make(folder: Path, *arguments: str, path: str = "", **env: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in MINE and not k.startswith("PIP_")}
    clean |= NO_INDEX | {"PATH": path + clean["PATH"]} | env
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=600
    )


def complaint(result: subprocess.CompletedProcess) -> str:
    """The one line that a failed command says beside make's own "Error 1"."""
    assert result.returncode != 0, result.stdout
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def copy_course(folder: Path) -> Path:
    """The course as a fresh clone has it, but for what it requires."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(
            source, folder
        )
    (folder / "requirements.txt").write_text("tiny-wheel\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "requirements.txt").write_text("tiny-wheel\n")
    return folder


def pack_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]):
    info = f"{name}-{version}.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    pack_wheel(folder, "tiny_wheel", "1.0", {"tiny_wheel.py": b"VALUE = 1\n"})
    installed = importlib.metadata.distribution("setuptools")
    kept = [f for f in installed.files if f.parts[0] in ("setuptools", "pkg_resources", "_distutils_hack")]
    kept += [
        f for f in installed.files if f.name == "entry_points.txt" and f.parts[0].startswith("setuptools-")
    ]
    files = {str(f): f.locate().read_bytes() for f in kept if f.suffix != ".pyc" and f.locate().is_file()}
    pack_wheel(folder, "setuptools", installed.version, files)
    return folder


@pytest.fixture(scope="module")
def course(tmp_path_factory, wheels) -> Path:
    """A course that is set up, in a folder with a space in its name."""
    folder = copy_course(tmp_path_factory.mktemp("make") / "my course")
    result = make(folder, "demo", ECHO, PIP_FIND_LINKS=str(wheels))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [SETTING_UP, RAN]
    # What the real requirements would have brought.
    site = next((folder / ".venv" / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(f"{site_packages()}\n")
    return folder


def site_packages() -> Path:
    return Path(importlib.metadata.distribution("pytest").locate_file(""))


def wrapper(folder: Path, script: str, name: str = "python") -> str:
    """An executable of that name, whose shell script may call the real Python as $REAL."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\nREAL='{sys.executable}'\n{script}\n")
    path.chmod(0o755)
    return str(path)


# --- what works -------------------------------------------------------------------------------------


def test_make_alone_lists_every_command():
    listed = make(ROOT).stdout
    targets = subprocess.run(
        ["grep", "-oE", "^[a-z]+:", ROOT / "Makefile"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {line.split()[1] for line in listed.splitlines()} == {t.rstrip(":") for t in targets}
    assert {"lab", "test", "demo", "grade", "bench", "notebooks", "format", "train"} <= set(listed.split())


def test_setting_up_installs_the_course_in_its_own_folder(course):
    python = course / ".venv" / "bin" / "python"
    code = "import minitransformer, tiny_wheel; print(minitransformer.__file__)"
    found = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True).stdout.strip()
    assert Path(found).parent.parent == course


def test_a_second_call_sets_up_nothing_and_needs_no_network(course):
    assert make(course, "demo", ECHO).stdout.splitlines() == [RAN]


def test_other_requirements_are_installed_at_the_next_call(course, wheels):
    pack_wheel(wheels, "second_wheel", "1.0", {"second_wheel.py": b""})
    with open(course / "requirements.txt", "a") as file:
        file.write("second-wheel\n")
    assert complaint(make(course, "demo", ECHO)).startswith("No network")
    assert (course / ".venv" / "course-made").exists(), "what worked before must still be there"
    result = make(course, "demo", ECHO, PIP_FIND_LINKS=str(wheels))
    assert result.stdout.splitlines() == ["Bringing .venv up to date.", RAN], result.stderr


@pytest.mark.parametrize(
    "prompt", ["Once", "it's", 'say "hi"', "costs $5 and $HOME", "$(shell id) `id`", "a # b"]
)
def test_a_prompt_arrives_as_it_was_typed(course, prompt, tmp_path):
    show = "PY=" + wrapper(tmp_path / "show", 'printf "%s\\n" "$@"')
    arguments = ["-m", "minitransformer.course.demo", "--prompt", prompt]
    assert make(course, "demo", f"PROMPT={prompt}", show).stdout.splitlines() == arguments
    assert make(course, "demo", show, PROMPT=prompt).stdout.splitlines() == arguments


def test_an_empty_prompt_is_answered_with_a_line(course):
    assert complaint(make(course, "demo", "PROMPT=")).startswith("The prompt is empty")


def test_make_lab_serves_lesson_00_from_a_path_with_a_space(course, tmp_path):
    port, log = free_port(), tmp_path / "log"
    own = {name: str(tmp_path / name) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    options = f"--no-browser --ServerApp.port={port} --ServerApp.port_retries=0 --IdentityProvider.token=t"
    with open(log, "w") as out:
        command = ["make", "lab", f"ARGS={options}"]
        lab = subprocess.Popen(
            command, cwd=course, env=os.environ | own, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/contents/lessons?token=t", lab, log)
    finally:
        if lab.poll() is None:
            os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(30)
    assert f":{port}/lab/tree/lessons/00_" in log.read_text()


# --- what does not ----------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path) -> Path:
    return copy_course(tmp_path / "my course")


def no_venv_left(folder: Path) -> bool:
    return not (folder / ".venv").exists()


def test_a_python_too_old_is_named(fresh, tmp_path):
    old = wrapper(tmp_path / "old", 'echo 3.9; [ "$1" = -c ]')
    line = complaint(make(fresh, "lab", f"PYTHON={old}"))
    assert "needs Python 3.11 to 3.14" in line and "3.9" in line
    assert no_venv_left(fresh)


def test_a_python_that_is_not_there_is_named(fresh):
    line = complaint(make(fresh, "test", "PYTHON=python-of-the-future"))
    assert "python-of-the-future is not there" in line


def test_a_newer_python_is_found_beside_an_old_python3(fresh, tmp_path):
    wrapper(tmp_path / "bin", 'echo 3.9; [ "$1" = -c ]', name="python3")
    newer = '[ "$1 $2" = "-m venv" ] && echo "error: this one was chosen" && exit 1; exec "$REAL" "$@"'
    wrapper(tmp_path / "bin", newer, name="python3.13")
    assert "this one was chosen" in complaint(make(fresh, "lab", path=f"{tmp_path / 'bin'}:"))


def test_a_missing_venv_module_is_named_with_the_package_that_brings_it(fresh, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "ensurepip.py").write_text("raise ImportError")
    debian = wrapper(tmp_path / "debian", f'PYTHONPATH=\'{tmp_path / "without"}\' exec "$REAL" "$@"')
    line = complaint(make(fresh, "lab", f"PYTHON={debian}"))
    assert f"apt install python3.{sys.version_info.minor}-venv" in line
    assert no_venv_left(fresh)


def test_no_network_at_the_first_set_up(fresh):
    assert complaint(make(fresh, "lab")).startswith("No network")
    assert no_venv_left(fresh)


FULL = """
case "$*" in
    *"-m pip install"*) echo "ERROR: Could not install: [Errno 28] No space left on device"; exit 1 ;;
    *) exec "$REAL" "$@" ;;
esac"""


def test_a_disk_that_fills_up_on_the_way(fresh, tmp_path):
    making = f"""
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p .venv/bin && cp '{wrapper(tmp_path / "full", FULL)}' .venv/bin/python
else
    exec "$REAL" "$@"
fi"""
    line = complaint(make(fresh, "lab", f"PYTHON={wrapper(tmp_path / 'making', making)}"))
    assert line.startswith("The disk is full")
    assert no_venv_left(fresh)


def test_a_disk_too_small_is_noticed_before_anything_is_downloaded(fresh, tmp_path):
    wrapper(tmp_path / "bin", "echo Filesystem; echo /dev/x 9000 8900 100 99% /", name="df")
    line = complaint(make(fresh, "lab", path=f"{tmp_path / 'bin'}:"))
    assert "3000 MB" in line and "100 MB free" in line
    assert no_venv_left(fresh)


def test_a_venv_left_half_made_is_made_anew(fresh):
    (fresh / ".venv" / "bin").mkdir(parents=True)
    (fresh / ".venv" / "bin" / "python").write_text("rubbish")
    (fresh / ".venv" / "course-making").write_text("4194304\n")  # above any process number in use
    result = make(fresh, "lab")
    assert result.stdout.splitlines() == [SETTING_UP]
    assert complaint(result).startswith("No network")


def test_a_venv_of_somebody_else_is_never_removed(fresh):
    (fresh / ".venv").mkdir()
    (fresh / ".venv" / "precious").write_text("mine")
    assert "remove it" in complaint(make(fresh, "lab"))
    assert (fresh / ".venv" / "precious").exists()


def test_ctrl_c_while_setting_up_leaves_nothing_half_made(fresh, tmp_path):
    making = f'[ "$1 $2" = "-m venv" ] && touch "{tmp_path}/begun" && exec sleep 20; exec "$REAL" "$@"'
    command = ["make", "lab", f"PYTHON={wrapper(tmp_path / 'slow', making)}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=fresh, start_new_session=True, **pipes)
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=300)  # bash may see the signal only when the command it waits for has ended
    assert process.returncode != 0 and (tmp_path / "begun").exists()
    assert no_venv_left(fresh)
