# The verb fuzz: hostile bytes for everything that reads what others wrote (fuzz/).
# shellcheck shell=sh

FUZZ_TOOL="$STATE/fuzz-tool"
FUZZ_TOOL_VERSION=0.13.2
FUZZ_WORK="$STATE/fuzz"

verb_fuzz() {
    fuzz_seconds=600
    fuzz_keep=no
    fuzz_agreed=no
    fuzz_targets=
    [ "${CI:-}" != true ] || fuzz_agreed=yes
    while [ $# -gt 0 ]; do
        case $1 in
            --seconds)
                [ $# -ge 2 ] || usage_error "--seconds needs a number"
                case $2 in '' | *[!0-9]*) usage_error "--seconds needs a number, not '$2'" ;; esac
                fuzz_seconds=$2
                shift
                ;;
            --keep) fuzz_keep=yes ;;
            --yes) fuzz_agreed=yes ;;
            -*) usage_error "fuzz does not know '$1'" ;;
            *)
                [ -f "$ROOT/fuzz/fuzz_targets/$1.rs" ] || usage_error "there is no fuzz target '$1'; there are: $(fuzz_all)"
                fuzz_targets="$fuzz_targets $1"
                ;;
        esac
        shift
    done
    [ -n "$fuzz_targets" ] || fuzz_targets=$(fuzz_all)
    need_rust
    trap stop_working EXIT
    trap 'exit 130' INT TERM HUP
    ensure_fuzz_tool "$fuzz_agreed"
    working "build the fuzz targets" fuzz_cargo build || die "the fuzz targets do not build"
    fuzz_code=0
    for fuzz_target in $fuzz_targets; do
        fuzz_one "$fuzz_target" || fuzz_code=1
    done
    sweep_fuzz
    [ "$fuzz_code" -eq 0 ] || die "fuzzing found something: each finding's file is named above"
}

fuzz_all() {
    for fuzz_all_file in "$ROOT"/fuzz/fuzz_targets/*.rs; do
        basename "$fuzz_all_file" .rs
    done | tr '\n' ' '
}

fuzz_cargo() {
    (
        cd "$ROOT" || exit
        PATH="$FUZZ_TOOL/bin:$PATH"
        export PATH CARGO_TARGET_DIR="$FUZZ_WORK/target"
        # The stable toolchain of rust-toolchain.toml has no sanitizers.
        exec cargo +nightly fuzz "$@"
    )
}

ensure_fuzz_tool() {
    if ! cargo +nightly --version >/dev/null 2>&1; then
        has rustup || die "fuzzing needs a nightly compiler, and rustup to get it: https://rustup.rs"
        [ "$1" = yes ] || agreed "install the nightly toolchain with rustup?" fuzz || die "nothing installed"
        working "rustup toolchain install nightly" rustup toolchain install nightly --profile minimal ||
            die "the nightly toolchain could not be installed"
    fi
    [ -x "$FUZZ_TOOL/bin/cargo-fuzz" ] && return 0
    [ "$1" = yes ] || agreed "build cargo-fuzz $FUZZ_TOOL_VERSION in .dev/ (two minutes)?" fuzz || die "nothing installed"
    working "cargo install cargo-fuzz" \
        cargo +nightly install --locked cargo-fuzz --version "$FUZZ_TOOL_VERSION" --root "$FUZZ_TOOL" ||
        die "cargo-fuzz could not be built"
}

# The program itself: by cargo a source that changed meanwhile would be built in the middle of it.
fuzz_run() {
    fuzz_program=$1
    shift
    fuzz_host=$(cargo +nightly -vV | sed -n 's/^host: //p')
    (
        cd "$ROOT/fuzz" || exit
        ASAN_OPTIONS=detect_odr_violation=0 exec "$FUZZ_WORK/target/$fuzz_host/release/$fuzz_program" "$@"
    )
}

# The corpus that is kept is one small archive a target; what a run finds goes to .dev/ beside it.
fuzz_one() {
    fuzz_corpus="$FUZZ_WORK/corpus/$1"
    fuzz_kept="$ROOT/fuzz/corpus/$1.tar.gz"
    mkdir -p "$fuzz_corpus" "$FUZZ_WORK/findings/$1"
    [ ! -f "$fuzz_kept" ] || tar -xzf "$fuzz_kept" -C "$fuzz_corpus"
    fuzz_log="$FUZZ_WORK/$1.log"
    # Threads of a runtime allocate whenever they like: after each input it would look like a leak, and the
    # whole memory would be searched for it.
    fuzz_leaks=1
    ! grep -q RUNTIME "$ROOT/fuzz/fuzz_targets/$1.rs" || fuzz_leaks=0
    fuzz_from=$(now_ms)
    if fuzz_run "$1" "$fuzz_corpus" -max_total_time="$fuzz_seconds" -timeout=30 -rss_limit_mb=4096 \
        -detect_leaks="$fuzz_leaks" \
        -artifact_prefix="$FUZZ_WORK/findings/$1/" -print_final_stats=1 >"$fuzz_log" 2>&1; then
        fuzz_runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$fuzz_log")
        fuzz_covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$fuzz_log" | tail -n 1)
        fuzz_speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$fuzz_log")
        say "$1: $fuzz_runs inputs in $(since "$fuzz_from"), $fuzz_speed a second, ${fuzz_covered:-?} places reached, nothing found"
    else
        say "$1: FOUND something after $(since "$fuzz_from"); the end of $fuzz_log:"
        tail -n 20 "$fuzz_log" | sed 's/^/    /'
        return 1
    fi
    [ "$fuzz_keep" = yes ] || return 0
    fuzz_smallest="$FUZZ_WORK/smallest/$1"
    rm -rf "$fuzz_smallest"
    mkdir -p "$fuzz_smallest" "$ROOT/fuzz/corpus"
    fuzz_run "$1" -merge=1 -detect_leaks="$fuzz_leaks" "$fuzz_smallest" "$fuzz_corpus" >>"$fuzz_log" 2>&1 ||
        die "the corpus could not be made smaller: $fuzz_log"
    tar -C "$fuzz_smallest" --sort=name --owner=0 --group=0 --mtime=@0 -cf - . | gzip -n -9 >"$fuzz_kept"
}

# Targets leave by _exit, so their files in memory stay. Those of a run beside this one do too.
sweep_fuzz() {
    for sweep_fuzz_dir in /dev/shm/fairlead-fuzz-*; do
        [ -d "$sweep_fuzz_dir" ] || continue
        sweep_fuzz_pid=${sweep_fuzz_dir#/dev/shm/fairlead-fuzz-}
        [ -d "/proc/${sweep_fuzz_pid%%-*}" ] || rm -rf "$sweep_fuzz_dir"
    done
}
