#!/bin/sh
# test_cli.sh: the chimera command as its users meet it: exit codes, sentences, formats, pipes, interrupts.
# usage: test_cli.sh CHIMERA SOURCE_ROOT BUILD_ROOT
set -u
source=$2 build=$3
case $1 in
/*) chimera=$1 ;;
*) chimera=$PWD/$1 ;; # from before the cd below
esac
unset CHIMERA_THREADS CHIMERA_BACKEND CHIMERA_PLUGIN_PATH
CHIMERA_PLUGIN_PATH=$build/plugins/backends:$build/plugins/layers:$build/plugins/tokenizers
export CHIMERA_PLUGIN_PATH
work=$(mktemp -d "$build/tests/cli test XXXXXX") || exit 99
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 99
failed=0 passed=0 skipped=0

bad() {
    failed=$((failed + 1))
    echo "FAILED: $*"
    [ -s out ] && sed 's/^/  out: /' out | head -5
    [ -s err ] && sed 's/^/  err: /' err | head -5
}
ok() { passed=$((passed + 1)); }
skip() {
    skipped=$((skipped + 1))
    echo "SKIPPED: $*"
}

# expect CODE 'words on stderr' ARGUMENTS...: runs chimera, keeps out and err
expect() {
    code=$1 words=$2
    shift 2
    "$chimera" "$@" >out 2>err </dev/null
    got=$?
    if [ "$got" != "$code" ]; then
        bad "chimera $*: code $got, not $code"
    elif [ -n "$words" ] && ! grep -qF -- "$words" err; then
        bad "chimera $*: stderr does not say '$words'"
    elif [ "$code" -ne 0 ] && [ -n "$words" ] && ! grep -q '^chimera: ' err; then
        bad "chimera $*: the sentence does not begin with 'chimera: '"
    else
        ok
    fi
}
says() { # says FILE WORDS
    if grep -qF -- "$2" "$1"; then ok; else bad "$1 does not say '$2'"; fi
}
json() { # json FILE [python expression over d that must be true]
    if [ -z "$python" ]; then
        skip "no python3: JSON of '$1' not parsed"
    elif "$python" -c "import json,sys
d = json.load(open(sys.argv[1]))
assert d['schema_version'] == 1
assert ${2:-True}, 'not true: ' + sys.argv[2]" "$1" "${2:-}" 2>pyerr; then
        ok
    else
        bad "$1: $(tail -1 pyerr)"
    fi
}
python=$(command -v python3 || true)

cat >card.json <<'CARD'
{
  "model_type": "chimera51", "token_ids": [256, 257], "hidden_size": 64, "intermediate_size": 128,
  "num_hidden_layers": 1, "num_heads": 1, "head_dim": 64, "vocab_size": 258,
  "quantization": {"method": "bitnet", "embedding": "int8"},
  "backbone": {"layer_pattern": "gd"}, "gated_deltanet": {"state_size": 64},
  "tokenizer": {"type": "bytes"},
  "generation": {"temperature": 0.8, "max_new_tokens": 20},
  "training": {"phases": [{"name": "pretrain", "tokens": 4096, "seq_len": 64, "batch_tokens": 512, "lr": 0.003}]}
}
CARD
i=0
while [ $i -lt 60 ]; do
    echo "The quick brown fox $i jumps over the lazy dog, and the dog does not mind."
    i=$((i + 1))
done >text.txt

# ---- help, version, what was mistyped
expect 2 '' # bare: how it is used, on stderr
says err 'usage: chimera COMMAND'
[ -s out ] && bad 'a bare chimera writes to stdout' || ok
expect 0 '' help
says out 'train'
expect 0 '' --help
expect 0 '' version
grep -qE '^chimera [0-9]+\.[0-9]+\.[0-9]+$' out && ok || bad 'version'
expect 0 '' --version
verbs=$("$chimera" help | sed -n 's/^  \([a-z]*\)  .*/\1/p')
[ "$(echo "$verbs" | wc -l)" -ge 13 ] && ok || bad 'help lists too few commands'
for verb in $verbs 'layer test' 'plugins list' 'plugins show' 'data mqar' 'data parity' 'data majority'; do
    expect 0 '' $verb -h
    says out "usage: chimera $verb"
    expect 0 '' $verb --help
    expect 0 '' help $verb
    says out 'exit codes'
done
expect 0 '' train --help
head -4 out | grep -q examples && ok || bad 'examples do not come first'
expect 2 "did you mean 'train'" trian
expect 2 "did you mean '--data'" train card.json --dta x
expect 2 "did you mean '--verify'" inspect --verfy x
expect 2 "no option '-x'" inspect -x
expect 2 'CARD is missing' train
expect 2 'one argument too many' check card.json other.json
expect 2 '--out DIR is missing' train card.json --data text.txt
expect 2 'write MODEL... before it' eval --data text.txt model.b158
expect 2 'takes no value' inspect --verify=yes m
expect 2 'needs a value' train card.json --data
expect 2 'needs a value' train card.json --data --out x
expect 2 "did you mean 'list'" plugins lst
expect 2 'expected one of list, show' plugins sow
expect 2 'comes next' plugins
expect 2 'NAME is missing' plugins show
expect 2 'chimera layer test has it' layer gd --rows 4
expect 2 "no option '--mode'" layer test gd --mode step
expect 2 '--out DIR is missing' train card.json --data text.txt --resume
expect 2 "no command 'trian'" help trian
expect 2 "no command 'plugins sow'" help plugins sow
expect 0 '' version -o json
json out "d['version'].count('.') == 2 and d['plugin_abi'] >= 1"
for format in csv md; do expect 0 '' version -o $format; done

# ---- numbers: the whole word, the range, the unit
expect 2 'a number of seconds, 0.001..100000000' train card.json --data text.txt --out x --seconds 3m
expect 2 'a number of seconds' train card.json --data text.txt --out x --seconds nan
expect 2 'a number of seconds' train card.json --data text.txt --out x --seconds -1
expect 2 'of tokens' train card.json --data text.txt --out x --tokens 5X
expect 2 'of tokens' train card.json --data text.txt --out x --tokens 0
for tokens in 1.5 1.M 1.0005K .5M 99999999999999.5M; do
    expect 2 'of tokens' train card.json --data text.txt --out x --tokens $tokens
