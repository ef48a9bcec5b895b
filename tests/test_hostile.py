#!/usr/bin/env python3
"""test_hostile.py CHIMERA BUILD_ROOT [MALLOC]: what a process of its own is needed for.

A disk that is full or read-only (a small tmpfs in a mount namespace of its own), several processes in one run directory
and one that is killed there, a model that is cut while it is read, bytes that a terminal would obey, and, with the
module MALLOC preloaded, every allocation of the process failing in turn (but for those of the sentencepiece library,
whose destructors do not bear it). Wanted each time: one line that begins with
"chimera: ", an exit code that is not 0, no signal, and nothing lost. CHM_TEST_FULL=1 fails all allocations, not some.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

LIMIT = 240  # seconds until something is called missing

passed = failed = skipped = 0
arguments = sys.argv[1:]
inner = arguments[0] == "--small-disk"  # inside the namespace: --small-disk CHIMERA FOLDER
chimera = os.path.abspath(arguments[1 if inner else 0])


def check(truth, what):
    global passed, failed
    passed, failed = passed + bool(truth), failed + (not truth)
    if not truth:
        print("FAILED:", what)


def skip(what):
    global skipped
    skipped += 1
    print("SKIPPED:", what)


def run(*words, **environment):
    done = subprocess.run([chimera, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT,
                          env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


def one_sentence(stderr):
    return stderr.startswith(b"chimera: ") and stderr.count(b"\n") == 1 and len(stderr) > 20 and \
        not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", stderr)


def refused(code, words, *command):
    got, _, stderr = run(*command)
    check(got == code and words.encode() in stderr and one_sentence(stderr),
          f"chimera {' '.join(command)}: code {got}, not {code}; said {stderr!r}")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


CARD = b"""{"token_ids": [256, 257], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_heads": 2,
 "head_dim": 16, "vocab_size": 258, "quantization": {"method": "bitnet", "embedding": "int8"},
 "backbone": {"layer_pattern": "gd"}, "gated_deltanet": {"state_size": 16, "chunk_size": 16},
 "tokenizer": {"type": "bytes"},
 "training": {"phases": [{"name": "pretrain", "tokens": 1024, "seq_len": 16, "batch_tokens": 64, "lr": 0.01}]}}
"""
TEXT = b"".join(b"The quick brown fox %d jumps over the lazy dog.\n" % i for i in range(40))


def train(out, *more):
    return ["train", "card.json", "--data", "text.txt", "--out", out, "-q", "--threads", "1", *more]


def wait_until(truth, process):
    began = time.monotonic()
    while not truth() and process.poll() is None and time.monotonic() - began < LIMIT:
        time.sleep(0.01)


def logged(out, event):
    try:
        return read(out + "/log.jsonl").count(b'"event":"%s"' % event)
    except FileNotFoundError:
        return 0


def stop_after_a_report(out, how, *more):
    """A run that is begun, or resumed, and gets a signal once it has reported; its exit code."""
    resumed = logged(out, b"resume")
    process = subprocess.Popen([chimera, *train(out, *more)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    wait_until(lambda: logged(out, b"resume") > resumed or "--resume" not in more, process)
    resumed = logged(out, b"report") if "--resume" in more else 0
    wait_until(lambda: logged(out, b"report") > resumed, process)
    process.send_signal(how)
    return process.wait(LIMIT)


# ---- a small disk


def fill(path, left):
    """All of the disk but `left` bytes."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, os.stat(path).st_size - left))


def unfinished(folder):
    return [name for name in os.listdir(folder) if ".tmp-" in name]


