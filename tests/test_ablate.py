#!/usr/bin/env python3
"""test_ablate.py CHIMERA BUILD_ROOT [PART...]: studies as their users meet them: cells as processes, killed and gone on with, reports.

Nothing here depends on how long a thing takes, only on that it happens within a generous limit.
"""
import csv
import html.parser
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

LIMIT = 600  # seconds until something is called missing
MEASURED = {"seconds", "training_tokens_per_second", "decode_tokens_per_second", "peak_bytes"}  # differ from run to run

chimera, build = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
full = os.environ.get("CHM_TEST_FULL", "0") not in ("", "0")
passed = failed = 0
random.seed(20260101)
for name in ("CHIMERA_THREADS", "CHIMERA_BACKEND"):
    os.environ.pop(name, None)
os.environ["PATH"] = "/usr/bin:/bin"


def check(truth, what):
    global passed, failed
    passed, failed = passed + bool(truth), failed + (not truth)
    if not truth:
        print("FAILED:", what)


def run(*arguments, code=0, says="", **more):
    r = subprocess.run([chimera, *arguments], capture_output=True, text=True, timeout=LIMIT, **more)
    check(r.returncode == code and says in r.stderr, f"{arguments}: code {r.returncode}, not {code}, or not '{says}': {r.stderr[-600:]}")
    return r


CARD = {
    "token_ids": [256, 257], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_heads": 2,
    "head_dim": 16, "vocab_size": 258, "quantization": {"method": "bitnet", "embedding": "int8"},
    "backbone": {"layer_pattern": "gd"}, "gated_deltanet": {"state_size": 16, "chunk_size": 16},
    "tokenizer": {"type": "bytes"},
    "training": {"phases": [{"name": "pretrain", "tokens": 1024, "seq_len": 32, "batch_tokens": 256, "micro_tokens": 128,
                             "lr": 0.01, "schedule": "cosine_warmup", "warmup_steps": 3, "carry_segments": 2}]},
    "diagnostics": {"report_interval_tokens": 256},
}

STUDY = """
[study]
title = <script>alert("1")</script> & 'more'
card = card.json
data = text.txt
held_out = 0.1
seeds = 1, 2
tokens = 2K
match = parameters
checkpoint_seconds = 0.02
[variant gd]
unchanged = true
[variant attn]
backbone.layer_pattern = attn
"""


def results(directory, measured=False):
    with open(os.path.join(directory, "results.csv"), newline="") as f:
        rows = list(csv.DictReader(f))
    return [{k: v for k, v in r.items() if measured or k not in MEASURED} for r in rows]


def read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