done
expect 0 '2 steps' train card.json --data text.txt --dry-run --tokens 1.024K # as in a card
expect 2 'of tokens' train card.json --data text.txt --out x --tokens 99999999999999999999
expect 2 'of tokens' train card.json --data text.txt --out x --tokens 1000001T
expect 0 '' train card.json --data text.txt --dry-run --tokens 1000000T # nothing overflows
expect 2 'two budgets' train card.json --data text.txt --out x --tokens 5 --seconds 5
expect 2 '1..256' version --threads 0
expect 2 '1..256' version --threads 257
expect 2 '1..256' version --threads 2x
expect 2 'expected one of text, json, csv, md' doctor -o yaml
expect 2 '0..100' run m --temp -1
expect 2 '--top-p' run m --top-p 1.5
expect 2 '18446744073709551615' run m --seed -3
expect 2 'two prompts' run m -p a --prompt-file text.txt
CHIMERA_THREADS=many expect 2 'CHIMERA_THREADS' doctor

# ---- cards and models
expect 0 '' check card.json
says out 'valid; it can be trained and run'
for format in text json csv md; do expect 0 '' check card.json --resolved -o $format; done
expect 0 '' check card.json -o json
json out "d['usable'] and d['parameters'] == sum(p['parameters'] for p in d['parts'][:-1]) and len(d['layers']) == 1"
expect 0 '' check card.json --resolved -o json --set generation.top_p=0.5
json out "[v for v in d['resolved'] if v['key'] == 'generation.top_p'][0]['value'] == 0.5"
expect 0 '' check "$source/etc/chimera-5.1.json"
says out 'cannot be trained or run yet'
says out 'not built'
expect 0 '' check "$source/etc/chimera-5.1.json" -o json
json out "not d['usable'] and len(d['layers']) == 28 and d['unbuilt']"
# what a card states beside what follows from it: counts of the seed card as in its structure, whatever is built
json out "{d['key']: (d['declared'], d['computed'], d['verdict']) for d in d['declared']}.items() >= {
    'backbone.moe.total_params': (350000000, 1579540592, 'differs'),
    'backbone.moe.active_params_per_tok': (44000000, 278978672, 'differs'),
    'params.base': (2300000000, 2145599680, 'differs'),
    'params.physical': (2650000000, 4237327152, 'differs'),
    'params.effective_2loops': (4200000000, 4196554368, 'agrees'),
    'params.effective_6loops': (9500000000, 11284458432, 'differs'),
    'memory_budget_mb.total': (2524, 2524, 'agrees'),
    'memory_budget_mb braid': (30, 480, 'differs')}.items()"
json out "any('moe_intermediate_size 384 would' in r['note'] for r in d['declared'])"
json out "len(d['findings']) == 23 and all(f['keys'] and f['finding'] for f in d['findings'])"
for words in '1.43 bits a weight' 'no row for the embedding' '13.5 groups of 128' '163.84 bits' 'layer 23 (sk)' '88.5 MB' \
    "a grammar's state, which no plugin provides: it counts as zero" 'over 16 tokens at the same weights, matrices are 64 wide' \
    'a causal one of 4 taps'; do
    says out "$words"
done
# they follow from the values: other values, other lines
expect 0 '' check "$source/etc/chimera-5.1.json" -o json --set backbone.moe.moe_intermediate_size=384 \
    --set looping.spectral_radius_bound=0.999 --set looping.backward_truncation=none \
    --set self_evolution.tier1.ttt.target_layers='[1, 2]' --set quantization.runtime_kernel=auto \
    --set braid_state.entity_table.slot_bits=8192 --set tsp_knot.sketch_bits=4096 \
    --set 'tsp_knot.energy_terms.grammar=[0, "fst_transition_cost"]' --set titans.chunk=16 --set gated_deltanet.short_conv=4
