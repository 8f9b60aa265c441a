"""Engines as guests in a process: forks, signals, many loads, many processes; and how the command line ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import run
from conftest import need_engine

import edge_prm
from edge_prm import exit_codes
from edge_prm.backends.guest import Guest
from edge_prm.bundle import open_bundle
from edge_prm.cores import usable_cores
from edge_prm.errors import BackendError, BundleIntegrityError
from edge_prm.prm import PRM

ENGINES = ("onnx", "gguf")
PROMPT = "Tom has 3 apples and buys 4 more. How many has he?"
STEPS = ["3 + 4 = 7", "7 - 2 = 5", "The answer is 5."]
HANG_SECONDS = 60
MOMENTS = 20
posix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="this needs fork")


@pytest.fixture(scope="session")
def demo_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """engine -> a bundle of the embedded demo; not to be changed."""
    made: dict[str, Path] = {}

    def make(engine: str) -> Path:
        need_engine(engine)
        from edge_prm_export import export

        if engine not in made:
            folder = tmp_path_factory.mktemp("demo") / engine
            made[engine] = export("demo", folder, gguf=engine == "gguf")
        return made[engine]

    return make


@pytest.fixture(params=ENGINES)
def demo(request: pytest.FixtureRequest, demo_of: Callable[[str], Path]) -> Path:
    return demo_of(request.param)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt here and in child processes, also where pytest runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own; a hang is an error."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=HANG_SECONDS,
    )


# forks

FORK = """
import os, sys, time
import edge_prm
folder, what = sys.argv[1:]
prm = edge_prm.load(folder)
expected = prm.score("q", ["a", "b"]).rewards
if what == "closed": prm.close()
child = os.fork()
if child == 0:
    if what == "uses":
        refused = os.path.exists(os.path.join(folder, "model.gguf"))
        for use in (lambda: prm.score("q", ["a"]), lambda: prm.session("q").push("a"), lambda: prm.rank("q", ["a"])):
            try: use()
            except edge_prm.EdgePRMError as error: assert refused and "load the bundle after the fork" in str(error), error
            else: assert not refused, "the child scored"
        if not refused: assert prm.score("q", ["a", "b"]).rewards == expected
    if what == "loads":
        assert edge_prm.load(folder).score("q", ["a", "b"]).rewards == expected
    if what == "frees":
        prm.close()
        del prm
    if what == "raises": raise SystemExit("said on stderr")
    print("child done")
    sys.exit(7)
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        assert what == "closed" or prm.score("q", ["a", "b"]).rewards == expected
        print("status", os.waitstatus_to_exitcode(status))
        break
    time.sleep(0.02)
else:
    os.kill(child, 9)
    print("the child hangs")
"""


@posix_only
@pytest.mark.parametrize("what", ["nothing", "uses", "loads", "frees", "closed", "raises"])
def test_a_forked_child_opens_the_model_again_or_is_refused_and_ends(demo: Path, what: str) -> None:
    done = python(FORK, demo, what)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == ("status 1" if what == "raises" else "status 7"), done
    assert ("child done" in lines) == (what != "raises")
    assert "Traceback" not in done.stderr
    assert "terminate" not in done.stderr


POOL = """
import multiprocessing, sys
import edge_prm
prm = edge_prm.load(sys.argv[1])
prm.score("q", ["a"])
def work(item): return prm.score("q", ["1 " * item]).score
with multiprocessing.get_context("fork").Pool(2) as pool:
    for items in ([1, 2, 3], [1, 30000]):
        try: pool.map_async(work, items).get(timeout=30)
        except edge_prm.EdgePRMError as error: print(type(error).__name__)
print("done")
"""


@posix_only
def test_a_pool_of_forks_gets_the_error(demo: Path) -> None:
    done = python(POOL, demo)
    assert done.returncode == 0, done.stderr
    if (demo / "model.gguf").exists():
        assert done.stdout.split() == ["BackendError", "BackendError", "done"]
    else:
        assert done.stdout.split() == ["ContextLengthError", "done"]


OVERWRITTEN = """
import os, shutil, sys
import edge_prm
prm = edge_prm.load(sys.argv[1])
os.rename(sys.argv[1], sys.argv[1] + ".old")
shutil.copytree(sys.argv[1] + ".old", sys.argv[1])
prm.score("q", ["a"])
child = os.fork()
if child == 0:
    try: prm.score("q", ["a"])
    except edge_prm.EdgePRMError as error: print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@posix_only
