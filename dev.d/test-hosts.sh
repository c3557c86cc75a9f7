# The image of the test hosts: made once by its recipe, kept in the engine and, for the next engine,
# as an archive in .dev/cache.
# shellcheck shell=sh

TEST_HOST_RECIPE="$ROOT/tests/src/hosts/recipe.sh"
# Why the image cannot be had; the tests that need it say so and count as skipped.
TEST_HOST_WHY="$STATE/test-host-why"

test_host_hash() { sha256sum "$TEST_HOST_RECIPE" | cut -c 1-12; }
test_host_image() { printf 'fairlead-test-host:%s' "$(test_host_hash)"; }
test_host_archive() { printf '%s/cache/test-host-%s.tar.gz' "$STATE" "$(test_host_hash)"; }

# Says what there is of the image; nothing when there is nothing.
test_host_here() {
    if engine_answers && docker image inspect "$(test_host_image)" >/dev/null 2>&1; then
        printf '%s' "$(test_host_image)"
    elif [ -s "$(test_host_archive)" ]; then
        printf '%s' "$(test_host_archive), not yet in the engine"
    fi
}

verb_test_image() {
    image_agreed=no
    [ "${CI:-}" != true ] || image_agreed=yes
    case ${1:-} in
        '') ;;
        --yes) image_agreed=yes ;;
        *) usage_error "test-image takes --yes only" ;;
    esac
    ensure_packages docker test-image "$image_agreed"
    trap release_engine EXIT
    trap 'stop_working; exit 130' INT TERM HUP
    ensure_engine test-image "$@"
    ensure_test_image "$image_agreed" || die "the test hosts' image cannot be made: $(cat "$TEST_HOST_WHY")"
    docker image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' "$(test_host_image)"
}

# ensure_test_image AGREED: 0 when it is in the engine; else 1, and the reason is in TEST_HOST_WHY.
ensure_test_image() {
    rm -f "$TEST_HOST_WHY"
    image_name=$(test_host_image)
    if docker image inspect "$image_name" >/dev/null 2>&1; then
        return 0
    fi
    image_archive=$(test_host_archive)
    if [ ! -s "$image_archive" ]; then
        test_image_possible "$1" || return 1
        working "make the test hosts' image (once, a minute or two)" make_test_tree "$image_archive" || {
            test_image_not "its recipe, tests/src/hosts/recipe.sh, failed: $(tail -n 1 "${working_log:?}" 2>/dev/null)"
            return 1
        }
        forget_old_test_images
    fi
    working "give the engine the test hosts' image" docker import "$image_archive" "$image_name" || {
        rm -f "$image_archive"
        test_image_not "the engine does not take it"
        return 1
    }
}

test_image_not() {
    mkdir -p "$STATE"
    say "$*" >"$TEST_HOST_WHY"
}

# What the recipe needs: root, debootstrap (by apt), a mirror of Debian.
test_image_possible() {
    has_apt || {
        test_image_not "it is made on Debian and Ubuntu only"
        return 1
    }
    can_be_root || {
        test_image_not "making it takes root, or sudo without a password, and there is neither"
        return 1
    }
    if ! test_image_tool; then
        note "missing here, to be installed with apt:"
        note "  debootstrap      makes the tree of the test hosts' image"
        if [ "$1" != yes ] && { [ ! -t 0 ] || ! agreed "install it?" test-image; }; then
            test_image_not "debootstrap is missing; ./dev test-image --yes installs it and makes the image"
            return 1
        fi
        working "apt-get install debootstrap" install_debootstrap || {
            test_image_not "debootstrap is missing and apt could not install it"
            return 1
        }
        say debootstrap >>"$STATE/installed"
    fi
    if ! working "ask $(debian_mirror)" debian_answers; then
        test_image_not "no Debian mirror answers on $(debian_mirror)"
        return 1
    fi
}