json out "{r['key']: r['verdict'] for r in d['declared']}['backbone.moe.total_params'] == 'agrees'"
json out "not any(w in f['finding'] for f in d['findings'] for w in
    ('13.5 groups', 'stable only', 'half would cut', 'layer 23', 'run once a pass', 'bitnet.cpp', 'xor needs', \"grammar's\", 'over 16', 'causal one'))"
json out "any('4096 bits and 8192' in f['finding'] for f in d['findings'])"
json out "any('70.8 MB' in f['finding'] or '141.6 MB' in f['finding'] for f in d['findings'])"
for format in text md; do
    expect 0 '' check "$source/etc/chimera-5.1.json" -o $format
    says out 'Declared and computed'
    says out 'Values that do not go together, or are left open'
    says out '1579540592'
done
expect 0 '' check card.json -o json
json out "d['declared'] == [] and d['findings'] == []"
expect 0 '' check "$source/etc/chimera-mini.json" -o json
json out "d['usable'] and len(d['declared']) == 2 and all(r['verdict'] == 'agrees' for r in d['declared'])"
json out "[r['computed'] for r in d['declared'] if r['key'] == 'params.active_per_token'][0] in range(34_650_000, 35_350_000)"
json out "[l['mixer'] for l in d['layers']] == 'gd xlstm gd titans gd xlstm gd sk'.split() and any(l['ffn'] == 'moe' for l in d['layers'])"
expect 2 'generation.top' check card.json --set generation.topp=0.5
# what is on, not built and would change numbers: no model is made of it, and check says so
expect 0 '' check card.json --set attn.window=32
says out 'attention: no layer of this card is attn; checked, not used'
for key in training.distillation_init byte_level; do
    expect 0 '' check card.json --set $key.enabled=true
    says out "cannot be trained or run yet: --set: $key.enabled is true"
    expect 2 "--set $key.enabled=false" init card.json -o sherry.b158 --set $key.enabled=true
    expect 2 "--set $key.enabled=false" train card.json --data text.txt --out sherry --set $key.enabled=true
done
# what is given and changes no number is said once
expect 0 'card.json: checked, not used: modes, multimodal' train card.json --data text.txt --dry-run \
    --set modes.fast.loops=2 --set multimodal.enabled=true
[ "$(grep -c 'not used' err)" -eq 1 ] && ok || bad 'unused sections are not said once'
expect 0 '' train card.json --data text.txt --dry-run -q --set modes.fast.loops=2
grep -q 'not used' err && bad '-q: unused sections are said' || ok
expect 4 'missing.json' check missing.json
expect 4 '' inspect missing.b158
expect 4 '' eval missing.b158 --data text.txt
expect 4 '' run missing.b158
expect 0 'wrote model.b158' init card.json -o model.b158 --seed 3
expect 0 '' init card.json -o again.b158 --seed 3 --threads 1 -q
[ -s err ] && bad '-q is not quiet' || ok
cmp -s model.b158 again.b158 && ok || bad 'init: the same seed gave another file'
expect 2 'has no name for the model (files.weights)' init card.json
expect 0 'wrote named.b158' init card.json --set files.weights=named.b158 --seed 3
[ -s named.b158 ] && ok || bad 'init: no file of the name that the card gives'
expect 0 '' init card.json -o other.b158 --seed 4
cmp -s model.b158 other.b158 && bad 'init: another seed gave the same file' || ok
expect 4 '' init card.json -o missing/model.b158
expect 2 'plain.safetensors: a model is written as a .b158' init card.json -o plain.safetensors
expect 2 'plain.safetensors: a model is written as a .b158' init card.json --set files.weights=plain.safetensors
[ -e plain.safetensors ] && bad 'init: a .b158 is called .safetensors' || ok
for format in text json csv md; do expect 0 '' inspect model.b158 --verify -o $format; done
expect 0 '' inspect model.b158 -o json
json out
# check and inspect mean the same by a part
expect 0 '' init card.json -o looped.b158 --set num_hidden_layers=3 --set looping.enabled=true \
    --set 'looping.prelude=[0,0]' --set 'looping.loop=[1,1]' --set 'looping.coda=[2,2]'
expect 0 '' inspect looped.b158 -o json
cp out inspect.json
expect 0 '' check card.json -o json --set num_hidden_layers=3 --set looping.enabled=true \
    --set 'looping.prelude=[0,0]' --set 'looping.loop=[1,1]' --set 'looping.coda=[2,2]'
json out "[(p['part'], p['parameters'], p['bytes']) for p in d['parts'][:-1]] == \
    [(p['name'], p['weights'], p['bytes']) for p in json.load(open('inspect.json'))['parts']]"
head -c 1000 model.b158 >short.b158
expect 4 'short.b158' run short.b158 -p a
expect 4 '' inspect text.txt

# ---- other forms
expect 0 'wrote plain.safetensors' convert model.b158 plain.safetensors
expect 0 'wrote back.b158' convert plain.safetensors back.b158
cmp -s model.b158 back.b158 && ok || bad 'convert: there and back is another file'
grep -q 'scales' err && bad 'convert: scales that fit are found anew' || ok
if [ -n "$python" ]; then
    "$python" - <<'PYTHON'
import json, struct
data = bytearray(open("plain.safetensors", "rb").read())
header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
begin = len(data) - max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
for name in ("layers.0.mixer.q.scales", "layers.0.ffn.up.scales"):
    first, last = (begin + at for at in header[name]["data_offsets"])
    data[first:last] = b"\xff" * (last - first)
open("unfit.safetensors", "wb").write(data)
PYTHON
    expect 0 'those stored with 2 matrices did not fit' convert unfit.safetensors fit.b158
    expect 0 'those stored with 2 matrices did not fit' convert unfit.safetensors fit.b158 -q
else
    skip 'no python3: no scales damaged'
fi

# ---- the decoder of model files
if [ -n "$python" ] && "$python" -c 'import numpy' 2>/dev/null; then
    "$python" "$source/tools/b158.py" >out 2>err && bad 'b158.py without a file' || ok
    grep -q '^usage' err && ! grep -q Traceback err && ok || bad 'b158.py without a file has no usage'
    "$python" "$source/tools/b158.py" model.b158 2>err | head -n 1 >out
    [ -s out ] && [ ! -s err ] && ok || bad "b158.py into head"
else
    skip 'no NumPy: tools/b158.py not run'
fi

# ---- plugins and kernels
for format in text json csv md; do expect 0 '' doctor -o $format; done
head -1 out | grep -q chimera && tail -n +2 out | grep -q scalar && ok || bad 'doctor -o md'
expect 0 '' doctor -o csv
head -1 out | grep -q '^part,name,value,detail' && grep -q '^kernel,t2_matmul,' out && ok || bad 'doctor -o csv'
expect 0 '' doctor -o json
json out "d['environment'] == []"
CHIMERA_BACKENT=scalar CHIMERA_GATED_DELTANET__CHUNKSIZE=3 expect 0 '' doctor
says out "CHIMERA_BACKENT: no key 'BACKENT' in a model card (did you mean 'CHIMERA_BACKEND'?)"
says out "did you mean 'CHIMERA_GATED_DELTANET__CHUNK_SIZE'?"
CHIMERA_BACKENT=scalar expect 0 '' doctor -o json
json out "len(d['environment']) == 1 and 'CHIMERA_BACKEND' in d['environment'][0]"
CHIMERA_GATED_DELTANET__CHUNK_SIZE=16 expect 0 '' doctor
grep -q Environment out && bad 'doctor complains of a good variable' || ok
for format in text json csv md; do
    expect 0 '' plugins list -o $format
    expect 0 '' plugins show gd -o $format
done
expect 0 '' plugins list --kind layer
says out gd
expect 2 '' plugins list --kind lair
expect 3 'gd' plugins show gdd
expect 3 '' run model.b158 -p a --backend nosuch
expect 3 '' doctor --backend nosuch
says out 'Plugin paths'
# a mask plays an older machine: what needs the feature is refused, the rest runs, and gives the same bytes
if [ -e "$build/plugins/backends/avx2.so" ] && ! "$chimera" plugins show avx2 >/dev/null 2>&1; then
    skip 'this CPU has no AVX2: --cpu-mask has nothing to take away'
elif [ -e "$build/plugins/backends/avx2.so" ]; then
    expect 0 '' doctor --cpu-mask avx2
    grep 'avx2.so' out | grep -q 'refused.*lacks.*avx2' && ok || bad 'doctor --cpu-mask avx2 refuses nothing'
    expect 3 'avx2' run model.b158 -p a --backend avx2 --cpu-mask avx2
    CHIMERA_CPU_MASK=avx2 expect 3 'avx2' run model.b158 -p a --backend avx2
    CHIMERA_CPU_MASK=f16c expect 3 'avx2' run model.b158 -p a --backend avx2 --cpu-mask avx2
fi
expect 2 "did you mean 'avx512'" doctor --cpu-mask avx521
CHIMERA_CPU_MASK=sse9 expect 2 'CHIMERA_CPU_MASK' doctor
expect 0 '' doctor --cpu-mask all -o json
json out "d['cpu_features'] == [] and all(k['backend'] in ('scalar', 'openblas') for k in d['kernels'])"

CHIMERA_PLUGIN_PATH=$work expect 0 '' check --plugin-path "$CHIMERA_PLUGIN_PATH" card.json
expect 0 '--plugin-path: here: relative paths are not searched' check --plugin-path here card.json

# ---- run
"$chimera" run model.b158 -p 'The quick' -n 40 --seed 9 >one 2>err
for threads in 1 2 3 4; do
    for backend in scalar avx2; do
        if [ $backend = avx2 ] && [ ! -e "$build/plugins/backends/avx2.so" ]; then
            skip 'no avx2 backend in this build'
            continue
        fi
        expect 0 'seed 9' run model.b158 -p 'The quick' -n 40 --seed 9 --threads $threads --backend $backend
        if grep -q 'refused' err; then skip "backend $backend: $(head -1 err)"; continue; fi
        cmp -s one out && ok || bad "run: $threads threads of $backend wrote something else"
    done
done
printf 'The quick' >prompt.txt
expect 0 '' run model.b158 --prompt-file prompt.txt -n 40 --seed 9
cmp -s one out && ok || bad 'run: a prompt from a file is another prompt'
"$chimera" run model.b158 --prompt-file - -n 40 --seed 9 <prompt.txt >out 2>err
cmp -s one out && ok || bad 'run: a prompt from standard input is another prompt'
expect 0 '' run model.b158 -p 'The quick' -n 40 --seed 9 --echo -q
[ -s err ] && bad 'run -q is not quiet' || ok
{ cat prompt.txt one; } | cmp -s - out && ok || bad 'run --echo'
expect 0 '' run model.b158 -n 1K --temp 0 -q
expect 4 'nowhere.txt' run model.b158 --prompt-file nowhere.txt
expect 0 'wrote 20' run model.b158 -p x --seed 1 --set generation.max_new_tokens=20

expect 0 '' run model.b158 -p 'The quick' -n 40 --seed 9 --cpu-mask all
cmp -s one out && ok || bad 'run: --cpu-mask all wrote something else'

# ---- eval
expect 0 '' eval model.b158 --data text.txt -o json --logits logits.f32
cp out one.json
json out "d['bytes'] == $(wc -c <text.txt) and 7 < d['bits_per_byte'] < 9 and d['tokens_per_second'] > 0 and d['kernels']"
cp logits.f32 first.f32
[ "$(wc -c <logits.f32)" -eq $(($(wc -c <text.txt) * 258 * 4)) ] && ok || bad 'eval --logits: wrong size'
expect 0 '' eval model.b158 --data text.txt -o json --logits logits.f32 --split 7 --threads 1 --backend scalar
cmp -s logits.f32 first.f32 && ok || bad 'eval: --split and --backend changed the logits'
if [ -n "$python" ]; then
    "$python" -c "import json
a, b = json.load(open('one.json')), json.load(open('out'))
assert a['bits_per_byte'] == b['bits_per_byte']" && ok || bad 'eval: another split, another score'
fi
for format in text csv md; do expect 0 '' eval model.b158 --data text.txt -o $format; done
expect 0 '' eval model.b158 --data text.txt text.txt --data text.txt -o json
json out "d['bytes'] == 3 * $(wc -c <text.txt)"
# several models: the numbers each has alone, a row or an object each
cp model.b158 'a|b, "c".b158'
expect 0 '' eval model.b158 'a|b, "c".b158' --data text.txt -o json
json out "d['schema_version'] == 1 and [m['model'] for m in d['models']] == ['model.b158', 'a|b, \"c\".b158']"
bits=$(sed 's/.*"bits_per_byte": \([0-9.]*\).*/\1/' one.json)
[ "$(grep -cF "\"bits_per_byte\": $bits," out)" -eq 2 ] && ok || bad 'eval of two models: other numbers than one has'
for format in text csv md; do
    expect 0 '' eval model.b158 'a|b, "c".b158' --data text.txt -o $format
    [ "$(grep -c 'b158' out)" -eq 2 ] && ok || bad "eval of two models, -o $format: not a row each"
done
grep -qF '| a\|b, "c".b158 |' out && ok || bad 'eval -o md: a bar in a name is a column'
expect 4 'nowhere.b158' eval model.b158 nowhere.b158 --data text.txt
[ -s out ] && bad 'eval: half a report before a failure' || ok
expect 2 'of one model, and 2 are named' eval model.b158 model.b158 --data text.txt --logits two.f32
expect 4 'nowhere.txt' eval model.b158 --data text.txt nowhere.txt
"$chimera" eval model.b158 --data - -o json <text.txt >out 2>err || bad 'eval of standard input'
json out "d['bits_per_byte'] == json.load(open('one.json'))['bits_per_byte']"
mkfifo data.fifo
cat text.txt >data.fifo &
expect 0 '' eval model.b158 --data data.fifo -o json
json out "d['bits_per_byte'] == json.load(open('one.json'))['bits_per_byte']"
wait $!
# a pipe without an end is read to the limit, and no further
yes 'the quick brown fox' | timeout 60 "$chimera" eval model.b158 --data - --limit-bytes 300 -o json >out 2>err ||
    bad 'eval --limit-bytes of an endless pipe'
json out "d['bytes'] == 300"

# ---- what --data takes: directories, patterns, .jsonl, .zst, held-out documents
mkdir -p data/below data/.hidden
for i in 1 2 3 4 5 6 7 8 9; do sed "s/^/$i /" text.txt >data/below/$i.txt; done
echo hidden >data/.hidden/x.txt
: >data/empty.txt
mkfifo data/pipe
printf '{"text": "one line\\nand another"}\n{"text": "a second document"}\n' >data/o.jsonl
expect 0 '' eval model.b158 --data data -o json
json out "d['documents'] == 11"
cp out whole.json
expect 0 '' eval model.b158 --data 'data/**/*.txt' data/o.json? -o json
json out "d['documents'] == 11 and d['nats'] != 0"
expect 0 '' train card.json --data data --holdout 0.4 --tokens 1K --out held -q
expect 0 '' eval held/model.b158 --data ./data/ --holdout -o json
json out "0 < d['documents'] < 11 and ('%.10g' % d['bits_per_byte']) == ('%.10g' % [json.loads(l) for l in open('held/log.jsonl')][-2]['bits_per_byte'])"
expect 0 'held out: ' train card.json --data data --holdout 0.4 --tokens 1K --out shards/held --shards shards
[ "$(ls shards/*.tokens | wc -l)" -eq 1 ] && cmp -s held/model.b158 shards/held/model.b158 && ok || bad 'train --shards: no file of tokens, or another model'
expect 0 'tokens from shards/corpus-' train card.json --data data --holdout 0.4 --tokens 1K --out shards/again --shards shards
printf '\377' | dd of="$(ls shards/*.tokens)" bs=1 seek=300 conv=notrunc 2>/dev/null
expect 0 'it is made anew' train card.json --data data --holdout 0.4 --tokens 1K --out shards/third --shards shards
cmp -s held/model.b158 shards/third/model.b158 && ok || bad 'train --shards: a damaged file of tokens was read'
expect 2 'its card holds out nothing' eval model.b158 --data data --holdout
expect 2 'give one of them' train card.json --data data --holdout 0.4 --validation text.txt --out x
expect 2 'SHARE' train card.json --data data --holdout
expect 2 'a number, 0..0.9' train card.json --data data --holdout 1 --out x
expect 4 'of 1 document leaves nothing to' train card.json --data text.txt --holdout 0.1 --out x
expect 4 'text.txz*: no file has such a name' train card.json --data 'text.txz*' --out x
expect 4 'data/.hidden/none: cannot open' train card.json --data data/.hidden/none --out x
ln -s nowhere data/gone
expect 4 'data/gone: a link that leads to nothing' train card.json --data data --out x
rm data/gone
printf '{"text": "a"}\n\n{"txt": "b"}\n' >bad.jsonl
expect 4 'bad.jsonl:3: "text" is missing' train card.json --data bad.jsonl --out x
expect 4 'bad.jsonl:1: "txt" is missing' eval model.b158 --data bad.jsonl --set training.text_field=txt
printf 'no frame' >bad.txt.zst
expect 4 'bad.txt.zst: ' eval model.b158 --data bad.txt.zst # cannot be unpacked, or not by this build
[ -e x ] && bad 'train: refused data left a run directory' || ok
# ten gigabytes on no disk: what is asked for is read, in little memory
if truncate -s 10G sparse.txt 2>/dev/null; then
    expect 0 '' eval model.b158 --data sparse.txt --limit-bytes 300 -o json
    json out "d['bytes'] == 300"
    rm sparse.txt
fi

# ---- bench
expect 0 '' bench model.b158 -r 2 --prefill 70 --decode 4 --streams 4 -o json
json out "[(r['name'], r['loops'], r['rows']) for r in d['rows']] == [('prefill', 0, 64), ('decode', 0, 1), ('streams', 0, 2), ('streams', 0, 4)]"
json out "all(r[k] > 0 for r in d['rows'] for k in ('tokens_per_second', 'deviation', 'bytes_per_token', 'bandwidth_fraction', 'compute_fraction', 'pass_ms'))"
json out "d['models'][0]['kernels']['t5_matmul'] and d['resident_other_bytes'] > 0 and d['cold_start_seconds'] > 0"
cp out bench.json
expect 0 '' bench model.b158 model.b158 -r 1 --prefill 2 --decode 1 --streams 1 --backends scalar --compare bench.json -o json
json out "[r['name'] for r in d['rows']] == ['prefill', 'decode'] * 2 and {r['backend'] for r in d['rows']} == {'scalar'}"
json out "all(abs(r['ratio'] - r['tokens_per_second'] / r['other']) < 0.002 and r['other_deviation'] > 0 for r in d['rows'] if r['name'] == 'decode')"
json out "all(r['ratio'] is None for r in d['rows'] if r['name'] == 'prefill')"
expect 0 '' bench model.b158 -r 1 --prefill 2 --decode 1 --streams 1 -o csv
[ "$(wc -l <out)" -eq 3 ] && ok || bad 'bench -o csv: not three lines'
expect 0 '' bench model.b158 -r 1 --prefill 2 --decode 1 --streams 1 --set modes.fast.loops=1 --set modes.fast.neural_hz=1
says out 'modes.fast.neural_hz'
compare() { # compare 'words on stderr' FILE
    expect 4 "$1" bench model.b158 -r 1 --prefill 2 --decode 1 --streams 1 --compare "$2"
    [ -s out ] && bad "bench --compare $2: half a report" || ok
}
sed 's/"schema_version": 1/"schema_version": 2/' bench.json >other.json
compare 'other.json: a report of schema_version 2; this Chimera reads 1' other.json
sed 's/"schema_version": 1/"schema_version": "1"/' bench.json >other.json
compare 'other.json: schema_version is a string' other.json
sed 's/"tokens_per_second": [-+.0-9e]*/"tokens_per_second": "fast"/' bench.json >other.json
compare 'other.json: rows[0].tokens_per_second is a string, expected a number' other.json
sed 's/"loops": 0/"loops": 7/' bench.json >other.json
compare 'other.json: none of its 4 rows goes with what is measured here' other.json
echo '{"schema_version": 1, "rows": []}' >other.json
compare 'other.json: none of its 0 rows' other.json
echo '{"schema_version": 1, "rows": [3]}' >other.json
compare 'other.json: rows[0] is a number, expected an object' other.json
echo '{"schema_version": 1, "rows": [{"name": "decode", "encoding": "t5", "backend": "scalar", "loops": 0}]}' >other.json
compare 'other.json: rows[0].rows is not there, expected a number' other.json
expect 4 'is no report of' bench model.b158 -r 1 --prefill 2 --decode 1 --streams 1 --compare card.json
expect 4 'nowhere.json: cannot open' bench model.b158 -r 1 --prefill 2 --decode 1 --streams 1 --compare nowhere.json
expect 3 "no backend 'avx9'" bench model.b158 --backends avx9

# an empty text goes by the name it was given by
expect 4 '/dev/null: is empty' eval model.b158 --data /dev/null
expect 4 'standard input: is empty' eval model.b158 --data -

# names may have anything in them: a row stays a row, and a terminal obeys none
odd=$(printf 'odd\n\033[31m|\377.b158')
cp model.b158 "$odd"
harmless() {
    if [ "$(wc -l <out)" -ne "$1" ]; then
        bad "$2: not $1 lines"
    elif LC_ALL=C grep -q "$(printf '[\033\377]')" out; then
        bad "$2: a name came through as it is"
    else
        ok
    fi
}
for format in text csv md; do
    expect 0 '' eval model.b158 "$odd" --data text.txt --limit-bytes 100 -q -o $format
    case $format in
    md) harmless 4 'eval -o md' ;;
    *) harmless 3 "eval -o $format" ;;
    esac
