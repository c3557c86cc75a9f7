# What this machine has and lacks, and installing what it lacks (Debian and Ubuntu, by apt).
# shellcheck shell=sh

is_root() { [ "$(id -u)" -eq 0 ]; }

can_be_root() { is_root || { command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; }; }

as_root() {
    if is_root; then "$@"; else sudo -n "$@"; fi
}

has() { command -v "$1" >/dev/null 2>&1; }

has_apt() { [ "$(uname -s)" = Linux ] && has apt-get && has dpkg; }

need_rust() {
    has cargo || die "cargo is not here; the toolchain comes from https://rustup.rs (the version is in rust-toolchain.toml)"
}

target_dir() {
    cargo metadata --no-deps --offline --format-version 1 2>/dev/null |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# The path of a statically linked busybox, for the demo's and the tests' images.
static_busybox() {
    for static_busybox_path in "$STATE/busybox/bin/busybox" "$STATE/busybox/usr/bin/busybox" \
        "$(command -v busybox 2>/dev/null)" /bin/busybox; do
        [ -x "$static_busybox_path" ] || continue
        if ! ldd "$static_busybox_path" >/dev/null 2>&1; then
            printf '%s' "$static_busybox_path"
            return 0
        fi
    done
    return 1
}

# Where busybox is installed as a dynamic program, its static sister would push it out: then the
# package is only unpacked below .dev/.
unpack_busybox() (
    mkdir -p "$STATE/busybox"
    cd "$STATE/busybox" || exit
    apt-get download busybox-static
    dpkg-deb -x busybox-static_*.deb .
)

# missing_packages ENGINE VERB: one line each, "package reason".
missing_packages() {
    if ! has cc && ! has gcc; then
        say "gcc a C compiler, for SQLite and the cryptography"
        say "libc6-dev its headers"
    fi
    if [ "$2" = test ] && can_be_root; then
        # Without them some tests say that they are left out; in CI nothing is.
        for missing_tool in shellcheck curl openssl; do
            has "$missing_tool" || say "$missing_tool some tests of the installer's script"
        done
        has faketime || say "faketime wrong clocks, for the tests of them"
        has pebble || say "pebble a test CA, for the tests of ACME"
    fi
    if [ "$2" = test ]; then
        has node || say "nodejs the terminal page: its bundle, its test"
        has npm || say "npm its packages, as webssh/web/package-lock.json has them"
        has chromium || has chromium-browser || has google-chrome ||
            say "chromium the browser in which the terminal page is tested"
    fi
    [ "$1" = docker ] || return 0
    if ! engine_answers && ! has dockerd; then
        say "docker.io Docker Engine, to run containers"
        if apt-cache show docker-cli >/dev/null 2>&1; then
            say "docker-cli its command line"
        fi
    fi
    if ! static_busybox >/dev/null && ! has busybox; then
        say "busybox-static the content of the demo's and the tests' images"
    fi
}

# ensure_packages ENGINE VERB AGREED: installs what is missing, after asking unless AGREED is yes.
ensure_packages() {
    has_apt || {
        ensure_without_apt "$1"
        return
    }
    ensure_list=$(missing_packages "$1" "$2")
    [ -n "$ensure_list" ] || {
        ensure_busybox "$1"
        return 0
    }
    note "missing here, to be installed with apt:"
    printf '%s\n' "$ensure_list" | while read -r ensure_name ensure_why; do
        printf '  %-16s %s\n' "$ensure_name" "$ensure_why" >&2
    done
    can_be_root || no_root "$1" "$ensure_list"
    if [ "$3" != yes ]; then
        agreed "install them?" "$2" || die "nothing installed; ./dev $2 --engine simulated needs no engine"
    fi
    ensure_names=$(printf '%s\n' "$ensure_list" | cut -d' ' -f1)
    working "apt-get update" as_root apt-get update
    # shellcheck disable=SC2086 # a list of package names
    working "apt-get install $(printf '%s ' $ensure_names)" \
        as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get install -y --no-install-recommends $ensure_names ||
        die "apt could not install them; the whole output is in ${working_log:?}"
    printf '%s\n' "$ensure_names" >>"$STATE/installed"
    ensure_busybox "$1"
}

ensure_busybox() {
    [ "$1" = docker ] || return 0
    if ! static_busybox >/dev/null; then
        working "fetch busybox-static into .dev" unpack_busybox ||
            die "busybox-static could not be fetched; run apt-get update as root, then again"
    fi
}

ensure_without_apt() {
    has cc || has gcc || die "a C compiler is missing (macOS: xcode-select --install)"
    [ "$1" = docker ] || return 0
    engine_answers || no_engine "there is no Docker Engine here, and installing one is only done on Debian and Ubuntu"
    static_busybox >/dev/null || no_engine "a static busybox is needed for the demo's image, and is fetched only on Debian and Ubuntu"
}

no_root() {
    warn "this needs root or sudo without a password, and there is neither"
    # shellcheck disable=SC2046 # a list of package names
    note "  as root:   apt-get install --no-install-recommends" $(printf '%s\n' "$2" | cut -d' ' -f1)
    [ "$1" != docker ] || note "  or, without any container engine:   ./dev demo --engine simulated"
    exit 1
}

no_engine() {
    warn "$1"
    note "  without any container engine:   ./dev demo --engine simulated"
    exit 1
}