def small_disk(folder):
    os.chdir(folder)
    os.mkdir("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", "disk"], check=True)
    check(stop_after_a_report("disk/run", signal.SIGTERM) in (0, 130), "a run on a small disk")
    before = {name: read("disk/run/" + name) for name in ("checkpoint.safetensors", "model.b158", "card.json")}
    check(run("init", "card.json", "-o", "disk/model.b158", "-q")[0] == 0, "init on a small disk")
    shutil.copy("layer.safetensors", "disk/out.safetensors")
    # each writes over a file of which the disk has no second copy's room
    commands = {
        "train": train("disk/run", "--resume"),
        "init": ["init", "card.json", "-o", "disk/model.b158", "-q", "--seed", "2"],
        "eval": ["eval", "disk/model.b158", "--data", "text.txt", "--logits", "disk/logits", "-q"],
        "layer": ["layer", "mlp", "--in", "layer.safetensors", "--out", "disk/out.safetensors", "-q"],
        "new run": train("disk/new"),
    }
    for left in (0, 4096, 32768, 204800):  # the model takes 35 KB, the checkpoint 235
        shutil.rmtree("disk/new", ignore_errors=True)
        fill("disk/filler", left)
        for name, command in commands.items():
            if left > 32768 and name not in ("train", "new run"):
                continue  # those have room enough there
            if left > 0 and name == "layer":
                continue
            shutil.rmtree("disk/new", ignore_errors=True)
            kept = {n: read("disk/" + n) for n in ("model.b158", "out.safetensors")}
            refused(4, "No space left on device", *command)
            check({n: read("disk/" + n) for n in kept} == kept, f"{name}, {left} bytes left: a file was lost")
            check({n: read("disk/run/" + n) for n in before} == before or name != "train" or left > 4096,
                  f"train, {left} bytes left: the run was changed")
            check(read("disk/run/checkpoint.safetensors") == before["checkpoint.safetensors"],
                  f"{name}, {left} bytes left: the checkpoint was changed")
            check(not unfinished("disk") + unfinished("disk/run"), f"{name}, {left} bytes left: unfinished files")
        os.unlink("disk/filler")
    shutil.rmtree("disk/new", ignore_errors=True)
    # nothing may be written at all
    subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)
    for name, command in commands.items():
        refused(4, "Read-only file system", *command)
    check(read("disk/run/checkpoint.safetensors") == before["checkpoint.safetensors"], "read-only: the checkpoint")
    check(run("eval", "disk/run/model.b158", "--data", "text.txt", "-q")[0] == 0, "a model on a read-only disk")
    subprocess.run(["mount", "-o", "remount,rw", "disk"], check=True)
    code, _, stderr = run(*train("disk/run", "--resume"))
    check(code == 0, f"resumed once there was room: code {code}: {stderr!r}")
    check(read("disk/run/model.b158") == read("whole/model.b158"), "resumed once there was room: another model")


def on_a_small_disk(work):
    for how in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        if shutil.which("unshare") and subprocess.run([*how, "mount", "-t", "tmpfs", "none", work], capture_output=True
                                                      ).returncode == 0:
            done = subprocess.run([*how, sys.executable, os.path.abspath(__file__), "--small-disk", chimera, work],
                                  stdout=subprocess.PIPE, timeout=LIMIT)
            print(done.stdout.decode(), end="")
            check(done.returncode == 0, "the disk that is small")
            return
    skip("no mount namespace can be had here: nothing is known of a disk that is full or read-only")
    if os.geteuid() != 0:
        os.mkdir("closed", 0o555)
        refused(4, "Permission denied", *train("closed/run"))


# ---- several processes