done
layers="$work/$(printf 'layers\033\377\nof mine')"
mkdir "$layers"
cp "$build/plugins/layers/mlp.so" "$layers"
for format in text md; do
    expect 0 '' plugins list --kind layer --plugin-path "$layers" -o $format
    harmless "$(wc -l <out)" "plugins list -o $format"
    says out 'layers???of mine/mlp.so'
    expect 0 '' plugins show mlp --plugin-path "$layers" -o $format
    harmless "$(wc -l <out)" "plugins show -o $format"
    says out 'layers???of mine/mlp.so'
done

# a tokenizer whose training is stopped leaves nothing behind
if "$chimera" plugins show sentencepiece >/dev/null 2>&1; then
    mkfifo learn.fifo
    "$chimera" tokenizer train --data learn.fifo --vocab 300 --out learn.model 2>err &
    learner=$!
    timeout 60 sh -c "exec 9>learn.fifo; kill -TERM $learner" || bad 'tokenizer train does not read its data'
    wait $learner
    [ -z "$(ls | grep '^learn\.model')" ] && ok || bad "an interrupted tokenizer train left $(ls | grep '^learn\.model')"
else
    skip 'no sentencepiece: no tokenizer is trained'
fi

# nothing that is read is written over
cp text.txt text.copy
ln -sf text.txt link.txt
expect 2 'would replace the data' eval model.b158 --data text.txt --logits link.txt
expect 2 'would replace the model' eval model.b158 --data text.txt --logits model.b158
expect 2 'would replace the card' init card.json -o card.json
cp model.b158 model.copy
echo '[gd]' >over.ini
expect 2 'would replace the model, which is read' state save model.b158 text.txt -o model.b158
expect 2 'would replace the text, which is read' state save model.b158 text.txt -o link.txt
expect 2 'would replace the ini file, which is read' state save model.b158 text.txt --ini over.ini -o over.ini
expect 2 'would replace the model, which is read' run model.b158 -p a -n 1 --save-state model.b158
expect 2 'would replace the text, which is read' run model.b158 --prompt-file text.txt -n 1 --save-state link.txt
# a stream that goes on may keep its name
expect 0 '' run model.b158 -p a -n 1 --save-state going.stream -q
expect 0 '' run model.b158 --state going.stream -n 1 --save-state going.stream -q
cmp -s model.b158 model.copy && ok || bad 'a stream was written over its model'
cmp -s text.txt text.copy && ok || bad 'what was written replaced the text that was read'
if "$chimera" plugins show o200k >/dev/null 2>&1; then
    expect 2 'needs a rank file' init card.json --set tokenizer.type=o200k -o other.b158