def test_a_forked_child_never_opens_another_bundle_than_its_parent(demo: Path, tmp_path: Path) -> None:
    if (demo / "model.gguf").exists():
        pytest.skip("a GGUF model is refused in a child")
    done = python(OVERWRITTEN, shutil.copytree(demo, tmp_path / "bundle"))
    assert done.returncode == 0, done.stderr
    assert "was replaced since the parent process loaded it" in done.stdout


def rewards_of(folder: str) -> tuple[float, ...]:
    with edge_prm.load(folder) as prm:
        return tuple(prm.score(PROMPT, STEPS).rewards)


def test_spawned_processes_give_the_same_rewards(demo: Path) -> None:
    """Three processes, on however few cores."""
    expected = rewards_of(str(demo))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(rewards_of, [str(demo)] * 6, timeout=HANG_SECONDS)) == [expected] * 6


# many loads

LOADS = """
import json, os, sys
import edge_prm
facts = []
for index in range(31):
    prm = edge_prm.load(sys.argv[1])
    prm.score("q", ["a", "b"])
    session = prm.session("q")
    session.push("a")
    if index in (10, 30):
        resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        maps = sum(".gguf" in line or ".onnx" in line for line in open("/proc/self/maps"))
        facts.append([resident / 1e6, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps])
print(json.dumps(facts))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this needs /proc")
def test_models_that_are_forgotten_are_freed(demo: Path) -> None:
    done = python(LOADS, demo)
    assert done.returncode == 0, done.stderr
    early, late = json.loads(done.stdout)
    assert late[0] - early[0] < 100, (early, late)  # megabytes: 20 contexts of llama.cpp take 400
    for before, after in zip(early[1:], late[1:], strict=True):
        assert after <= before + 4, (early, late)


def test_a_model_is_closed_when_its_tokenizer_is_damaged(
    demo: Path, monkeypatch: pytest.MonkeyPatch, fake: object
) -> None:
    def fail(*_: object) -> None:
        raise BundleIntegrityError("tokenizer.json", "not a tokenizer")

    monkeypatch.setattr("edge_prm.prm.Encoder", fail)
    with pytest.raises(BundleIntegrityError, match="not a tokenizer"):
        PRM(open_bundle(demo), model=fake)  # type: ignore[arg-type]
    deadline = time.monotonic() + HANG_SECONDS
    while not fake.closed and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert fake.closed  # type: ignore[attr-defined]


# a bundle that is written to while it is loaded


def weights_of(folder: Path) -> Path:
    return next(path for path in (folder / "model.gguf", folder / "model.onnx.data") if path.exists())


def test_a_file_that_is_overwritten_while_it_is_loaded_is_noticed(demo: Path, tmp_path: Path) -> None:
    folder = copy_of(demo, tmp_path / "own")
    with edge_prm.load(folder) as prm, prm.session(PROMPT) as session:
        session.push(STEPS[0])
        with open(weights_of(folder), "r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(b"\x01" * 64)
        stamp = weights_of(folder).stat().st_mtime_ns + 10**9
        os.utime(weights_of(folder), ns=(stamp, stamp))  # some file systems count time in seconds
        for use in (lambda: prm.score(PROMPT, STEPS), lambda: session.push(STEPS[1]), lambda: prm.session("q")):
            with pytest.raises(BackendError, match="was replaced while it was loaded; load the bundle again"):
                use()


@posix_only
def test_a_bundle_that_is_replaced_by_renaming_keeps_the_loaded_one(demo: Path, tmp_path: Path) -> None:
    folder, other = copy_of(demo, tmp_path / "own"), copy_of(demo, tmp_path / "other")
    with edge_prm.load(folder) as prm:
        expected = prm.score(PROMPT, STEPS).rewards
        folder.rename(tmp_path / "old")
        other.rename(folder)
        prm.score("another", ["text"])
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected, abs=1e-4)
        for path in (tmp_path / "old").iterdir():
            path.unlink()
        assert len(prm.score(PROMPT, STEPS).rewards) == len(STEPS)


def copy_of(folder: Path, target: Path) -> Path:
    """A copy with files of its own."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


