# The verb package: static programs for both kinds of machines, packed and signed (docs/guide/packages.md).
# shellcheck shell=sh

# What cross-links; versions are named so that everybody's bytes are the same.
PACKAGE_TOOLS="$STATE/package-tools"
PACKAGE_PIP="cargo-zigbuild==0.24.0 ziglang==0.17.0"
PACKAGE_WORK="$STATE/package"
AGENT_BYTES_MAX=6000000

verb_package() {
    package_version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml")
    package_key=
    package_out=
    package_targets=linux-x86_64,linux-aarch64
    package_long=no
    package_agreed=no
    [ "${CI:-}" != true ] || package_agreed=yes
    while [ $# -gt 0 ]; do
        case $1 in
            --version | --key | --out | --targets)
                [ $# -ge 2 ] || usage_error "$1 needs a value"
                case $1 in
                    --version) package_version=$2 ;;
                    --key) package_key=$2 ;;
                    --out) package_out=$2 ;;
                    --targets) package_targets=$2 ;;
                esac
                shift
                ;;
            --long) package_long=yes ;;
            --yes) package_agreed=yes ;;
            *) usage_error "package does not know '$1'" ;;
        esac
        shift
    done
    for package_target in $(package_list); do
        package_triple "$package_target" >/dev/null || usage_error "there is no target '$package_target'"
    done
    need_rust
    trap stop_working EXIT
    trap 'exit 130' INT TERM HUP
    ensure_package_tools "$package_agreed"
    package_packer
    choose_package_key

    package_first=$(target_dir)
    for package_target in $(package_list); do
        package_programs "$package_target" "$package_first" "$PACKAGE_WORK/programs"
    done
    if [ "$package_long" = yes ]; then
        for package_target in $(package_list); do
            package_programs "$package_target" "$PACKAGE_WORK/second-target" "$PACKAGE_WORK/second-programs"
            same_bytes "$PACKAGE_WORK/programs/$package_target" "$PACKAGE_WORK/second-programs/$package_target"
        done
    fi
    if [ -z "$package_out" ]; then
        # What this verb made before by itself is nobody's yet.
        package_out="$STATE/packages"
        rm -rf "$package_out"
    fi
    pack_programs "$PACKAGE_WORK/programs" "$package_out"
    "$package_packer" verify "$package_out/$package_version" --key "$package_public" ||
        die "the finished package does not stand the check"
    if [ "$package_long" = yes ]; then
        rm -rf "$PACKAGE_WORK/second-packages"
        pack_programs "$PACKAGE_WORK/second-programs" "$PACKAGE_WORK/second-packages" >/dev/null
        same_bytes "$package_out/$package_version" "$PACKAGE_WORK/second-packages/$package_version"
    fi
    try_programs
    say ""
    say "package:  $package_out/$package_version"
    say "key:      $package_public"
    say "install:  sh $package_out/install.sh --from $package_out --address HOST:PORT --token-file FILE"
}

package_list() { printf '%s\n' "$package_targets" | tr ',' '\n'; }

package_triple() {
    case $1 in
        linux-x86_64) say x86_64-unknown-linux-musl ;;
        linux-aarch64) say aarch64-unknown-linux-musl ;;
        *) return 1 ;;
    esac
}

# --- tools -----------------------------------------------------------------------------------

missing_package_tools() {
    for missing_target in $(package_list); do
        missing_triple=$(package_triple "$missing_target")
        if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$missing_triple/lib" ]; then
            say "rust-std for $missing_triple (rustup target add)"
        fi
    done
    if has_apt; then
        for missing_target in $(package_list); do
            missing_runner=$(package_runner "$missing_target")
            [ -z "$missing_runner" ] || has "$missing_runner" ||
                say "qemu-user (apt-get install), to start the programs for $missing_target"
        done
    fi
    if ! has_package_tools; then
        has_venv || say "python3-venv (apt-get install), to fetch the next"
        say "$PACKAGE_PIP into .dev/package-tools (pip), to link for other machines"
    fi
}

has_venv() { has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; }

# Of exactly the named versions.
has_package_tools() {
    [ -x "$PACKAGE_TOOLS/bin/cargo-zigbuild" ] && [ "$(cat "$PACKAGE_TOOLS/made-of" 2>/dev/null)" = "$PACKAGE_PIP" ]
}