else
    expect 3 "no tokenizer 'o200k' in this build" init card.json --set tokenizer.type=o200k -o other.b158
    says err 'building it takes libpcre2-dev'
fi
if ! "$chimera" plugins show sentencepiece >/dev/null 2>&1; then
    expect 3 "no tokenizer 'sentencepiece' in this build" init card.json --set tokenizer.type=sentencepiece -o other.b158
    says err 'building it takes libsentencepiece-dev and g++'
    expect 3 "no tokenizer 'sentencepiece' in this build" tokenizer train --data text.txt --out other.model --vocab 300
fi
if ! "$chimera" plugins show openblas >/dev/null 2>&1; then
    expect 3 "no backend 'openblas' in this build" run model.b158 -p a --backend openblas
    says err 'building it takes libopenblas-dev'
fi
expect 0 '' check card.json --set tokenizer.type=o200k
says out 'cannot be trained or run yet'
# a not-a-number in the file is no score: the last f32 of the model's data lies in its smallest tensor
if [ -n "$python" ]; then
    "$python" - <<'PROGRAM'
import json, struct
b = bytearray(open('model.b158', 'rb').read())
n = struct.unpack('<Q', b[:8])[0]
at = json.loads(b[8:8 + n])['final_norm']['data_offsets'][0] + 8 + n
b[at:at + 4] = struct.pack('<f', float('nan'))
open('nan.b158', 'wb').write(b)
PROGRAM
    expect 4 'no finite probability' eval nan.b158 --data text.txt
