# The verbs test, lint, bless and doctor.
# shellcheck shell=sh

verb_test() {
    test_agreed=no
    [ "${CI:-}" != true ] || test_agreed=yes
    test_long=no
    while :; do
        case ${1:-} in
            --yes) test_agreed=yes ;;
            --long) test_long=yes ;;
            *) break ;;
        esac
        shift
    done
    [ "$test_long" = no ] || [ $# -eq 0 ] || usage_error "test --long runs everything and takes no arguments for cargo"
    need_rust
    ensure_packages docker test "$test_agreed"
    trap 'sweep_test_hosts; release_engine' EXIT
    trap 'exit 130' INT TERM HUP
    ensure_engine test "$@"
    FAIRLEAD_TEST_BUSYBOX=$(static_busybox)
    export FAIRLEAD_TEST_BUSYBOX

    test_code=0
    if wants_test_hosts "$@" && ! ensure_test_image "$test_agreed"; then
        note "SKIPPED: the tests on test hosts: $(cat "$TEST_HOST_WHY")"
    fi
    # The browser's test is driven by one of the page's packages; it says itself what is missing.
    page_tools || note "the terminal page's packages are not here (webssh/web: npm ci)"
    lint || test_code=1

    note "== build the tests"
    [ $# -gt 0 ] || set -- --workspace
    cargo test --no-run "$@" || {
        say "0 passed, 0 failed: the tests do not build"
        exit 1
    }
    note "== run them"
    test_log="$STATE/test.log"
    # The tests start the programs themselves, so they must be there and new.
    cargo build --workspace --bins
    {
        cargo test --no-fail-fast "$@" 2>&1 || echo "cargo test ended with code $?"
    } | tee "$test_log"
    [ "$*" != --workspace ] || walk_the_tour | tee -a "$test_log"
    [ "$test_long" = no ] || long_forms | tee -a "$test_log"
    ! grep -q '^cargo test ended with code' "$test_log" || test_code=1
    sum_up "$test_log" || test_code=1
    exit "$test_code"
}

# The README's tour counts as one test, said as the others are.
walk_the_tour() {
    if "$ROOT/dev" demo --check --programs "$(target_dir)/debug" >&2; then
        say "test result: ok. 1 passed; 0 failed; ./dev demo --check"
    else
        say "test result: FAILED. 0 passed; 1 failed; ./dev demo --check"
    fi
}

# What takes too long for every day: the packages built twice, which count as one test, then the tests
# that are ignored otherwise, some of which start the programs of these packages.
long_forms() {
    long_yes=
    [ "$test_agreed" = no ] || long_yes=--yes
    # shellcheck disable=SC2086 # one word or none
    if "$ROOT/dev" package --long $long_yes >&2; then
        say "test result: ok. 1 passed; 0 failed; ./dev package --long"
    else
        say "test result: FAILED. 0 passed; 1 failed; ./dev package --long"
    fi
    FAIRLEAD_TEST_PACKAGES="$STATE/packages" \
        cargo test --no-fail-fast --workspace -- --ignored long_ 2>&1 || say "cargo test ended with code $?"
}

# What is asked of another package only needs no test hosts.
wants_test_hosts() {
    case "$* " in
        *fairlead-tests*) return 0 ;;
        *-p\ * | *--package*) return 1 ;;
    esac
}

# What failed said why somewhere above, among a thousand lines: here it is again, the beginning of each.
say_failures() {
    awk '
        /^---- .* stdout ----$/ { inside = 1; lines = 0 }
        /^failures:$/ || /^test result: / { inside = 0 }
        inside && NF && ++lines <= 30 { print }
    ' "$1"
}

# Adds up what each test program said; a program that died without a word is said too.
sum_up() {
    say_failures "$1"
    [ "$test_code" -eq 0 ] || note "not all is well: see above, and .dev/test.log"
    awk '
        /^test result: / {
            for (i = 1; i < NF; i++) {
                if ($(i + 1) ~ /^passed;?$/) passed += $i
                if ($(i + 1) ~ /^failed;?$/) failed += $i
            }
            running = 0
        }
        /^running [0-9]+ tests?$/ { if (running) died++; running = 1 }
        # Such a test could not look; libtest knows no third word and says ok.
        /SKIPPED test / { skipped++; print substr($0, index($0, "SKIPPED test ")) }
        END {
            if (running) died++
            if (died) printf "%d test programs ended without a result; each counts as failed\n", died
            if (skipped) printf "%d SKIPPED, for the reasons above; they do not count as passed\n", skipped
            printf "%d passed, %d failed\n", passed - skipped, failed + died
            exit failed + died > 0
        }
    ' "$1"
}

