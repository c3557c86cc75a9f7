# The container engine: found, or started for the time of the run and stopped again. An engine that
# is already there is never touched.
# shellcheck shell=sh

# The agent speaks to a local socket only, so this does as well, whatever docker's contexts say.
case ${DOCKER_HOST:-} in
    unix://*) ;;
    *) DOCKER_HOST=unix:///var/run/docker.sock ;;
esac
export DOCKER_HOST
ENGINE_PID_FILE="$STATE/dockerd.pid"
ENGINE_USERS="$STATE/engine-users"

engine_answers() { has docker && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

engine_version() { docker version --format '{{.Server.Version}}' 2>/dev/null; }

engine_is_ours() {
    [ -s "$ENGINE_PID_FILE" ] && [ -d "/proc/$(cat "$ENGINE_PID_FILE")" ] &&
        grep -q dockerd "/proc/$(cat "$ENGINE_PID_FILE")/comm" 2>/dev/null
}

# ensure_engine ARGS…: until the engine answers; ARGS is this run's own command line.
ensure_engine() {
    mkdir -p "$ENGINE_USERS"
    : >"$ENGINE_USERS/$$"
    if engine_answers; then
        if engine_is_ours; then
            note "engine: Docker $(engine_version), started by ./dev, stopped with its last run"
        elif grep -qx docker.io "$STATE/installed" 2>/dev/null; then
            note "engine: Docker $(engine_version), installed by ./dev, running"
        else
            note "engine: Docker $(engine_version), found, yours, left alone"
        fi
        return 0
    fi
    [ ! -S "${DOCKER_HOST#unix://}" ] || [ -w "${DOCKER_HOST#unix://}" ] || engine_not_allowed "$@"
    has dockerd || no_engine "no Docker Engine answers on $DOCKER_HOST"
    can_be_root || no_engine "Docker Engine is installed but does not run, and starting it needs root or sudo without a password"
    if [ -d /run/systemd/system ]; then
        as_root systemctl start docker
        : >"$STATE/engine-by-systemd"
    else
        start_dockerd
    fi
    [ ! -S "${DOCKER_HOST#unix://}" ] || [ -w "${DOCKER_HOST#unix://}" ] || engine_not_allowed "$@"
    engine_answers || no_engine "Docker Engine was started and does not answer; its log is .dev/dockerd.log (or journalctl -u docker)"
    note "engine: Docker $(engine_version), started by ./dev, stopped with its last run"
}

# Without systemd: a session of its own, so that Ctrl-C here does not reach it.
start_dockerd() {
    [ "$DOCKER_HOST" = unix:///var/run/docker.sock ] || no_engine "no engine answers on $DOCKER_HOST"
    rm -f "$ENGINE_PID_FILE"
    as_root setsid dockerd --pidfile "$ENGINE_PID_FILE" --group "$(id -gn)" \
        >"$STATE/dockerd.log" 2>&1 </dev/null &
    start_dockerd_pid=$!
    if ! working "start dockerd" wait_for_dockerd "$start_dockerd_pid"; then
        tail -n 5 "$STATE/dockerd.log" | sed 's/^/    /' >&2
        no_engine "dockerd could not be started; its log is .dev/dockerd.log"
    fi
}

wait_for_dockerd() {
    wait_dockerd_until=$(($(date +%s) + 60))
    until docker version; do
        kill -0 "$1" 2>/dev/null || return 1
        [ "$(date +%s)" -lt "$wait_dockerd_until" ] || return 1
        sleep 1
    done
}

# The socket is there and not ours to use. When docker.io was installed just now, by us, the user
# joins its group and the same command goes on under it; else that is the user's decision.
engine_not_allowed() {
    if grep -qx docker.io "$STATE/installed" 2>/dev/null && [ "${DEV_IN_GROUP:-}" != yes ]; then
        note "  you ($(id -un)) join the group docker, to use the engine just installed"
        as_root usermod -aG docker "$(id -un)"
        rm -f "$ENGINE_USERS/$$"
        exec sudo -n -u "$(id -un)" env PATH="$PATH" HOME="$HOME" DEV_IN_GROUP=yes "$ROOT/dev" "$@"
    fi
    warn "Docker Engine runs, but you ($(id -un)) may not use it"
    note "  to be allowed:   sudo usermod -aG docker $(id -un)   and log in again"
    note "  without it:      ./dev demo --engine simulated"
    exit 1
}

# Called at the end of every run that used the engine: the last one stops what ./dev started.
release_engine() {
    [ -f "$ENGINE_USERS/$$" ] || return 0
    rm -f "$ENGINE_USERS/$$"
    for release_user in "$ENGINE_USERS"/*; do
        [ -e "$release_user" ] || continue
        if kill -0 "$(basename "$release_user")" 2>/dev/null; then
            return 0
        fi
        rm -f "$release_user"
    done
    if engine_is_ours; then
        release_pid=$(cat "$ENGINE_PID_FILE")
        as_root kill "$release_pid" 2>/dev/null || true
        working "stop the dockerd that ./dev started" wait_for 30 test ! -d "/proc/$release_pid" || true
    elif [ -f "$STATE/engine-by-systemd" ]; then
        working "stop docker.service, which ./dev started" \
            as_root systemctl stop docker.socket docker.service || true
        rm -f "$STATE/engine-by-systemd"
    fi
}

# make_image REFERENCE: a small web server from busybox; no registry is needed.
make_image() (
    tree="$STATE/image.$$"
    trap 'rm -rf "$tree"' EXIT
    mkdir -p "$tree/bin" "$tree/www" "$tree/tmp" "$tree/etc"
    cp "$(static_busybox)" "$tree/bin/busybox"
    for applet in $("$tree/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    say 'root:x:0:0:root:/:/bin/sh' >"$tree/etc/passwd"
    say 'hello from a container' >"$tree/www/index.html"
    # A process 1 that ends at once when it is asked to, so that a restart is quick.
    cat >"$tree/bin/web" <<'WEB'
#!/bin/sh
trap 'echo "web: asked to stop"; exit 0' TERM INT
echo "web: serving /www on port 80"
httpd -f -p 80 -h /www &
wait
WEB
    chmod 755 "$tree/bin/web"
    tar -C "$tree" -c . | docker import \
        --change 'CMD ["/bin/web"]' --change 'EXPOSE 80' --change 'ENV PATH=/bin' \
        --change 'HEALTHCHECK --interval=2s --timeout=2s CMD wget -q -O /dev/null http://127.0.0.1/' \
        - "$1" >/dev/null
)
