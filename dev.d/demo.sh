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
    demo_programs=
    demo_arguments="demo $*"
    while [ $# -gt 0 ]; do
        case $1 in
            --check) demo_check=yes ;;
            --yes | -y) demo_agreed=yes ;;
            --engine=*) demo_engine=${1#*=} ;;
            --ports-from=*) demo_ports=${1#*=} ;;
            --programs=*) demo_programs=${1#*=} ;;
            --engine | --ports-from | --programs)
                [ $# -ge 2 ] || usage_error "$1 needs a value"
                case $1 in
                    --engine) demo_engine=$2 ;;
                    --ports-from) demo_ports=$2 ;;
                    --programs) demo_programs=$2 ;;
                esac
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
        *[!0-9]* | ??????*) usage_error "--ports-from takes a port number, not '$demo_ports'" ;;
    esac
    [ -z "$demo_programs" ] || [ -x "$demo_programs/fairlead" ] ||
        usage_error "--programs is a directory with fairlead and the three daemons, and there is no $demo_programs/fairlead"
    if [ "$demo_engine" = simulated ]; then
        DEMO_IMAGE=demo/web:1
        DEMO_FLAGS="--health-cmd true --health-interval 1s"
    fi
    [ -n "$demo_programs" ] || need_rust
    if [ "$demo_check" = yes ]; then
        ensure_packages "$demo_engine" "demo --check" "$demo_agreed"
        tour
    else
        ensure_packages "$demo_engine" demo "$demo_agreed"
        demo
    fi
}

# Builds the programs, unless they were given, and says where they are: sets BIN.
build_programs() {
    build_from=$(now_ms)
    if [ -n "$demo_programs" ]; then
        BIN=$(CDPATH='' cd -- "$demo_programs" && pwd)
        note "programs: $BIN, not built here"
    else
        note "build (the first one takes some minutes)"
        cargo build --workspace --bins >&2 || die "the build failed"
        BIN=$(target_dir)/debug
        [ -x "$BIN/fairlead" ] || die "the build made no $BIN/fairlead"
    fi
    PATH="$BIN:$PATH"
    export PATH BIN
    BUILD_TIME=
    [ -n "$demo_programs" ] || {
        BUILD_TIME=$(since "$build_from")
        note "built in $BUILD_TIME"
    }
}

# start_fairlead DIR PORTS ENGINE: sets KEEPER, the pid of `fairlead dev`, and waits for ready.json.
start_fairlead() {
    start_dir=$1
    # The directory is ours and new: whatever a run that was killed left there is gone.
    rm -rf "$start_dir"
    set -- dev --data-dir "$start_dir" --engine "$3" ${2:+--ports-from "$2"}
    start_from=$(now_ms)
    # Should this shell be killed, it ends by itself, and takes the others with it.
    FAIRLEAD_DIE_WITH_PARENT=1 "$BIN/fairlead" "$@" >"$start_dir.log" 2>&1 </dev/null &
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

# offer_packages DIR: packs the programs at hand, so that `fairlead host add` has something to offer. The
# key is thrown away at once, unless there is to be a next version; nobody outside this demo is to believe it.
offer_packages() {
    offer_work="$1.packages"
    offer_target="linux-$(uname -m)"
    rm -rf "$offer_work"
    mkdir -p "$offer_work/programs/$offer_target"
    for offer_program in fairlead fairlead-agent fairlead-access-server fairlead-controller; do
        cp "$BIN/$offer_program" "$offer_work/programs/$offer_target/" || return 1
    done
    cargo metadata --locked --format-version 1 >"$offer_work/metadata.json" 2>/dev/null &&
        "$BIN/fairlead-packer" keygen --out "$offer_work/key.pem" >/dev/null &&
        offer_version "$1" 0.0.1 || return 1
    [ "${2:-}" = and-a-next ] || rm -rf "$offer_work"
}

# offer_version DIR VERSION: the same programs as that version, by the key of DIR's packages.
offer_version() {
    "$BIN/fairlead-packer" pack --programs "$1.packages/programs" --targets "linux-$(uname -m)" \
        --version "$2" --min-from 0.0.1 --installer "$ROOT/installer/install.sh" --metadata "$1.packages/metadata.json" \
        --key "$1.packages/key.pem" --out "$1/controller/packages" >/dev/null
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
    # A machine may have no ps.
    if [ -r "/proc/$1/stat" ]; then
        case $(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null) in
            Z* | X* | '') return 0 ;;
            *) return 1 ;;
        esac
    fi
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

# One demo at a time in this work tree; the file names the shell that runs it.
claim_demo() {
    until (set -C && printf '%s\n' "$$" >"$DEMO_PID_FILE") 2>/dev/null; do
        claim_pid=$(cat "$DEMO_PID_FILE" 2>/dev/null || true)
        [ -w "$STATE" ] || die "$STATE is not yours to write"
        [ -n "$claim_pid" ] && ! is_gone "$claim_pid" &&
            die "a demo runs already (pid $claim_pid); ./dev env logs you in to it"
        # Its shell was killed.
        rm -f "$DEMO_PID_FILE"
    done
}