# interrupts in the Python API


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@posix_only
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_comes_out_of_score_and_the_model_stays_usable(demo: Path) -> None:
    rng = random.Random(4)
    text = [f"{index} + {index} = {2 * index}" for index in range(20)]
    with edge_prm.load(demo) as prm, prm.session(PROMPT) as session:
        expected = prm.score(PROMPT, STEPS).rewards
        pushed = [session.push(STEPS[0])]
        for _ in range(8):
            count = 0
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                interrupt_after(rng.uniform(0.01, 0.2))
                while True:
                    prm.score(f"{count} {PROMPT}", text)
                    count += 1
            assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected, abs=1e-3)
        pushed += [session.push(STEPS[1]), session.push(STEPS[2], last=True)]
        assert pushed == pytest.approx(expected, abs=2e-2)


@posix_only
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_a_call_that_runs_in_the_engine() -> None:
    guest, began, stopped = Guest(), threading.Event(), threading.Event()

    def call() -> bool:
        began.set()
        assert threading.current_thread() is not threading.main_thread()
        return stopped.wait(HANG_SECONDS)

    def interrupt() -> None:
        began.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        guest.run(call, stopped.set)
    assert stopped.is_set()
    assert guest.run(lambda: 5, stopped.set) == 5
    guest.close()


def test_an_error_of_the_engine_goes_through_and_other_threads_call_it_themselves() -> None:
    guest = Guest()

    def fail() -> None:
        raise BackendError("failed")

    with pytest.raises(BackendError, match="failed"):
        guest.run(fail, lambda: None)
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.current_thread).result()
        assert pool.submit(guest.run, threading.current_thread, lambda: None).result() is thread
    guest.close()


# interrupts of the command line


@pytest.fixture(scope="session")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = [f"{index} + {index} = {2 * index}" for index in range(30)]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = ({"problem": f"q{index}?", "steps": steps, "candidates": [steps, steps[:9]]} for index in range(5000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "score": lambda bundle, rows, out: ["score", bundle, rows, "--json"],
    "rank": lambda bundle, rows, out: ["rank", bundle, rows],
    "check": lambda bundle, rows, out: ["check", bundle],
    "info": lambda bundle, rows, out: ["info", bundle],
    "latency": lambda bundle, rows, out: ["bench", "latency", bundle],
    "suite": lambda bundle, rows, out: ["bench", bundle],
    "export": lambda bundle, rows, out: (
        ["export", "demo", "-o", out / "new"] + ["--gguf"] * (bundle / "model.gguf").exists()
    ),
    "demo": lambda bundle, rows, out: ["demo"],
    "reference": lambda bundle, rows, out: ["bench", "reference", "demo", rows, "-o", out / "reference.jsonl"],
}
"""Name -> arguments, from a bundle, rows and a folder for outputs."""


@posix_only
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_ends_a_command(demo: Path, long_rows: Path, tmp_path: Path, name: str) -> None:
    if name in ("demo", "reference") and (demo / "model.gguf").exists():
        pytest.skip("this command takes no bundle")
    if name == "reference":
        pytest.importorskip("torch", reason='this needs torch: pip install "edge-prm[reference]"')
    if name in ("latency", "suite"):
        pytest.importorskip("matplotlib", reason='this needs matplotlib: pip install "edge-prm[bench]"')
    moments = [random.Random(index).uniform(0, 0.3 if name == "info" else 1.2) for index in range(MOMENTS)]

    def one(index: int) -> tuple[int, str, bool]:
        out = tmp_path / str(index)
        (out / "tmp").mkdir(parents=True)
        return interrupted(COMMANDS[name](demo, long_rows, out), out, moments[index])

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(one, range(MOMENTS)))
    for code, said, done in outcomes:
        assert "Traceback" not in said
        assert (code, done) in [(0, True), (0, False), (130, False)], said  # 0: it was just done
        assert said.count("Interrupted") == (code == 130), said
        assert "Error" not in said
        assert "Aborted" not in said
    assert name in ("info", "check") or any(code == 130 for code, _, _ in outcomes)
    assert not [path for path in tmp_path.glob("*/tmp/edge-prm-*") if path.is_dir() and name == "demo"]


