#!/bin/bash
# test_plugins_new.sh: the way of somebody else's plugin, with nothing but what an installation has: `chimera plugins
# new` of every kind, built with make and with meson, loaded, tested, trained with, run, installed.
# usage: test_plugins_new.sh BUILD_ROOT
set -u
export LC_ALL=C.UTF-8
build=$1
unset LD_LIBRARY_PATH MAKEFLAGS MESONINTROSPECT DESTDIR CHIMERA_BACKEND CHIMERA_THREADS CHIMERA_PLUGIN_PATH
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAILED: $*"
    for f in "$work/out" "$work/err"; do [ ! -s "$f" ] || sed "s|^|  ${f##*/}: |" "$f" | tail -8; done
}
skip() {
    skipped=$((skipped + 1))
    echo "SKIPPED: $*"
}
work=$(mktemp -d "${TMPDIR:-/tmp}/chimera plugins XXXXXX") || exit 99
trap 'rm -rf "$work"' EXIT
root=$work/root
meson install -C "$build" --no-rebuild --destdir "$root" >"$work/out" 2>&1 || { bad 'meson install' && exit 1; }
# chimera.pc names the prefix of the build, from which this was moved; a space is escaped there
pc=$(find "$root" -name chimera.pc)
prefix=$(sed -n 's/^prefix=//p' "$pc")
moved=$root$prefix
sed -i "s|^prefix=.*|prefix=${moved// /\\\\ }|" "$pc"
export PKG_CONFIG_PATH=${pc%/*}
chimera=$(find "$root" -path '*/bin/chimera')
[ -x "$chimera" ] && ok || bad 'the installation is not whole'
cd "$work" || exit 99

# run CODE WORDS COMMAND...: its code, and words on its output
run() {
    local code=$1 words=$2 got
    shift 2
    "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    if [ $got -ne "$code" ]; then
        bad "$*: code $got, not $code"
    elif [ -n "$words" ] && ! grep -qF -- "$words" "$work/out" "$work/err"; then
        bad "$*: does not say '$words'"
    else
        ok
    fi
}

i=0
while [ $i -lt 60 ]; do
    printf 'The quick brown fox %d jumps over the lazy dog.\n\n' $i
    i=$((i + 1))
done >text.txt
cat >small.ini <<'INI'
num_hidden_layers = 2
[training.phases.pretrain]
seq_len = 64
batch_tokens = 512
warmup_steps = 1
INI

# moved as a whole, it finds what came with it, and nothing of the build
run 0 '' "$chimera" doctor -o json
python3 - out "$root" <<'PY' && ok || bad 'a moved installation looks elsewhere'
import json, sys
doctor, root = json.load(open(sys.argv[1])), sys.argv[2] + '/'
assert doctor['files'] and all(f['path'].startswith(root) for f in doctor['files'] + doctor['paths']), doctor['paths']
assert doctor['cards']['directory'].startswith(root) and 'chimera-nano' in doctor['cards']['names'], doctor['cards']
PY
run 4 'go by their name: chimera-5.1 chimera-dense chimera-hybrid chimera-mini chimera-nano' "$chimera" check chimera-pico
run 4 'go by their name' "$chimera" check etc/chimera-nano.json
run 0 "$root" "$chimera" check chimera-nano
run 0 "$root" "$chimera" check chimera-nano.json

run 0 'mean/mean.c' "$chimera" plugins new mean --kind layer
run 0 '' "$chimera" plugins new plain --kind backend --dir "a backend"
run 0 '' "$chimera" plugins new letters --kind tokenizer
run 0 '' "$chimera" plugins new signs --kind optimiser
[ "$(ls -A mean)" = "$(printf '%s\n' .gitignore Makefile README.md mean.c meson.build)" ] && ok || bad 'the files of a skeleton'
grep -q @ mean/mean.c letters/README.md && bad 'a name was not filled in' || ok
# refused: what is there, what is no name, what has no skeleton
cp mean/mean.c mean.copy
run 4 'nothing is overwritten' "$chimera" plugins new mean --kind layer
cmp -s mean/mean.c mean.copy && ok || bad 'a skeleton was overwritten'
run 2 "did you mean 'layer'" "$chimera" plugins new other --kind lair
run 2 'there are layer, backend, tokenizer, optimiser' "$chimera" plugins new other --kind grammar
run 2 'is no name' "$chimera" plugins new ../other --kind layer
run 2 "there is a plugin 'gd' already" "$chimera" plugins new gd --kind layer
for name in training quantization hidden_size; do
    run 2 "'$name' is a key of the host's" "$chimera" plugins new $name --kind layer
done
for name in test install all chm chm_more; do
    run 2 "'$name' is a name that Meson or Chimera" "$chimera" plugins new $name --kind layer
    [ -e $name ] && bad "a refused skeleton left $name" || ok
done
run 2 '--kind KIND is missing' "$chimera" plugins new other
run 4 'No such file' "$chimera" plugins new other --kind layer --dir nowhere/other
[ -e other ] && bad 'a refused skeleton left something' || ok

if command -v make >/dev/null; then
    for place in mean 'a backend' letters signs; do
        CFLAGS='-O2 -Werror' run 0 '' make -C "$place"
    done
else
    skip 'no make: the Makefiles are not run'
fi
run 0 '' meson setup letters/build letters --fatal-meson-warnings
run 0 '' ninja -C letters/build
run 0 'tokenizer letters' "$chimera" plugins show letters --plugin-path "$work/letters/build"
for place in mean 'a backend' signs; do
    run 0 '' meson setup "$place/build" "$place" --fatal-meson-warnings -Dwerror=true
    run 0 '' ninja -C "$place/build"
    [ -e "$place/$(basename "$place").so" ] || cp "$place"/build/*.so "$place"
done

# ---- the layer: shown, tested, checked, trained with, run; and missed where it is not
mean=(--plugin-path "$work/mean")
run 0 'number -20..1' "$chimera" plugins show mean "${mean[@]}"
run 0 '' "$chimera" layer test mean "${mean[@]}"
grep -q FAIL out && bad 'layer test mean' || ok
for words in 'split' 'causality' 'gradient: parameter fade' 'gradient: state mean' 'fork'; do
    grep -q "^$words.* pass" out && ok || bad "layer test has no passing '$words'"
done
card=(chimera-shakespeare --ini small.ini --set backbone.layer_pattern=mean)
run 0 'it can be trained and run' "$chimera" check "${card[@]}" "${mean[@]}"
run 2 'expected number -20..1' "$chimera" check "${card[@]}" "${mean[@]}" --set mean.slowest=2
run 0 'model.b158' "$chimera" train "${card[@]}" "${mean[@]}" --data text.txt --tokens 8K --out run
run 0 'bits per byte' "$chimera" eval run/model.b158 "${mean[@]}" --data text.txt
bits=$(sed -n '1s/ .*//p' out)
awk -v b="$bits" 'BEGIN { exit !(b > 0 && b < 7.9) }' && ok || bad "the layer learns nothing: $bits bits per byte"
run 0 '' "$chimera" run run/model.b158 "${mean[@]}" -p 'The quick' -n 20 --seed 1
[ -s out ] && ok || bad 'the model writes nothing'
run 2 "no layer 'mean'" "$chimera" run run/model.b158 -p 'The quick' -n 20

# ---- the backend: the same bytes as scalar
backend=(--plugin-path "$work/a backend")
run 0 '' "$chimera" doctor "${backend[@]}" --backend plain
grep -qE '^int8_matmul +plain' out && grep -qE '^quantise +scalar' out && ok || bad 'doctor does not give plain its slot'
run 0 '' "$chimera" init chimera-nano -o nano.b158 --set quantization.embedding=int8
run 0 '' "$chimera" eval nano.b158 "${backend[@]}" --data text.txt --backend plain --logits plain.f32
run 0 '' "$chimera" eval nano.b158 --data text.txt --backend scalar --logits scalar.f32
[ -s plain.f32 ] && cmp -s plain.f32 scalar.f32 && ok || bad 'the backend gives other logits than scalar'
run 3 'plain' "$chimera" eval nano.b158 --data text.txt --backend plain

# ---- the optimiser: shown, checked, trained with, resumed; its model does without it
signs=(--plugin-path "$work/signs")
card=(chimera-shakespeare --ini small.ini --set training.phases.pretrain.optimizer=signs --set training.phases.pretrain.lr=0.002)
run 0 'optimiser signs' "$chimera" plugins show signs "${signs[@]}"
run 2 "no optimiser 'signs'" "$chimera" check "${card[@]}"
run 2 'expected number 0..0.9999' "$chimera" check "${card[@]}" "${signs[@]}" --set training.signs.momentum=2
run 0 'model.b158' "$chimera" train "${card[@]}" "${signs[@]}" --data text.txt --tokens 8K --out signed
run 2 "no optimiser 'signs'" "$chimera" train "${card[@]}" --data text.txt --tokens 8K --out signed --resume
run 0 'bits per byte' "$chimera" eval signed/model.b158 --data text.txt
bits=$(sed -n '1s/ .*//p' out)
awk -v b="$bits" 'BEGIN { exit !(b > 0 && b < 7.9) }' && ok || bad "the optimiser learns nothing: $bits bits per byte"
run 0 '' "$chimera" run signed/model.b158 -p 'The quick' -n 5 --seed 1
run 0 '' "$chimera" tokenizer show signed/model.b158

# ---- the tokenizer: any bytes there and back, fewer tokens than bytes, trained with
letters=(--plugin-path "$work/letters")
[ -e letters/letters.so ] || cp letters/build/letters.so letters
mkdir elsewhere && cd elsewhere || exit 99
mkdir letters # a directory of its name is no tokenizer's file
head -c 5000 "$chimera" >binary
run 0 'letters' "$chimera" tokenizer show letters "${letters[@]}"
run 4 'Is a directory' "$chimera" tokenizer show ./letters "${letters[@]}"
run 0 '' "$chimera" tokenizer encode letters binary "${letters[@]}"
cp ../out ids
run 0 '' "$chimera" tokenizer decode letters ids "${letters[@]}"
cmp -s ../out binary && ok || bad 'the tokenizer changes bytes'
card=(chimera-shakespeare --ini ../small.ini --set tokenizer.type=letters --set vocab_size=259 --set 'token_ids=[256, 257]')
run 0 'letters' "$chimera" check "${card[@]}" "${letters[@]}"
run 0 '' "$chimera" train "${card[@]}" "${letters[@]}" --data ../text.txt --tokens 4K --out run
run 0 '' "$chimera" eval run/model.b158 "${letters[@]}" --data ../text.txt -o csv
awk -F, 'NR == 2 { exit !($4 > 0 && $4 < $3) }' ../out && ok || bad 'the tokenizer has as many tokens as bytes'
run 0 '' "$chimera" run run/model.b158 "${letters[@]}" -p 'The' -n 10 --seed 1
cd .. || exit 99

# ---- a file in the folder of another kind, and a card that asks a tokenizer for a layer
mkdir -p wrong/layers && cp letters/letters.so wrong/layers/
run 0 'is a tokenizer, and lies in the folder of layers' "$chimera" doctor --plugin-path "$work/wrong"
run 2 "'letters' is a tokenizer" "$chimera" check chimera-nano "${letters[@]}" --set backbone.layer_pattern=letters

# ---- installed, they need no path; uninstalled, they are gone
if command -v make >/dev/null; then
    for place in mean 'a backend' letters signs; do run 0 '' make -C "$place" install; done
    for name in mean plain letters signs; do
        found=$(find "$root" -path "*/plugins/*/$name.so")
        [ -n "$found" ] || bad "make install put $name.so nowhere"
        run 0 "$name" "$chimera" plugins show "$name"
    done
    run 0 '' "$chimera" run run/model.b158 -p 'The quick' -n 5
    for place in mean 'a backend' letters signs; do run 0 '' make -C "$place" uninstall; done
    for name in mean plain letters signs; do
        [ -z "$(find "$root" -name "$name.so")" ] && ok || bad "make uninstall leaves $name.so"
    done
    run 2 "no layer 'mean'" "$chimera" run run/model.b158 -p 'The quick' -n 5
    touch mean/mean.c # without the headers: pkg-config's sentence, and nothing built or installed anywhere
    PKG_CONFIG_PATH=/nowhere PKG_CONFIG_LIBDIR=/nowhere run 2 "Package 'chimera'" make -C mean install DESTDIR="$work/stray"
    [ ! -e "$work/stray" ] && ok || bad 'make install without chimera.pc installed something'
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
