# How ./dev talks: results on stdout, talk on stderr, progress on what takes over two seconds.
# shellcheck shell=sh

say() { printf '%s\n' "$*"; }
note() { printf '%s\n' "$*" >&2; }
warn() { printf 'dev: %s\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}
usage_error() {
    warn "$* (./dev help)"
    exit 2
}

# Milliseconds since 1970; whole seconds where `date` knows no better (macOS).
now_ms() {
    now_ms_text=$(date +%s%3N 2>/dev/null)
    case $now_ms_text in
        '' | *[!0-9]*) printf '%s000' "$(date +%s)" ;;
        *) printf '%s' "$now_ms_text" ;;
    esac
}

# Milliseconds since $1, for people.
since() {
    since_ms=$(($(now_ms) - $1))
    if [ "$since_ms" -ge 60000 ]; then
        printf '%d:%02d' $((since_ms / 60000)) $((since_ms / 1000 % 60))
    else
        printf '%d.%02d s' $((since_ms / 1000)) $((since_ms % 1000 / 10))
    fi
}

# working TEXT COMMAND…: runs it with its output in a file and shows that time goes by. When the
# command fails, the end of its output is shown, the file is kept, and its exit code returned.
working() {
    working_text=$1
    shift
    working_from=$(now_ms)
    working_log="$STATE/working-$$.log"
    "$@" >"$working_log" 2>&1 </dev/null &
    working_pid=$!
    working_beats=0
    while kill -0 "$working_pid" 2>/dev/null; do
        sleep 0.1 2>/dev/null || sleep 1
        working_beats=$((working_beats + 1))
        if [ -t 2 ]; then
            printf '\r  %s … %s ' "$working_text" "$(since "$working_from")" >&2
        elif [ $((working_beats % 100)) -eq 20 ]; then
            note "  $working_text … $(since "$working_from")"
        fi
    done
    working_code=0
    wait "$working_pid" || working_code=$?
    working_pid=
    [ ! -t 2 ] || printf '\r\033[K' >&2
    if [ "$working_code" -eq 0 ]; then
        rm -f "$working_log"
        note "  $working_text: $(since "$working_from")"
    elif [ ! -s "$working_log" ]; then
        rm -f "$working_log"
        note "  $working_text: failed after $(since "$working_from")"
    else
        note "  $working_text: failed after $(since "$working_from"); the end of its output:"
        tail -n 15 "$working_log" | sed 's/^/    /' >&2
    fi
    return "$working_code"
}

# What Ctrl-C found under way is ended with us.
stop_working() {
    [ -n "${working_pid:-}" ] || return 0
    kill -TERM "$working_pid" 2>/dev/null || true
    wait "$working_pid" 2>/dev/null || true
    rm -f "$working_log"
    working_pid=
}

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
    wait_for_until=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$wait_for_until" ] || return 1
        sleep 0.1 2>/dev/null || sleep 1
    done
}

# agreed TEXT VERB: asks on the terminal; without one, refuses with the command that says yes.
agreed() {
    [ -t 0 ] || die "no terminal to ask on; to agree beforehand: ./dev $2 --yes"
    printf '%s [y/N] ' "$1" >&2
    read -r agreed_answer || return 1
    case $agreed_answer in
        y | Y | yes | Yes | YES) return 0 ;;
        *) return 1 ;;
    esac
}

# A string field, or a number, of a JSON file whose keys are unique (ready.json is such a file).
json_text() { sed -n "s/.*\"$2\"[[:space:]]*:[[:space:]]*\"\\([^\"]*\\)\".*/\\1/p" "$1" | head -n 1; }
json_number() { sed -n "s/.*\"$2\"[[:space:]]*:[[:space:]]*\\([0-9][0-9]*\\).*/\\1/p" "$1" | head -n 1; }
