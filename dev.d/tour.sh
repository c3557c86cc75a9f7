# `./dev demo --check`: the README's tour, unattended, in its own directory, ports and names, so that
# it can run beside a demo. What the CLI says is held against what the engine itself says.
# shellcheck shell=sh

# tour: what verb_demo (demo.sh) has read from the command line is in these.
tour() {
    : "${demo_engine:?}" "${demo_arguments:?}" "${demo_ports=}" "${DEMO_IMAGE:?}" "${DEMO_FLAGS=}"
    TOUR_ID=$$
    TOUR_DIR="$STATE/check-$TOUR_ID"
    TOUR_IMAGE=$DEMO_IMAGE
    ! real || TOUR_IMAGE="fairlead-demo:check-$TOUR_ID"
    WEB="demo-web-$TOUR_ID"
    SLOW="demo-slow-$TOUR_ID"
    OWN="shop-db-$TOUR_ID"
    TOUR_BAD=0
    TOUR_STEPS=0
    TOUR_FROM=$(now_ms)
    trap tour_end EXIT
    trap 'exit 130' INT TERM HUP
    rm -rf "$TOUR_DIR.tmp"
    mkdir -p "$TOUR_DIR.tmp"
    if real; then
        # shellcheck disable=SC2086 # the words of this run's command line
        ensure_engine $demo_arguments
        working "make the image $TOUR_IMAGE from busybox" make_image "$TOUR_IMAGE"
    fi
    build_programs
    ports=${demo_ports:-$(free_ports)}
    ! real || own_container
    tour_steps
    step "stop: nothing of it is left running" tour_stop
    say "$TOUR_STEPS steps, $TOUR_BAD not as they should be, $(since "$TOUR_FROM") with the build"
    [ "$TOUR_BAD" -eq 0 ]
}

tour_steps() {
    step "up: three programs and a supervisor, all connected" tour_up
    # Without them there is nothing to look at.
    [ "$TOUR_BAD" -eq 0 ] || exit 1
    step "status, host ls: one host, online" tour_status
    step "run: a container from the CLI" tour_run
    step "ps -a: state, health, memory; your own containers too" tour_ps
    step "logs" tour_logs
    step "exec: output, input, exit code" tour_exec
    step "shell: a terminal, typed into; its page, its recording; nothing of it is left" tour_shell
    step "restart: once, with its time" tour_restart
    step "command show: the way of that restart" tour_show
    step "kill agent, restart while it is away: once" tour_kill agent
    step "kill access-server, restart while it is away: once" tour_kill access_server
    step "kill controller, restart while it is away: once" tour_kill controller
    step "kill agent while a restart is under way: once" tour_kill_within
    step "cp: a file in, the same file out" tour_copy
    step "stop by hand: events say so; stop, start" tour_by_hand
    step "a host that is away: expired, exit code 7" tour_expired
    step "wrong names and flags: exit codes 2, 3, 4" tour_wrong
    step "the host owner's policy refuses" tour_policy
    step "host add: the line's own script and package make a second host" tour_host_add
    step "agent upgrade: the second host becomes the next version, by way of its region" tour_upgrade
    step "host rm ends it" tour_host_rm
    step "audit: who did what" tour_audit
    step "rm: gone from the engine" tour_rm
    ! real || step "your own container was never touched" tour_own
}

real() { [ "$demo_engine" = docker ]; }

# step TITLE FUNCTION…: runs one step and says how it went.
step() {
    step_title=$1
    shift
    step_from=$(now_ms)
    WRONG=
    SKIPPED=
    "$@" || wrong "the step could not be finished"
    TOUR_STEPS=$((TOUR_STEPS + 1))
    if [ -n "$WRONG" ]; then
        TOUR_BAD=$((TOUR_BAD + 1))
        say "  WRONG  $(since "$step_from")  $step_title"
        printf '%s\n' "$WRONG" | sed '/^$/d; s/^/           /'
    elif [ -n "$SKIPPED" ]; then
        TOUR_STEPS=$((TOUR_STEPS - 1))
        say "  -      $(since "$step_from")  $step_title: not looked at, $SKIPPED"
    else
        say "  ok     $(since "$step_from")  $step_title"
    fi
}

wrong() {
    WRONG="$WRONG
$*"
}

# cli ARGS…: sets CODE, OUT, ERR. Bounded: a command that hangs is a step gone wrong.
cli() {
    CODE=0
    CLI="fairlead $*"
    if has timeout; then
        OUT=$(timeout 90 fairlead "$@" 2>"$TOUR_DIR.tmp/err") || CODE=$?
    else
        OUT=$(fairlead "$@" 2>"$TOUR_DIR.tmp/err") || CODE=$?
    fi
    ERR=$(cat "$TOUR_DIR.tmp/err")
}

