#!/usr/bin/python3
"""scripts/corpus-debian without an archive: an apt-get of our own hands out packages made here."""
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile

source = os.path.abspath(sys.argv[1])
script = os.path.join(source, "scripts", "corpus-debian")
failed = 0

APT = """#!/bin/sh
# apt-get -q download PACKAGE
[ "$2" = download ] || exit 1
[ -e "$ARCHIVE/$3.deb" ] || { echo "E: Unable to locate package $3"; exit 100; }
cp "$ARCHIVE/$3.deb" "$3_1%3a2.deb"
"""


def check(sound, what):
    global failed
    if not sound:
        failed += 1
        print("FAILED:", what)


def make_package(archive, name, files):
    root = tempfile.mkdtemp(dir=archive)
    os.makedirs(root + "/DEBIAN")
    with open(root + "/DEBIAN/control", "w") as f:
        f.write("Package: %s\nVersion: 1:2\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
                "Description: of a test\n" % name)
    for path, data in files.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "wb") as f:
            f.write(data if isinstance(data, bytes) else data.encode())
    os.symlink("/etc/passwd", root + "/usr/passwd.html")  # leads out of the package
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, "%s/%s.deb" % (archive, name)], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(root)


def run(work, *arguments):
    environment = dict(os.environ, PATH=work + "/bin:/usr/bin:/bin", ARCHIVE=work + "/archive", TMPDIR=work + "/tmp")
    return subprocess.run([script, *arguments], cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False)


def main(work):
    for name in "bin", "archive", "tmp":
        os.mkdir(work + "/" + name)
    with open(work + "/bin/apt-get", "w") as f:
        f.write(APT)
    os.chmod(work + "/bin/apt-get", 0o755)
    sentence = "This line stands in every page of the package, and is wanted once.\n"
    pages = {"/usr/doc/%d.html" % i: "<html><head><title>no</title><style>p {}</style></head><body><p>Page %d &amp; its\n  text.</p>"
             "<p>%s</p><pre>a  b\n  c</pre><script>never()</script><p>%s</p></body></html>"
             % (i, sentence, " ".join("word%d" % (i * 100 + k) for k in range(40))) for i in range(20)}
    make_package(work + "/archive", "git-doc", dict(pages, **{"/usr/doc/skip.png": b"\x89PNG" * 100}))
    licence = "/* A licence that stands at the head of every file of this package,\n * on two lines. */\n"
    code = {"/usr/include/stb/%d.h" % i: licence + "\nint f%d(void)\n{\n\treturn %d;\n}\n\n" % (i, i) + "\n".join(
        "static const int number_%d_%d = %d;" % (i, k, k) for k in range(30)) + "\n" for i in range(5)}
    make_package(work + "/archive", "libstb-dev", code)
    entries = "\n\n".join("  word %d\n    what the word %d means is said here at some length" % (i, i) for i in range(3000))
    make_package(work + "/archive", "dict-devil", {"/usr/share/dictd/devil.dict.dz": gzip.compress(entries.encode())})
    pod = "=head1 NAME\n\nB<some> - I<a C<nested> thing>, L<perl|perlfunc>, E<lt>\n\n=for comment never this\n\n" \
          "=begin html\n\nnever that\n\n=end html\n\n  if (I<x>) { }\n\n=head2 More\n\n" + "More is said of it here. " * 20
    make_package(work + "/archive", "perl-doc", {"/usr/share/perl/x.pod": pod})

    only = ["--packages", "git-doc,libstb-dev,dict-devil,perl-doc"]
    got = run(work, *only, "a.jsonl")
    check(got.returncode == 0, "a run: " + got.stderr)
    with open(work + "/a.jsonl", encoding="utf-8") as f:
        documents = [json.loads(line) for line in f]
    check({tuple(d) for d in documents} == {("text", "package", "version", "licence", "path")}, "members of a document")
    check({d["version"] for d in documents} == {"1:2"} and {d["licence"] for d in documents if d["package"] == "git-doc"}
          == {"GPL-2.0"}, "version and licence")
    check([d["package"] for d in documents] == sorted((d["package"] for d in documents),
                                                      key=["git-doc", "dict-devil", "libstb-dev", "perl-doc"].index),
          "packages in the order of the table")
    html = [d["text"] for d in documents if d["package"] == "git-doc"]
    check(len(html) == 20, "20 pages, not %d: no picture, no link out of the package" % len(html))
    check(sum(t.count(sentence.strip()) for t in html) == 1, "a repeated line is there once")
    check(all("& its text." in t and "a  b\n  c\n" in t and "never" not in t and "no\n" not in t for t in html), "html")
    headers = [d["text"] for d in documents if d["package"] == "libstb-dev"]
    check(len(headers) == 5 and sum(t.count("A licence") for t in headers) == 1, "a licence is there once")
    check(all("\n{\n\treturn " in t for t in headers), "code keeps its lines and tabs")
    parts = [d for d in documents if d["package"] == "dict-devil"]
    check(len(parts) > 1 and all(len(d["text"]) <= 1 << 16 and "#" in d["path"] for d in parts), "a long text in parts")
    check(sum(d["text"].count("at some length") for d in parts) == 3000, "no entry is lost")
    perl = [d["text"] for d in documents if d["package"] == "perl-doc"][0]
    check(perl.startswith("NAME\n\nsome - a nested thing, perl, <\n") and "never" not in perl and "if (I<x>)" in perl, "pod")
    check("More is said" in perl, "what follows =for is read")

    got = run(work, *only, "b.jsonl")
    with open(work + "/a.jsonl", "rb") as a, open(work + "/b.jsonl", "rb") as b:
        check(a.read() == b.read(), "two runs give the same bytes")
    got = run(work, *only, "--max-mb", "0.01", "c.jsonl")
    check(got.returncode == 0 and 5000 < os.path.getsize(work + "/c.jsonl") < 80000, "--max-mb ends it")

    # refused: a sentence, and nothing is left
    for arguments, words in [
            (["x.jsonl"], "libpython3.11-stdlib cannot be had: E: Unable to locate package"),
            (["--packages", "git-dock", "x.jsonl"], "no package 'git-dock'"),
            (["x.txt"], "call it .jsonl"), ([], "OUT.jsonl is missing"),
            (["--max-mb", "0", "x.jsonl"], "--max-mb 0"), (["--packages", "git-doc", "no/such/x.jsonl"], "No such file")]:
        got = run(work, *arguments)
        check(got.returncode == 1 and words in got.stderr and "Traceback" not in got.stderr,
              "%s: %d, %s" % (arguments, got.returncode, got.stderr))
    make_package(work + "/archive", "git-doc", {"/usr/doc/other.txt": "moved"})
    got = run(work, "--packages", "git-doc", "x.jsonl")
    check(got.returncode == 1 and "has no text where it is looked for" in got.stderr, "a changed package: " + got.stderr)
    check(sorted(n for n in os.listdir(work) if n.startswith("x")) == [], "a failure leaves no file")
    check(os.listdir(work + "/tmp") == [], "nothing is left in TMPDIR")


if shutil.which("dpkg-deb") is None:
    print("SKIPPED: no dpkg-deb here")
    sys.exit(77)
with tempfile.TemporaryDirectory(prefix="corpus debian ") as where:
    main(where)
sys.exit(1 if failed else 0)
