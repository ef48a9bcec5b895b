#!/usr/bin/env python3
"""test_conversation.py CHIMERA BUILD_ROOT: chimera run on a terminal, which is a pseudo-terminal here.

What is typed, shown and stopped; with the line editor of the build and without one (TERM=dumb). Nothing here depends on
how long a thing takes, only on that it happens within a generous limit.
"""
import array
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time

PROMPT = b"\n> "  # at the start of a line: an editor may draw it again elsewhere
MORE = b"\n. "
LIMIT = 30  # seconds until something is called missing

chimera, build = os.path.abspath(sys.argv[1]), sys.argv[2]
passed = failed = 0


def check(truth, what):
    global passed, failed
    passed, failed = passed + bool(truth), failed + (not truth)
    if not truth:
        print("FAILED:", what)


CARD = {
    "token_ids": [256, 257], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_heads": 1,
    "head_dim": 64, "vocab_size": 258, "quantization": {"method": "bitnet", "embedding": "int8"},
    "backbone": {"layer_pattern": "gd"}, "gated_deltanet": {"state_size": 64}, "tokenizer": {"type": "bytes"},
    "generation": {"temperature": 0.8, "max_new_tokens": 20, "repetition_penalty": 1},
    "training": {"phases": [{"name": "pretrain", "tokens": 30000, "seq_len": 64, "batch_tokens": 512, "lr": 0.01}]},
}