expect_code() {
    [ "$CODE" -eq "$1" ] || wrong "$CLI: exit code $CODE, not $1
$OUT
$ERR"
}

# expect_out PATTERN: an extended regular expression in what it printed.
expect_out() {
    printf '%s\n' "$OUT" | grep -Eq -- "$1" || wrong "$CLI: no '$1' in its output:
$OUT
$ERR"
}

expect_err() {
    printf '%s\n' "$ERR" | grep -Eq -- "$1" || wrong "$CLI: no '$1' in what it said:
$ERR"
}

# expect_same WHAT IS SHOULD
expect_same() { [ "$2" = "$3" ] || wrong "$1: '$2', not '$3'"; }

pid_of() { json_number "$TOUR_DIR/ready.json" "$1"; }

alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# engine_field CONTAINER FORMAT: what the engine itself says.
engine_field() { docker inspect --format "$2" "$1" 2>/dev/null; }

# How often the engine started a container since $2 (unix seconds), by its own record.
engine_starts() {
    docker events --since "$2" --until "$(($(date +%s) + 1))" --filter "container=$1" \
        --filter event=start --format '{{.Action}}' | wc -l | tr -d ' '
}

# A container that was there before, made by hand as compose would make it.
own_container() {
    docker run -d --name "$OWN" --label com.docker.compose.project=shop \
        --label com.docker.compose.service=db "$TOUR_IMAGE" >/dev/null
    OWN_BEFORE=$(engine_field "$OWN" '{{.Id}} {{.State.StartedAt}} {{.State.Pid}} {{.RestartCount}}')
}

# The first of a row of ports that nobody listens on.
free_ports() {
    for free_first in 17400 17500 17600 17700 17800 17900 18400 18500; do
        if [ -r /proc/net/tcp ]; then
            free_taken=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == "0A" { sub(/.*:/, "", $2); print $2 }')
            free_ok=yes
            for free_step in 0 1 2 3 4 5 6 7 8 9; do
                case $free_taken in *"$(printf '%04X' $((free_first + free_step)))"*) free_ok=no ;; esac
            done
            [ "$free_ok" = yes ] || continue
        fi
        printf '%s' "$free_first"
        return 0
    done
    die "no free ports found; name some: --ports-from N"
}

tour_up() {
    start_fairlead "$TOUR_DIR" "$ports" "$demo_engine" || {
        wrong "the log is $TOUR_DIR.log"
        return 0
    }
    log_in "$TOUR_DIR"
    HOST=$(json_text "$TOUR_DIR/ready.json" host)
    for up_name in controller access_server supervisor agent; do
        alive "$(pid_of $up_name)" || wrong "$up_name is not running"
    done
    [ ! -r /proc/net/tcp ] || expect_same "TCP ports on which the agent listens" "$(listening "$(pid_of agent)")" 0
}

