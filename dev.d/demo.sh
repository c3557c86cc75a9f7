# The verbs demo, env and kill: the whole of Fairlead on this machine, for as long as you watch.
# shellcheck shell=sh

DEMO_PID_FILE="$STATE/demo.pid"
DEMO_IMAGE=fairlead-demo:1
DEMO_CONTAINER=demo-web
# The real image brings its own health check; the simulated one has none.
DEMO_FLAGS=

verb_demo() {
    demo_check=no
    demo_agreed=no
    demo_engine=docker
    demo_ports=
    demo_arguments="demo $*"
    while [ $# -gt 0 ]; do
        case $1 in
            --check) demo_check=yes ;;
            --yes | -y) demo_agreed=yes ;;
            --engine=*) demo_engine=${1#*=} ;;
            --ports-from=*) demo_ports=${1#*=} ;;
            --engine | --ports-from)
                [ $# -ge 2 ] || usage_error "$1 needs a value"
                if [ "$1" = --engine ]; then demo_engine=$2; else demo_ports=$2; fi
                shift
                ;;
            *) usage_error "demo does not know '$1'" ;;
        esac
        shift
    done
    case $demo_engine in
        docker | simulated) ;;
        *) usage_error "--engine is docker or simulated, not '$demo_engine'" ;;
    esac
    case $demo_ports in
        *[!0-9]*) usage_error "--ports-from takes a number" ;;
    esac
    if [ "$demo_engine" = simulated ]; then
        DEMO_IMAGE=demo/web:1
        DEMO_FLAGS="--health-cmd true --health-interval 1s"
    fi
    need_rust
    if [ "$demo_check" = yes ]; then
        ensure_packages "$demo_engine" "demo --check" "$demo_agreed"
        tour
    else
        ! demo_runs || die "a demo runs already (pid $(cat "$DEMO_PID_FILE")); ./dev env logs you in to it"
        ensure_packages "$demo_engine" demo "$demo_agreed"
        demo
    fi
}

# Builds the programs and says where they are: sets BIN.
build_programs() {
    build_from=$(now_ms)
    note "build (the first one takes some minutes)"
    cargo build --workspace --bins >&2 || die "the build failed"
    BIN=$(target_dir)/debug
    [ -x "$BIN/fairlead" ] || die "the build made no $BIN/fairlead"
    PATH="$BIN:$PATH"
    export PATH BIN
    BUILD_TIME=$(since "$build_from")
    note "built in $BUILD_TIME"
}

# start_fairlead DIR PORTS ENGINE: sets KEEPER, the pid of `fairlead dev`, and waits for ready.json.
start_fairlead() {
    start_dir=$1
    # The directory is ours and new: whatever a run that was killed left there is gone.
    rm -rf "$start_dir"
    set -- dev --data-dir "$start_dir" --engine "$3" ${2:+--ports-from "$2"}
    start_from=$(now_ms)
    "$BIN/fairlead" "$@" >"$start_dir.log" 2>&1 </dev/null &
    KEEPER=$!
    if ! working "start controller, access server and agent" wait_until_ready "$start_dir" "$KEEPER"; then
        tail -n 15 "$start_dir.log" | sed 's/^/    /' >&2
        return 1
    fi
    START_TIME=$(since "$start_from")
}

wait_until_ready() {
    wait_ready_until=$(($(date +%s) + 60))
    until [ -s "$1/ready.json" ]; do
        kill -0 "$2" 2>/dev/null || return 1
        [ "$(date +%s)" -lt "$wait_ready_until" ] || return 1
        sleep 0.1 2>/dev/null || sleep 1
    done
}

# stop_fairlead DIR: asks the keeper, which stops the four; then whatever is still there by its pid.
stop_fairlead() {
    [ -n "${KEEPER:-}" ] || return 0
    stop_left=
    for stop_name in supervisor agent access_server controller; do
        [ ! -s "$1/ready.json" ] || stop_left="$stop_left $(json_number "$1/ready.json" "$stop_name")"
    done
    kill -TERM "$KEEPER" 2>/dev/null || true
    if ! wait_for 15 is_gone "$KEEPER"; then
        warn "fairlead dev (pid $KEEPER) does not end; killed"
        kill -KILL "$KEEPER" 2>/dev/null || true
    fi
    wait "$KEEPER" 2>/dev/null || true
    for stop_pid in $stop_left; do
        wait_for 2 is_gone "$stop_pid" || kill -KILL "$stop_pid" 2>/dev/null || true
    done
    KEEPER=
}

# Gone, or only waiting to be noticed by us.
is_gone() {
    kill -0 "$1" 2>/dev/null || return 0
    case $(ps -o stat= -p "$1" 2>/dev/null) in
        Z* | '') return 0 ;;
        *) return 1 ;;
    esac
}

# log_in DIR: this shell's CLI talks to the installation in DIR.
log_in() {
    FAIRLEAD_URL=$(json_text "$1/ready.json" url)
    FAIRLEAD_TOKEN=$(json_text "$1/ready.json" token)
    FAIRLEAD_CA=$(json_text "$1/ready.json" ca_file)
    export FAIRLEAD_URL FAIRLEAD_TOKEN FAIRLEAD_CA
}

