# The verbs bench and soak: what Fairlead costs on this machine, and whether anything grows.
# shellcheck shell=sh

verb_bench() {
    bench_profile=measure
    bench_names=
    bench_quick=
    bench_hosts=
    while [ $# -gt 0 ]; do
        case $1 in
            --quick) bench_quick=--quick ;;
            --release) bench_profile=release ;;
            --hosts)
                [ $# -gt 1 ] || usage_error "--hosts needs a number"
                bench_hosts="--hosts $2"
                shift
                ;;
            sizes | links | fleet | engine | terminal | agent | fleet45k) bench_names="$bench_names $1" ;;
            *) usage_error "bench knows no $1" ;;
        esac
        shift
    done
    case "$bench_names " in
        ' ' | *' engine '* | *' terminal '* | *' agent '*)
            engine_answers || die "engine, terminal and agent are measured with a Docker Engine, and none answers; without: ./dev bench links fleet"
            FAIRLEAD_TEST_BUSYBOX=$(static_busybox) || die "busybox-static is missing: ./dev doctor"
            export FAIRLEAD_TEST_BUSYBOX
            ;;
    esac
    # Takes minutes, so only once all else is there.
    bench_build "$bench_profile"
    # shellcheck disable=SC2086 # lists of words
    "$FAIRLEAD_TEST_PROGRAMS/fairlead-bench" run $bench_names $bench_quick $bench_hosts \
        --build "profile $bench_profile" --out "$ROOT/bench.json"
}

verb_soak() {
    soak_during=
    soak_hosts=500
    while [ $# -gt 0 ]; do
        case $1 in
            --hosts)
                [ $# -gt 1 ] || usage_error "--hosts needs a number"
                soak_hosts=$2
                shift
                ;;
            [0-9]*[smh]) soak_during=$1 ;;
            *) usage_error "soak takes a duration, such as 30m" ;;
        esac
        shift
    done
    bench_build measure
    # Else glibc keeps a heap per thread, each of which grows to its own peak over an hour: twice what is in use,
    # and more than any leak that would show. The packed servers have one heap.
    MALLOC_ARENA_MAX=1 "$FAIRLEAD_TEST_PROGRAMS/fairlead-bench" soak "${soak_during:-30m}" --hosts "$soak_hosts"
}

# The programs in that profile, and where they are.
bench_build() {
    need_rust
    working "build, profile $1 (the first one takes some minutes)" \
        cargo build --profile "$1" --bins -p fairlead-agent -p fairlead-access-server \
        -p fairlead-controller -p fairlead-cli -p fairlead-bench || die "the programs do not build"
    FAIRLEAD_TEST_PROGRAMS="$(target_dir)/$1"
    export FAIRLEAD_TEST_PROGRAMS
}