# How many TCP sockets process $1 listens on.
listening() {
    for listening_fd in /proc/"$1"/fd/*; do readlink "$listening_fd"; done 2>/dev/null |
        sed -n 's/^socket:\[\([0-9]*\)\]$/\1/p' >"$TOUR_DIR.tmp/sockets"
    cat /proc/"$1"/net/tcp /proc/"$1"/net/tcp6 2>/dev/null |
        awk -v inodes="$TOUR_DIR.tmp/sockets" '
            BEGIN { while ((getline inode < inodes) > 0) ours[inode] = 1 }
            $4 == "0A" && ($10 in ours) { n++ }
            END { print n + 0 }'
}

tour_status() {
    cli status -o json
    expect_code 0
    expect_out '"hosts_online": *1'
    cli host ls
    expect_code 0
    expect_out "$HOST.*online"
}

tour_run() {
    # shellcheck disable=SC2086 # a list of flags
    cli run -d --name "$WEB" --memory 64m $DEMO_FLAGS "$TOUR_IMAGE"
    expect_code 0
    ! real || expect_same "running, says the engine" "$(engine_field "$WEB" '{{.State.Running}} {{.HostConfig.Memory}}')" "true 67108864"
    ! real || [ -n "$(engine_field "$WEB" '{{index .Config.Labels "fairlead.command"}}')" ] || wrong "the container does not name the command that made it"
}

tour_ps() {
    wait_for 20 shows_healthy || wrong "not shown as healthy within 20 s"
    cli ps -a
    expect_code 0
    expect_out "HOST +NAME +PROJECT"
    expect_out "$WEB +- "
    ! real || expect_out "$OWN +shop "
}

shows_healthy() { fairlead ps -a | grep -q "$WEB.*up .*healthy"; }

tour_logs() {
    cli logs --tail 5 "$WEB"
    expect_code 0
    [ -n "$OUT" ] || wrong "the log is empty"
    ! real || { cli logs "$WEB" && expect_out "^web: serving /www on port 80"; }
}

tour_exec() {
    cli exec "$WEB" sh -c 'echo inside; exit 7'
    expect_code 7
    expect_out '^inside$'
    exec_answer=$(echo "through and back" | fairlead exec -i "$WEB" cat)
    expect_same "cat in the container" "$exec_answer" "through and back"
}

# `script` is the terminal that a shell wants.
tour_shell() {
    has script || {
        SKIPPED="script (util-linux) is not here"
        return
    }
    CODE=0
    printf 'echo typed-here\nexit 5\n' |
        timeout 60 script -qec "fairlead shell $WEB" /dev/null >"$TOUR_DIR.tmp/shell" || CODE=$?
    OUT=$(tr -d '\r' <"$TOUR_DIR.tmp/shell")
    ERR=
    CLI="fairlead shell $WEB"
    expect_code 5
    expect_out '(^|# )typed-here$'
    if real; then
        expect_same "shells left in the container" \
            "$(docker top "$WEB" -eo pid,args | awk '$2 ~ /(^|\/)(ba)?sh$/ && NF == 2' | wc -l | tr -d ' ')" 0
    fi
    cli terminal recordings --container "$WEB"
    expect_code 0
    expect_out "^[0-9a-z]{26}  .*/$WEB "
    cli terminal recording "$(printf '%s\n' "$OUT" | sed -n '2s/ .*//p')"
    expect_out 'typed-here'
    expect_out ' end"\]$'
    cli terminal ls
    expect_same "terminals that are open" "$(printf '%s\n' "$OUT" | wc -l | tr -d ' ')" 1
    cli audit
    expect_out "terminal.end .*$WEB"
    has curl || return 0
    expect_same "the page's answer" \
        "$(curl -s -o /dev/null -w '%{http_code}' --cacert "$FAIRLEAD_CA" "$FAIRLEAD_URL/terminal")" 200
    expect_same "a socket without an Origin" \
        "$(curl -s -o /dev/null -w '%{http_code}' --cacert "$FAIRLEAD_CA" "$FAIRLEAD_URL/terminal/socket")" 403
}

tour_restart() {
    restart_before=$(engine_field "$WEB" '{{.State.StartedAt}}')
    restart_since=$(date +%s)
    cli restart "$WEB"
    expect_code 0
    expect_out "$WEB.*restarted.*ms.*command +[0-9a-z]{6}"
    RESTART=$(printf '%s\n' "$OUT" | sed -n 's/.*command  *\([0-9a-z]*\).*/\1/p' | head -n 1)
    if real; then
        [ "$restart_before" != "$(engine_field "$WEB" '{{.State.StartedAt}}')" ] || wrong "the engine says it was not restarted"
        expect_same "starts, by the engine's record" "$(engine_starts "$WEB" "$restart_since")" 1
    fi
}

tour_show() {
    cli command show "$RESTART" -o json
    expect_code 0
    for show_stage in accepted stored region_stored delivered verified intent_stored engine_called engine_answered result_stored recorded; do
        expect_out "\"stage\": *\"$show_stage\""
    done
    expect_out '"overhead_ms": *[0-9]'
    cli command show "$RESTART"
    expect_code 0
    expect_out "signature good"
}

# tour_kill NAME: kills it, asks for a restart at once, and counts at the engine.
tour_kill() {
    kill_old=$(pid_of "$1")
    kill_since=$(date +%s)
    # A container that has just been started: the record must hold only what comes now.
    sleep 1
    kill_since=$((kill_since + 1))
    kill -KILL "$kill_old"
    cli restart "$WEB"
    expect_code 0
    expect_out "restarted"
    wait_for 30 is_back "$1" "$kill_old" || wrong "$1 is not back after 30 s"
    ! real || expect_same "starts, by the engine's record" "$(engine_starts "$WEB" "$kill_since")" 1
}

is_back() {
    is_back_pid=$(pid_of "$1")
    [ -n "$is_back_pid" ] && [ "$is_back_pid" != "$2" ] && alive "$is_back_pid"
}