class Terminal:
    """A chimera on a pseudo-terminal of its own."""

    editor = False  # does it edit lines itself?

    def __init__(self, *arguments, **environment):
        self.seen = b""
        self.at = 0  # up to here the output was looked at
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored
            for name in ("NO_COLOR", "TERM"):
                os.environ.pop(name, None)
            os.environ.update(environment)
            os.execv(chimera, [chimera, *arguments])

    def wait_for(self, text):
        """Reads until `text` comes; returns what stood before it, or None. After a prompt an editor takes the terminal
        over, and what is typed before that may be lost."""
        end = time.monotonic() + LIMIT
        before = self.find(text, end)
        while before is not None and text in (PROMPT, MORE) and Terminal.editor and time.monotonic() < end:
            if not termios.tcgetattr(self.fd)[3] & termios.ICANON:
                break
            time.sleep(0.005)
        return before

    def find(self, text, end):
        while True:
            at = self.seen.find(text, self.at)
            if at >= 0:
                before, self.at = self.seen[self.at:at], at + len(text)
                return before
            if not select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]:
                return None
            try:
                more = os.read(self.fd, 65536)
            except OSError:  # Linux: the other end was closed
                return None
            if not more:
                return None
            self.seen += more

    def wait_for_more(self, n):
        """Reads n bytes more than were seen so far."""
        wanted, end = len(self.seen) + n, time.monotonic() + LIMIT
        while len(self.seen) < wanted and time.monotonic() < end:
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += os.read(self.fd, 65536)
        return len(self.seen) >= wanted

    def wait_until_read(self):
        """Waits until what was typed has been taken; a Ctrl-C before that throws it away."""
        end, count = time.monotonic() + LIMIT, array.array("i", [1])
        number = array.array("i", [0])
        fcntl.ioctl(self.fd, 0x80045430, number)  # TIOCGPTN
        terminal = os.open(f"/dev/pts/{number[0]}", os.O_RDONLY | os.O_NOCTTY)
        while count[0] and time.monotonic() < end:
            time.sleep(0.02)
            fcntl.ioctl(terminal, termios.FIONREAD, count)
        os.close(terminal)

    def type(self, text):
        os.write(self.fd, text)

    def status(self):
        """The exit code once it has left; negative: the signal that ended it."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            self.wait_for(b"\0 never comes") if select.select([self.fd], [], [], 0)[0] else None
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None


def plain(text):
    """Without what only moves the cursor or colours."""
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]", b"", text or b"")
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"")


def shown(text):
    """As a terminal is shown it, up to the newline that ends it."""
    return bytes(c if c >= 32 and c != 127 or c in b"\n\t" else ord("?") for c in text).rstrip(b"\n")


def run_plainly(prompt, n):
    with open("prompt", "wb") as f:
        f.write(prompt)
    return subprocess.run([chimera, "run", "model.b158", "--prompt-file", "prompt", "-n", str(n), "--temp", "0", "-q"],
                          stdout=subprocess.PIPE, check=True).stdout


def conversation(term, editor):
    what = f"TERM={term}"
    Terminal.editor = editor
    state = os.path.abspath(f"state {term}")
    here = {"TERM": term, "XDG_STATE_HOME": state, "LC_ALL": "C.UTF-8"}
    start = ("run", "model.b158", "--temp", "0", "-n", "12")
    t = Terminal(*start, **here)
    check(b"Ctrl-D leaves" in plain(t.wait_for(PROMPT)), f"{what}: no greeting")

    # two turns are one text: what the second answer must be is known from a run without a terminal
    t.type(b"the quick\n")
    first = plain(t.wait_for(PROMPT))
    text = b"the quick\n"
    answer = run_plainly(text, 12)
    check(shown(answer) in first, f"{what}: the first answer is {first!r}, not {answer!r}")
    text += answer + (b"" if answer.endswith(b"\n") else b"\n") + b"a lazy\n"
    t.type(b"a lazy\n")
    second, answer = plain(t.wait_for(PROMPT)), run_plainly(text, 12)
    check(shown(answer) in second, f"{what}: the second answer is {second!r}, not {answer!r}")

    # after /reset the first turn gets the first answer again
    t.type(b"/reset\n")
    t.wait_for(PROMPT)
    t.type(b"the quick\n")
    again = plain(t.wait_for(PROMPT))
    check(shown(run_plainly(b"the quick\n", 12)) in again, f"{what}: /reset did not forget: {again!r}")

    # lines joined, and a fence
    t.type(b"/reset\n")
    t.wait_for(PROMPT)
    t.type(b"the \\\n")
    check(t.wait_for(MORE) is not None, f"{what}: no second line after a backslash")
    t.type(b"quick\n")
    joined, answer = plain(t.wait_for(PROMPT)), run_plainly(b"the \nquick\n", 12)
    check(shown(answer) in joined, f"{what}: joined lines gave {joined!r}, not {answer!r}")
    t.type(b"/reset\n")
    t.wait_for(PROMPT)
    t.type(b'"""\n')
    t.wait_for(MORE)
    t.type(b"/exit\n")
    t.wait_for(MORE)
    t.type(b'dog"""\n')
    fenced, answer = plain(t.wait_for(PROMPT)), run_plainly(b"/exit\ndog\n", 12)
    check(shown(answer) in fenced, f"{what}: a fence gave {fenced!r}, not {answer!r}")

    t.type(b"/reset\n")
    t.wait_for(PROMPT)
    t.type(b'"""/exit"""\n')
    fenced, answer = plain(t.wait_for(PROMPT)), run_plainly(b"/exit\n", 12)
    check(shown(answer) in fenced, f"{what}: a fenced command gave {fenced!r}, not {answer!r}")

    # a tab is text
    t.type(b"/reset\n")
    t.wait_for(PROMPT)
    t.type(b"the\tquick\n")
    tabbed, answer = plain(t.wait_for(PROMPT)), run_plainly(b"the\tquick\n", 12)
    check(shown(answer) in tabbed, f"{what}: a tab gave {tabbed!r}, not {answer!r}")

    # an empty line lets the model go on; commands
    t.type(b"\n")
    check(len(plain(t.wait_for(PROMPT)).strip()) > 0, f"{what}: an empty line wrote nothing")
    t.type(b"/hlp\n")
    check(b"did you mean '/help'" in plain(t.wait_for(PROMPT)), f"{what}: /hlp")
    t.type(b"/help\n")
    check(b"/reset" in plain(t.wait_for(PROMPT)), f"{what}: /help")

    # Ctrl-C throws a line away, Ctrl-D leaves
    t.type(b"never sent")
    t.wait_for(b"never sent")
    t.type(b"\x03")
    check(t.wait_for(PROMPT) is not None, f"{what}: Ctrl-C at a line: {t.seen[-200:]!r}")
    t.type(b"\x04")
    check(t.status() == 0, f"{what}: Ctrl-D is no clean end")

    # Ctrl-C in the middle of an answer that has no end: twice, and the conversation goes on
    t = Terminal("run", "model.b158", "--temp", "0", "-n", "1000000000", "--timing", **here)
    t.wait_for(PROMPT)
    for attempt in range(2):
        t.type(b"the quick\n")
        t.wait_for(b"the quick\r\n")
        check(t.wait_for_more(200), f"{what}: no long answer")
        t.type(b"\x03")
        check(t.wait_for(b"stopped after ") is not None, f"{what}: Ctrl-C {attempt + 1} did not stop the answer")
        check(b"t2_matmul" in plain(t.wait_for(PROMPT)), f"{what}: no timing block")
    if editor:  # the line before is in the history
        t.type(b"\x1b[A\n")
        check(t.wait_for(b"the quick") is not None, f"{what}: no history")
        t.wait_for_more(200)
        t.type(b"\x03")
        check(t.wait_for(b"stopped after ") is not None, f"{what}: Ctrl-C after history")
        t.wait_for(PROMPT)
    t.type(b"/exit\n")
    check(t.status() == 0, f"{what}: /exit is no clean end")

    # Ctrl-C while a long turn is being read
    if not editor:
        t = Terminal("run", "model.b158", "-n", "1000000000", **here)
        t.wait_for(PROMPT)
        for _ in range(80):
            t.type(b"x" * 3000 + b"\\\n")
            t.wait_for(MORE)
        t.type(b"end\n")
        t.wait_until_read()
        t.type(b"\x03")
        check(t.wait_for(b"stopped while reading, after ") is not None, f"{what}: Ctrl-C while a turn is read")
        t.wait_for(PROMPT)
        t.type(b"\x04")
        check(t.status() == 0, f"{what}: the end after a turn that was not read")
    if editor:
        path = os.path.join(state, "chimera", "history")
        with open(path) as f:
            kept = f.read()
        check("lazy" in kept and "never" not in kept, f"the history is {kept!r}")
        check(os.stat(path).st_mode & 0o777 == 0o600, "others may read the history")
        t = Terminal(*start, **here)
        t.wait_for(PROMPT)
        t.type(b"\x1b[A")
        check(t.wait_for(b"/exit") is not None, "a new conversation has no history")
        t.type(b"\x03")
        t.wait_for(PROMPT)
        t.type(b"\x04")
        check(t.status() == 0, "the end of a new conversation")
        # two at once keep what both were told, also when a signal ends them; and the file does not grow for ever
        both = [Terminal(*start, **here) for _ in range(2)]
        for i, t in enumerate(both):
            t.wait_for(PROMPT)
            t.type(f"side {i}\n".encode())
            t.wait_for(PROMPT)
        for t, number in zip(both, (signal.SIGTERM, signal.SIGHUP)):
            os.kill(t.pid, number)
            check(t.status() != 0, f"signal {number} at a prompt")
        with open(path) as f:
            kept = f.read()
        check(all(f"side\\040{i}\\012\n" in kept for i in range(2)) and "lazy" in kept, f"side by side: {kept!r}")
        with open(path, "w") as f:
            f.writelines([kept.split("\n")[0] + "\n"] + [f"line{i}\\012\n" for i in range(1500)])
        t = Terminal(*start, **here)
        t.wait_for(PROMPT)
        t.type(b"/exit\n")
        check(t.status() == 0, "the end of a conversation with a long history")
        with open(path) as f:
            kept = f.read().split("\n")
        check(kept[1] == "line500\\012" and kept[-3:] == ["line1499\\012", "/exit\\012", ""], f"a long history: {len(kept)} lines")
        hidden = dict(here, XDG_STATE_HOME=os.path.abspath("hidden"))
        t = Terminal(*start, "--no-history", **hidden)
        t.wait_for(PROMPT)
        t.type(b"secret\n")
        t.wait_for(PROMPT)
        t.type(b"\x04")
        t.status()
        check(not os.path.exists("hidden"), "--no-history kept a history")


