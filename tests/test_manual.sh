#!/bin/bash
# test_manual.sh: manual pages and completions, as the shells and readers they are for take them.
# usage: test_manual.sh CHIMERA BUILD_ROOT
set -u
case $1 in
/*) chimera=$1 ;;
*) chimera=$PWD/$1 ;;
esac
build=$2
work=$(mktemp -d "$build/tests/manual test XXXXXX") || exit 99
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 99
export PATH=${chimera%/*}:$PATH LC_ALL=C.UTF-8 # completions call the command by its name
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}
skip() {
    skipped=$((skipped + 1))
    echo "SKIPPED: $*"
}

# ---- manual pages: one for every command, and the build makes exactly these
mapfile -t verbs < <(chimera help | sed -n 's/^  \([a-z]*\)  .*/\1/p')
[ ${#verbs[@]} -ge 13 ] && ok || bad "only ${#verbs[@]} commands"
for verb in '' "${verbs[@]}"; do
    page=chimera${verb:+-$verb}.1
    chimera help ${verb:+"$verb"} -o man >"$page" && [ -s "$page" ] && ok || bad "$page"
    cmp -s "$page" "$build/cli/$page" && ok || bad "the build's $page is not what chimera says: see cli/meson.build"
    if command -v mandoc >/dev/null; then
        lint=$(mandoc -Tlint -W warning "$page" 2>&1) && [ -z "$lint" ] && ok || bad "mandoc $page: $lint"
    fi
    if command -v man >/dev/null && command -v groff >/dev/null; then
        lint=$(man --warnings -l "$page" 2>&1 >"$page.txt") && [ -z "$lint" ] && ok || bad "man --warnings $page: $lint"
    fi
done
made=$(cd "$build/cli" && printf '%s\n' chimera*.1 | wc -l)
[ "$made" -eq $((${#verbs[@]} + 1)) ] && ok || bad "the build makes $made pages for ${#verbs[@]} commands"
command -v mandoc >/dev/null || skip 'no mandoc: its lint has seen no page'
command -v groff >/dev/null || skip 'no groff: man --warnings has seen no page'
for words in '\\-\\-resume' 'EXIT STATUS' '.B 130' 'chimera train chimera\\-nano'; do
    grep -q -- "$words" chimera-train.1 && ok || bad "chimera-train.1 lacks $words"
done
grep -q 'chimera plugins show' chimera-plugins.1 && ok || bad 'chimera-plugins.1 lacks show'
grep -q 'NO_COLOR' chimera.1 && ok || bad 'chimera.1 lacks the environment'

# ---- bash
chimera completion bash >chimera.bash || bad 'completion bash'
cmp -s chimera.bash "$build/cli/completions/chimera" && ok || bad 'the build has other completions for bash'
. ./chimera.bash || bad 'bash does not read its completions'
complete -p chimera | grep -q -- '-F _chimera' && ok || bad 'bash: nothing is registered'

# completes LINE WANTED...: the words offered for the last word of LINE are these (or, with ... at the end, have these)
completes() {
    local line=$1 more= want got
    shift
    [ "${!#}" != ... ] || more=1
    set -- "${@/#...}"
    read -ra COMP_WORDS <<<"$line"
    case $line in
    *' ') COMP_WORDS+=('') ;;
    esac
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _chimera
    got=$(printf '%s\n' "${COMPREPLY[@]}" | sort -u)
    want=$(printf '%s\n' "$@" | sed '/^$/d' | sort -u)
    [ -z "$more" ] || got=$(comm -12 <(echo "$got") <(echo "$want"))
    [ "$got" = "$want" ] && ok || bad "bash: '$line' completes to: ${COMPREPLY[*]}, not: $*"
}
completes 'chimera tr' train
completes 'chimera ' "${verbs[@]}"
completes 'chimera plugins ' list show ...
completes 'chimera plugins sh' show
completes 'chimera --qu' --quiet
completes 'chimera -v ev' eval
completes 'chimera train x.json --che' --checkpoint-seconds
completes 'chimera train x.json --da' --data
completes 'chimera layer test --' --tolerance --rows --trees --only --output --help --threads ...
completes 'chimera layer gd --m' --mode
completes 'chimera layer gd --mode ' chunk step
completes 'chimera layer test --mode'
completes 'chimera doctor -o ' text json csv md
completes 'chimera doctor --output j' json
COMP_LINE= completes 'chimera doctor --output = m' md
completes 'chimera completion f' fish
completes 'chimera help ' "${verbs[@]}"
completes 'chimera plugins list --kind b' backend
completes 'chimera run m --backend sca' scalar
completes 'chimera layer test g' gd
completes 'chimera plugins show sc' scalar
completes 'chimera check chimera-nan' chimera-nano
completes 'chimera train chimera-' chimera-nano chimera-mini ...
completes 'chimera run m --temp '
completes 'chimera run m -p '

# ---- zsh, fish
chimera completion zsh >_chimera && cmp -s _chimera "$build/cli/completions/_chimera" && ok || bad 'completion zsh'
chimera completion fish >chimera.fish && cmp -s chimera.fish "$build/cli/completions/chimera.fish" && ok || bad 'completion fish'
if command -v zsh >/dev/null; then
    zsh -n _chimera && ok || bad 'zsh does not read its completions'
    # compinit must take the file, and bind it to the command
    [ "$(zsh -fc "fpath=(\"$work\" \$fpath); autoload -Uz compinit; compinit -D -u; print \$_comps[chimera]" 2>&1)" = _chimera ] &&
        ok || bad 'zsh does not bind its completions'
else
    skip 'no zsh: its completions are unread'
fi
if command -v fish >/dev/null; then
    export HOME=$work XDG_CONFIG_HOME=$work XDG_DATA_HOME=$work
    fish --no-execute chimera.fish && ok || bad 'fish does not read its completions'
    fished() { fish --no-config -c "source chimera.fish; complete -C '$1'" 2>&1 | cut -f1 | sort | tr '\n' ' '; }
    [ "$(fished 'chimera tr')" = 'train ' ] && ok || bad "fish: chimera tr: $(fished 'chimera tr')"
    [ "$(fished 'chimera layer gd --mode ')" = 'chunk step ' ] && ok || bad "fish: --mode: $(fished 'chimera layer gd --mode ')"
    [ "$(fished 'chimera layer test --mod')" = '' ] && ok || bad "fish: layer test --mod: $(fished 'chimera layer test --mod')"
    [ "$(fished 'chimera doctor -o j')" = 'json ' ] && ok || bad "fish: -o: $(fished 'chimera doctor -o j')"
    [ "$(fished 'chimera check chimera-nan')" = 'chimera-nano ' ] && ok || bad "fish: card: $(fished 'chimera check chimera-nan')"
    [ "$(fished 'chimera plugins list --kind b')" = 'backend ' ] && ok || bad "fish: --kind: $(fished 'chimera plugins list --kind b')"
else
    skip 'no fish: its completions are unread'
fi
chimera completion tcsh 2>err && bad 'completion tcsh' || ok
grep -q 'expected one of bash, zsh, fish' err && ok || bad 'completion tcsh: no sentence'

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