demo() {
    demo_before=
    trap demo_end EXIT
    trap 'exit 0' INT
    trap 'exit 143' TERM HUP
    if [ "$demo_engine" = docker ]; then
        # shellcheck disable=SC2086 # the words of this run's command line
        ensure_engine $demo_arguments
        working "make the image $DEMO_IMAGE from busybox" make_image "$DEMO_IMAGE"
        demo_before=$(docker ps -aq --no-trunc)
        ! docker inspect "$DEMO_CONTAINER" >/dev/null 2>&1 ||
            die "a container named $DEMO_CONTAINER is here already, and it is not the demo's: rename or remove it"
    else
        note "engine: simulated, nothing real is run"
    fi
    build_programs
    start_fairlead "$DEMO_DIR" "$demo_ports" "$demo_engine" ||
        die "it did not start; the log is .dev/demo.log (ports in use? --ports-from 7600)"
    printf '%s\n' "$KEEPER" >"$DEMO_PID_FILE"
    log_in "$DEMO_DIR"
    # shellcheck disable=SC2086 # a list of flags
    fairlead run -d --name "$DEMO_CONTAINER" --memory 64m $DEMO_FLAGS "$DEMO_IMAGE" >/dev/null ||
        die "the demo's container did not start"
    demo_greeting
    # `wait` ends when the keeper does, or when a signal comes.
    demo_code=0
    wait "$KEEPER" || demo_code=$?
    die "fairlead dev ended by itself (code $demo_code); the log is .dev/demo.log"
}

demo_greeting() {
    demo_ready="$DEMO_DIR/ready.json"
    cat <<TEXT

  up in $START_TIME (build $BUILD_TIME); the agent listens on no port
  controller  $FAIRLEAD_URL   region $(json_text "$demo_ready" region)  $(json_text "$demo_ready" region_url)   host $(json_text "$demo_ready" host)

  in a second terminal:   eval "\$(./dev env)"
  then, for instance:     fairlead ps -a
                          fairlead restart $DEMO_CONTAINER
                          ./dev kill agent; fairlead restart $DEMO_CONTAINER
  Ctrl-C ends it and takes everything of the demo's own with it.

TEXT
}

demo_end() {
    demo_exit=$?
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    [ ! -t 2 ] || printf '\n' >&2
    stop_fairlead "$DEMO_DIR"
    rm -f "$DEMO_PID_FILE"
    rm -rf "$DEMO_DIR"
    demo_removed=
    demo_left=
    if [ "$demo_engine" = docker ] && engine_answers; then
        remove_demo_containers
    fi
    release_engine
    [ ! -s "$STATE/installed" ] ||
        demo_left="$demo_left, what was installed for you (apt-get purge $(sort -u "$STATE/installed" | tr '\n' ' ' | sed 's/ $//'))"
    note "removed: ${demo_removed:+$demo_removed, }the demo's data. Left: $(printf '%s' "${demo_left:-, nothing}" | sed 's/^, //')."
    exit "$demo_exit"
}

# What was made from the demo's image through Fairlead goes, and then the image; the rest is yours.
remove_demo_containers() {
    demo_ours=$(docker ps -aq --filter "ancestor=$DEMO_IMAGE" --filter label=fairlead.command)
    if [ -n "$demo_ours" ]; then
        # shellcheck disable=SC2086 # a list of ids
        docker rm -f -v $demo_ours >/dev/null
        demo_removed="$(printf '%s\n' "$demo_ours" | wc -l | tr -d ' ') container(s)"
    fi
    if docker rmi "$DEMO_IMAGE" >/dev/null 2>&1; then
        demo_removed="${demo_removed:+$demo_removed,} 1 image"
    elif docker image inspect "$DEMO_IMAGE" >/dev/null 2>&1; then
        demo_left="$demo_left, the image $DEMO_IMAGE (a container of yours uses it)"
    fi
    for demo_id in $(docker ps -aq --no-trunc --filter label=fairlead.command); do
        case $demo_before in
            *"$demo_id"*) ;;
            *) demo_left="$demo_left, container $(docker inspect --format '{{.Name}}' "$demo_id" | tr -d /) (made through Fairlead)" ;;
        esac
    done
}

demo_runs() { [ -s "$DEMO_PID_FILE" ] && kill -0 "$(cat "$DEMO_PID_FILE")" 2>/dev/null && [ -s "$DEMO_DIR/ready.json" ]; }

# Single quotes around a value, for eval.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

verb_env() {
    [ $# -eq 0 ] || usage_error "env takes no options"
    demo_runs || die "no demo runs; start one with ./dev demo"
    log_in "$DEMO_DIR"
    # shellcheck disable=SC2016 # $PATH is for the shell that evaluates this
    printf 'export PATH=%s:"$PATH"\n' "$(quoted "$(target_dir)/debug")"
    printf 'export FAIRLEAD_URL=%s\n' "$(quoted "$FAIRLEAD_URL")"
    printf 'export FAIRLEAD_TOKEN=%s\n' "$(quoted "$FAIRLEAD_TOKEN")"
    printf 'export FAIRLEAD_CA=%s\n' "$(quoted "$FAIRLEAD_CA")"
}

verb_kill() {
    [ $# -eq 1 ] || usage_error "kill what? agent, access-server or controller"
    case $1 in
        agent) kill_what="the supervisor starts another instance; the link comes back, commands wait" ;;
        access-server) kill_what="it is started again; agents dial back in, its ledger is on disk" ;;
        controller) kill_what="it is started again; the region and its agents stay connected to each other" ;;
        *) usage_error "kill what? agent, access-server or controller, not '$1'" ;;
    esac
    demo_runs || die "no demo runs; start one with ./dev demo"
    kill_pid=$(json_number "$DEMO_DIR/ready.json" "$(printf '%s' "$1" | tr - _)")
    [ -n "$kill_pid" ] || die "ready.json names no pid for $1"
    kill -KILL "$kill_pid" || die "the $1 (pid $kill_pid) is away already"
    say "killed the $1 (pid $kill_pid, signal 9): $kill_what"
}