def interrupted(arguments: list[object], out: Path, seconds: float) -> tuple[int, str, bool]:
    """Exit code and stderr of a command that gets SIGINT some time after its start, and whether it was done before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_prm", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"TMPDIR": str(out / "tmp")},
        start_new_session=True,
    )
    try:
        wait_for_handler(process)
        time.sleep(seconds)
        done = process.poll() is not None
        if not done:
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=HANG_SECONDS)[1]
    finally:
        process.kill()
    return process.returncode, said, done


def wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Python's own start cannot be caught: wait for the thread that hears of signals."""
    tasks = Path(f"/proc/{process.pid}/task")
    deadline = time.monotonic() + HANG_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if not tasks.exists():
            time.sleep(0.5)
            return
        if len(list(tasks.iterdir())) > 1:
            return
        time.sleep(0.005)


GRACE = """
import sys, time
from edge_prm import interrupts

def swallow():
    interrupts.begin()
    said = False
    while True:
        try:
            if not said: said = print("ready", flush=True) is None
            time.sleep(30)
        except BaseException: said = True

def hook():
    import threading
    start = threading.Timer.start
    def slow(timer):  # the timer of the hook fires before the hook is at its end
        start(timer)
        time.sleep(0.2)
    threading.Timer.start = slow
    callback()

def callback():
    import ctypes
    interrupts.begin()
    wait = lambda: [print("ready", flush=True), *(time.sleep(0.01) for _ in range(100))]
    call = ctypes.CFUNCTYPE(None)(wait)  # ctypes only prints what it raises
    try:
        while True: call()
    except BaseException:
        interrupts.leave()

interrupts.run(globals()[sys.argv[1]])
"""

EXTENSION_IMPORT = """
import importlib.machinery, signal, sys, time
from edge_prm import interrupts

class Spec(importlib.machinery.ModuleSpec):
    @property
    def origin(self):  # Python code that a module in C calls during its initialization
        signal.raise_signal(signal.SIGINT)
        print("goes on", flush=True)
        return "nowhere"
    @origin.setter
    def origin(self, value): pass

def load():
    interrupts.begin()
    loader = importlib.machinery.ExtensionFileLoader("x", "nowhere")
    try:
        try: loader.create_module(Spec("x", loader))
        except ImportError: time.sleep(30)
    except KeyboardInterrupt: interrupts.leave()

interrupts.run(load)
"""


@posix_only
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_until_an_extension_module_is_imported() -> None:
    done = python(EXTENSION_IMPORT)
    assert (done.returncode, set(done.stdout.split())) == (exit_codes.EXIT_INTERRUPTED, {"goes", "on"})
    assert done.stderr == "Interrupted\n"


def test_an_interrupt_while_llama_cpp_frees_frees_nothing_twice() -> None:
    need_engine("gguf")
    from edge_prm.backends.gguf.context import Handles

    class Llama:
        def __init__(self) -> None:
            self.freed: list[str] = []

        def __getattr__(self, name: str) -> Callable[[str], None]:
            def free(handle: str) -> None:
                self.freed.append(handle)
                raise KeyboardInterrupt

            return free

    llama = Llama()
    handles = Handles(llama, None, Guest())  # type: ignore[arg-type]
    handles.batch, handles.context, handles.model = "batch", "context", "model"  # type: ignore[assignment]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            handles.free()
    handles.free()
    assert llama.freed == ["batch", "context", "model"]


@posix_only
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("where", ["swallow", "callback", "hook"])
def test_an_interrupt_that_gets_lost_ends_the_command_all_the_same(where: str) -> None:
    command = [sys.executable, "-c", GRACE, where]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=HANG_SECONDS)[1] == "Interrupted\n"
    assert process.returncode == 130