class Page(html.parser.HTMLParser):
    """Tags that open and close, and what a page would fetch."""
    EMPTY = {"meta", "br", "img", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.fetched, self.tags, self.text = [], [], [], {}, []

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.fetched += [(tag, k, v) for k, v in attributes
                         if k in ("src", "href", "xlink:href", "data", "action") and not (v or "").startswith("#")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def well_formed(directory):
    page = Page()
    page.feed(read(directory, "report.html").decode())
    page.close()
    check(not page.open and not page.wrong, f"report.html: open {page.open[:5]}, closed wrongly {page.wrong[:5]}")
    check(not page.fetched, f"report.html fetches {page.fetched[:3]}")
    check("script" not in page.tags, "report.html has a script, which stood in the title")
    return page


def reference():
    """The study without any trouble."""
    r = run("ablate", "study.ini", "--out", "whole", "--threads", "2", "-q")
    check("gd " in r.stdout and "attn" in r.stdout and "4 finished" in r.stdout, f"the comparison: {r.stdout}")
    check("noise floor" in read("whole", "report.md").decode().lower(), "report.md has no noise floor")
    rows = results("whole", True)
    check([r["cell"] for r in rows] == ["gd-s1", "gd-s2", "attn-s1", "attn-s2"], "the cells, in order")
    for r in rows:
        check(all(r[k] for k in r), f"{r['cell']}: an empty field")
        check(float(r["bits_per_byte:held-out"]) < 8 and float(r["decode_tokens_per_second"]) > 0, r)
        check(abs(int(r["parameters"]) / int(rows[0]["parameters"]) - 1) <= 0.01, "parameters agree")
        size = os.path.getsize(f"whole/cells/{r['cell']}/model.b158")
        check(int(r["packed_bytes"]) == size, "packed bytes")
        score = json.loads(run("eval", f"whole/cells/{r['cell']}/model.b158", "--data", "whole/data/held-out-1.txt",
                               "-o", "json", "-q").stdout)
        check(float(r["bits_per_byte:held-out"]) == score["bits_per_byte"], "the score is that of chimera eval, to the last bit")
    text = read("text.txt")
    check(read("whole/data/train-1.txt") + read("whole/data/held-out-1.txt") == text, "held out is the end of the text")
    page = well_formed("whole")
    shown = "".join(page.text)
    check("<script>alert(\"1\")</script> & 'more'" in shown, "the title, as it was given")
    check(page.tags.get("table", 0) >= 3 and shown.count("Again:") >= page.tags["table"], "every table names its command")
    if shutil.which("gnuplot"):
        check(page.tags.get("svg", 0) == 5, f"{page.tags.get('svg', 0)} drawings, not 5")
    else:
        print("SKIPPED: no gnuplot: drawings not looked at")
        check("gnuplot is not installed" in shown, "the page says why it has no drawings")
    # nothing is run again, and the report of the same is the same
    stamp = os.stat("whole/cells/gd-s1/result.json").st_mtime_ns
    run("ablate", "whole", "-q")
    check(os.stat("whole/cells/gd-s1/result.json").st_mtime_ns == stamp, "a finished cell was run again")
    before = read("whole/results.csv")
    check(run("report", "whole", "-o", "csv").stdout.encode() == before, "report -o csv is results.csv")
    d = json.loads(run("report", "whole", "-o", "json").stdout)
    check(d["schema_version"] == 1 and len(d["results"]) == 4, "report -o json")
    # its own study file is the same study
    run("ablate", "whole/study.ini", "--out", "again", "-q", "--threads", "1")
    check(results("again") == results("whole"), "the resolved study gives the same results")


def without_gnuplot():
    empty = os.path.join(os.getcwd(), "no programs")
    os.makedirs(empty, exist_ok=True)
    run("report", "whole", "-q", env={**os.environ, "PATH": empty})
    page = well_formed("whole")
    check("svg" not in page.tags and "gnuplot is not installed" in "".join(page.text), "no drawings, and the page says why")


def children(pid):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as f:
                if int(f.read().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(name))
        except (OSError, IndexError):
            pass
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def quiet(directory):
    """Waits until no process has a cell any more: those whose runner was killed save and end."""
    end = time.monotonic() + LIMIT
    mine = os.path.realpath(directory)
    while time.monotonic() < end:
        if not [p for p in filter(str.isdigit, os.listdir("/proc")) if mine in command_line(p)]:
            return
        time.sleep(0.02)
    check(False, "cells outlive their runner")


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def killed():
    """kill -9 of the runner, of its cells, or of both, at random moments."""
    moments, stamps, hits = 50 if full else 10, {}, 0
    for i in range(moments):
        p = subprocess.Popen([chimera, "ablate", "study.ini", "--out", "killed", "-q", "--threads", "2"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.01, 0.6))
        cells = children(p.pid)
        if i % 3:
            for c in cells:
                kill(c)
        if i % 3 != 1:
            kill(p.pid)
        hits += p.poll() is None or bool(cells)
        p.wait(LIMIT)
        quiet("killed")
        for cell, stamp in stamps.items():
            check(os.stat(f"killed/cells/{cell}/result.json").st_mtime_ns == stamp, f"{cell} was finished and ran again")
        for cell in os.listdir("killed/cells") if os.path.isdir("killed/cells") else []:
            if os.path.exists(f"killed/cells/{cell}/result.json"):
                stamps[cell] = os.stat(f"killed/cells/{cell}/result.json").st_mtime_ns
        if len(stamps) == 4:  # nothing is left to kill
            shutil.rmtree("killed")
            stamps = {}
    check(hits > 0, "no kill met anything")
    run("ablate", "study.ini", "--out", "killed", "-q", "--threads", "2")
    check(results("killed") == results("whole"), "killed and gone on with, the results are the same")
    for cell in ("gd-s1", "gd-s2", "attn-s1", "attn-s2"):
        check(read("killed/cells", cell, "model.b158") == read("whole/cells", cell, "model.b158"), f"{cell}: the same bytes")


def interrupted():
    p = subprocess.Popen([chimera, "ablate", "study.ini", "--out", "stopped", "--threads", "1", "--set", "tokens=200K"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + LIMIT
    while not os.path.exists("stopped/cells/gd-s1/checkpoint.safetensors") and time.monotonic() < end:
        time.sleep(0.01)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=LIMIT)
    check(p.returncode == 130 and "go on by: chimera ablate" in err, f"Ctrl-C: {p.returncode}: {err}")
    check("running" in err, "plain lines where there is no terminal")
    report = run("report", "stopped", "-o", "md").stdout
    check("not finished" in report and "4 not finished" in report, "a report of what is not finished")


def refused():
    """Nothing of another study, text or card goes into a directory."""
    run("ablate", "study.ini", "--out", "whole", "-q", "--set", "seeds=1,2,3", code=2, says="study.seeds")
    run("ablate", "study.ini", "--out", "whole", "-q", "--set", "tokens=3K", code=2, says="study.tokens is 2000.0 there and 3000.0 here")
    run("ablate", "whole", "--out", "x", code=2, says="leave --out away")
    text = read("text.txt")
    with open("text.txt", "ab") as f:
        f.write(b"more\n")
    shutil.rmtree("other", ignore_errors=True)
    with open("plain.ini", "w") as f:
        f.write(STUDY.replace("held_out = 0.1", "validation = held.txt"))
    run("ablate", "plain.ini", "--out", "other", "-q")
    with open("text.txt", "wb") as f:
        f.write(text)
    run("ablate", "plain.ini", "--out", "other", "-q", code=2, says="its cells are of other text: data[0].")
    shutil.rmtree("other/cells/gd-s1")
    run("ablate", "other", "--cell", "0", "-q", code=2, says="text.txt: was changed since")
    run("ablate", "study.ini", "--out", "whole", "-q", "--set", "card=card2.json", code=2, says="cells.gd-s1.config_hash")
    manifest = json.loads(read("whole/manifest.json"))
    whole = dict(manifest)
    manifest["commit"] = "0123abc"
    with open("whole/manifest.json", "w") as f:
        json.dump(manifest, f)
    run("ablate", "study.ini", "--out", "whole", "-q", code=2, says="its cells are of another commit: commit is \"0123abc\" there")
    os.rename("whole/cells/gd-s1", "kept")
    run("ablate", "whole", "--cell", "0", "-q", code=2, says="its cells are of commit 0123abc")
    shutil.rmtree("whole/cells/gd-s1")
    os.rename("kept", "whole/cells/gd-s1")
    whole["build"] = "0" * 16
    with open("whole/manifest.json", "w") as f:
        json.dump(whole, f)
    run("ablate", "study.ini", "--out", "whole", "-q", code=2, says="another build of this commit")
    for text, words in (("", "damaged"), ("{", "damaged"), ("[]", "is not a study's manifest"), ('{"schema_version": 1}', "is not a study's manifest")):
        with open("whole/manifest.json", "w") as f:
            f.write(text)
        run("report", "whole", code=4, says=words)
    run("report", "nothing", code=4, says="no study was begun there")
    run("ablate", "text.txt", code=2, says="text.txt:")


def shared():
    """Two runners in one directory share its cells."""
    both = [subprocess.Popen([chimera, "ablate", "study.ini", "--out", "shared", "-q", "--threads", "1"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for p in both:
        _, err = p.communicate(timeout=LIMIT)
        check(p.returncode == 0, f"a runner that shares: {p.returncode}: {err}")
    check(results("shared") == results("again"), "shared, the results are the same")


def job_array():
    r = run("ablate", "study.ini", "--out", "array", "--slurm", "-q")
    check("array/slurm.sh" in r.stdout and not os.path.exists("array/cells"), "--slurm writes a script and runs nothing")
    script = read("array/slurm.sh").decode()
    check("#SBATCH --array=0-3\n" in script, script)
    for i in range(4):
        r = subprocess.run(["bash", "array/slurm.sh"], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(i)},
                           capture_output=True, text=True, timeout=LIMIT)
        check(r.returncode == 0, f"cell {i} of the array: {r.stderr[-400:]}")
    run("report", "array", "-q")
    check(results("array") == results("again"), "as a job array, the results are the same")
    run("ablate", "array", "--cell", "4", code=2, says="no cell 4: the study has 0..3")
    run("ablate", "array", "--cell", "0", "--slurm", code=2, says="leave --slurm away")


def failing():
    """A cell that cannot run is counted and shown, and tried again."""
    os.makedirs("failing/cells/gd-s2/model.b158")
    run("ablate", "study.ini", "--out", "failing", "-q", code=2, says="has cells and no manifest.json")
    shutil.rmtree("failing/cells")
    run("ablate", "study.ini", "--out", "failing", "--slurm", "-q")
    os.makedirs("failing/cells/gd-s2/model.b158")
    run("ablate", "failing", "-q", code=1, says="1 of 4 cells failed")
    report = read("failing/report.md").decode()
    check("1 failed" in report and "already holds a model.b158" in report and "| gd-s2 | failed |" in report, report[:3000])
    check([r["state"] for r in results("failing")].count("failed") == 1, "a failed cell has its row")
    os.rmdir("failing/cells/gd-s2/model.b158")
    run("ablate", "failing", "-q")
    check(results("failing") == results("again"), "tried again, the results are the same")
    with open("failing/cells/gd-s2/result.json", "w") as f:
        f.write("{}")
    run("report", "failing", code=4, says="is no result of a cell; remove it")


def diverging():
    """A cell that diverges is a result."""
    with open("diverge.ini", "w") as f:
        f.write(STUDY.replace("match = parameters\n", "").replace("checkpoint_seconds = 0.02\n", "") +
                "[variant wild]\nquantization.method = none\ntraining.phases.pretrain.lr = 10\n"
                "training.phases.pretrain.grad_clip = 0\ntraining.phases.pretrain.warmup_steps = 0\n"
                "training.phases.pretrain.eps = 1e-30\nquantization.embedding = f32\ninitializer_range = 1\n")
    run("ablate", "diverge.ini", "-q", "--out", "wild", "--set", "tokens=40K", "--set", "checkpoint_seconds=60")
    rows = [r for r in results("wild") if r["variant"] == "wild"]
    report = read("wild/report.md").decode()
    states = [r["state"] for r in rows]
    n = states.count("diverged")
    check(n + states.count("finished") == 2, f"states {states}")
    if n > 0:
        check(f"; {n} diverged" in report and f"| wild | {2 - n} |" in report, "diverged cells are counted, not averaged")
        check("| wild-s" in report and "Cells that diverged or failed" in report, "and have their sentence")
    else:
        print("SKIPPED: the wild variant did not diverge")
    well_formed("wild")


def tasks():
    with open("task.ini", "w") as f:
        f.write("[study]\ncard = card.json\nseeds = 1, 2\ntokens = 2K\n[card]\ntraining.phases.pretrain.seq_len = 64\n"
                "[task]\ntask = mqar\nalphabet = 4\nqueries = 2\nleast = 2\nmost = 4\nrebound = 0\ndocuments = 200\n"
                "[score in]\ndocuments = 20\n[score beyond]\nleast = 5\nmost = 8\nrebound = 0.75\ndocuments = 20\n"
                "[variant gd]\nunchanged = true\n[variant attn]\nbackbone.layer_pattern = attn\n"
                "[grid]\ntraining.phases.pretrain.lr = 0.003, 0.01\n")
    run("ablate", "task.ini", "-q", "--out", "task")
    rows = results("task")
    check(len(rows) == 8 and {r["training.phases.pretrain.lr"] for r in rows} == {"0.003", "0.01"}, "variants x grid x seeds")
    check(all(0 <= float(r["accuracy:beyond"]) <= 1 and 0 <= float(r["accuracy:in"]) <= 1 for r in rows), "accuracies")
    score = json.loads(run("eval", "task/cells/gd-g2-s1/model.b158", "--data", "task/data/score-beyond.txt", "-o", "json", "-q").stdout)
    at = {r["cell"]: r for r in rows}["gd-g2-s1"]
    check(float(at["accuracy:beyond"]) == score["accuracy"], "the accuracy is that of chimera eval")
    report = read("task/report.md").decode()
    check("lies at the edge of its grid" in report, "a grid of two has no inside")
    check("Share of right answers, beyond" in report and "Every point of the grid" in report, report[:300])
    with open("task.ini", "r+") as f:
        text = f.read().replace("seq_len = 64", "seq_len = 4")
        f.seek(0)
        f.write(text)
        f.truncate()
    run("ablate", "task.ini", "-q", "--out", "short", code=2, says="a document makes")
    check(not os.path.exists("short/cells"), "refused before anything is trained")


def shipped():
    """The studies that come with Chimera are sound, and no longer than half an hour on two cores."""
    folder = os.path.join(os.environ["CHM_SOURCE_ROOT"], "etc", "ablations")
    for name in sorted(os.listdir(folder)):
        study = open(os.path.join(folder, name)).read()
        data = [] if "[task" in study else ["--data", "text.txt"]
        r = run("ablate", os.path.join(folder, name), "--dry-run", "-q", "-o", "csv", *data)
        cells = sum(int(row["seeds"]) for row in csv.DictReader(r.stdout.splitlines()))
        seconds = re.search(r"^seconds = (\d+)", study, re.M)
        check(cells >= 6, f"{name}: {cells} cells")
        check(not seconds or cells / 2 * int(seconds[1]) <= 1800, f"{name}: {cells} cells of {seconds and seconds[1]} seconds")


def main():
    work = tempfile.mkdtemp(prefix="ablate test ", dir=os.path.join(build, "tests"))
    os.chdir(work)
    try:
        words = "the cat sat on a mat and then it ran to me".split()
        with open("text.txt", "w") as f:
            f.write("".join(random.choice(words) + random.choice(" \n") for _ in range(3000)))
        with open("held.txt", "w") as f:
            f.write("the cat ran on\n" * 20)
        with open("card.json", "w") as f:
            json.dump(CARD, f)
        with open("card2.json", "w") as f:
            json.dump({**CARD, "rms_norm_eps": 1e-5}, f)
        with open("study.ini", "w") as f:
            f.write(STUDY)
        parts = (reference, without_gnuplot, killed, interrupted, shared, job_array, failing, diverging, tasks, shipped, refused)
        for part in parts:
            if not sys.argv[3:] or part.__name__ in sys.argv[3:]:
                part()
    finally:
        os.chdir("/")
        shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


main()