with tempfile.TemporaryDirectory(prefix="conversation test ", dir=os.path.join(build, "tests")) as work:
    os.chdir(work)
    for name in list(os.environ):
        if name.startswith("CHIMERA_"):
            del os.environ[name]
    os.environ["CHIMERA_PLUGIN_PATH"] = ":".join(f"{build}/plugins/{kind}" for kind in ("backends", "layers", "tokenizers"))
    os.environ["HOME"] = work
    with open("small.json", "w") as f:
        json.dump(CARD, f)
    with open("text", "w") as f:
        f.writelines(f"The quick brown fox {i} jumps over the lazy dog.\n" for i in range(60))
    # a little training, so that the answers differ and a repeated line shows
    subprocess.run([chimera, "train", "small.json", "--data", "text", "--out", ".", "-q"], check=True, stdout=subprocess.DEVNULL)
    version = json.loads(subprocess.run([chimera, "version", "-o", "json"], stdout=subprocess.PIPE, check=True).stdout)
    if version["line_editor"] == "none":
        print("SKIPPED: this build has no line editor")
    else:
        conversation("xterm", True)
    conversation("dumb", False)

    # colours on a terminal only, and not with NO_COLOR
    for environment, wanted in (({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)):
        t = Terminal("run", "missing.b158", **dict({"TERM": "xterm"}, **environment))
        t.wait_for(b"missing.b158")
        check((b"\x1b[" in t.seen) == wanted, f"colour with {environment}: {t.seen!r}")
        check(t.status() == 4, f"a missing model with {environment}")
    # a reader that is no terminal gets no conversation
    piped = subprocess.run([chimera, "run", "model.b158", "-n", "3", "-q"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    check(piped.returncode == 0 and b"> " not in piped.stdout, "a conversation without a terminal")

print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