def several_processes():
    crowd = [subprocess.Popen([chimera, *train("crowd")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE) for _ in range(5)]
    said = [process.communicate(timeout=LIMIT)[1] for process in crowd]
    codes = [process.returncode for process in crowd]
    check(sorted(codes) == [0, 2, 2, 2, 2], f"five in one directory: codes {codes}")
    for code, stderr in zip(codes, said):
        check(code == 0 or one_sentence(stderr) and re.search(rb"another process is training there|already holds a run",
                                                              stderr), f"five in one directory: {stderr!r}")
    check(read("crowd/model.b158") == read("whole/model.b158"), "five in one directory: another model")
    # one that is at it, and is killed: the next goes on
    process = subprocess.Popen([chimera, *train("held", "--checkpoint-seconds", "0.001", "--tokens", "400M")],
                               stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: logged("held", b"report") > 0, process)
    refused(2, "another process is training there", *train("held", "--resume", "--tokens", "400M"))
    refused(2, "already holds a run", *train("held", "--tokens", "400M"))
    check(process.poll() is None, "the first process went on")
    process.kill()
    process.wait(LIMIT)
    check(stop_after_a_report("held", signal.SIGTERM, "--resume", "--tokens", "400M") == 130, "resumed after a kill")
    check(not unfinished("held"), "unfinished files of a killed run")
    # killed over and over, and the same bytes
    for i in range(6):
        stop_after_a_report("killed", signal.SIGKILL, "--checkpoint-seconds", "0.001", *(["--resume"] if i else []))
    code, _, stderr = run(*train("killed", "--resume"))
    check(code == 0, f"resumed after kills: code {code}: {stderr!r}")
    check(read("killed/model.b158") == read("whole/model.b158"), "resumed after kills: another model")


# ---- a model that is cut while it is read


def model_cut_while_read():
    shutil.copy("model.b158", "cut.b158")
    # always the likeliest token: this model's text has no end
    process = subprocess.Popen([chimera, "run", "cut.b158", "-p", "The", "-n", "1T", "--temp", "0", "-q"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(len(process.stdout.read(1)) == 1, "a model that writes")
    os.truncate("cut.b158", 0)
    _, stderr = process.communicate(timeout=LIMIT)
    check(process.returncode == 4 and one_sentence(stderr) and b"made shorter" in stderr,
          f"a model that is cut while it is read: code {process.returncode}, said {stderr!r}")


# ---- bytes that a terminal would obey


def bytes_for_a_terminal():
    write("escape.ini", b"hidden\x1b[31m_size = 3\n[b\x9bad]\nx\x07 = \x1b]0;title\x07\n")
    code, _, stderr = run("check", "card.json", "--ini", "escape.ini")
    check(code == 2 and stderr.count(b"\n") == 2 and not re.search(rb"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stderr),
          f"an ini file with escapes: code {code}, said {stderr!r}")
    write("escape.json", CARD.replace(b"hidden_size", b"hidden\\u001b[31m\\n_size"))
    code, _, stderr = run("check", "escape.json")
    check(code == 2 and not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", stderr), f"a card with escapes: said {stderr!r}")
    for words in (["check", "\x1b[2Jcard.json"], ["check", "card.json", "--set", "a\n\x1bb=1"], ["doctor", "--no\x1b[1m"],
                  ["plugins", "show", "g\x1b[2Jd"], ["tr\x1bain"], ["run", "m\x07.b158"],
                  ["train", "card.json", "--data", "no\x1b.txt", "--out", "x\x1by"]):
        code, _, stderr = run(*words)
        check(code > 0 and one_sentence(stderr), f"{words}: code {code}, said {stderr!r}")
    refused(2, "expected a number of seconds", *train("x", "--seconds", "0x10"))
    refused(2, "expected a number of seconds", *train("x", "--seconds", " 10"))
    check(not os.path.exists("x"), "a run was begun that was refused")


# ---- memory


def no_memory(module):
    if module is None:
        skip("this build cannot have its allocator preloaded: not every allocation of the process failed in turn")
        return
    shutil.copy(module, "malloc.so")  # LD_PRELOAD is a list split at spaces, and the source may lie in a path that has some
    environment = {"LD_PRELOAD": "./malloc.so", "OPENBLAS_NUM_THREADS": "1"}
    full = os.environ.get("CHM_TEST_FULL", "0") not in ("", "0")
    commands = [["version"], ["check", "card.json", "--resolved"], ["doctor", "-o", "json"],
                ["init", "card.json", "-o", "new.b158", "-q"], ["eval", "model.b158", "--data", "text.txt", "-q"],
                ["run", "model.b158", "-p", "The", "-n", "3", "--seed", "1", "-q"], ["inspect", "model.b158"],
                ["layer", "mlp", "--in", "layer.safetensors", "--out", "out.safetensors", "-q"],
                train("short", "--tokens", "64"), ["plugins", "list"], ["help"], ["completion", "bash"]]
    for command in commands:
        varies = command[0] in ("eval", "train")  # prints times
        single = [] if command[0] in ("help", "completion") or "--threads" in command else ["--threads", "1"]
        shutil.rmtree("short", ignore_errors=True)
        code, expected, stderr = run(*command, *single, CHM_TEST_ALLOCATIONS="count", **environment)
        check(code == 0, f"{command[0]}: {stderr!r}")
        count = int(read("count"))
        check(count > 0, f"{command[0]}: nothing was allocated")
        for n in range(0, count, 1 if full else 1 + count // 40):
            shutil.rmtree("short", ignore_errors=True)
            code, stdout, stderr = run(*command, *single, CHM_TEST_ALLOCATION=str(n), **environment)
            good = (varies or stdout == expected) if code == 0 else code == 6 and one_sentence(stderr)
            check(good, f"{command[0]}: allocation {n} of {count}: code {code}, said {stderr!r}")


def main():
    if inner:
        small_disk(arguments[2])
        return
    build = arguments[1]
    for name in [name for name in os.environ if name.startswith("CHIMERA_")]:
        del os.environ[name]
    plugins = os.path.join(build, "plugins")
    os.environ["CHIMERA_PLUGIN_PATH"] = ":".join(os.path.join(plugins, kind)
                                                 for kind in ("backends", "layers", "tokenizers"))
    os.environ["NO_COLOR"] = "1"
    module = os.path.abspath(arguments[2]) if len(arguments) > 2 else None
    with tempfile.TemporaryDirectory(prefix="hostile test ", dir=os.path.join(build, "tests")) as work:
        os.chdir(work)
        write("card.json", CARD)
        write("text.txt", TEXT)
        check(run("init", "card.json", "-o", "model.b158", "-q")[0] == 0, "init")
        check(run(*train("whole"))[0] == 0, "a whole run")
        write_layer_file("layer.safetensors")
        on_a_small_disk(work)
        several_processes()
        model_cut_while_read()
        bytes_for_a_terminal()
        no_memory(module)
        os.chdir("/")


def write_layer_file(path):
    """Two rows for the layer mlp, everything zero."""
    shapes = {"x": (2, 48), "params.gate": (80, 48), "params.up": (80, 48), "params.down": (48, 80),
              "params.down_norm": (80,)}
    header, at = [], 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header.append('"%s": {"dtype": "F32", "shape": %s, "data_offsets": [%d, %d]}' % (name, list(shape), at, at + size))
        at += size
    text = ("{" + ", ".join(header) + "}").encode()
    write(path, len(text).to_bytes(8, "little") + text + bytes(at))


main()
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(failed > 0)