test_image_tool() { PATH="$PATH:/usr/sbin:/sbin" command -v debootstrap >/dev/null 2>&1; }

install_debootstrap() {
    as_root apt-get update
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get install -y --no-install-recommends debootstrap debian-archive-keyring
}

# The mirror that this machine itself uses, when it is a Debian.
debian_mirror() {
    mirror_found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources \
        2>/dev/null | sed -n 's/^[^#]*[[:space:]]\(http:[^[:space:]]*\/debian\)\/\{0,1\}\([[:space:]].*\)\{0,1\}$/\1/p' | head -n 1)
    printf '%s' "${mirror_found:-http://deb.debian.org/debian}"
}

debian_proxy() {
    apt-config dump 2>/dev/null | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p' | head -n 1
}

# apt-helper asks as apt does: with its proxy, its timeouts, and no other program needed.
debian_answers() {
    answers_file="$STATE/mirror-answer.$$"
    answers_code=0
    /usr/lib/apt/apt-helper -o Acquire::http::Timeout=10 -o Acquire::Retries=1 download-file \
        "$(debian_mirror)/dists/bookworm/Release" "$answers_file" || answers_code=$?
    rm -f "$answers_file"
    return "$answers_code"
}

# make_test_tree ARCHIVE: the archive appears whole or not at all.
make_test_tree() {
    tree="$STATE/test-host-tree.$$"
    mkdir -p "$(dirname "$1")"
    for stale_tree in "$STATE"/test-host-tree.*; do
        [ ! -d "$stale_tree" ] || [ -d "/proc/${stale_tree##*.}" ] || as_root rm -rf --one-file-system "$stale_tree"
    done
    tree_code=0
    as_root env PATH="$PATH:/usr/sbin:/sbin" http_proxy="${http_proxy:-$(debian_proxy)}" \
        sh "$TEST_HOST_RECIPE" "$tree" "$(debian_mirror)" || tree_code=$?
    if [ "$tree_code" -eq 0 ]; then
        # tar's own exit code is lost in a pipe; a marker says that it came to its end.
        { as_root tar -C "$tree" --numeric-owner -c . && : >"$1.whole"; } | gzip -1 >"$1.part"
        if [ -f "$1.whole" ]; then mv "$1.part" "$1"; else tree_code=1; fi
    fi
    rm -f "$1.whole" "$1.part"
    as_root rm -rf --one-file-system "$tree"
    return "$tree_code"
}

# Images of earlier recipes that were made from this very folder.
forget_old_test_images() {
    for old_archive in "$STATE"/cache/test-host-*.tar.gz; do
        [ -e "$old_archive" ] || continue
        [ "$old_archive" != "$image_archive" ] || continue
        old_hash=${old_archive##*/test-host-}
        docker image rm "fairlead-test-host:${old_hash%.tar.gz}" >/dev/null 2>&1 || true
        rm -f "$old_archive"
    done
}

# Hosts of test runs that were ended before they could tidy up. The label is PID.START.NAMESPACE of
# the process that made them (tests/src/hosts/leftovers.rs, which does the same at the next run).
sweep_test_hosts() {
    engine_answers || return 0
    sweep_space=$(readlink /proc/self/ns/pid | tr -cd 0-9)
    sweep_format='{{.ID}} {{.Label "fairlead.test-host"}}'
    docker ps -a --filter label=fairlead.test-host --format "$sweep_format" | sweep_dead docker rm -f -v
    docker network ls --filter label=fairlead.test-host --format "$sweep_format" | sweep_dead docker network rm
}

# sweep_dead COMMAND…: COMMAND with the id of each line of the input whose owner is dead for sure.
sweep_dead() {
    while read -r sweep_id sweep_owner; do
        if [ "${sweep_owner##*.}" = "$sweep_space" ] && [ ! -d "/proc/${sweep_owner%%.*}" ]; then
            "$@" "$sweep_id" >/dev/null 2>&1 || true
        fi
    done
}