ensure_package_tools() {
    ensure_list=$(missing_package_tools)
    if [ -n "$ensure_list" ]; then
        note "missing here:"
        printf '%s\n' "$ensure_list" | sed 's/^/  /' >&2
        [ "$1" = yes ] || agreed "install them?" package || die "nothing installed"
        add_rust_targets
        case $ensure_list in
            *qemu-user*) install_package_runner ;;
        esac
        has_package_tools || install_package_tools
    fi
    PATH="$PACKAGE_TOOLS/bin:$PATH"
    ZIG_GLOBAL_CACHE_DIR="$STATE/zig"
    CARGO_ZIGBUILD_CACHE_DIR="$STATE/zig-wrappers"
    export PATH ZIG_GLOBAL_CACHE_DIR CARGO_ZIGBUILD_CACHE_DIR
}

# What starts the programs for a target here; nothing where they start by themselves.
package_runner() {
    [ "$1" = "linux-$(uname -m)" ] || say "qemu-${1#linux-}"
}

install_package_runner() {
    can_be_root || {
        warn "qemu-user is missing, and this needs root or sudo without a password: not all programs will be started"
        return 0
    }
    working "apt-get update" as_root apt-get update
    working "apt-get install qemu-user" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends qemu-user ||
        die "qemu-user could not be installed"
    say qemu-user >>"$STATE/installed"
}

add_rust_targets() {
    for add_target in $(package_list); do
        add_triple=$(package_triple "$add_target")
        [ -d "$(rustc --print sysroot)/lib/rustlib/$add_triple/lib" ] && continue
        has rustup || die "rustup is not here, and the standard library for $add_triple comes from it: https://rustup.rs"
        working "rustup target add $add_triple" rustup target add "$add_triple" ||
            die "the standard library for $add_triple could not be fetched"
    done
}

install_package_tools() {
    if ! has_venv; then
        if ! has_apt || ! can_be_root; then
            die "python3 with its venv module is needed (Debian: python3-venv)"
        fi
        working "apt-get update" as_root apt-get update
        working "apt-get install python3-venv" \
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv ||
            die "python3-venv could not be installed"
        say python3-venv >>"$STATE/installed"
    fi
    rm -rf "$PACKAGE_TOOLS"
    working "python3 -m venv" python3 -m venv "$PACKAGE_TOOLS" || die "no place for the tools could be made"
    # shellcheck disable=SC2086 # a list of packages
    working "pip install $PACKAGE_PIP" "$PACKAGE_TOOLS/bin/pip" install --quiet $PACKAGE_PIP ||
        die "the tools could not be fetched from PyPI"
    say "$PACKAGE_PIP" >"$PACKAGE_TOOLS/made-of"
}

package_packer() {
    working "build the packer" cargo build --locked --package fairlead-packer ||
        die "the packer does not build"
    package_packer="$(target_dir)/debug/fairlead-packer"
}

choose_package_key() {
    if [ -z "$package_key" ]; then
        package_key="$STATE/keys/throw-away.pem"
        note "  no --key: signed with a throw-away key, $package_key; hosts in the field will not believe it"
        if ! [ -e "$package_key" ]; then
            mkdir -p "$STATE/keys"
            chmod 700 "$STATE/keys"
            "$package_packer" keygen --out "$package_key" >/dev/null || die "no key could be made"
        fi
    fi
    package_public=$("$package_packer" public-key "$package_key") || die "the key cannot be used"
}

# --- building --------------------------------------------------------------------------------

# package_programs TARGET TARGET_DIR OUT
package_programs() {
    build_triple=$(package_triple "$1")
    # The agent by itself, in its own profile: built beside the servers, it would get the features that only they need.
    working "build the agent for $1" \
        package_cargo "$2" "$build_triple" agent --package fairlead-agent ||
        die "the agent does not build for $1"
    working "build the servers and the command line for $1" \
        package_cargo "$2" "$build_triple" release --package fairlead-access-server \
        --package fairlead-controller --package fairlead-cli ||
        die "the servers do not build for $1"
    rm -rf "${3:?}/$1"
    mkdir -p "$3/$1"
    cp "$2/$build_triple/agent/fairlead-agent" "$3/$1/fairlead-agent"
    for build_program in fairlead fairlead-access-server fairlead-controller; do
        cp "$2/$build_triple/release/$build_program" "$3/$1/$build_program"
    done
}