verb_lint() {
    [ $# -eq 0 ] || usage_error "lint takes no options"
    need_rust
    lint || die "lint found something"
}

# Each checker that is here; says which is not.
lint() {
    lint_code=0
    note "== lint"
    if cargo fmt --version >/dev/null 2>&1; then
        lint_step "rustfmt" cargo fmt --all --check
    else
        note "  rustfmt is not here: rustup component add rustfmt"
    fi
    if cargo clippy --version >/dev/null 2>&1; then
        lint_step "clippy" cargo clippy --workspace --all-targets --quiet -- -D warnings
    else
        note "  clippy is not here: rustup component add clippy"
    fi
    if page_tools; then
        lint_step "terminal page" same_page
    elif [ "${CI:-}" = true ]; then
        note "  the terminal page's tools are missing, and in CI nothing is left out"
        lint_code=1
    else
        note "  node and npm are not here: the terminal page's bundle is not compared with its sources"
    fi
    lint_step "one TLS provider" no_ring
    lint_step "names in dev.d" no_name_twice
    if has shellcheck; then
        lint_step "shellcheck" shellcheck -s sh -x dev dev.d/*.sh .ci/run tests/src/hosts/recipe.sh
    else
        note "  shellcheck is not here: apt-get install shellcheck"
    fi
    if cargo deny --version >/dev/null 2>&1; then
        lint_step "cargo-deny" cargo deny --log-level error check bans licenses sources
        # The advisories come from the network; without it the rest still counts.
        lint_advisories
    else
        note "  cargo-deny is not here: cargo install --locked cargo-deny (some minutes)"
    fi
    return "$lint_code"
}

# Node, and the page's packages as its lock file has them.
page_tools() {
    has node && has npm || return 1
    cmp -s "$ROOT/webssh/web/package-lock.json" "$ROOT/webssh/web/node_modules/.as-locked" ||
        (cd "$ROOT/webssh/web" && npm ci --no-audit --no-fund --ignore-scripts >/dev/null 2>&1 &&
            cp package-lock.json node_modules/.as-locked)
}

build_page() (
    cd "$ROOT/webssh/web" && npx --no-install tsc --noEmit && OUT=$1 npm run --silent build >/dev/null
)

# The bundle in the repository is what its sources give.
same_page() {
    same_page_is="$STATE/page.$$"
    same_page_code=0
    if build_page "$same_page_is"; then
        diff -rq "$same_page_is" webssh/web/dist >&2 || {
            note "webssh/web/dist is not what its sources give: ./dev bless"
            same_page_code=1
        }
    else
        same_page_code=1
    fi
    rm -rf "$same_page_is"
    return "$same_page_code"
}

# All parts of ./dev share one shell: of two functions with one name the first would be gone.
no_name_twice() {
    no_name_twice=$(grep -hoE '^[a-z_]+\(\)' dev dev.d/*.sh | sort | uniq -d)
    [ -z "$no_name_twice" ] || {
        note "defined twice: $no_name_twice"
        return 1
    }
}

# With two providers in the graph rustls cannot choose, and panics at run time.
no_ring() {
    no_ring_tree=$(cargo tree --workspace --target all --invert ring 2>/dev/null || true)
    [ -z "$no_ring_tree" ] || {
        note "ring is in the dependency graph:"
        note "$no_ring_tree"
        return 1
    }
}

lint_step() {
    lint_text=$1
    shift
    lint_from=$(now_ms)
    if "$@" >&2; then
        note "  $lint_text: good, $(since "$lint_from")"
    else
        note "  $lint_text: not good, $(since "$lint_from")"
        lint_code=1
    fi
}

lint_advisories() {
    if cargo deny fetch db >/dev/null 2>&1; then
        lint_step "advisories" cargo deny --log-level error check advisories
    else
        note "  advisories: not looked at, the database cannot be fetched from here"
    fi
}

verb_bless() {
    [ $# -eq 0 ] || usage_error "bless takes no options"
    need_rust
    FAIRLEAD_BLESS=1 cargo test -p fairlead-api openapi
    if page_tools; then
        build_page dist
    else
        note "node and npm are not here: webssh/web/dist is left as it is"
    fi
    git -C "$ROOT" --no-pager diff --stat
}

verb_doctor() {
    doctor_line cargo "$(cargo --version 2>/dev/null)" "https://rustup.rs"
    doctor_line "C compiler" "$(cc --version 2>/dev/null | head -n 1)" "apt-get install gcc libc6-dev"
    if engine_answers; then
        doctor_line engine "Docker $(engine_version) on $DOCKER_HOST" ""
    elif has dockerd; then
        doctor_line engine "" "installed, not running (or not yours to use): ./dev demo starts it, as root"
    else
        doctor_line engine "" "./dev demo installs docker.io; or ./dev demo --engine simulated"
    fi
    doctor_line busybox "$(static_busybox || true)" "apt-get install busybox-static (./dev demo does)"
    doctor_line "test hosts" "$(test_host_here)" "./dev test-image (./dev test does so by itself)"
    if can_be_root; then doctor_root=yes; else doctor_root=; fi
    doctor_line "root or sudo" "$doctor_root" "needed only to install and start an engine"
    doctor_line rustfmt "$(cargo fmt --version 2>/dev/null)" "rustup component add rustfmt"
    doctor_line clippy "$(cargo clippy --version 2>/dev/null)" "rustup component add clippy"
    doctor_line "node, npm" "$(node --version 2>/dev/null && npm --version 2>/dev/null | tail -n 1)" "apt-get install nodejs npm, for the terminal page (./dev test does)"
    doctor_line chromium "$(command -v chromium || command -v chromium-browser || command -v google-chrome)" "apt-get install chromium, for the terminal page's test (./dev test does)"
    doctor_line shellcheck "$(shellcheck --version 2>/dev/null | sed -n 's/^version: //p')" "apt-get install shellcheck"
    doctor_line cargo-deny "$(cargo deny --version 2>/dev/null)" "cargo install --locked cargo-deny"
    doctor_line qemu-user "$(qemu-aarch64 --version 2>/dev/null | head -n 1)" "apt-get install qemu-user (./dev package does)"
    doctor_line disk "$(df -h "$ROOT" | awk 'NR == 2 { print $4 " free" }')" ""
    if demo_runs; then
        doctor_line demo "runs, pid $(cat "$DEMO_PID_FILE")" ""
    else
        doctor_line demo "" "./dev demo"
    fi
}

doctor_line() {
    if [ -n "$2" ]; then
        printf '  %-13s %s\n' "$1" "$2"
    else
        printf '  %-13s missing: %s\n' "$1" "$3"
    fi
}