# The engine takes three seconds to stop this one, and the agent dies in the middle of it.
tour_kill_within() {
    cli run -d --name "$SLOW" --stop-timeout 3 "$TOUR_IMAGE" sleep 3600
    expect_code 0
    within_since=$(($(date +%s) + 1))
    sleep 1
    cli restart --no-wait "$SLOW"
    expect_code 0
    within_id=$(printf '%s\n' "$OUT" | grep -Eo '[0-9a-z]{26}' | head -n 1)
    within_old=$(pid_of agent)
    sleep 1
    kill -KILL "$within_old"
    cli command watch "$within_id"
    expect_code 0
    wait_for 30 is_back agent "$within_old" || wrong "the agent is not back after 30 s"
    cli command show "$within_id" -o json
    expect_out '"state": *"succeeded"'
    ! real || expect_same "starts, by the engine's record" "$(engine_starts "$SLOW" "$within_since")" 1
    cli rm -f "$SLOW"
    expect_code 0
}

tour_copy() {
    head -c 300000 /dev/urandom >"$TOUR_DIR.tmp/in"
    cli cp "$TOUR_DIR.tmp/in" "$WEB:/tmp/copied"
    expect_code 0
    cli cp "$WEB:/tmp/copied" "$TOUR_DIR.tmp/out"
    expect_code 0
    cmp -s "$TOUR_DIR.tmp/in" "$TOUR_DIR.tmp/out" || wrong "the file that came back is another"
}

tour_by_hand() {
    if real; then
        docker stop "$WEB" >/dev/null
        wait_for 15 shows_by_hand || wrong "events do not show the stop by hand within 15 s"
        cli events
        case $OUT in *container.exec*wget*) wrong "the engine's health checks are shown as somebody's doing" ;; esac
        cli start "$WEB"
        expect_code 0
        expect_same "running, says the engine" "$(engine_field "$WEB" '{{.State.Running}}')" true
    fi
    cli stop "$WEB"
    expect_code 0
    ! real || expect_same "running, says the engine" "$(engine_field "$WEB" '{{.State.Running}}')" false
    cli start "$WEB"
    expect_code 0
    ! real || expect_same "running, says the engine" "$(engine_field "$WEB" '{{.State.Running}}')" true
}

shows_by_hand() { fairlead events | grep "$WEB" | grep -q 'by.hand'; }

# With its supervisor asleep nobody starts the agent again: the host stays away.
tour_expired() {
    expired_supervisor=$(pid_of supervisor)
    expired_old=$(pid_of agent)
    expired_before=$(engine_field "$WEB" '{{.State.StartedAt}}')
    kill -STOP "$expired_supervisor"
    kill -KILL "$expired_old"
    wait_for 10 shows_offline || wrong "the host is not shown as offline within 10 s"
    cli restart --deadline 2s "$WEB"
    kill -CONT "$expired_supervisor"
    expect_code 7
    wait_for 30 is_back agent "$expired_old" || wrong "the agent is not back after 30 s"
    cli ps
    expect_code 0
    ! real || expect_same "started, says the engine" "$(engine_field "$WEB" '{{.State.StartedAt}}')" "$expired_before"
}

shows_offline() { fairlead host ls | grep -q offline; }

tour_wrong() {
    cli restart "no-such-$TOUR_ID"
    expect_code 3
    cli host show "no-such-$TOUR_ID"
    expect_code 3
    cli run --no-such-flag "$TOUR_IMAGE"
    expect_code 2
    wrong_token=$FAIRLEAD_TOKEN
    FAIRLEAD_TOKEN=FA1nonsense
    cli ps
    FAIRLEAD_TOKEN=$wrong_token
    [ "$CODE" -eq 4 ] || [ "$CODE" -eq 2 ] || expect_code 4
}

# The agent looks at the file before every command, so it may come and go.
tour_policy() {
    (umask 022 && say 'forbid_privileged = true' >"$TOUR_DIR/policy.toml")
    cli run -d --name "$SLOW" --privileged "$TOUR_IMAGE"
    expect_code 4
    expect_err "forbid_privileged"
    ! real || ! docker inspect "$SLOW" >/dev/null 2>&1 || wrong "the engine has made it all the same"
    rm -f "$TOUR_DIR/policy.toml"
}

tour_audit() {
    cli audit
    expect_code 0
    expect_out "restart"
    expect_out "$WEB"
}

tour_rm() {
    cli rm -f "$WEB"
    expect_code 0
    ! real || ! docker inspect "$WEB" >/dev/null 2>&1 || wrong "the engine still has it"
}

tour_own() {
    expect_same "its id, start, process and restarts" \
        "$(engine_field "$OWN" '{{.Id}} {{.State.StartedAt}} {{.State.Pid}} {{.RestartCount}}')" "$OWN_BEFORE"
}