fi

# ---- convert: overrides, and what they lose
expect 0 '' init card.json -o corrected.b158 --set quantization.hgf_correction.enabled=true --set quantization.hgf_correction.rank=2
expect 2 "no key 'nosuchkey'" convert model.b158 never.b158 --set nosuchkey=1
expect 4 'cannot open' convert model.b158 never.b158 --ini missing.ini
expect 2 'overrides cannot change quantization.sherry_mode' convert model.b158 never.b158 --set quantization.sherry_mode.enabled=true --lossy
expect 4 'is not in the file' convert model.b158 never.b158 --set quantization.hgf_correction.enabled=true --lossy
expect 2 'trained parameters are lost; --lossy leaves them out' convert corrected.b158 never.b158 --set quantization.hgf_correction.enabled=false
expect 4 'missing.txt: cannot be read' convert model.b158 never.b158 --encoding sherry --lossy --data missing.txt
expect 2 'are of none' convert card.json never.b158 --import absmean --data text.txt
[ ! -e never.b158 ] && ok || bad 'a refused conversion left a file'
expect 0 'parameters of low-rank corrections were left out' convert corrected.b158 bare.b158 --set quantization.hgf_correction.enabled=false --lossy --data text.txt
says out 'bits per byte before' && says out 'bits per byte after'
expect 0 '' eval corrected.b158 --data text.txt --set quantization.hgf_correction.enabled=false --logits off.f32 -q
expect 0 '' eval bare.b158 --data text.txt --logits bare.f32 -q
cmp -s off.f32 bare.f32 && ok || bad 'a correction left out is not one turned off'
expect 0 '' convert model.b158 warm.b158 --set generation.temperature=0.25
grep -aq 'temperature[^,]*0\.25' warm.b158 && ok || bad 'the card inside warm.b158 is not that of the overrides'
expect 2 'has no ternary weights for it' init card.json -o never.b158 --set quantization.method=none --set quantization.sherry_mode.enabled=true
expect 0 '' init card.json -o float.b158 --set quantization.method=none --set quantization.embedding=f32
expect 2 'no parameter is ternary' convert float.b158 never.b158 --encoding t2
expect 0 '' convert float.b158 float.safetensors
expect 0 'were quantised' convert float.safetensors rounded.b158 --card card.json --lossy --data text.txt
says out 'bits per byte before, in f32' && says out 'bits per byte after'
[ ! -e rounded.b158.before.b158 ] && ok || bad 'the model in f32 is left behind'

# ---- timing, on stderr and with the kernels of what ran
expect 0 'prefill' run model.b158 -p 'The quick' -n 5 --seed 9 --timing
for words in 'first token' 'decode' 't2_matmul' 'threads'; do says err "$words"; done
grep -q sgemm err && bad 'run: --timing names a kernel of training' || ok
expect 0 'prefill' eval model.b158 --data text.txt --timing --backend scalar
grep -qE '^  t2_matmul +scalar$' err && ok || bad 'eval: --timing does not say who ran t2_matmul'
expect 0 'prefill' run model.b158 -p x -n 1 --timing
# colours are for terminals, and there only without NO_COLOR; the conversation's test has a terminal
expect 4 'missing.b158' run missing.b158
grep -q "$(printf '\033')" err && bad 'a colour in a file' || ok