def test_an_interrupt_in_somebody_else_s_process_is_an_exit_code(
    demo: Path, rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_prm.prm.load", interrupt)
    result = run("score", demo, rows({"problem": PROMPT, "steps": STEPS}))
    assert (result.exit_code, result.stderr) == (exit_codes.EXIT_INTERRUPTED, "Interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGINT)


def test_importing_and_scoring_touches_no_signal_handler(demo: Path) -> None:
    code = (
        "import signal, sys, edge_prm\nbefore = signal.getsignal(signal.SIGINT)\n"
        "edge_prm.load(sys.argv[1]).score('q', ['a'])\nimport edge_prm.cli.main\n"
        "assert signal.getsignal(signal.SIGINT) is before\nassert signal.set_wakeup_fd(-1) == -1"
    )
    done = python(code, demo)
    assert done.returncode == 0, done.stderr


@posix_only
def test_a_reader_that_leaves_ends_the_command_quietly(demo: Path, long_rows: Path) -> None:
    command = [sys.executable, "-m", "edge_prm", "score", str(demo), str(long_rows), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["rewards"]
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(HANG_SECONDS) == exit_codes.EXIT_SOME_FAILED


@posix_only
def test_a_termination_signal_ends_the_command(demo: Path, long_rows: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_prm", "score", str(demo), str(long_rows)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_for_handler(process)
    process.terminate()
    assert process.communicate(timeout=HANG_SECONDS)[1] == ""
    assert process.returncode == -signal.SIGTERM


def test_exit_codes_are_documented() -> None:
    codes = {name: value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
    assert sorted(codes.values()) == [0, 1, 2, 130]
    assert sorted(exit_codes.MEANINGS) == sorted(codes.values())
    text = run("--help").stdout
    assert all(f"\n  {code:<5}{meaning[:20]}" in text for code, meaning in exit_codes.MEANINGS.items())


# cores


def machine(folder: Path, cgroup: str, mounts: str, siblings: dict[int, str]) -> tuple[Path, Path]:
    """Files as Linux shows them: a process's groups and mounts, and the hardware threads of each core."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    (folder / "proc" / "self" / "mounts").write_text(mounts)
    for cpu, text in siblings.items():
        topology = folder / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    return folder / "proc", folder / "cpu"


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("150000 100000", 2), ("400000 100000", 4), ("20000 100000", 1), ("", 8), ("x 0", 8)],
)
def test_a_quota_of_cgroup_v2_counts(tmp_path: Path, quota: str, cores: int) -> None:
    group = tmp_path / "fs" / "a" / "b"
    group.mkdir(parents=True)
    (group.parent / "cpu.max").write_text(quota + "\n")  # of a group around this process's own
    (group / "cpu.max").write_text("max 100000\n")
    mounts = f"proc /proc proc rw 0 0\ncgroup2 {tmp_path / 'fs'} cgroup2 rw,nosuid 0 0\n"
    assert usable_cores(*machine(tmp_path, "0::/a/b\n", mounts, {})) == cores


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3), ("50000", 1)])
@pytest.mark.parametrize("inside", [True, False])
def test_a_quota_of_cgroup_v1_counts(tmp_path: Path, quota: str, cores: int, inside: bool) -> None:
    """Inside a container the process's group is the root of the mount, and its path is not there."""
    group = tmp_path / "fs" if inside else tmp_path / "fs" / "docker" / "x"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(quota + "\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    mounts = f"cgroup {tmp_path / 'fs'} cgroup rw,cpu,cpuacct 0 0\n"
    assert usable_cores(*machine(tmp_path, "4:cpu,cpuacct:/docker/x\n1:memory:/y\n", mounts, {})) == cores


@pytest.mark.usefixtures("eight_cpus")
def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    assert usable_cores(*machine(tmp_path, "", "", siblings)) == 4


def test_at_least_one_core_is_usable(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path) >= 1
    assert usable_cores() >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this needs CPU affinity")
def test_an_engine_takes_the_cores_of_its_process(demo: Path) -> None:
    code = (
        "import os, sys\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nimport edge_prm\n"
        "from edge_prm.cores import usable_cores\nassert usable_cores() == 1\nmodel = edge_prm.load(sys.argv[1]).model\n"
        "if sys.argv[1].endswith('gguf'): assert model._context._threads == 1\n"
        "else: assert model._session.engine.get_session_options().intra_op_num_threads == 1"
    )
    done = python(code, demo)
    assert done.returncode == 0, done.stderr