# package_cargo TARGET_DIR TRIPLE PROFILE PACKAGES…: no path of this machine may get into the programs.
package_cargo() (
    cargo_target_dir=$1
    cargo_triple=$2
    cargo_profile=$3
    shift 3
    cargo_from="$(unit_separated \
        "--remap-path-prefix=$ROOT=/fairlead" \
        "--remap-path-prefix=$cargo_target_dir=/target" \
        "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
        "--remap-path-prefix=$(rustc --print sysroot)=/rust")"
    unset RUSTFLAGS CFLAGS
    CARGO_ENCODED_RUSTFLAGS=$cargo_from CARGO_TARGET_DIR=$cargo_target_dir \
        exec nice -n 10 cargo zigbuild --locked --profile "$cargo_profile" --target "$cargo_triple" "$@"
)

unit_separated() {
    printf '%s' "$1"
    shift
    for unit_one in "$@"; do
        printf '\037%s' "$unit_one"
    done
}

# same_bytes DIR DIR
same_bytes() {
    if diff -r "$1" "$2" >&2; then
        say "the same bytes twice: $1"
    else
        die "$1 and $2 differ: the build is not reproducible"
    fi
}

# --- packing ---------------------------------------------------------------------------------

package_time() {
    package_epoch=${SOURCE_DATE_EPOCH:-$(git -C "$ROOT" log -1 --format=%ct 2>/dev/null || date +%s)}
    date -u -d "@$package_epoch" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u -r "$package_epoch" +%Y-%m-%dT%H:%M:%SZ
}

# pack_programs PROGRAMS OUT
pack_programs() {
    pack_from=$1
    pack_out=$2
    set --
    for pack_target in $(package_list); do
        pack_metadata="$PACKAGE_WORK/metadata-$pack_target.json"
        cargo metadata --locked --format-version 1 \
            --filter-platform "$(package_triple "$pack_target")" >"$pack_metadata" ||
            die "cargo metadata failed"
        set -- "$@" --metadata "$pack_metadata"
    done
    "$package_packer" pack --programs "$pack_from" --targets "$package_targets" \
        --version "$package_version" --released "$(package_time)" --key "$package_key" \
        --out "$pack_out" "$@" || die "nothing was packed"
}

# The programs start, say their version, and make a key; the agent is small enough.
try_programs() {
    for try_target in $(package_list); do
        try_with=$(package_runner "$try_target")
        if [ -n "$try_with" ] && ! has "$try_with"; then
            [ "$package_long" = no ] ||
                die "the programs for $try_target cannot be started here: $try_with is missing (Debian: qemu-user)"
            note "  the programs for $try_target are not started: $try_with is missing (Debian: qemu-user)"
            continue
        fi
        for try_program in fairlead fairlead-agent fairlead-access-server fairlead-controller; do
            try_says=$(try_one "$try_program" --version) || die "$try_program for $try_target does not start"
            [ "$try_says" = "$try_program $package_version" ] ||
                die "$try_program for $try_target says that it is '$try_says'"
        done
        # A key made there is read here: its cryptography works too.
        try_key="$PACKAGE_WORK/try-key.pem"
        rm -f "$try_key"
        try_says=$(try_one fairlead agent keygen --out "$try_key") || die "fairlead for $try_target makes no key"
        [ "$try_says" = "$("$package_packer" public-key "$try_key")" ] ||
            die "fairlead for $try_target made the key $try_says, and its file has another"
        rm -f "$try_key"
        note "  the programs for $try_target start and say $package_version"
    done
    for try_target in $(package_list); do
        for try_program in fairlead-agent fairlead-access-server fairlead-controller fairlead; do
            try_bytes=$(wc -c <"$package_out/$package_version/$try_program-$try_target")
            say "size:     $((try_bytes)) bytes, $try_program-$try_target"
            [ "$try_program" != fairlead-agent ] || [ "$try_bytes" -le "$AGENT_BYTES_MAX" ] ||
                die "the agent for $try_target has $try_bytes bytes; it may have $AGENT_BYTES_MAX"
        done
    done
}

# try_one PROGRAM ARGUMENTS…: of the target in try_target.
try_one() {
    try_file="$package_out/$package_version/$1-$try_target"
    shift
    # shellcheck disable=SC2086 # nothing, where no other program is needed to start it
    $try_with "$try_file" "$@" </dev/null
}