demo() {
    demo_before=
    demo_listed=no
    demo_started=no
    claim_demo
    trap demo_end EXIT
    trap 'exit 0' INT
    trap 'exit 143' TERM HUP
    if [ "$demo_engine" = docker ]; then
        # shellcheck disable=SC2086 # the words of this run's command line
        ensure_engine $demo_arguments
        remove_leftover
        demo_before=$(docker ps -aq --no-trunc)
        demo_listed=yes
        working "make the image $DEMO_IMAGE from busybox" make_image "$DEMO_IMAGE"
    else
        note "engine: simulated, nothing real is run"
    fi
    build_programs
    demo_started=yes
    start_fairlead "$DEMO_DIR" "$demo_ports" "$demo_engine" ||
        die "it did not start; the log is .dev/demo.log (ports in use? --ports-from 7600)"
    printf '%s\n' "$BIN" >"$DEMO_DIR/programs"
    log_in "$DEMO_DIR"
    # shellcheck disable=SC2086 # a list of flags
    fairlead run -d --name "$DEMO_CONTAINER" --memory 64m $DEMO_FLAGS "$DEMO_IMAGE" >/dev/null ||
        die "the demo's container did not start"
    [ "$demo_engine" != docker ] || docker inspect --format '{{.Id}}' "$DEMO_CONTAINER" >"$STATE/demo.container"
    demo_greeting
    # `wait` ends when the keeper does, or when a signal comes.
    demo_code=0
    wait "$KEEPER" || demo_code=$?
    die "fairlead dev ended by itself (code $demo_code); the log is .dev/demo.log"
}

# The container of a demo of this work tree that was killed goes; anybody else's is not touched.
remove_leftover() {
    leftover=$(docker inspect --format '{{.Id}}' "$DEMO_CONTAINER" 2>/dev/null) || return 0
    grep -qx "$leftover" "$STATE/demo.container" 2>/dev/null ||
        die "a container named $DEMO_CONTAINER is here already, and it is not this demo's: rename or remove it"
    docker rm -f -v "$leftover" >/dev/null
    docker rmi "$DEMO_IMAGE" >/dev/null 2>&1 || true
    note "  removed the container $DEMO_CONTAINER of a demo that was killed"
}

demo_greeting() {
    demo_ready="$DEMO_DIR/ready.json"
    cat <<TEXT

  up in $START_TIME${BUILD_TIME:+ (build $BUILD_TIME)}; the agent listens on no port
  controller  $FAIRLEAD_URL   region $(json_text "$demo_ready" region)  $(json_text "$demo_ready" region_url)   host $(json_text "$demo_ready" host)
  terminals   $FAIRLEAD_URL/terminal   in a browser; the token to sign in: ./dev env

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
    stop_working
    stop_fairlead "$DEMO_DIR"
    rm -f "$DEMO_DIR/token" "$DEMO_DIR/ready.json" "$DEMO_PID_FILE"
    demo_removed=
    demo_left=
    if [ "$demo_listed" = yes ] && engine_answers; then
        remove_demo_containers
    fi
    if [ "$demo_started" = yes ] && [ "$demo_exit" -ne 0 ] && [ "$demo_exit" -ne 143 ]; then
        # When it did not come up, the logs say why.
        demo_left="$demo_left, .dev/demo and .dev/demo.log for you to look at"
    elif [ "$demo_started" = yes ]; then
        rm -rf "$DEMO_DIR" "$DEMO_DIR.log"
        demo_removed="$demo_removed, the demo's data"
    fi
    release_engine
    [ ! -s "$STATE/installed" ] ||
        demo_left="$demo_left, what was installed for you (apt-get purge $(sort -u "$STATE/installed" | tr '\n' ' ' | sed 's/ $//'))"
    demo_removed=${demo_removed#, }
    demo_left=${demo_left#, }
    [ "$demo_started$demo_removed$demo_left" = no ] ||
        note "removed: ${demo_removed:-nothing}. Left: ${demo_left:-nothing}."
    exit "$demo_exit"
}

# What was made from the demo's image through Fairlead goes, and then the image; the rest is yours.
remove_demo_containers() {
    demo_ours=
    for demo_id in $(docker ps -aq --no-trunc --filter "ancestor=$DEMO_IMAGE" --filter label=fairlead.command); do
        case $demo_before in
            *"$demo_id"*) ;;
            *) demo_ours="$demo_ours $demo_id" ;;
        esac
    done
    rm -f "$STATE/demo.container"
    if [ -n "$demo_ours" ]; then
        # shellcheck disable=SC2086 # a list of ids
        docker rm -f -v $demo_ours >/dev/null
        demo_removed=", $(printf '%s' "$demo_ours" | wc -w | tr -d ' ') container(s)"
    fi
    if docker rmi "$DEMO_IMAGE" >/dev/null 2>&1; then
        demo_removed="$demo_removed, 1 image"
    elif docker image inspect "$DEMO_IMAGE" >/dev/null 2>&1; then
        demo_left="$demo_left, the image $DEMO_IMAGE (a container of yours uses it)"
    fi
    for demo_id in $(docker ps -aq --no-trunc --filter label=fairlead.command); do
        case $demo_before in
            *"$demo_id"*) ;;
            *) demo_left="$demo_left, container $(docker inspect --format '{{.Name}}' "$demo_id" | tr -d /) (made through Fairlead meanwhile)" ;;
        esac
    done
}

demo_runs() { [ -s "$DEMO_PID_FILE" ] && ! is_gone "$(cat "$DEMO_PID_FILE")" && [ -s "$DEMO_DIR/ready.json" ]; }

# Single quotes around a value, for eval.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

verb_env() {
    [ $# -eq 0 ] || usage_error "env takes no options"
    demo_runs || die "no demo runs; start one with ./dev demo"
    log_in "$DEMO_DIR"
    # shellcheck disable=SC2016 # $PATH is for the shell that evaluates this
    printf 'export PATH=%s:"$PATH"\n' "$(quoted "$(cat "$DEMO_DIR/programs")")"
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