# ---- ranges: what the card takes the sampler takes
for pair in top_p=0 repetition_penalty=0 repetition_penalty=101 max_new_tokens=0 temperature=101; do
    expect 2 "generation.${pair%%=*}" check card.json --set generation.$pair
done
for pair in top_p=1e-9 repetition_penalty=0.001 repetition_penalty=100 max_new_tokens=1 temperature=100; do
    expect 0 '' run model.b158 -p x -n 2 --set generation.$pair
done

# ---- train
expect 0 '' train card.json --data text.txt --validation text.txt --out 'run 1' --tokens 2K --threads 2 -o json
json out "d['finished'] and d['tokens'] >= 2000 and d['validation_bits_per_byte'] > 0"
says err 'bits/byte'
[ -s 'run 1/model.b158' ] && [ -s 'run 1/log.jsonl' ] && ok || bad 'train left no model or log'
expect 0 '' run 'run 1/model.b158' -p The -n 5 -q
expect 0 '' train card.json --data text.txt --out 'run 2' --dry-run
[ -e 'run 2/model.b158' ] && bad 'a dry run trained' || ok
expect 0 'run: ' train card.json --data text.txt --dry-run --tokens 512
grep -q '1 steps' err && bad 'one steps' || ok
expect 0 'sgemm' train card.json --data text.txt --out 'run 5' --tokens 512 --timing -o md
grep -q '^| run 5/model.b158 | 1 |' out && ok || bad 'train -o md'
expect 0 '' train card.json --data text.txt --out 'run, 6' --tokens 512 -o csv
tail -1 out | grep -q '^"run, 6/model.b158",1,512,' && ok || bad 'train -o csv'
expect 4 'nowhere.txt' train card.json --data nowhere.txt --out 'run 3' --tokens 2K
expect 4 '' train card.json --data text.txt --out text.txt/sub --tokens 2K
# Ctrl-C: saves, 130, and --resume goes on. A budget no machine finishes before the signal.
"$chimera" train card.json --data text.txt --out 'run 4' --tokens 400M >out 2>err &
pid=$!
tries=0
while ! grep -q '^step' err && kill -0 $pid 2>/dev/null && [ $tries -lt 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
kill -TERM $pid
wait $pid
[ $? -eq 130 ] && ok || bad 'a stopped training did not end with 130'
# a closed terminal is a stop too, unless what started the program told it to outlive one, as nohup does
: >err # it still has the steps of the run before
env --default-signal=HUP "$chimera" train card.json --data text.txt --out 'run 4' --tokens 400M --resume >out 2>err &
pid=$!
tries=0
while ! grep -q '^step' err && kill -0 $pid 2>/dev/null && [ $tries -lt 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
kill -HUP $pid
wait $pid
[ $? -eq 130 ] && grep -q 'everything is saved' err && ok || bad 'a training whose terminal closed did not end with 130'
[ -s 'run 4/model.b158' ] && ok || bad 'a stopped training saved no model'
# one byte of the checkpoint changed
size=$(wc -c <'run 4/checkpoint.safetensors')
tail -c 5000 'run 4/checkpoint.safetensors' | head -c 1 >byte
[ "$(od -An -tx1 byte)" = ' 00' ] && printf '\001' >byte || printf '\000' >byte
dd if=byte of='run 4/checkpoint.safetensors' bs=1 seek=$((size - 5000)) conv=notrunc 2>/dev/null
expect 4 'do not have the hash' train card.json --data text.txt --out 'run 4' --tokens 400M --resume

# ---- layers
expect 3 'gd' layer test gdd
expect 2 '--in X.safetensors is missing' layer gd
expect 2 'chimera layer has it' layer test gd --in x
expect 1 '' layer test gd --tolerance 1e-300

# ---- tokenizers
expect 0 '' tokenizer show bytes
says out 'vocabulary: 258'
says out '"token_ids": [256, 257]' # what check takes
expect 0 '' tokenizer show card.json -o json --data text.txt
json out "d['tokenizer'] == 'bytes' and d['vocab_size'] == 258 and d['lossless'] and d['data'][0]['bytes_per_token'] == 1"
expect 0 '' tokenizer show model.b158 -o md
expect 0 '' tokenizer encode model.b158 text.txt
"$chimera" tokenizer decode bytes - <out 2>err | cmp -s - text.txt && ok || bad 'bytes decode to another text'
"$chimera" tokenizer encode bytes text.txt --raw 2>err | "$chimera" tokenizer decode bytes - --raw 2>>err | cmp -s - text.txt && ok ||
    bad 'raw ids decode to another text'
echo '1 2 two' >ids
expect 4 "token 2 is 'two'" tokenizer decode bytes ids
echo '104 0000000000000000000000000105' >ids
expect 4 "token 1 is '00000000000000000000000'" tokenizer decode bytes ids
echo '1 258' >ids
expect 4 'no token 258: its ids are 0..257' tokenizer decode bytes ids
printf '\001\000\000\000\001' >ids
expect 4 'ends inside token 1' tokenizer decode bytes ids --raw
expect 4 'nowhere' tokenizer encode bytes nowhere
expect 4 'nowhere.model' tokenizer show nowhere.model
expect 3 "bites" tokenizer show bites
expect 2 'cannot be trained' tokenizer train --type bytes --data text.txt --vocab 300 --out x.model
printf 'IQ== 0\nIg== 1' >ranks
if "$chimera" plugins show o200k >/dev/null 2>&1; then
    expect 4 'ranks:2: the last line does not end' tokenizer show ranks
    awk 'BEGIN { d = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        for (i = 0; i < 256; i++) printf "%s%s== %d\n", substr(d, int(i / 4) + 1, 1), substr(d, i % 4 * 16 + 1, 1), i }' >ranks
    printf 'a<|think|>b<|endoftext|>' >special.txt
    expect 0 '' tokenizer encode ranks special.txt
    [ "$(wc -w <out)" -eq 24 ] && ok || bad 'specials were parsed from a text'
    expect 0 '' tokenizer encode ranks special.txt --specials
    [ "$(cat out)" = '97 282 98 257' ] && ok || bad 'specials were not parsed when asked for'
    "$chimera" tokenizer decode ranks - <out 2>err >back
    [ "$(cat back)" = ab ] && ok || bad 'specials were written as text'
    expect 0 '' tokenizer encode ranks special.txt --specials
    "$chimera" tokenizer decode ranks - --specials <out 2>err | cmp -s - special.txt && ok || bad 'specials were not written when asked for'
    # trained, scored and run by a card, from another folder than the rank file's
    mkdir -p cards
    cp ranks cards/my.tiktoken
    cp special.txt cards/
    expect 0 '' train card.json --set tokenizer.type=o200k --set vocab_size=331 --set 'token_ids=[257, 316]' \
        --set files.tokenizer=cards/my.tiktoken --data text.txt --out 'run o200k' --tokens 2K
    cmp -s ranks 'run o200k/my.tiktoken' && ok || bad 'the run has no copy of its tokenizer'
    rm -r cards
    expect 0 '' eval 'run o200k/model.b158' --data text.txt -o json
    json out "d['bytes'] == d['tokens']"
    expect 0 '' run 'run o200k/model.b158' -p 'a b' -n 5 --seed 1
    expect 0 '' tokenizer show 'run o200k/card.json'
    sed '$s/255/256/' ranks >ranks2
    expect 4 'one is missing' tokenizer show ranks2
    sed 's/^IQ== 33$/Ig== 33/; t; s/^Ig== 34$/IQ== 34/' ranks >ranks2
    expect 4 'another tokenizer: its hash is' run 'run o200k/model.b158' --set files.tokenizer=ranks2 -p a -n 1
    expect 2 'set it to at least 331' init card.json --set tokenizer.type=o200k --set vocab_size=330 \
        --set 'token_ids=[257, 316]' --set files.tokenizer=ranks -o x.b158
else
    skip 'the o200k tokenizer is not built'
fi

# ---- synthetic tasks, and lines as documents
expect 2 'expected one of mqar, parity, majority' data primes
expect 2 '--out FILE is missing' data parity
expect 2 'of documents, 1..1000000000' data parity -o bits.txt --documents 0
expect 2 'of bits, 1..262144' data majority -o bits.txt --most 1M
expect 2 'the least length 9 is above the greatest, 8' data parity -o bits.txt --least 9 --most 8
expect 2 'need 32 keys, and the alphabet has 26' data mqar -o recall.txt --rebound 0
expect 2 'distinct keys, each asked at most once' data mqar -o recall.txt --least 4 --queries 3
expect 2 'alphabet' data mqar -o recall.txt --alphabet 1
expect 4 'missing/bits.txt' data parity -o missing/bits.txt
[ -e bits.txt ] || [ -e recall.txt ] && bad 'a refused task left a file' || ok
expect 0 'wrote bits.txt: 40 documents' data parity -o bits.txt --documents 40 --most 30
grep -cE '^[01]{1,30}=[01]$' bits.txt | grep -qx 40 && ok || bad 'data parity'
expect 0 '' data majority -o more.txt --documents 40 --least 70 -q
grep -cE '^[01]{70}=[01]$' more.txt | grep -qx 40 && ok || bad 'data majority: --least alone moves the other end'
expect 0 '' data mqar -o recall.txt --documents 40 --seed 18446744073709551615 -q
grep -cE '^([a-z][A-Z]){16,32} ([a-z]=[A-Z]){4}$' recall.txt | grep -qx 40 && ok || bad 'data mqar'
set -- --set training.documents=line --set training.loss_on=answers
expect 0 '' train card.json --data bits.txt --validation bits.txt --out answers --tokens 2K -q "$@"
expect 0 '' eval answers/model.b158 --data bits.txt -q
says out 'of 40 answers right'
says out '17..32'
expect 0 '' eval answers/model.b158 --data bits.txt -q -o json
json out "d['answers'] == 40 == sum(l['answers'] for l in d['lengths']) and 0 <= d['accuracy'] <= 1 and d['documents'] == 40"
json out "d['bits_per_answer'] == d['bits_per_byte']"
expect 0 '' eval model.b158 answers/model.b158 --data bits.txt -q -o csv
says out 'tokens,answers,accuracy,tokens_per_second'
[ "$(sed 's/[^,]//g' out | sort -u | wc -l)" = 1 ] && ok || bad 'eval -o csv: rows of several widths'
expect 0 '' eval model.b158 answers/model.b158 --data bits.txt -q -o md
[ "$(sed 's/[^|]//g' out | sort -u | wc -l)" = 1 ] && ok || bad 'eval -o md: rows of several widths'
expect 4 "no byte follows a '='" eval answers/model.b158 --data text.txt
expect 4 "no byte follows a '='" train card.json --data text.txt --out none --tokens 2K "$@"
expect 4 'set training.phases.pretrain.seq_len=73' train card.json --data more.txt --out none --tokens 2K "$@"
expect 2 "training.documents" train card.json --data bits.txt --out none --set training.documents=lines
expect 2 'tokenizer.type to bytes' check card.json --set tokenizer.type=sentencepiece --set training.loss_on=answers

# ---- a standard output that is full, closed, or has no reader
if [ -w /dev/full ]; then
    for arguments in 'help' 'version' 'doctor' 'check card.json' 'plugins list' 'run model.b158 -p a -n 3 --seed 9' \
        'inspect model.b158' 'eval model.b158 --data text.txt' 'bench model.b158 -r 1 --prefill 1 --decode 1 --streams 1'; do
        "$chimera" $arguments >/dev/full 2>err
        code=$?
        [ $code -eq 4 ] && grep -q '^chimera: ' err && ok || bad "chimera $arguments >/dev/full: code $code"
        "$chimera" $arguments >&- 2>err
        code=$?
        [ $code -eq 4 ] && grep -q '^chimera: ' err && ok || bad "chimera $arguments >&-: code $code"
    done
else
    skip 'no /dev/full here'
fi
# ---- out of memory is a code of its own (a sanitizer cannot run with so little)
if (ulimit -v 2000000 && "$chimera" version) >/dev/null 2>&1; then
    (ulimit -v 2000000 && exec "$chimera" bench model.b158 -r 1 --prefill 1000000000) >out 2>err
    code=$?
    [ $code -eq 6 ] && grep -q 'memory' err && ok || bad "out of memory: code $code"
else
    skip 'no limit on memory can be set here'
fi

mkfifo pipe
sh -c 'exec <pipe; :' &
{ "$chimera" run model.b158 -n 100K -q 2>err; echo $? >code; } >pipe
wait $!
[ "$(cat code)" -eq 4 ] && grep -q 'standard output' err && ok || bad "a reader that left: code $(cat code)"
"$chimera" doctor 2>&- >out && ok || bad 'doctor without a standard error'

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