# The line as it is printed, into a tree of its own, so that nothing of this machine changes.
tour_host_add() {
    if [ "$(uname -s)" != Linux ] || ! has curl || ! [ -x "$BIN/fairlead-packer" ]; then
        SKIPPED="it takes Linux, curl and the packer"
        return 0
    fi
    offer_packages "$TOUR_DIR" and-a-next || {
        wrong "the programs could not be packed"
        return 0
    }
    cli host add --no-wait
    expect_code 0
    expect_out '^curl -fsSLk --pinnedpubkey .sha256//'
    [ -z "$WRONG" ] || return 0
    add_tree="$TOUR_DIR.tmp/second"
    mkdir -p "$add_tree/tmp"
    add_said=$(sh -c "$OUT --root '$add_tree' --init none --host-name second" 2>&1) || {
        wrong "the line failed: $add_said"
        return 0
    }
    FAIRLEAD_PACKAGE_KEYS=$(add_setting FAIRLEAD_PACKAGE_KEYS) "$add_tree$ADD_PROGRAM" supervise \
        --state-dir "$add_tree/state" --engine simulated --host-name second \
        --address "$(add_setting FAIRLEAD_ADDRESS)" --token-file "$add_tree/etc/fairlead/join-token" \
        >"$add_tree/log" 2>&1 </dev/null &
    second_supervisor=$!
    wait_for 20 shows_second online || wrong "it is not a host: $(tail -n 3 "$add_tree/log")"
    [ ! -e "$add_tree/etc/fairlead/join-token" ] || wrong "the used join token still lies there"
}

# What the system's service would start there.
ADD_PROGRAM=/opt/fairlead/versions/0.0.1/fairlead-agent
add_setting() { sed -n "s/^$1=//p" "$add_tree/etc/fairlead/agent.env" | tr -d "'\""; }

# The same programs under the next number: what counts is who has the host then.
tour_upgrade() {
    [ -n "${second_supervisor:-}" ] || {
        SKIPPED="there is no second host"
        return 0
    }
    offer_version "$TOUR_DIR" 0.0.2 || wrong "the next version could not be packed"
    rm -rf "$TOUR_DIR.packages"
    cli agent versions
    expect_out '^0\.0\.2 '
    cli agent upgrade --to 0.0.2 --hosts second --between 1s
    expect_code 0
    expect_err '^second +done'
    wait_for 10 shows_next || wrong "host show does not say so within 10 s: $(fairlead host show second 2>&1)"
    expect_same "the version that is started there" \
        "$(readlink "$add_tree/opt/fairlead/current")" versions/0.0.2
    cli audit
    expect_out "command.upgrade-agent +second/0\.0\.2"
}

shows_next() { fairlead host show second 2>/dev/null | grep -q '^agent .*0\.0\.2.*before it 0\.0\.1'; }

tour_host_rm() {
    [ -n "${second_supervisor:-}" ] || {
        SKIPPED="there is no second host"
        return 0
    }
    cli host rm second
    expect_code 0
    ! fairlead host ls 2>/dev/null | grep -q '^second .*online' || wrong "it is still a host"
    kill -TERM "$second_supervisor" 2>/dev/null
    wait "$second_supervisor" 2>/dev/null
    second_supervisor=
}
shows_second() { fairlead host ls 2>/dev/null | grep -q "^second .*$1"; }

tour_stop() {
    stop_pids="$(pid_of controller) $(pid_of access_server) $(pid_of supervisor) $(pid_of agent)"
    stop_fairlead "$TOUR_DIR"
    for stop_pid in $stop_pids; do
        is_gone "$stop_pid" || wrong "process $stop_pid is still there"
    done
}

tour_end() {
    tour_exit=$?
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    stop_working
    # A supervisor that the step "expired" put to sleep must be able to end.
    [ -z "${expired_supervisor:-}" ] || kill -CONT "$expired_supervisor" 2>/dev/null
    [ -z "${second_supervisor:-}" ] || kill -TERM "$second_supervisor" 2>/dev/null
    stop_fairlead "$TOUR_DIR"
    if real && engine_answers; then
        docker rm -f -v "$WEB" "$SLOW" "$OWN" >/dev/null 2>&1
        docker rmi "$TOUR_IMAGE" >/dev/null 2>&1
    fi
    if [ "$tour_exit" -eq 0 ]; then
        rm -rf "$TOUR_DIR" "$TOUR_DIR.log"
    else
        [ ! -d "$TOUR_DIR" ] || note "kept for you to look at: ${TOUR_DIR#"$ROOT"/} and ${TOUR_DIR#"$ROOT"/}.log"
    fi
    rm -rf "$TOUR_DIR.tmp" "$TOUR_DIR.packages"
    release_engine
    exit "$tour_exit"
}
