#!/bin/sh
# Installs Fairlead: the agent on this host or, with `server`, the servers. `--help` says how.
#
# The same bytes for everybody: nothing is written into this file by whoever serves it, except the
# three lines below, which are the same for all who install one version. Everything stands between
# one pair of braces, so that a shell that received only a part of this file finds an unfinished
# sentence and does nothing at all.
{
stamped_version=''
stamped_manifest_sha256=''
stamped_keys=''

set -eu
umask 022
LC_ALL=C
PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
export LC_ALL PATH
# `cd` and the shell's own habits must not depend on who calls.
unset CDPATH ENV BASH_ENV TAR_OPTIONS TAPE GREP_OPTIONS GREP_COLORS BLOCK_SIZE BLOCKSIZE DF_BLOCK_SIZE
IFS=' 	
'

# --- words -----------------------------------------------------------------------------------

help_text() {
    printf '%s\n' "usage: install.sh [server|check] [options]
       install.sh print-unit systemd|openrc|controller|access-server

Without a verb: installs the Fairlead agent, or brings what is here to the state asked for.
  server                  install the controller and an access server beside it
  check                   look, and say what would stand in the way; change nothing
  print-unit WHICH        print a service file

What to install, and from where
  --from URL|DIR          repository of packages (https, or a folder)      FAIRLEAD_FROM
  --bundle FILE           one package as a tar file, for hosts without a network
                                                                          FAIRLEAD_BUNDLE
  --version VERSION       this version                                     FAIRLEAD_VERSION
  --channel NAME          the newest version of a channel                  FAIRLEAD_CHANNEL
  --key KEYID:BASE64      also believe packages signed with this key       FAIRLEAD_KEY
  --pin sha256//BASE64    public key of the repository's https             FAIRLEAD_PIN
  --allow-downgrade       also install a version older than the one here

The host
  --address HOST:PORT,…   access servers that the agent dials              FAIRLEAD_ADDRESS
  --token-file FILE       join token (FL1…); - for standard input          FAIRLEAD_JOIN_TOKEN_FILE
                          or the token itself, in FAIRLEAD_JOIN_TOKEN; never as an argument
  --host-name NAME        what the host is called                          FAIRLEAD_HOST_NAME
  --engine-socket PATH    the container engine's socket                    FAIRLEAD_ENGINE_SOCKET
  --re-enrol              give up the identity that is here for a new one
  --allow-unreachable     install also when no access server answers now

The servers (after \`server\`)
  --name NAME             name that people and agents use, for instance fleet.example.com
                                                                          FAIRLEAD_NAME
  --port PORT             the one port that everybody comes through: 443  FAIRLEAD_PORT
  --region NAME           the first region: local                          FAIRLEAD_REGION
  --certificate FILE      https certificate (PEM chain) of a public CA; without it the
                          installation's own CA signs one, and its fingerprint is printed
  --certificate-key FILE  its private key (PEM)
  --certificate acme      one that Let's Encrypt issues for the name, renewed by itself; it has
                          to reach this machine at port 443 of the name
  --acme-agree-tos        its terms of service are agreed to; needed for that
  --acme-contact WHERE    where it may write to, for instance mailto:ops@example.com

Where and how
  --prefix DIR            instead of /opt/fairlead                         FAIRLEAD_PREFIX
  --root DIR              install into the tree below DIR; nothing is started
  --init KIND             systemd, openrc or none, instead of what is found
  --no-start              install, start nothing
  --dry-run               say what would be done; change nothing
  --uninstall [--purge]   take it away again; --purge: all its data too
  --forget                with --uninstall: the agent's data goes also when no server can be told
  --quiet                 say only what went wrong

A proxy is taken from HTTPS_PROXY and NO_PROXY, and kept for the agent.
Exit codes: 0 ok, 1 failed, 2 the request makes no sense, 3 the host is not fit for it."
}

say() {
    if [ "$quiet" = no ]; then
        printf '%s\n' "$*" >&2
    fi
}

# die EXIT CODE WHAT NEXT
die() {
    die_exit=$1
    explained=yes
    printf 'error: %s (%s)\n  host: %s\n  next: %s\n' "$3" "$2" "$this_host" "$4" >&2
    exit "$die_exit"
}

usage() {
    die 2 "$1" "$2" "${3:-see: sh install.sh --help}"
}

# plan TEXT: says what is done now. In a dry run it says what would be done, and is false.
plan() {
    if [ "$dry_run" = yes ]; then
        printf 'would %s\n' "$*" >&2
        return 1
    fi
    say "- $*"
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# --- cleaning up -----------------------------------------------------------------------------

# What was begun and not finished goes away again: temporary files, and folders that are empty.
# shellcheck disable=SC2317 # called by the trap
clean_up() {
    clean_code=$?
    trap - EXIT INT TERM HUP
    set +e
    if [ "$staging" = yes ]; then
        rm -rf "$root$prefix/versions"/.incoming.*
    fi
    if [ -n "$temporary" ]; then
        rm -f "$temporary"
    fi
    if [ "$committed" = no ] && [ "$clean_code" -ne 0 ]; then
        if [ -n "$lock_made" ]; then
            rm -f "$lock_made"
        fi
        for clean_dir in $made_dirs; do
            rmdir "$root$clean_dir" 2>/dev/null
        done
    fi
    if [ "$clean_code" -ne 0 ] && [ "$explained" = no ]; then
        printf 'error: stopped before the end, with code %s (installer_stopped)\n  host: %s\n  next: %s\n' \
            "$clean_code" "$this_host" "run it again: it goes on from what is there" >&2
        case $clean_code in
        2 | 3) clean_code=1 ;;
        *) ;;
        esac
    fi
    exit "$clean_code"
}

# --- checking what was said ------------------------------------------------------------------

# only TEXT ALLOWED: whether the text has characters of the set alone, and at least one.
only() {
    case $1 in
    '') return 1 ;;
    *) ;;
    esac
    only_rest=$(printf '%s' "$1" | tr -d "$2" && printf x)
    [ "$only_rest" = x ]
}

is_path() {
    case $1 in
    /*) ;;
    *) return 1 ;;
    esac
    case $1/ in
    */../* | */./* | *//*) return 1 ;;
    *) ;;
    esac
    only "$1" 'A-Za-z0-9/._+-'
}

is_version() {
    case $1 in
    [0-9]*) ;;
    *) return 1 ;;
    esac
    case $1 in
    *..* | *-) return 1 ;;
    *.*.*) ;;
    *) return 1 ;;
    esac
    only "$1" 'A-Za-z0-9.+-'
}

is_key() {
    case $1 in
    ????????????????:*) ;;
    *) return 1 ;;
    esac
    only "${1%%:*}" '0-9a-f' && only "${1#*:}" 'A-Za-z0-9+/=' && [ "${#1}" -eq 61 ]
}

is_number() {
    only "$1" '0-9'
}

is_address() {
    only "$1" 'A-Za-z0-9._:[]-' || return 1
    case $1 in
    \[*\]:* | *:*) ;;
    *) return 1 ;;
    esac
    is_address_port=${1##*:}
    is_address_host=${1%:*}
    case $is_address_host in
    '' | -*) return 1 ;;
    \[*\]) ;;
    *[:[]* | *]*) return 1 ;;
    *) ;;
    esac
    is_number "$is_address_port" && [ "${#is_address_port}" -le 5 ] &&
        [ "$is_address_port" -ge 1 ] && [ "$is_address_port" -le 65535 ]
}

check_addresses() {
    check_left=$1,
    while [ -n "$check_left" ]; do
        check_one=${check_left%%,*}
        check_left=${check_left#*,}
        is_address "$check_one" ||
            usage installer_address "an address is HOST:PORT, and one of these is not: $(printable "$1")"
    done
}

# What somebody typed, fit to be shown.
printable() {
    printf '%s' "$1" | tr -c 'A-Za-z0-9 ._:/@,=+-' '?' | cut -c 1-120
}

# A token's outer blanks and line ends are what copying adds; what is inside must be as it was made.
trimmed() {
    trim_text=$1
    while :; do
        case $trim_text in
        [[:space:]]*) trim_text=${trim_text#?} ;;
        *[[:space:]]) trim_text=${trim_text%?} ;;
        *) break ;;
        esac
    done
    printf '%s' "$trim_text"
}

is_join_token() {
    case $1 in
    FL1*::*.*) ;;
    *) return 1 ;;
    esac
    token_hash=${1#FL1}
    token_hash=${token_hash%%::*}
    token_rest=${1#*::}
    token_id=${token_rest%%.*}
    token_secret=${token_rest#*.}
    [ "${#token_hash}" -eq 64 ] && only "$token_hash" '0-9a-fA-F' &&
        [ "${#token_id}" -eq 10 ] && only "$token_id" 'a-z0-9' &&
        [ "${#token_secret}" -eq 32 ] && only "$token_secret" 'a-z0-9'
}

# Looks at the token, reads it first if it is in a file.
take_token() {
    if [ -z "$token" ] && [ -n "$token_file" ]; then
        if [ "$token_file" = - ]; then
            token=$(head -c 4096) || token=
        elif [ -f "$token_file" ] && [ -r "$token_file" ]; then
            token=$(head -c 4096 "$token_file") || token=
        else
            usage installer_token_file "the token's file cannot be read: $(printable "$token_file")" \
                "write the join token into a file that root can read, or pass it as FAIRLEAD_JOIN_TOKEN"
        fi
        if [ -z "$token" ]; then
            usage installer_token_empty "there is no join token in $(printable "$token_file")" \
                "when this script itself comes through standard input, pass the token as FAIRLEAD_JOIN_TOKEN"
        fi
    fi
    [ -n "$token" ] || return 0
    token=$(trimmed "$token")
    case $token in
    FA1*) usage installer_api_token "this is an API token (FA1…): it opens the API, and no machine joins with it" \
        "make a join token (FL1…): fairlead host add, or fairlead join-token create" ;;
    *) ;;
    esac
    is_join_token "$token" ||
        usage installer_token "this is not a join token: it has $(count_chars "$token") characters and should read FL1<64 hex digits>::<id>.<secret>" \
            "copy it whole, in one piece, with quotes around it and nothing else inside them"
}

count_chars() {
    printf '%s' "${#1}"
}

# older A B: whether version A comes before B (as semver has it; what follows a plus does not count).
older() {
    older_a=${1%%[-+]*}
    older_b=${2%%[-+]*}
    while [ -n "$older_a$older_b" ]; do
        older_x=${older_a%%.*}
        older_y=${older_b%%.*}
        case $older_a in
        *.*) older_a=${older_a#*.} ;;
        *) older_a= ;;
        esac
        case $older_b in
        *.*) older_b=${older_b#*.} ;;
        *) older_b= ;;
        esac
        older_x=$(leading_number "$older_x")
        older_y=$(leading_number "$older_y")
        [ "$older_x" -ge "$older_y" ] || return 0
        [ "$older_x" -le "$older_y" ] || return 1
    done
    older_a=${1%%+*}
    older_b=${2%%+*}
    case $older_a in
    *-*) older_a=${older_a#*-} ;;
    *) return 1 ;;
    esac
    case $older_b in
    *-*) older_b=${older_b#*-} ;;
    *) return 0 ;;
    esac
    # Pre-releases, part by part: numbers by their size, and before words; what begins the other, first.
    while [ -n "$older_a" ] && [ -n "$older_b" ]; do
        older_x=${older_a%%.*}
        older_y=${older_b%%.*}
        case $older_a in
        *.*) older_a=${older_a#*.} ;;
        *) older_a= ;;
        esac
        case $older_b in
        *.*) older_b=${older_b#*.} ;;
        *) older_b= ;;
        esac
        [ "$older_x" != "$older_y" ] || continue
        case $older_x in
        *[!0-9]*) case $older_y in
            *[!0-9]*) [ "$(printf '%s\n%s\n' "$older_x" "$older_y" | LC_ALL=C sort | head -n 1)" = "$older_x" ] ;;
            *) return 1 ;;
            esac ;;
        *) case $older_y in
            *[!0-9]*) return 0 ;;
            *) [ "$(leading_number "$older_x")" -lt "$(leading_number "$older_y")" ] ;;
            esac ;;
        esac
        return
    done
    [ -z "$older_a" ] && [ -n "$older_b" ]
}

leading_number() {
    leading=${1%%[!0-9]*}
    while :; do
        case $leading in
        0?*) leading=${leading#0} ;;
        *) break ;;
        esac
    done
    printf '%s' "${leading:-0}" | cut -c 1-9
}

# --- what kind of machine --------------------------------------------------------------------

look_around() {
    case $(uname -s) in
    Linux) ;;
    *) die 3 installer_system "Fairlead's agent and servers run on Linux, and this is $(uname -s)" \
        "the command line (fairlead) runs elsewhere too: see the guide" ;;
    esac
    machine=$(uname -m)
    case $machine in
    x86_64 | amd64) target=linux-x86_64 ;;
    aarch64 | arm64) target=linux-aarch64 ;;
    *) die 3 installer_architecture "there are no programs for $machine processors, only for x86_64 and aarch64" \
        "ask for them, or build from source" ;;
    esac
    if [ -z "$init" ]; then
        init=$(find_init)
    fi
    is_root=no
    if [ "$(id -u)" -eq 0 ]; then
        is_root=yes
    fi
    running_system=yes
    if [ -n "$root" ] || [ "$init" = none ]; then
        running_system=no
    fi
    if [ -z "$root" ] && [ "$is_root" = no ] && [ "$dry_run" = no ] && [ "$verb" != check ]; then
        die 3 installer_not_root "this changes the system, and you are not root" \
            "as root; or: curl … | sudo --preserve-env=FAIRLEAD_JOIN_TOKEN,HTTPS_PROXY,NO_PROXY sh -s -- …"
    fi
}

find_init() {
    if [ -z "$root" ]; then
        if [ -d /run/systemd/system ]; then
            printf 'systemd'
            return
        elif [ -d /run/openrc ] && has rc-service; then
            printf 'openrc'
            return
        fi
    else
        for find_init_at in lib/systemd/systemd usr/lib/systemd/systemd; do
            if [ -e "$root/$find_init_at" ]; then
                printf 'systemd'
                return
            fi
        done
        if [ -e "$root/sbin/openrc-run" ] || [ -e "$root/usr/sbin/openrc-run" ]; then
            printf 'openrc'
            return
        fi
    fi
    printf 'none'
}

# The nearest folder that is there: where a new one would be made.
existing_parent() {
    parent=$1
    while [ ! -d "$parent" ]; do
        parent=${parent%/*}
        parent=${parent:-/}
    done
    printf '%s' "$parent"
}

# The options of the file system that holds a folder.
mount_options() {
    [ -r /proc/self/mounts ] || return 0
    mounted_at=$(df -P "$1" 2>/dev/null | sed -n '2s/.*% *//p')
    while read -r _ mount_at _ mount_opts _; do
        if [ "$mount_at" = "$mounted_at" ]; then
            printf ',%s,' "$mount_opts"
            return 0
        fi
    done </proc/self/mounts
}

free_mib() {
    df -Pk "$1" 2>/dev/null | sed -n '2s/^.* \([0-9][0-9]*\)  *[0-9-]*% .*$/\1/p' | while read -r kib; do
        printf '%s' $((kib / 1024))
    done
}

find_engine() {
    engine_kind=none
    engine_socket_found=
    # One that was named, now or by an earlier line, is the one that the agent will use.
    env_text=$(cat "$root$env_file" 2>/dev/null) || env_text=
    engine_named=${engine_socket:-$(env_line FAIRLEAD_ENGINE_SOCKET)}
    if [ -n "$engine_named" ]; then
        set -- "$engine_named"
    else
        set -- "${DOCKER_HOST:-}" /var/run/docker.sock /run/podman/podman.sock
    fi
    for engine_try; do
        case $engine_try in
        unix://*) engine_try=${engine_try#unix://} ;;
        /*) ;;
        *) continue ;;
        esac
        if [ -S "$root$engine_try" ]; then
            engine_socket_found=$engine_try
            case $engine_try in
            *podman*) engine_kind=Podman ;;
            *) engine_kind=Docker ;;
            esac
            return 0
        fi
    done
}

# --- preflight -------------------------------------------------------------------------------

# row NAME STATE TEXT [CODE]: one line of the table; FAIL makes the host unfit.
row() {
    if [ "$2" = FAIL ]; then
        preflight_failed="$preflight_failed $4"
        printf '  %-9s %-5s %s\n' "$1" "$2" "$3" >&2
    elif [ "$quiet" = no ]; then
        printf '  %-9s %-5s %s\n' "$1" "$2" "$3" >&2
    fi
}

preflight() {
    preflight_failed=
    say "preflight on $this_host"
    row system ok "Linux $machine, init: $init"
    preflight_place
    preflight_tools
    preflight_proxy
    preflight_clock
    if [ "$verb" = server ]; then
        preflight_port
    else
        preflight_reach
        preflight_engine
    fi
    if [ -n "$preflight_failed" ]; then
        die 3 "${preflight_failed##* }" "this host is not fit yet:$preflight_failed" \
            "see the lines marked FAIL above, then run the same line again"
    fi
}

preflight_place() {
    place=$(existing_parent "$root$prefix")
    place_options=$(mount_options "$place")
    place_next="; choose another place with --prefix DIR"
    case $place_options in
    *,ro,*)
        row place FAIL "$place is mounted read-only$place_next" installer_read_only
        return 0
        ;;
    *,noexec,*)
        row place FAIL "$place is mounted noexec: no program can be started from it$place_next" installer_noexec
        return 0
        ;;
    *) ;;
    esac
    if [ ! -w "$place" ] && [ "$is_root$root" != no ]; then
        row place FAIL "$place cannot be written to$place_next" installer_read_only
        return 0
    fi
    place_free=$(free_mib "$place")
    if [ "${place_free:-$min_free_mib}" -lt "$min_free_mib" ]; then
        row place FAIL "$place has $place_free MB free, and $min_free_mib are needed" installer_disk
    else
        row place ok "$root$prefix, ${place_free:-?} MB free"
    fi
    if [ "$verb" = server ] && [ "$packaged_servers" = no ]; then
        data_place=$(existing_parent /var/lib/fairlead-controller)
        data_free=$(free_mib "$data_place")
        if [ "${data_free:-$min_free_mib}" -lt "$min_free_mib" ]; then
            row data FAIL "$data_place, for the servers' data and the hosts' package, has $data_free MB free, and $min_free_mib are needed" installer_disk
        fi
    fi
    if [ "$verb" != server ]; then
        state_place=$(existing_parent "$root$state_dir")
        case $(mount_options "$state_place") in
        *,ro,*) row state FAIL "$state_place, for the agent's state, is mounted read-only" installer_read_only ;;
        *) ;;
        esac
        state_free=$(free_mib "$state_place")
        if [ "${state_free:-1}" -lt 1 ]; then
            row state FAIL "$state_place, for the agent's state, is full" installer_disk
        fi
    fi
}

preflight_tools() {
    hasher=
    for tool in sha256sum shasum openssl; do
        if has "$tool"; then
            hasher=$tool
            break
        fi
    done
    if [ -z "$hasher" ]; then
        row tools FAIL "none of sha256sum, shasum and openssl is here: nothing could be checked" installer_tools
    fi
    getter=
    if [ "$source_kind" = url ]; then
        if has curl; then
            getter=curl
        elif has wget; then
            getter=wget
            if [ -n "$pin" ] && ! wget --help 2>&1 | grep -q pinnedpubkey; then
                row tools FAIL "this wget cannot hold a connection to a public key (--pin): install curl" installer_tools
            fi
        else
            row tools FAIL "neither curl nor wget is here" installer_tools
        fi
    fi
    if [ "$verb" = server ] && [ "$packaged_servers" = no ] && ! can_verify; then
        # Hosts will run the script that is kept for them, and its signature is all that proves it.
        row tools FAIL "no openssl that knows Ed25519: the install.sh for the hosts could not be checked; install OpenSSL 3 (package openssl)" installer_no_verifier
    fi
    if [ "$source_kind" = bundle ] && ! has tar; then
        row tools FAIL "tar is not here, and a bundle is a tar file" installer_tools
    fi
}

preflight_proxy() {
    case $proxy in
    '') return 0 ;;
    http://*) ;;
    *://*)
        row proxy FAIL "$(shown_proxy "$proxy"): only http:// proxies (CONNECT) are known; what goes through is TLS in any case" installer_proxy
        return 0
        ;;
    *) ;;
    esac
    row proxy ok "through $(shown_proxy "$proxy")"
}

# Without its password.
shown_proxy() {
    case $1 in
    *@*) printf '%s' "${1##*@}" ;;
    *) printf '%s' "${1#*://}" ;;
    esac
}

preflight_clock() {
    if [ "$source_kind" != url ] || [ "$getter" != curl ]; then
        return 0
    fi
    clock_said=$(curl --silent --insecure --http1.1 --head --connect-timeout 5 --max-time 8 "$source/" </dev/null 2>/dev/null |
        tr -d '\r' | sed -n 's/^[Dd][Aa][Tt][Ee]: *//p' | tail -n 1) || clock_said=
    clock_there=$(seconds_of_http_date "$clock_said")
    if [ -z "$clock_there" ]; then
        return 0
    fi
    clock_off=$(($(date -u +%s) - clock_there))
    clock_word=ahead
    if [ "$clock_off" -lt 0 ]; then
        clock_off=$((-clock_off))
        clock_word=behind
    fi
    if [ "$clock_off" -gt 300 ]; then
        row clock warn "this clock is $clock_off s $clock_word of $(host_of "$source"): certificates may seem expired or not yet valid; set it (timedatectl set-ntp true)"
    else
        row clock ok "within $((clock_off + 1)) s of $(host_of "$source")"
    fi
}

host_of() {
    host_of=${1#*://}
    host_of=${host_of%%/*}
    printf '%s' "${host_of##*@}"
}

# Sat, 21 Nov 2026 03:03:02 GMT, in seconds since 1970; nothing for anything else.
seconds_of_http_date() {
    # shellcheck disable=SC2086 # it is to be cut into words
    set -- $1
    if [ "$#" -ne 6 ] || [ "$6" != GMT ]; then
        return 0
    fi
    case $3 in
    Jan) hd_month=1 ;; Feb) hd_month=2 ;; Mar) hd_month=3 ;; Apr) hd_month=4 ;;
    May) hd_month=5 ;; Jun) hd_month=6 ;; Jul) hd_month=7 ;; Aug) hd_month=8 ;;
    Sep) hd_month=9 ;; Oct) hd_month=10 ;; Nov) hd_month=11 ;; Dec) hd_month=12 ;;
    *) return 0 ;;
    esac
    case $2:$4:$5 in
    [0-9][0-9]:[0-9][0-9][0-9][0-9]:[0-9][0-9]:[0-9][0-9]:[0-9][0-9]) ;;
    *) return 0 ;;
    esac
    hd_hour=${5%%:*}
    hd_minute=${5#*:}
    hd_minute=${hd_minute%:*}
    hd_second=${5##*:}
    hd_day=${2#0}
    hd_year=$4
    # Days since 1970, counting years from March.
    if [ "$hd_month" -le 2 ]; then
        hd_year=$((hd_year - 1))
        hd_month=$((hd_month + 12))
    fi
    hd_days=$((365 * hd_year + hd_year / 4 - hd_year / 100 + hd_year / 400 + (153 * (hd_month - 3) + 2) / 5 + hd_day - 1 - 719468))
    printf '%s' $((hd_days * 86400 + ${hd_hour#0} * 3600 + ${hd_minute#0} * 60 + ${hd_second#0}))
}

preflight_reach() {
    if [ -z "$address" ]; then
        return 0
    fi
    # Who is a host already, or is only being prepared, need not get there now.
    reach_bad=FAIL
    if [ "$allow_unreachable" = yes ] || [ "$enrolled" = yes ] || [ "$running_system" = no ] || [ "$start" = no ]; then
        reach_bad=warn
    fi
    if ! has curl; then
        row reach - "not looked at: curl is not here"
        return 0
    fi
    reach_left=$address,
    reach_words=
    reach_code=installer_unreachable
    while [ -n "$reach_left" ]; do
        reach_one=${reach_left%%,*}
        reach_left=${reach_left#*,}
        reach_try "$reach_one"
        if [ -z "$reach_said" ]; then
            row reach ok "$reach_one answers"
            preflight_tls "$reach_one"
            return 0
        fi
        reach_words="$reach_words${reach_words:+; }$reach_said"
    done
    row reach "$reach_bad" "$reach_words" "$reach_code"
}

# Sets reach_said to what is wrong, in words, or to nothing.
reach_try() {
    reach_host=${1%:*}
    reach_exit=0
    reach_err=$(curl --silent --show-error --insecure --output /dev/null --connect-timeout 5 --max-time 8 \
        "https://$1/" </dev/null 2>&1) || reach_exit=$?
    reach_said=
    case $reach_exit in
    5) reach_said="the proxy's name cannot be found ($(shown_proxy "$proxy"))" ;;
    6)
        reach_said="the name $reach_host cannot be found (DNS)"
        reach_code=installer_dns
        ;;
    7) reach_said="$1 refuses connections, or a firewall does: let this host out to port ${1##*:}" ;;
    28) reach_said="$1 does not answer within 8 s: is a firewall in between? Let this host out to port ${1##*:}, or set HTTPS_PROXY" ;;
    97) reach_said="the proxy $(shown_proxy "$proxy") cannot be used" ;;
    *)
        case $reach_err in
        *407*) reach_said="the proxy $(shown_proxy "$proxy") wants a user and a password: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT" ;;
        *"from proxy"* | *"CONNECT tunnel failed"*) reach_said="the proxy $(shown_proxy "$proxy") does not let through to $1" ;;
        *) ;;
        esac
        ;;
    esac
}

# Somebody in between who opens TLS shows a CA of his own instead of the token's.
preflight_tls() {
    if [ -z "$token" ] || ! has openssl; then
        return 0
    fi
    tls_address=$1
    set -- -connect "$1"
    case $proxy in
    '') ;;
    # Not every openssl can say a password to a proxy, and none knows exceptions.
    *@*) return 0 ;;
    *)
        if [ -n "$no_proxy_for" ]; then
            return 0
        fi
        set -- "$@" -proxy "$(host_of "$proxy")"
        ;;
    esac
    tls_want=${token#FL1}
    tls_want=$(printf '%s' "${tls_want%%::*}" | tr 'A-F' 'a-f')
    # The name that agents ask for: on a port that serves browsers too, it finds the agents' door.
    tls_shown=$(bounded 8 openssl s_client "$@" -servername agents.fairlead.internal -showcerts </dev/null 2>/dev/null) || :
    tls_any=no
    for tls_one in $(printf '%s\n' "$tls_shown" | awk '
        /-----BEGIN CERTIFICATE-----/ { on = 1; text = ""; next }
        /-----END CERTIFICATE-----/ { if (on) print text; on = 0 }
        on { text = text $0 }'); do
        tls_any=yes
        if [ "$(printf '%s' "$tls_one" | openssl base64 -d -A | sha256)" = "$tls_want" ]; then
            row tls ok "$tls_address shows the CA that the token names"
            return 0
        fi
    done
    if [ "$tls_any" = yes ]; then
        tls_issuer=$(printf '%s\n' "$tls_shown" | openssl x509 -noout -issuer 2>/dev/null) || tls_issuer=
        row tls "$reach_bad" "$tls_address shows another CA than the token names ($(printable "${tls_issuer:-issuer unknown}")): it belongs to another installation, or something in between opens TLS and has to leave $tls_address alone. The token was not sent" ca_mismatch
    fi
}

# bounded SECONDS COMMAND…: with a time limit, where the system has one.
bounded() {
    bounded_s=$1
    shift
    if has timeout && timeout 1 true 2>/dev/null; then
        timeout "$bounded_s" "$@"
    else
        "$@"
    fi
}

# listens PORT: whether a program on this machine does.
listens() {
    # Listening is state 0A; the port stands behind the last colon, in hexadecimal digits.
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        grep -Eq "^ *[0-9]+: [0-9A-F]+:$(printf '%04X' "$1") [0-9A-F]+:[0-9A-F]+ 0A "
}

# The one port of the servers, while they do not hold it themselves.
preflight_port() {
    if [ ! -r /proc/net/tcp ]; then
        return 0
    fi
    if [ "$port" = "$told_port" ] && service_runs fairlead-access-server; then
        row port ok "port $port is fairlead-access-server's"
    elif listens "$port"; then
        row port FAIL "port $port is taken (ss -ltnp says by whom): stop that program, or choose another with --port" installer_port
    else
        row port ok "$port is free"
    fi
}

preflight_engine() {
    find_engine
    if [ "$engine_kind" = none ] && [ -n "$engine_named" ]; then
        row engine warn "there is no socket $engine_named: the agent asks there and nowhere else until one is (--engine-socket names another)"
        return 0
    fi
    if [ "$engine_kind" = none ]; then
        row engine warn "no Docker and no Podman socket: the agent is installed all the same, and uses the engine as soon as one is there"
        return 0
    fi
    engine_answer=
    if has curl && [ -z "$root" ]; then
        engine_answer=$(curl --silent --max-time 3 --unix-socket "$engine_socket_found" http://localhost/_ping </dev/null 2>/dev/null) || engine_answer=
        if [ "$engine_answer" = OK ]; then
            row engine ok "$engine_kind answers at $engine_socket_found"
        else
            row engine warn "$engine_kind's socket $engine_socket_found is there and does not answer; the agent goes on asking"
        fi
    else
        row engine ok "$engine_kind's socket $engine_socket_found"
    fi
}

# --- getting files ---------------------------------------------------------------------------

# fetch NAME LIMIT: one file of the source, to standard output; not more than LIMIT bytes of it.
# On failure fetch_exit is the reason.
fetch() {
    case $source_kind in
    url) download "$source/$1" "$2" ;;
    dir) if [ -f "$source/$1" ] && [ -r "$source/$1" ]; then head -c "$(($2 + 1))" "$source/$1"; else return 66; fi ;;
    bundle)
        # To standard output: no name, link or device in the tar is ever made.
        { tar -xOf "$bundle" "$1" 2>/dev/null || tar -xOf "$bundle" "./$1" 2>/dev/null || :; } |
            head -c "$(($2 + 1))"
        ;;
    *) return 64 ;;
    esac
}

download() {
    # Too large: the write fails instead of filling the disk.
    trap '' XFSZ
    ulimit -f "$(($2 / 512 + 8))" 2>/dev/null || :
    if [ "$getter" = curl ]; then
        set -- "$1"
        if [ -n "$pin" ]; then
            # With a pinned key no authority is needed: the key itself is what is believed.
            set -- --insecure --pinnedpubkey "$pin" "$1"
        fi
        case $source in
        https:*) set -- --proto '=https' --proto-redir '=https' --tlsv1.2 "$@" ;;
        *) set -- --proto '=http,https' "$@" ;;
        esac
        curl --fail --silent --show-error --location --max-redirs 5 --connect-timeout 10 \
            --max-time "$time_limit" --speed-limit 1000 --speed-time 30 "$@" </dev/null
    else
        set -- "$1"
        if [ -n "$pin" ]; then
            set -- --no-check-certificate "--pinnedpubkey=$pin" "$1"
        fi
        # Busybox's own is bounded from outside only: some builds of it crash with -T.
        if ! wget --help 2>&1 </dev/null | grep -qi busybox; then
            set -- -T 10 "$@"
        fi
        bounded "$time_limit" wget -q -O - "$@" </dev/null
    fi
}

# get NAME LIMIT FILE WHAT: fetches into a file, or ends with the reason in words.
get() {
    get_tries=0
    while :; do
        get_exit=0
        get_error=$( (fetch "$1" "$2" >"$3") 2>&1) || get_exit=$?
        get_tries=$((get_tries + 1))
        # A name that is not there does not come with time; a broken line may.
        case $get_exit in
        0) break ;;
        7 | 18 | 52 | 55 | 56) if [ "$get_tries" -lt 3 ]; then
            sleep 1
            continue
        fi ;;
        *) ;;
        esac
        get_failed "$1" "$2" "$3" "$4"
    done
    if [ "$getter" = wget ]; then
        # Busybox's timeout leaves a watcher behind that holds the file open for writing, and what is
        # open for writing cannot be started.
        cp "$3" "$3.copy" || get_failed "$1" "$2" "$3" "$4"
        mv -f "$3.copy" "$3"
    fi
    get_size=$(size_of "$3")
    if [ "$get_size" -eq 0 ] && [ "$source_kind" = bundle ]; then
        get_failed "$1" "$2" "$3" "$4"
    fi
    if [ "$get_size" -gt "$2" ]; then
        die 1 installer_size "$4 is larger than the $2 bytes that it may have" "$(next_for_source)"
    fi
}

size_of() {
    size_now=$(wc -c <"$1") || size_now=0
    printf '%s' "$((size_now))"
}

get_failed() {
    get_where=$source/$1
    get_last=$(printable "$(printf '%s' "$get_error" | tail -n 1)")
    case $source_kind:$getter:$get_exit in
    dir:* | bundle:*) die 1 installer_not_found "$4 is not in $source: $1" \
        "is it a whole repository or bundle, and is the version right?" ;;
    url:curl:22)
        case $get_error in
        *"error: 40"[34]*) die 1 installer_not_found "$4 is not at $get_where: $get_last" \
            "is --from right, and is there such a version? Ask who runs the repository" ;;
        *) die 1 installer_download "$4 was refused by $(host_of "$source"): $get_last" "try again in a minute" ;;
        esac
        ;;
    url:wget:8 | url:wget:1) die 1 installer_not_found "$4 cannot be had from $get_where: $get_last" \
        "is --from right, and is there such a version?" ;;
    url:curl:2 | url:curl:4 | url:wget:2) die 1 installer_tools "this $getter is too old: it does not know an option that is needed" \
        "install a newer curl, or bring the package along (--bundle FILE)" ;;
    url:curl:5 | url:curl:97) die 1 installer_proxy "the proxy $(shown_proxy "$proxy") cannot be used" "look at HTTPS_PROXY" ;;
    url:curl:6) die 1 installer_dns "the name $(host_of "$source") cannot be found" "look at this host's DNS (/etc/resolv.conf), or set HTTPS_PROXY" ;;
    url:curl:7) die 1 installer_unreachable "$(host_of "$source") refuses connections, or a firewall does" "let this host out to it, or set HTTPS_PROXY" ;;
    url:curl:28 | url:wget:124 | url:wget:143) die 1 installer_timeout "$4 did not come within the time: $get_last" \
        "try again, use a mirror (--from), or bring it along (--bundle FILE)" ;;
    url:curl:18) die 1 installer_truncated "$4 broke off: $get_last" "try again" ;;
    url:curl:90) die 1 installer_pin "$(host_of "$source") has another public key than the one pinned: it was renewed, or something in between opens TLS" \
        "get the line anew from the console (fairlead host add); do not leave the pin out" ;;
    url:curl:35 | url:curl:51 | url:curl:58 | url:curl:60 | url:curl:77 | url:wget:5)
        die 1 installer_tls "$(host_of "$source") cannot prove who it is: $get_last" \
            "is something in between opening TLS? Is the clock right ($(date -u +%Y-%m-%dT%H:%M:%SZ))? With a CA of one's own the line needs --pin"
        ;;
    *) ;;
    esac
    if [ "$(size_of "$3")" -gt "$2" ]; then
        die 1 installer_size "$4 is larger than the $2 bytes that it may have" "$(next_for_source)"
    fi
    get_free=$(free_mib "${3%/*}")
    if [ "${get_free:-9}" -lt 2 ] || [ "$get_exit" -eq 23 ]; then
        die 1 installer_disk "$4 cannot be written: the disk is full at ${3%/*}" "make room, or choose another place with --prefix DIR"
    fi
    die 1 installer_download "$4 cannot be had from $get_where: ${get_last:-code $get_exit}" "try again"
}

next_for_source() {
    if [ "$source_kind" = url ]; then
        printf '%s' "try again; if it stays so, a proxy, a mirror or somebody in between changes files: look at $source"
    else
        printf '%s' "copy it again, whole; if it stays so, it was changed after it was signed: look where $source comes from"
    fi
}

sha256() {
    case $hasher in
    sha256sum) sha256sum | cut -d ' ' -f 1 ;;
    shasum) shasum -a 256 | cut -d ' ' -f 1 ;;
    *) openssl dgst -sha256 | sed 's/^.*[= ]//' ;;
    esac
}

# --- which version, and is it genuine --------------------------------------------------------

choose_version() {
    if [ -n "$version" ]; then
        return 0
    fi
    case $source_kind in
    bundle)
        version=$(tar -tf "$bundle" 2>/dev/null | sed -n 's|^\(\./\)\{0,1\}\([^/]*\)/manifest$|\2|p' | head -n 1) || version=
        if ! is_version "$version"; then
            die 1 installer_bundle "$bundle is not a bundle: it holds no VERSION/manifest" "copy it again, whole"
        fi
        return 0
        ;;
    *) ;;
    esac
    if [ -z "$channel" ] && [ -n "$stamped_version" ]; then
        version=$stamped_version
        return 0
    fi
    channel=${channel:-stable}
    if [ "$dry_run" = yes ]; then
        version=$( (fetch "channels/$channel" 100) 2>/dev/null) || version=
        if ! is_version "$version"; then
            die 1 installer_not_found "channel $channel cannot be had from $source" "is --from right?"
        fi
        return 0
    fi
    get "channels/$channel" 100 "$stage/channel" "channel $channel"
    version=$(head -n 1 "$stage/channel")
    if ! is_version "$version"; then
        not_ours "$stage/channel" "channel $channel"
        die 1 installer_channel "what came for channel $channel is not a version" "$(next_for_source)"
    fi
}

# A login page of a hotel, a proxy's warning: said as what it is.
not_ours() {
    case $(head -c 200 "$1" | tr -d '\000' | tr 'A-Z\n' 'a-z ') in
    *'<html'* | *'<!doctype'* | *'<head'*) die 1 installer_web_page \
        "a web page came instead of $2: a captive portal, a proxy's login or a wrong address answered" \
        "$(next_for_page)" ;;
    *) ;;
    esac
}

next_for_page() {
    if [ "$source_kind" = url ]; then
        printf '%s' "open this host's way to $(host_of "$source"), or bring the package along (--bundle FILE)"
    else
        printf '%s' "fetch $source again, past the portal: what lies there is a page and no package"
    fi
}

# Chain of proofs: this script names the manifest's hash (or a key that signed it), the manifest
# names each file's hash. All of it before anything of the package is executed.
verify_manifest() {
    get "$version/manifest" 262144 "$stage/manifest" "the manifest of $version"
    manifest_hash=$(sha256 <"$stage/manifest")
    if [ -n "$stamped_version" ] && [ "$version" = "$stamped_version" ] && [ -n "$stamped_manifest_sha256" ]; then
        if [ "$manifest_hash" != "$stamped_manifest_sha256" ]; then
            not_ours "$stage/manifest" "the manifest"
            die 1 installer_checksum "the manifest of $version is not the one that this script names" "$(next_for_source)"
        fi
        if [ -n "$(trimmed "$keys")" ] && can_verify; then
            verify_signature
        fi
    else
        not_ours "$stage/manifest" "the manifest"
        if ! can_verify; then
            die 1 installer_no_verifier "the signature of $version cannot be checked here: no openssl that knows Ed25519" \
                "install OpenSSL 3 (package openssl), or leave --version, --channel and --bundle out and install ${stamped_version:-a version that this script is made for}"
        fi
        verify_signature
    fi
    read_manifest
}

can_verify() {
    has openssl && openssl pkeyutl -help 2>&1 | grep -q -- -rawin
}

verify_signature() {
    get "$version/manifest.sig" 8192 "$stage/manifest.sig" "the manifest's signature"
    check_signed manifest "the manifest of $version"
}

# check_signed FILE WHAT: whether a key that is known here signed this file of the stage; the signatures
# lie beside it, in FILE.sig.
check_signed() {
    verify_known=no
    # shellcheck disable=SC2094 # in the loop it is only read
    while read -r sig_id sig_text sig_more; do
        if [ -n "${sig_more:-}" ] || ! only "$sig_id" '0-9a-f' || ! only "${sig_text:-}" 'A-Za-z0-9+/='; then
            not_ours "$stage/$1.sig" "the signature"
            die 1 installer_signature "the signature of $2 cannot be read" "$(next_for_source)"
        fi
        for key_one in $keys; do
            if [ "${key_one%%:*}" = "$sig_id" ]; then
                verify_known=yes
                if signed_by "${key_one#*:}" "$sig_id" "$sig_text" "$1"; then
                    return 0
                fi
            fi
        done
    done <"$stage/$1.sig"
    if [ "$verify_known" = yes ]; then
        die 1 installer_signature "$2 does not match its signature: it was changed after it was signed" "$(next_for_source)"
    fi
    die 1 installer_unknown_key "$2 is signed with a key that this script does not know" \
        "get install.sh anew from your controller; use --key only if you know whose key it is"
}

# signed_by PUBLIC KEYID SIGNATURE FILE
signed_by() {
    # The id is the key's own hash: one key cannot stand in under another's name.
    signed_id=$(printf '%s' "$1" | openssl base64 -d -A 2>/dev/null | sha256 | cut -c 1-16)
    [ "$signed_id" = "$2" ] || return 1
    # The fixed beginning says: an Ed25519 public key follows (RFC 8410).
    printf '%s\n' '-----BEGIN PUBLIC KEY-----' "MCowBQYDK2VwAyEA$1" '-----END PUBLIC KEY-----' >"$stage/key" || return 1
    printf '%s' "$3" | openssl base64 -d -A >"$stage/signature" 2>/dev/null || return 1
    openssl pkeyutl -verify -pubin -inkey "$stage/key" -rawin -in "$stage/$4" \
        -sigfile "$stage/signature" >/dev/null 2>&1
}

read_manifest() {
    manifest_bad=
    manifest_line=0
    manifest_version=
    manifest_expires=
    manifest_min_from=
    while read -r m_key m_one m_two m_three m_more; do
        manifest_line=$((manifest_line + 1))
        case $manifest_line:$m_key in
        1:fairlead-manifest) if [ "$m_one" != 1 ]; then
            die 1 installer_manifest "the manifest of $version has format $(printable "$m_one"), and this script knows format 1" "get install.sh anew from your controller"
        fi ;;
        2:version) manifest_version=$m_one ;;
        3:released) ;;
        4:expires) manifest_expires=$m_one ;;
        5:min-from) manifest_min_from=$m_one ;;
        *:file) if [ "$manifest_line" -le 5 ] || [ -n "$m_more" ] || ! is_number "$m_two" ||
            [ "${#m_three}" -ne 64 ] || ! only "$m_three" '0-9a-f'; then
            manifest_bad=yes
        fi ;;
        *) manifest_bad=yes ;;
        esac
    done <"$stage/manifest"
    if [ -n "$manifest_bad" ] || [ "$manifest_line" -lt 6 ]; then
        die 1 installer_manifest "the manifest of $version cannot be read" "$(next_for_source)"
    fi
    if [ "$manifest_version" != "$version" ]; then
        die 1 installer_wrong_version "the manifest at $version is that of $(printable "$manifest_version")" "$(next_for_source)"
    fi
    expires_day=$(printf '%s' "$manifest_expires" | tr -d '-' | cut -c 1-8)
    if ! is_number "$expires_day"; then
        die 1 installer_manifest "the manifest of $version does not say when it expires" "$(next_for_source)"
    fi
    if [ "$(date -u +%Y%m%d)" -gt "$expires_day" ]; then
        if [ "$manifest_hash" = "$stamped_manifest_sha256" ]; then
            # Named by this very script: its age is no attack, only old.
            say "  note: the manifest of $version expired on $manifest_expires; a newer version should be there by now"
        else
            die 1 installer_expired "the manifest of $version expired on $manifest_expires" \
                "install a newer version; or is this host's clock wrong ($(date -u +%Y-%m-%dT%H:%M:%SZ))?"
        fi
    fi
}

# place_program NAME: gets one program of the version and checks it; it lies in the stage then.
stage_program() {
    stage_name=$1-$target
    stage_found=
    while read -r m_key m_one m_two m_three; do
        if [ "$m_key" = file ] && [ "$m_one" = "$stage_name" ]; then
            stage_found=yes
            stage_size=$m_two
            stage_hash=$m_three
        fi
    done <"$stage/manifest"
    if [ -z "$stage_found" ]; then
        die 1 installer_not_found "version $version has no $stage_name" "install another version"
    fi
    if [ "$(file_hash "$root$prefix/versions/$version/$1")" = "$stage_hash" ]; then
        return 0
    fi
    stage_free=$(free_mib "$stage")
    if [ "${stage_free:-99999}" -lt $((stage_size / 1048576 + 2)) ]; then
        die 1 installer_disk "$1 needs $((stage_size / 1048576 + 2)) MB, and $stage_free are free at $root$prefix" \
            "make room, or choose another place with --prefix DIR"
    fi
    say "- get $stage_name $version ($((stage_size / 1024)) KB) from $source"
    get "$version/$stage_name" "$stage_size" "$stage/$1" "$stage_name"
    if [ "$(size_of "$stage/$1")" -ne "$stage_size" ]; then
        not_ours "$stage/$1" "$stage_name"
        die 1 installer_truncated "$stage_name has $(size_of "$stage/$1") bytes instead of $stage_size" "$(next_for_source)"
    fi
    if [ "$(sha256 <"$stage/$1")" != "$stage_hash" ]; then
        not_ours "$stage/$1" "$stage_name"
        die 1 installer_checksum "$stage_name is not what the manifest says" "$(next_for_source)"
    fi
    chmod 0755 "$stage/$1"
    own "$stage/$1"
    stage_exit=0
    stage_said=$("$stage/$1" --version 2>&1 </dev/null) || stage_exit=$?
    if [ "$stage_exit" -ne 0 ]; then
        die 1 installer_cannot_run "$stage_name is genuine and does not start on this host (code $stage_exit): $(printable "$(printf '%s\n' "$stage_said" | tail -n 1)")" \
            "is $root$prefix mounted noexec, or does SELinux or an application allow-list forbid it? Try: $stage_name --version"
    fi
    to_disk "$stage/$1"
    staged="$staged $1"
}

file_hash() {
    if [ -f "$1" ]; then
        sha256 <"$1"
    fi
}

# --- the disk --------------------------------------------------------------------------------

own() {
    if [ "$is_root" = yes ]; then
        chown 0:0 "$1"
    fi
}

to_disk() {
    sync "$1" 2>/dev/null || sync
}

# Makes a folder and those above it; remembers what it made, so that it can be taken away again.
make_dir() {
    if [ -d "$root$1" ] || [ -z "$1" ]; then
        return 0
    fi
    make_dir "${1%/*}"
    # Noted first: whoever is interrupted in between takes back what may be there.
    made_dirs="$1 $made_dirs"
    if ! mkdir -m "${2:-0755}" "$root$1"; then
        die 1 installer_write "$root$1 cannot be made" "is the disk full or read-only?"
    fi
    own "$root$1"
}

# write_file PATH MODE TEXT: replaces it at once or not at all; nothing if it is so already.
# Sets wrote to yes when it was (or, in a dry run, would be) written.
write_file() {
    wrote=no
    write_at=$root$1
    if [ -L "$write_at" ] || { [ -e "$write_at" ] && [ ! -f "$write_at" ]; }; then
        die 1 installer_in_the_way "$write_at is there and is not a file" "look what it is, and move it away"
    fi
    if [ -f "$write_at" ] && [ "$(cat "$write_at")" = "$3" ] && [ -n "$(find "$write_at" -perm "$2")" ]; then
        return 0
    fi
    wrote=yes
    plan "write $1" || return 0
    make_dir "${1%/*}"
    temporary=$(mktemp "${write_at%/*}/.fairlead.XXXXXX") ||
        die 1 installer_write "${write_at%/*} cannot be written to" "is the disk full or read-only?"
    printf '%s\n' "$3" >"$temporary" 2>/dev/null ||
        die 1 installer_disk "$1 cannot be written: the disk is full" "make room, then run the same line again"
    chmod "$2" "$temporary"
    own "$temporary"
    to_disk "$temporary"
    mv -f "$temporary" "$write_at"
    temporary=
}

# link PATH TARGET: a symbolic link, switched in one step.
link() {
    link_at=$root$1
    if [ "$(readlink "$link_at" 2>/dev/null)" = "$2" ]; then
        return 0
    fi
    if [ -e "$link_at" ] && [ ! -L "$link_at" ]; then
        die 1 installer_in_the_way "$link_at is there and is not a link of ours" "look what it is, and move it away"
    fi
    plan "link $1 -> $2" || return 0
    make_dir "${1%/*}"
    temporary=${link_at%/*}/.fairlead-link.$$
    rm -f "$temporary"
    ln -s "$2" "$temporary"
    # -T: onto the link, not into the folder that it leads to.
    if ! mv -fT "$temporary" "$link_at" 2>/dev/null; then
        rm -f "$link_at"
        mv "$temporary" "$link_at"
    fi
    temporary=
}

# take_away PATH: a file or link, if it is there.
take_away() {
    if [ -e "$root$1" ] || [ -L "$root$1" ]; then
        if plan "remove $1"; then
            rm -f "$root$1"
        fi
    fi
}

take_away_tree() {
    if [ -d "$root$1" ] && [ ! -L "$root$1" ]; then
        if plan "remove $1 and all below it"; then
            rm -rf "$root$1"
        fi
    fi
}

take_away_empty() {
    if [ -d "$root$1" ] && [ "$dry_run" = no ]; then
        rmdir "$root$1" 2>/dev/null || :
    fi
}

# One installation at a time.
take_lock() {
    if [ "$dry_run" = yes ] || ! has flock; then
        return 0
    fi
    lock_at=$root$prefix/.lock
    if [ ! -e "$lock_at" ]; then
        lock_made=$lock_at
        (umask 077 && : >>"$lock_at") || die 1 installer_write "$lock_at cannot be made" "is the disk full or read-only?"
    fi
    # Whoever can open it can hold it: root alone.
    chmod 0600 "$lock_at"
    exec 9>>"$lock_at"
    if ! flock -n 9; then
        lock_made=
        lock_holder=$(holder_of_lock) || lock_holder=
        die 1 installer_busy "another installation is at work on this host${lock_holder:+, or something else holds $lock_at: $lock_holder}" \
            "wait until it has ended, then run the same line again"
    fi
}

# The processes that hold the lock, where the system tells: number and name.
holder_of_lock() {
    [ -r /proc/locks ] || return 0
    # shellcheck disable=SC2012 # the first word is the inode, and the name is ours
    lock_inode=$(ls -i "$lock_at" | awk '{ print $1 }')
    # shellcheck disable=SC2013 # numbers
    for lock_pid in $(sed -n "s/^[0-9]*: FLOCK  *[A-Z]*  *[A-Z]*  *\([0-9]*\) [0-9a-f]*:[0-9a-f]*:$lock_inode 0 EOF\$/\1/p" /proc/locks); do
        lock_name=$(cat "/proc/$lock_pid/comm" 2>/dev/null) || lock_name='?'
        printf 'process %s (%s) ' "$lock_pid" "$(printable "$lock_name")"
    done | sed 's/ $//'
}

open_stage() {
    make_dir "$prefix/versions"
    take_lock
    # What a run that was killed has left.
    rm -rf "$root$prefix/versions"/.incoming.*
    staging=yes
    stage=$(mktemp -d "$root$prefix/versions/.incoming.XXXXXX") ||
        die 1 installer_write "$root$prefix/versions cannot be written to" "is the disk full or read-only?"
    chmod 0755 "$stage"
}

# The staged programs become a version, in one step where it is new.
place_version() {
    [ -n "$staged" ] || return 0
    place_at=$root$prefix/versions/$version
    if [ ! -d "$place_at" ]; then
        place_dir=$(mktemp -d "$root$prefix/versions/.incoming.XXXXXX")
        chmod 0755 "$place_dir"
        own "$place_dir"
        for placed in $staged; do
            mv "$stage/$placed" "$place_dir/$placed"
        done
        to_disk "$place_dir"
        mv "$place_dir" "$place_at"
    else
        for placed in $staged; do
            mv -f "$stage/$placed" "$place_at/$placed"
        done
    fi
    to_disk "$root$prefix/versions"
    if has restorecon; then
        restorecon -R "$root$prefix" 2>/dev/null || :
    fi
}

# What `--uninstall` needs to know: which folders were not there before.
remember_dirs() {
    remembered=$(cat "$root$prefix/made" 2>/dev/null) || remembered=
    for made_one in $made_dirs; do
        case "
$remembered
" in
        *"
$made_one
"*) ;;
        *) remembered="${remembered:+$remembered
}$made_one" ;;
        esac
    done
    if [ "$dry_run" = no ]; then
        write_file "$prefix/made" 0644 "$remembered"
    fi
}

# The folders that were not there before, the deepest first, if nobody has put anything into them.
remove_made() {
    for made_one in $(printf '%s\n' "$made_before" | sort -r); do
        if is_path "$made_one"; then
            take_away_empty "$made_one"
        fi
    done
}

installed_version() {
    installed_link=$(readlink "$root$prefix/current" 2>/dev/null) || installed_link=
    printf '%s' "${installed_link#versions/}"
}

# --- settings of the agent -------------------------------------------------------------------

env_line() {
    printf '%s\n' "$env_text" | sed -n "s/^$1='\(.*\)'\$/\1/p; s/^$1=\([^'].*\)\$/\1/p" | head -n 1
}

# set_env KEY VALUE: replaces or adds a line; what was written by hand stays.
set_env() {
    if [ -z "$2" ] || [ "$(env_line "$1")" = "$2" ]; then
        return 0
    fi
    env_text=$(printf '%s\n' "$env_text" | grep -v "^$1=" || :)
    env_text="$env_text
$1='$2'"
}

drop_env() {
    env_text=$(printf '%s\n' "$env_text" | grep -v "^$1=" || :)
}

# Whose versions are believed when they come from the centre: those that this script believes, and whatever else
# was written there.
believe_keys() {
    all_keys=
    for key_one in $(env_line FAIRLEAD_PACKAGE_KEYS | tr ',' ' ') $keys; do
        case ",$all_keys," in
        *",$key_one,"*) ;;
        *) all_keys=${all_keys:+$all_keys,}$key_one ;;
        esac
    done
    set_env FAIRLEAD_PACKAGE_KEYS "$all_keys"
}

write_env() {
    env_text=$(cat "$root$env_file" 2>/dev/null) || env_text=
    if [ -z "$env_text" ]; then
        env_text="# Settings of the Fairlead agent: every flag of \`fairlead-agent supervise --help\`.
# They hold after: systemctl restart fairlead-agent (or rc-service fairlead-agent restart)"
    fi
    set_env FAIRLEAD_ADDRESS "$address"
    set_env FAIRLEAD_JOIN_TOKEN_FILE "$join_token_at"
    set_env FAIRLEAD_HOST_NAME "$host_name"
    set_env FAIRLEAD_ENGINE_SOCKET "$engine_socket"
    believe_keys
    set_env HTTPS_PROXY "$proxy"
    set_env NO_PROXY "$no_proxy_for"
    write_file "$env_file" 0600 "$env_text"
}

write_token() {
    wrote_token=no
    if [ -z "$token" ] || [ "$enrolled" = yes ]; then
        return 0
    fi
    write_file "$join_token_at" 0600 "$token"
    wrote_token=$wrote
}

# --- services --------------------------------------------------------------------------------

print_unit() {
    case ${1:-} in
    controller | access-server) prefix=${prefix:-/opt/fairlead-servers} ;;
    *) prefix=${prefix:-/opt/fairlead} ;;
    esac
    is_path "$prefix" || usage installer_usage "FAIRLEAD_PREFIX is an absolute path"
    case ${1:-} in
    systemd) agent_unit ;;
    openrc) agent_openrc ;;
    controller) controller_unit ;;
    access-server) access_server_unit ;;
    *) usage installer_usage "print-unit knows systemd, openrc, controller and access-server" ;;
    esac
}

# What no daemon of ours needs, whichever it is.
unit_hardening='RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes'

agent_unit() {
    printf '%s\n' "[Unit]
Description=Fairlead agent: carries out signed commands on this host's containers
Wants=network-online.target
After=network-online.target docker.service podman.socket
# It never gives up: a host that nobody can log in to must come back by itself.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=-$env_file
ExecStart=$prefix/supervisor/fairlead-agent supervise
Restart=always
RestartSec=1
TimeoutStartSec=90
TimeoutStopSec=30
# The supervisor ends its agents itself; what is left after the time is killed.
KillMode=mixed

# The engine's socket and the network are what it needs of the host; it writes to three places.
StateDirectory=fairlead-agent
StateDirectoryMode=0700
ProtectSystem=strict
ReadWritePaths=$prefix -$etc_dir
ProtectHome=read-only
PrivateTmp=yes
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER CAP_KILL CAP_SYS_PTRACE CAP_SYS_RESOURCE
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
$unit_hardening
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

# Limits: it may never be what brings the host down, and should outlive what does.
MemoryMax=512M
TasksMax=512
LimitNOFILE=16384
LimitCORE=0
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target"
}

agent_openrc() {
    printf '%s\n' "#!/sbin/openrc-run
# Fairlead agent: carries out signed commands on this host's containers.

name=\"Fairlead agent\"
supervisor=supervise-daemon
command=$prefix/supervisor/fairlead-agent
command_args=supervise
output_log=/var/log/fairlead-agent.log
error_log=/var/log/fairlead-agent.log
# It never gives up: a host that nobody can log in to must come back by itself.
respawn_delay=1
respawn_max=0
retry=\"TERM/30/KILL/5\"
rc_ulimit=\"-n 16384\"
umask=077

# Nothing is needed: it dials until it gets through, and there may be no service that is called net.
depend() {
    use net dns docker podman
    after firewall
}

start_pre() {
    # Here, because not every shell takes two kinds in rc_ulimit.
    ulimit -c 0
    if [ -f $env_file ]; then
        set -a
        . $env_file
        set +a
    fi
    checkpath -d -m 0700 -o root:root $state_dir
}"
}

# Writes the service file; wrote tells whether it changed.
write_service() {
    case $init in
    systemd) write_file "$systemd_unit" 0644 "$(agent_unit)" ;;
    openrc) write_file "$openrc_script" 0755 "$(agent_openrc)" ;;
    *) wrote=no ;;
    esac
    wrote_service=$wrote
}

# enable_service NAME: it starts at boot.
enable_service() {
    case $init in
    systemd)
        if [ -n "$root" ]; then
            link "/etc/systemd/system/multi-user.target.wants/$1.service" "/etc/systemd/system/$1.service"
        else
            if [ "$wrote_service" = yes ] && [ "$dry_run" = no ]; then
                systemctl daemon-reload
            fi
            if ! systemctl is-enabled --quiet "$1" 2>/dev/null; then
                if plan "start $1 at every boot"; then
                    systemctl --quiet enable "$1"
                fi
            fi
        fi
        ;;
    openrc)
        if [ -n "$root" ]; then
            link "/etc/runlevels/default/$1" "/etc/init.d/$1"
        elif [ ! -e "/etc/runlevels/default/$1" ]; then
            if plan "start $1 at every boot"; then
                rc-update --quiet add "$1" default 9>&-
            fi
        fi
        ;;
    *) ;;
    esac
}

service_runs() {
    case $init in
    systemd)
        case $(systemctl is-active "$1" 2>/dev/null || :) in
        active | activating | reloading) return 0 ;;
        *) return 1 ;;
        esac
        ;;
    openrc) rc-service --quiet "$1" status >/dev/null 2>&1 9>&- ;;
    *) return 1 ;;
    esac
}

# run_service NAME CHANGED: starts it; restarts it only when something of it changed.
run_service() {
    run_verb=none
    if service_runs "$1"; then
        case $2 in
        *yes*) ;;
        *)
            say "$1 runs already, and nothing of it changed"
            return 0
            ;;
        esac
        run_verb=restart
    else
        run_verb=start
    fi
    plan "$run_verb $1" || return 0
    case $init in
    systemd) systemctl --no-block "$run_verb" "$1" 9>&- ;;
    openrc) rc-service --quiet "$1" "$run_verb" >/dev/null 9>&- ;;
    *) ;;
    esac || die 1 installer_service "$1 cannot be started" "see: $(log_command "$1")"
}

log_command() {
    case $init in
    systemd) printf 'journalctl -u %s -n 50' "$1" ;;
    *) printf 'tail -n 50 /var/log/%s.log' "$1" ;;
    esac
}

# remove_service NAME: stops it and takes its file away.
remove_service() {
    case $init in
    systemd)
        if [ -z "$root" ] && [ -e "/etc/systemd/system/$1.service" ]; then
            if plan "stop $1"; then
                systemctl --quiet disable --now "$1" 2>/dev/null || systemctl stop "$1" || :
            fi
        fi
        take_away "/etc/systemd/system/multi-user.target.wants/$1.service"
        take_away "/etc/systemd/system/$1.service"
        if [ -z "$root" ] && [ "$dry_run" = no ]; then
            systemctl daemon-reload || :
            systemctl reset-failed "$1" 2>/dev/null || :
        fi
        ;;
    openrc)
        if [ -z "$root" ] && [ -e "/etc/init.d/$1" ]; then
            if plan "stop $1"; then
                rc-service --quiet "$1" stop >/dev/null 2>&1 || :
                rc-update --quiet delete "$1" default >/dev/null 2>&1 || :
            fi
        fi
        take_away "/etc/runlevels/default/$1"
        take_away "/etc/init.d/$1"
        take_away "/var/log/$1.log"
        ;;
    *) ;;
    esac
}

# --- the agent -------------------------------------------------------------------------------

agent_paths() {
    etc_dir=/etc/fairlead
    env_file=$etc_dir/agent.env
    join_token_at=$etc_dir/join-token
    state_dir=/var/lib/fairlead-agent
    bin_link=/usr/local/bin/fairlead-agent
    systemd_unit=/etc/systemd/system/fairlead-agent.service
    openrc_script=/etc/init.d/fairlead-agent
}

# Where an earlier run put it.
find_prefix() {
    if [ -n "$prefix" ]; then
        return 0
    fi
    found_link=$(readlink "$root$bin_link" 2>/dev/null) || found_link=
    case $found_link in
    */current/fairlead-agent) prefix=${found_link%/current/fairlead-agent} ;;
    *) prefix=/opt/fairlead ;;
    esac
    is_path "$prefix" || prefix=/opt/fairlead
}

is_packaged() {
    [ -e "$root/lib/systemd/system/$1.service" ] || [ -e "$root/usr/lib/systemd/system/$1.service" ]
}

refuse_packaged() {
    if is_packaged "$1"; then
        die 1 installer_packaged "$1 was installed here as a package of the system" \
            "upgrade or remove it with apt, not with this script"
    fi
}

install_agent() {
    # A converging run may leave out what an earlier one was told.
    env_text=$(cat "$root$env_file" 2>/dev/null) || env_text=
    if [ -z "$address" ]; then
        address=$(env_line FAIRLEAD_ADDRESS)
    fi
    enrolled=no
    if [ -e "$root$state_dir/identity" ]; then
        enrolled=yes
    fi
    if [ -z "$address" ] && [ "$verb" = agent ]; then
        usage installer_no_address "no access server is named" "pass --address HOST:PORT (the line from fairlead host add has it)"
    fi
    if [ "$verb" = agent ] && [ "$enrolled" = no ] && [ -z "$token" ] && [ ! -s "$root$join_token_at" ] &&
        [ "$running_system" = yes ] && [ "$start" = yes ]; then
        usage installer_no_token "this host has not joined yet, and there is no join token" \
            "make one (fairlead host add) and pass it as FAIRLEAD_JOIN_TOKEN or with --token-file FILE"
    fi
    if [ "$enrolled" = yes ] && [ "$re_enrol" = no ] && [ "$verb" = agent ]; then
        refuse_revoked "$(agent_status)"
    fi
    if [ "$enrolled" = yes ] && [ -n "$token" ] && [ "$re_enrol" = no ]; then
        refuse_another_ca
        say "this host has joined already: the token is not used (--re-enrol gives up the identity that is here)"
        token=
    fi
    if [ "$re_enrol" = yes ] && [ -z "$token" ]; then
        usage installer_no_token "--re-enrol needs a new join token" "make one: fairlead host add"
    fi
    refuse_packaged fairlead-agent
    preflight
    if [ "$verb" = check ]; then
        say "nothing stands in the way"
        return 0
    fi

    if [ "$dry_run" = no ]; then
        open_stage
    fi
    choose_version
    before=$(installed_version)
    keep_newer
    if [ "$dry_run" = yes ]; then
        if [ "$before" != "$version" ]; then
            plan "get fairlead-agent-$target $version from $source, check manifest, size and hash, and put it at $prefix/versions/$version" || :
        fi
    elif [ "$kept" = no ]; then
        verify_manifest
        check_min_from
        stage_program fairlead-agent
        remember_dirs
        place_version
    fi
    binary_changed=no
    if [ -n "$staged" ] || [ "$before" != "$version" ]; then
        binary_changed=yes
    fi
    if [ "$re_enrol" = yes ] && [ "$enrolled" = yes ]; then
        give_up_identity
    fi
    write_env
    wrote_env=$wrote
    write_token
    # The agent moves the supervisor's link by itself, some time after its own upgrade.
    if [ "$binary_changed" = yes ] || [ ! -L "$root$prefix/supervisor" ]; then
        link "$prefix/supervisor" "versions/$version"
    fi
    link "$prefix/current" "versions/$version"
    link "$bin_link" "$prefix/current/fairlead-agent"
    write_service
    enable_service fairlead-agent
    remember_dirs
    committed=yes

    changed=no
    if [ "$enrolled" = no ] && [ -n "$token" ]; then
        # It may be waiting after a token that was refused.
        changed=yes
    fi
    case $binary_changed$wrote_env$wrote_token$wrote_service$re_enrol in
    *yes*) changed=yes ;;
    *) ;;
    esac
    start_agent
}

# What the agent that is here says of itself; nothing, where there is none.
agent_status() {
    [ -x "$root$prefix/current/fairlead-agent" ] || return 0
    FAIRLEAD_STATE_DIR=$root$state_dir bounded 10 "$root$prefix/current/fairlead-agent" status 2>/dev/null </dev/null 9>&- || :
}

# refuse_revoked STATUS: an identity that was taken back is let in nowhere, and no line mends it by itself.
refuse_revoked() {
    case $1 in
    *'identity  REVOKED'*)
        die 1 installer_revoked "the identity of this host was taken back (revoked): no server lets it in any more; its containers go on" \
            "to join again, make a new line (fairlead host add) and run it with --re-enrol; to take the agent off, run this with --uninstall"
        ;;
    *) ;;
    esac
}

# A token of another installation does nothing to a host that has joined: that is no success.
refuse_another_ca() {
    identity_ca=$(agent_status |
        sed -n 's/^ca  *\([0-9a-f]*\)$/\1/p') || identity_ca=
    token_ca=${token#FL1}
    token_ca=$(printf '%s' "${token_ca%%::*}" | tr 'A-F' 'a-f')
    if [ -n "$identity_ca" ] && [ "$identity_ca" != "$token_ca" ]; then
        die 1 ca_mismatch "this host has joined another installation (CA $identity_ca) than the token's (CA $token_ca)" \
            "to move it there, add --re-enrol: it gives up the identity that is here; else leave the token out"
    fi
}

# An agent upgrades itself: an old line that is run again must not take it back.
keep_newer() {
    kept=no
    if [ -z "$before" ] || ! older "$version" "$before" || [ "$allow_downgrade" = yes ]; then
        return 0
    fi
    if [ -x "$root$prefix/current/fairlead-agent" ]; then
        say "version $before is here, newer than $version, and stays (--allow-downgrade takes it back)"
        version=$before
        kept=yes
    fi
}

check_min_from() {
    if [ -n "$before" ] && [ -n "$manifest_min_from" ] && older "$before" "$manifest_min_from"; then
        die 1 installer_min_from "version $version can follow on $manifest_min_from or later, and $before is here" \
            "install $manifest_min_from first: --version $manifest_min_from"
    fi
}

give_up_identity() {
    plan "give up the identity that is here" || return 0
    if [ "$running_system" = yes ] && service_runs fairlead-agent; then
        case $init in
        systemd) systemctl stop fairlead-agent || : ;;
        *) rc-service --quiet fairlead-agent stop >/dev/null 2>&1 9>&- || : ;;
        esac
    fi
    leave_fleet || say "  it could not be ended at the server ($leave_said): fairlead host rm does that"
    rm -f "$root$state_dir/identity" "$root$state_dir/next.key" "$root$state_dir/link.json"
    enrolled=no
}

# The agent ends its own identity at the server; whether it could, else why not. Only while it does not run.
leave_fleet() {
    leave_program=$root$prefix/current/fairlead-agent
    leave_said="there is no agent here that could"
    if [ ! -e "$root$state_dir/identity" ]; then
        return 0
    fi
    [ -x "$leave_program" ] || return 1
    env_text=$(cat "$root$env_file" 2>/dev/null) || env_text=
    leave_address=$(env_line FAIRLEAD_ADDRESS)
    leave_proxy=$(env_line HTTPS_PROXY)
    leave_direct=$(env_line NO_PROXY)
    FAIRLEAD_STATE_DIR=$root$state_dir
    FAIRLEAD_ADDRESS=$leave_address
    export FAIRLEAD_STATE_DIR FAIRLEAD_ADDRESS
    if [ -n "$leave_proxy" ]; then
        HTTPS_PROXY=$leave_proxy
        NO_PROXY=$leave_direct
        export HTTPS_PROXY NO_PROXY
    fi
    if leave_said=$(bounded 20 "$leave_program" leave </dev/null 2>&1 9>&-); then
        return 0
    fi
    # Of what it says the reason; what to do is said here.
    leave_said=$(printf '%s\n' "$leave_said" | sed -n 's/ (os error [0-9]*)//g; s/^error: no access server could be told (\(.*\)), so .*$/\1/p; t
s/^error: //p' | head -n 1 | cut -c 1-300)
    leave_said=$(printable "${leave_said:-it did not answer in time}")
    return 1
}

start_agent() {
    if [ "$running_system" = no ] || [ "$start" = no ]; then
        say "fairlead-agent $version is installed on $this_host${root:+ below $root}; nothing was started"
        if [ "$init" = none ] && [ -z "$root" ]; then
            say "there is no systemd and no OpenRC here; start it at every boot, as root, with:"
            say "  set -a; . $env_file; set +a; exec $prefix/supervisor/fairlead-agent supervise"
        fi
        return 0
    fi
    run_started=$(date +%s)
    run_service fairlead-agent "$changed"
    if [ "$dry_run" = yes ]; then
        return 0
    fi
    wait_until_enrolled
    if [ -e "$root$join_token_at" ]; then
        # Used up; the agent needs it no more.
        rm -f "$root$join_token_at"
    fi
    # Who has joined may have been taken back since: the agent knows it once it has asked a server.
    waited=0
    while :; do
        status_said=$(agent_status)
        refuse_revoked "$status_said"
        case $status_said in
        *'link      none yet'*) [ "$waited" -lt 25 ] || break ;;
        *) break ;;
        esac
        sleep 0.2 2>/dev/null || sleep 1
        waited=$((waited + 1))
    done
    say "fairlead-agent $version runs on $this_host"
    if [ "$quiet" = no ]; then
        printf '%s\n' "$status_said" | sed -n '/^identity/s/^/  /p; /^link/s/^/  /p; /^engine/s/^/  /p' >&2
    fi
}

wait_until_enrolled() {
    waited=0
    while [ ! -e "$root$state_dir/identity" ]; do
        if [ "$waited" -ge $((wait_limit * 5)) ] || { [ $((waited % 10)) -eq 9 ] && agent_gave_up; }; then
            printf '%s\n' "last words of the agent:" >&2
            service_log fairlead-agent | tail -n 5 | cut -c 1-400 | sed 's/^/  /' >&2
            die 1 installer_not_enrolled "fairlead-agent $version is installed and runs, and this host has not joined yet" \
                "the agent goes on trying; see $(log_command fairlead-agent). A refused token: make a new one (fairlead host add) and run its line"
        fi
        sleep 0.2 2>/dev/null || sleep 1
        waited=$((waited + 1))
    done
}

# service_log NAME: what it has said since it was started here.
service_log() {
    case $init in
    systemd) journalctl -u "$1" --since "@$run_started" -n 40 -o cat --no-pager 2>/dev/null || : ;;
    *) tail -n 40 "/var/log/$1.log" 2>/dev/null || : ;;
    esac
}

agent_gave_up() {
    service_log fairlead-agent | grep -q 'agent cannot run'
}

uninstall_agent() {
    refuse_packaged fairlead-agent
    if [ ! -d "$root$prefix/versions" ] && [ ! -e "$root$systemd_unit" ] && [ ! -e "$root$openrc_script" ] &&
        [ ! -e "$root$state_dir" ] && [ ! -e "$root$env_file" ]; then
        say "nothing of fairlead-agent is on $this_host"
        return 0
    fi
    # Its containers go on: they are the engine's, and nothing here touches them.
    if [ "$init" != none ]; then
        remove_service fairlead-agent
    fi
    stop_by_hand
    left=yes
    if [ -e "$root$state_dir/identity" ]; then
        joined_as=$(FAIRLEAD_STATE_DIR=$root$state_dir "$root$prefix/current/fairlead-agent" status 2>/dev/null </dev/null |
            sed -n 's/^identity *enrolled as \([a-zA-Z0-9._-]*\) .*/\1/p') || joined_as=
        if plan "leave the fleet"; then
            leave_fleet || left=no
        fi
    fi
    made_before=$(cat "$root$prefix/made" 2>/dev/null) || made_before=
    take_away "$bin_link"
    take_away "$env_file"
    take_away "$join_token_at"
    if [ "$purge" = yes ]; then
        take_away_tree "$etc_dir"
    fi
    take_away "$prefix/current"
    take_away "$prefix/supervisor"
    take_away_tree "$prefix/versions"
    take_away "$prefix/made"
    take_away "$prefix/.lock"
    take_away_empty "$prefix"
    if [ "$left" = yes ] || [ "$purge" = yes ] || [ "$forget" = yes ]; then
        take_away_tree "$state_dir"
    fi
    take_away_empty "$etc_dir"
    remove_made
    if [ "$left" = no ]; then
        printf '%s\n' "the server could not be told ($leave_said): end this host's identity with: fairlead host rm ${joined_as:-$this_host}" >&2
        if [ "$purge" = no ] && [ "$forget" = no ]; then
            printf '%s\n' "its state stays at $state_dir until then (--uninstall --purge removes it)" >&2
        fi
    fi
    if [ "$dry_run" = no ]; then
        say "fairlead-agent is gone from $this_host; no container was touched"
    fi
}

# A supervisor that no service runs; only if it is one of ours.
stop_by_hand() {
    if [ -n "$root" ] || [ ! -r "$state_dir/status.json" ]; then
        return 0
    fi
    hand_pid=$(sed -n 's/.*"supervisor" *: *\([0-9][0-9]*\).*/\1/p' "$state_dir/status.json")
    is_number "$hand_pid" || return 0
    case $(readlink "/proc/$hand_pid/exe" 2>/dev/null) in
    "$prefix"/*fairlead-agent*) ;;
    *) return 0 ;;
    esac
    plan "stop the supervisor (process $hand_pid)" || return 0
    kill -TERM "$hand_pid" 2>/dev/null || return 0
    hand_waited=0
    while [ -e "/proc/$hand_pid" ] && [ "$hand_waited" -lt 30 ]; do
        sleep 1
        hand_waited=$((hand_waited + 1))
    done
}

# --- the servers -----------------------------------------------------------------------------

server_unit_head() {
    printf '%s\n' "[Unit]
Description=$1
Wants=network-online.target
After=network-online.target$2
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
User=$3
Group=$3
EnvironmentFile=$4
ExecStart=$prefix/current/$5 run
Restart=always
RestartSec=1
# A store that a newer version brings up to date may take its time.
TimeoutStartSec=600
TimeoutStopSec=30
LimitNOFILE=1048576
LimitCORE=0

# It opens ports, and writes to its own folder; nothing else.
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
StateDirectory=$6
StateDirectoryMode=0700
$7
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
$unit_hardening
ProtectProc=invisible
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target"
}

controller_unit() {
    server_unit_head "Fairlead controller: API, console and CA" "" \
        fairlead-controller /etc/fairlead/controller.env fairlead-controller fairlead-controller \
        "# The socket by which the access server passes connections on.
RuntimeDirectory=fairlead
RuntimeDirectoryMode=0750"
}

access_server_unit() {
    server_unit_head "Fairlead access server: the links of a region's hosts" " fairlead-controller.service" \
        fairlead-access /etc/fairlead/access-server.env fairlead-access-server fairlead-access-server \
        "# To reach the controller's socket.
SupplementaryGroups=fairlead-controller"
}

# make_user NAME HOME: a system user that nobody logs in as.
make_user() {
    if id "$1" >/dev/null 2>&1; then
        return 0
    fi
    plan "make the system user $1" || return 0
    nologin=/usr/sbin/nologin
    [ -e "$nologin" ] || nologin=/sbin/nologin
    if has useradd; then
        useradd --system --user-group --no-create-home --home-dir "$2" --shell "$nologin" "$1"
    elif has adduser; then
        addgroup -S "$1" && adduser -S -D -H -h "$2" -s "$nologin" -G "$1" "$1"
    else
        false
    fi || die 1 installer_user "the system user $1 cannot be made" "make it by hand, then run the same line again"
}

# own_dir DIR USER MODE
own_dir() {
    if [ -d "$1" ]; then
        return 0
    fi
    plan "make $1 for $2" || return 0
    make_dir "$1" "$3"
    chown "$2:$2" "$1"
}

# as_user USER COMMAND…: what is done in a folder that a service owns is done as that service. As root it
# would follow whatever link a service that was broken into has laid there.
as_user() (
    as_user_is=$1
    shift
    cd /
    exec 9>&-
    if has runuser; then
        exec runuser -u "$as_user_is" -- "$@"
    fi
    # shellcheck disable=SC2016 # the inner shell's own
    exec su -s /bin/sh -c 'exec "$0" "$@"' -- "$as_user_is" "$@"
)

# show_kept NAME: what lies there in the folder of packages, to standard output.
show_kept() {
    as_user fairlead-controller cat "$packages/$1" 2>/dev/null </dev/null
}

# Hosts get their programs from the controller: it keeps what the manifest names, and the script. What is
# there already is looked at as strictly as what comes: hosts run it as root.
keep_package() {
    packages=/var/lib/fairlead-controller/packages
    if [ "$dry_run" = yes ]; then
        if [ "$(show_kept channels/stable)" != "$version" ]; then
            plan "keep the package $version in $packages, for the hosts" || :
        fi
        return 0
    fi
    if [ ! -f "$stage/manifest.sig" ]; then
        verify_signature
    fi
    if package_is_kept; then
        return 0
    fi
    plan "keep the package $version in $packages, for the hosts"
    mkdir "$stage/package"
    while read -r keep_key keep_name keep_size keep_hash; do
        [ "$keep_key" = file ] || continue
        keep_file
    done <"$stage/manifest"
    for keep_name in manifest manifest.sig; do
        cp "$stage/$keep_name" "$stage/package/$keep_name" 2>/dev/null || no_room_for_package "$prefix"
    done
    keep_script
    place_package
}

# Whether all of the package is there as it should be, byte by byte.
package_is_kept() {
    [ "$(show_kept channels/stable)" = "$version" ] || return 1
    while read -r keep_key keep_name keep_size keep_hash; do
        [ "$keep_key" = file ] || continue
        [ "$(show_kept "$version/$keep_name" | sha256)" = "$keep_hash" ] || return 1
    done <"$stage/manifest"
    for keep_name in manifest manifest.sig; do
        [ "$(show_kept "$version/$keep_name" | sha256)" = "$(sha256 <"$stage/$keep_name")" ] || return 1
    done
    for keep_name in '' "$version/"; do
        show_kept "${keep_name}install.sh" >"$stage/install.sh" || return 1
        show_kept "${keep_name}install.sh.sig" >"$stage/install.sh.sig" || return 1
        script_is_genuine install.sh || return 1
    done
}

# keep_file: one program of the manifest, from here or from the source, into the package.
keep_file() {
    only "$keep_name" 'A-Za-z0-9._+-' || die 1 installer_manifest "the manifest names a file that no package has: $(printable "$keep_name")" "$(next_for_source)"
    keep_here=${keep_name%-"$target"}
    keep_at=$stage/package/$keep_name
    if [ -f "$stage/$keep_here" ] && [ "$keep_name" != "$keep_here" ]; then
        cp "$stage/$keep_here" "$keep_at" 2>/dev/null || no_room_for_package "$prefix"
    elif ! show_kept "$version/$keep_name" >"$keep_at" || [ "$(sha256 <"$keep_at")" != "$keep_hash" ]; then
        get "$version/$keep_name" "$keep_size" "$keep_at" "$keep_name"
    fi
    if [ "$(sha256 <"$keep_at")" != "$keep_hash" ]; then
        not_ours "$keep_at" "$keep_name"
        die 1 installer_checksum "$keep_name is not what the manifest says" "$(next_for_source)"
    fi
    chmod 0755 "$keep_at"
}

# The script that hosts will run as root: the repository's, with the signature of a key that is known, and
# made for this very manifest. Not the file that $0 names: through a pipe that is any file called sh.
keep_script() {
    get "$version/install.sh" 1048576 "$stage/package/install.sh" install.sh
    if [ "$(sed -n 1p "$stage/package/install.sh")" != '#!/bin/sh' ]; then
        not_ours "$stage/package/install.sh" install.sh
        die 1 installer_checksum "what came for install.sh is no script" "$(next_for_source)"
    fi
    get "$version/install.sh.sig" 8192 "$stage/package/install.sh.sig" "the signature of install.sh"
    check_signed package/install.sh install.sh
    script_is_genuine package/install.sh ||
        die 1 installer_wrong_version "the install.sh of $version was made for another manifest" "$(next_for_source)"
    chmod 0755 "$stage/package/install.sh"
}

# script_is_genuine FILE: in the stage, with its signature beside it.
script_is_genuine() {
    grep -q "^stamped_manifest_sha256='$manifest_hash'\$" "$stage/$1" &&
        (check_signed "$1" install.sh) 2>/dev/null
}

no_room_for_package() {
    die 1 installer_disk "the package for the hosts cannot be kept: $1 cannot be written to, or is full" \
        "make room there ($(free_mib "$(existing_parent "$1")") MB are free), then run the same line again"
}

# By the controller's user, on the data's file system, and then each in one step.
place_package() {
    chmod 0755 "$stage/package"
    # shellcheck disable=SC2016 # the inner shell's own
    as_user fairlead-controller sh -c '
        set -eu
        umask 022
        packages=$1 version=$2 from=$3
        mkdir -p "$packages/channels"
        chmod 0755 "$packages" "$packages/channels"
        rm -rf "$packages"/.incoming.*
        part=$(mktemp -d "$packages/.incoming.XXXXXX")
        trap "rm -rf \"\$part\"" EXIT
        mkdir "$part/new" "$part/top"
        cp "$from"/* "$part/new/"
        cp -p "$from/install.sh" "$from/install.sh.sig" "$part/top/"
        printf "%s\n" "$version" >"$part/stable"
        sync
        if [ -e "$packages/$version" ] || [ -L "$packages/$version" ]; then
            mv "$packages/$version" "$part/old"
        fi
        mv "$part/new" "$packages/$version"
        mv -f "$part/top/install.sh.sig" "$part/top/install.sh" "$packages/"
        mv -f "$part/stable" "$packages/channels/stable"
    ' sh "$packages" "$version" "$stage/package" </dev/null 2>/dev/null || no_room_for_package "$packages"
}

# Programs, users, units and the package for the hosts: what the .deb files bring, where they were not used.
place_servers() {
    preflight
    if [ "$dry_run" = no ]; then
        open_stage
    fi
    choose_version
    before=$(installed_version)
    keep_newer_servers
    if [ "$dry_run" = yes ]; then
        plan "get fairlead-controller, fairlead-access-server and fairlead $version from $source, check manifest, sizes and hashes, and put them at $prefix/versions/$version" || :
    elif [ "$kept" = no ]; then
        verify_manifest
        check_min_from
        for program in fairlead-controller fairlead-access-server fairlead; do
            stage_program "$program"
        done
    fi
    make_user fairlead-controller /var/lib/fairlead-controller
    make_user fairlead-access /var/lib/fairlead-access-server
    own_dir /var/lib/fairlead-controller fairlead-controller 0700
    own_dir /var/lib/fairlead-access-server fairlead-access 0700
    if [ "$kept" = no ]; then
        keep_package
    fi
    if [ "$dry_run" = no ]; then
        remember_dirs
        place_version
    fi
    servers_changed=no
    if [ -n "$staged" ] || [ "$before" != "$version" ]; then
        servers_changed=yes
    fi
    link "$prefix/current" "versions/$version"
    for program in fairlead-controller fairlead-access-server fairlead; do
        link "/usr/local/bin/$program" "$prefix/current/$program"
    done
    write_file /etc/systemd/system/fairlead-controller.service 0644 "$(controller_unit)"
    wrote_service=$wrote
    write_file /etc/systemd/system/fairlead-access-server.service 0644 "$(access_server_unit)"
    if [ "$wrote" = yes ]; then
        wrote_service=yes
    fi
    if [ "$wrote_service" = yes ] && [ "$dry_run" = no ]; then
        systemctl daemon-reload
        wrote_service=no
        servers_changed=yes
    fi
    server_bin=$prefix/current
}

install_servers() {
    if [ -n "$root" ]; then
        usage installer_usage "server does not go with --root: it makes users and starts services"
    fi
    if [ -z "$name" ]; then
        usage installer_usage "server needs --name, the name that people and hosts use for it" "for instance: --name fleet.example.com"
    fi
    if [ "$init" != systemd ] && [ "$dry_run" = no ]; then
        die 3 installer_no_systemd "the servers are started by systemd, and it does not run here" \
            "use a machine with systemd, or start fairlead-controller and fairlead-access-server yourself (see the guide)"
    fi
    min_free_mib=128
    keep_to_what_is_told
    if [ "$packaged_servers" = yes ]; then
        if [ -n "$from$bundle" ]; then
            say "the programs here are packages of the system, and stay so: --from and --bundle are not used"
        fi
        preflight
        server_bin=/usr/bin
        servers_changed=no
        version=$(/usr/bin/fairlead-controller --version 2>/dev/null | sed 's/^.* //')
    else
        place_servers
    fi
    write_server_settings
    for service in fairlead-controller fairlead-access-server; do
        enable_service "$service"
    done
    plan "prepare the installation, start both, wait until they answer" || return 0
    if [ "$packaged_servers" = no ]; then
        remember_dirs
    fi
    committed=yes
    finish_servers
}

# What the region tells its hosts when it joins does not change by another line: name, port and region
# are as the first line said, and a line that leaves port or region out means these.
keep_to_what_is_told() {
    env_text=$(cat /etc/fairlead/controller.env 2>/dev/null) || env_text=
    told_address=$(env_line FAIRLEAD_UPLINK_ADDRESS)
    told_port=
    case $told_address in
    *:*) told_port=${told_address##*:} ;;
    *) ;;
    esac
    env_text=$(cat /etc/fairlead/access-server.env 2>/dev/null) || env_text=
    told_region=$(env_line FAIRLEAD_REGION)
    port=${port:-${told_port:-443}}
    region=${region:-${told_region:-local}}
    if [ ! -e /var/lib/fairlead-access-server/certificates ]; then
        return 0
    fi
    if [ -n "$told_address" ] && [ "$told_address" != "$name:$port" ]; then
        die 1 installer_other_name "these servers are $told_address, and their region tells the hosts so: $name:$port would reach none of them" \
            "run the line with --name ${told_address%:*} --port $told_port; for another name or port, install anew on another machine and let the hosts join there"
    fi
    if [ -n "$told_region" ] && [ "$told_region" != "$region" ]; then
        die 1 installer_other_region "the region of these servers is $told_region, and stays so" \
            "leave --region out; another region has an access server of its own: fairlead region add $region"
    fi
}

keep_newer_servers() {
    kept=no
    if [ -n "$before" ] && older "$version" "$before" && [ "$allow_downgrade" = no ]; then
        die 1 installer_older "version $before is here, and $version is older: a store that a newer version has changed may be unreadable to it" \
            "install a newer version, or restore the backup made before the upgrade and pass --allow-downgrade"
    fi
}

# What stands in the two settings files. Everybody comes through one port: the access server looks who
# knocks, and passes on to the controller what is not an agent.
write_server_settings() {
    server_url=https://$name
    if [ "$port" != 443 ]; then
        server_url=$server_url:$port
    fi
    controller_before=$(cat /etc/fairlead/controller.env 2>/dev/null) || controller_before=
    access_server_before=$(cat /etc/fairlead/access-server.env 2>/dev/null) || access_server_before=
    read_settings /etc/fairlead/controller.env fairlead-controller
    set_env FAIRLEAD_DATA_DIR /var/lib/fairlead-controller
    set_env FAIRLEAD_PUBLIC_URL "$server_url"
    set_env FAIRLEAD_WEB_NAMES "$name"
    set_env FAIRLEAD_UPLINK_ADDRESS "$name:$port"
    set_env FAIRLEAD_LISTEN 127.0.0.1:7400
    set_env FAIRLEAD_UPLINK_LISTEN 127.0.0.1:7401
    set_env FAIRLEAD_FRONT_SOCKET /run/fairlead/front.sock
    believe_keys
    if [ -n "$certificate" ]; then
        keep_certificate
        set_env FAIRLEAD_WEB_CERTIFICATE /etc/fairlead/tls/certificate.pem
        set_env FAIRLEAD_WEB_KEY /etc/fairlead/tls/key.pem
        drop_env FAIRLEAD_ACME
    fi
    if [ -n "$acme" ]; then
        set_env FAIRLEAD_ACME true
        set_env FAIRLEAD_ACME_AGREE_TOS true
        set_env FAIRLEAD_ACME_CONTACT "$acme_contact"
        drop_env FAIRLEAD_WEB_CERTIFICATE
        drop_env FAIRLEAD_WEB_KEY
    fi
    acme=$(env_line FAIRLEAD_ACME)
    own_certificate=$(env_line FAIRLEAD_WEB_CERTIFICATE)
    write_file /etc/fairlead/controller.env 0600 "$env_text"
    wrote_controller=$wrote

    read_settings /etc/fairlead/access-server.env fairlead-access-server
    set_env FAIRLEAD_DATA_DIR /var/lib/fairlead-access-server
    set_env FAIRLEAD_CONTROLLER 127.0.0.1:7401
    set_env FAIRLEAD_JOIN_TOKEN_FILE /var/lib/fairlead-access-server/join-token
    set_env FAIRLEAD_NAME a1
    set_env FAIRLEAD_REGION "$region"
    set_env FAIRLEAD_AGENT_ADDRESS "$name:$port"
    set_env FAIRLEAD_AGENT_LISTEN 127.0.0.1:7501
    set_env FAIRLEAD_LISTEN '[::]:7500'
    set_env FAIRLEAD_PUBLIC_URL "https://$name:7500"
    set_env FAIRLEAD_FRONT_LISTEN "[::]:$port"
    set_env FAIRLEAD_FRONT_SOCKET /run/fairlead/front.sock
    write_file /etc/fairlead/access-server.env 0600 "$env_text"
    wrote_access_server=$wrote
}

read_settings() {
    env_text=$(cat "$root$1" 2>/dev/null) || env_text=
    if [ -z "$env_text" ]; then
        env_text="# Settings of $2: every flag of \`$2 run --help\`.
# They hold after: systemctl restart $2"
    fi
}

# The controller cannot read where other programs keep their keys: it gets a copy of its own, which a
# further run of this script, or whatever renews the certificate, replaces.
keep_certificate() {
    if [ "$dry_run" = yes ]; then
        return 0
    fi
    make_dir /etc/fairlead/tls
    write_file /etc/fairlead/tls/certificate.pem 0644 "$(cat "$certificate")"
    write_file /etc/fairlead/tls/key.pem 0640 "$(cat "$certificate_key")"
    chown 0:fairlead-controller /etc/fairlead/tls/key.pem
}

# CA, store, first region and tokens, by the controller's own setup; then both are started, and what a
# person needs is said in three lines.
finish_servers() {
    if [ "$start" = no ]; then
        say "the servers $version are installed and not started; run the same line without --no-start"
        return 0
    fi
    run_started=$(date +%s)
    host_token=
    web_pin=
    ca_sha256=
    access_data=/var/lib/fairlead-access-server
    if [ ! -e "$access_data/certificates" ] || ! service_runs fairlead-controller; then
        prepare_servers
    fi
    start_server fairlead-controller "$servers_changed$wrote_controller"
    start_server fairlead-access-server "$servers_changed$wrote_access_server"
    rm -f "$access_data/join-token"
    say_what_next
}

prepare_servers() {
    if service_runs fairlead-controller; then
        systemctl stop fairlead-controller
    fi
    env_text=$(cat /etc/fairlead/controller.env 2>/dev/null) || env_text=
    known_ca=$(env_line FAIRLEAD_CA_SHA256)
    # The tokens come through a folder that only the controller's user can open, below one of root's.
    prepare_dir=$(mktemp -d /run/fairlead-setup.XXXXXX) ||
        die 1 installer_write "/run cannot be written to" "is it full or read-only?"
    chown fairlead-controller "$prepare_dir"
    prepare_failed=no
    prepared=$(
        # What hosts ask for: the .deb has brought it along.
        if [ "$packaged_servers" = yes ] && [ -d /usr/share/fairlead/packages ]; then
            FAIRLEAD_PACKAGES_FROM=/usr/share/fairlead/packages
            export FAIRLEAD_PACKAGES_FROM
        fi
        FAIRLEAD_DATA_DIR=/var/lib/fairlead-controller FAIRLEAD_PUBLIC_URL=$server_url
        FAIRLEAD_WEB_NAMES=$name FAIRLEAD_UPLINK_ADDRESS=$name:$port
        export FAIRLEAD_DATA_DIR FAIRLEAD_PUBLIC_URL FAIRLEAD_WEB_NAMES FAIRLEAD_UPLINK_ADDRESS
        if [ -n "$known_ca" ]; then
            FAIRLEAD_CA_SHA256=$known_ca
            export FAIRLEAD_CA_SHA256
        fi
        umask 077
        as_user fairlead-controller "$server_bin/fairlead-controller" setup --region "$region" \
            --region-token-file "$prepare_dir/region" --host-token-file "$prepare_dir/host" </dev/null
    ) || prepare_failed=$?
    host_token=$(as_user fairlead-controller cat "$prepare_dir/host" 2>/dev/null) || host_token=
    region_token=$(as_user fairlead-controller cat "$prepare_dir/region" 2>/dev/null) || region_token=
    rm -rf "$prepare_dir"
    if [ "$prepare_failed" != no ] || [ -z "$host_token" ]; then
        die 1 installer_setup "the servers are installed, and the installation could not be prepared (code $prepare_failed)" \
            "see what fairlead-controller said above, then run the same line again; files in /var/lib/fairlead-controller have to belong to fairlead-controller"
    fi
    if [ -n "$region_token" ]; then
        # shellcheck disable=SC2016 # the inner shell's own
        printf '%s\n' "$region_token" | as_user fairlead-access sh -c 'umask 077; rm -f "$1"; cat >"$1"' sh "$access_data/join-token" ||
            die 1 installer_write "$access_data cannot be written to" "is the disk full or read-only?"
    fi
    ca_sha256=$(printf '%s\n' "$prepared" | sed -n 's/^ca_sha256=//p')
    web_pin=$(printf '%s\n' "$prepared" | sed -n 's/^pin=//p')
    # Should its disk be missing one day, the controller does not become another installation.
    if [ -n "$ca_sha256" ]; then
        set_env FAIRLEAD_CA_SHA256 "$ca_sha256"
        write_file /etc/fairlead/controller.env 0600 "$env_text"
        if [ "$wrote" = yes ]; then
            wrote_controller=yes
        fi
    fi
}

# start_server NAME CHANGED: runs it, and waits until it answers: the new one, where it is restarted.
start_server() {
    waited=0
    pid_before=$(main_pid "$1")
    run_service "$1" "$2"
    if [ "$run_verb" != restart ]; then
        pid_before=
    fi
    while ! server_answers "$1"; do
        servers_waited "$1"
    done
}

main_pid() {
    systemctl show -p MainPID "$1" 2>/dev/null | sed 's/^MainPID=//'
}

server_answers() {
    if [ "$(systemctl is-active "$1" 2>/dev/null)" != active ]; then
        not_yet="does not run"
        return 1
    fi
    if [ -n "$pid_before" ] && [ "$(main_pid "$1")" = "$pid_before" ]; then
        not_yet="has not ended for its restart"
        return 1
    fi
    if [ "$1" = fairlead-controller ]; then
        not_yet="does not answer at 127.0.0.1:7400"
        if has curl; then
            answers_readyz https://127.0.0.1:7400/readyz
        else
            [ -e /var/lib/fairlead-controller/setup-link ] || [ "$waited" -gt 15 ]
        fi
        return
    fi
    not_yet="has not joined its region"
    [ -e "$access_data/certificates" ] || return 1
    # The one door: through it somebody who comes from outside gets to the controller.
    not_yet="does not answer at port $port"
    if has curl; then
        answers_readyz --resolve "$name:$port:127.0.0.1" "https://$name:$port/readyz"
    elif [ -r /proc/net/tcp ]; then
        listens "$port"
    fi
}

answers_readyz() {
    curl --silent --insecure --fail --output /dev/null --max-time 2 --noproxy '*' "$@" </dev/null
}

servers_waited() {
    waited=$((waited + 1))
    if [ "$waited" -ge $((wait_limit * 5)) ]; then
        printf '%s\n' "last words of $1:" >&2
        service_log "$1" | tail -n 5 | cut -c 1-400 | sed 's/^/  /' >&2
        restore_settings
        die 1 installer_not_started "$1 is installed and $not_yet$restored" "see $(log_command "$1"); is port $port taken? Then run the same line again"
    fi
    sleep 0.2 2>/dev/null || sleep 1
}

# Settings with which the servers do not come up are taken back, if there were others.
restore_settings() {
    restored=
    if [ "$wrote_controller" = yes ] && [ -n "$controller_before" ]; then
        write_file /etc/fairlead/controller.env 0600 "$controller_before"
        restored="; its settings are as they were before"
    fi
    if [ "$wrote_access_server" = yes ] && [ -n "$access_server_before" ]; then
        write_file /etc/fairlead/access-server.env 0600 "$access_server_before"
        restored="; its settings are as they were before"
    fi
    if [ -n "$restored" ]; then
        systemctl --no-block restart fairlead-controller fairlead-access-server 9>&- || :
    fi
}

# Waits a while for the certificate by ACME: with it the lines that follow need no fingerprint. A line with
# the fingerprint stays good when it comes later, because the key stays.
wait_for_acme() {
    waited=0
    while :; do
        acme_state=$(curl --silent --insecure --fail --max-time 2 --noproxy '*' https://127.0.0.1:7400/readyz </dev/null 2>/dev/null) || acme_state=
        case $acme_state in
        *"https acme until "*)
            own_certificate=acme
            return 0
            ;;
        *"; acme_waiting"* | *"; acme_unreachable"* | '') ;;
        *"; acme_"*) break ;;
        *) ;;
        esac
        waited=$((waited + 1))
        [ "$waited" -lt 60 ] || break
        sleep 1
    done
    acme_code=$(printf '%s\n' "$acme_state" | sed -n 's/^https .*; \(acme_[a-z_]*\)$/\1/p')
    say "no certificate by ACME yet (${acme_code:-acme_waiting}): fairlead status and the controller's log say why; it is asked for again by itself"
}

# Address, first admin, first host: on standard output, because they are what was asked for.
say_what_next() {
    if [ "$acme" = true ] && has curl; then
        wait_for_acme
    fi
    if [ -n "$own_certificate" ]; then
        next_trust=
        next_pin=
        next_ca=
        printf 'address      %s\n' "$server_url"
    else
        next_trust="k --pinnedpubkey '$web_pin'"
        next_pin=" --pin '$web_pin'"
        next_ca=' --ca /var/lib/fairlead-controller/ca.pem'
        printf 'address      %s (own CA, sha256 %s)\n' "$server_url" "${ca_sha256:-as before}"
    fi
    if [ -f /var/lib/fairlead-controller/setup-link ]; then
        # Not the link itself: the command line of a process is shown to everybody on this machine.
        printf 'first admin  fairlead login --setup-link /var/lib/fairlead-controller/setup-link%s   (works once, for 15 minutes)\n' \
            "$next_ca"
    else
        printf 'first admin  is there already: fairlead login\n'
    fi
    if [ -n "$host_token" ]; then
        printf 'add a host   curl -fsSL%s %s/install.sh | FAIRLEAD_JOIN_TOKEN=%s sh -s -- --from %s/packages --address %s:%s%s\n' \
            "$next_trust" "$server_url" "$host_token" "$server_url" "$name" "$port" "$next_pin"
    else
        printf 'add a host   fairlead host add --region %s\n' "$region"
    fi
    if [ ! -e /var/lib/fairlead-controller/packages/channels/stable ]; then
        say "hosts find no package here yet: copy a repository of packages to /var/lib/fairlead-controller/packages (see the guide)"
    fi
}

uninstall_servers() {
    refuse_packaged fairlead-controller
    remove_service fairlead-access-server
    remove_service fairlead-controller
    made_before=$(cat "$root$prefix/made" 2>/dev/null) || made_before=
    for program in fairlead-controller fairlead-access-server fairlead; do
        take_away "/usr/local/bin/$program"
    done
    take_away "$prefix/current"
    take_away_tree "$prefix/versions"
    take_away "$prefix/made"
    take_away "$prefix/.lock"
    take_away_empty "$prefix"
    if [ "$purge" = yes ]; then
        take_away_tree /var/lib/fairlead-controller
        take_away_tree /var/lib/fairlead-access-server
        take_away /etc/fairlead/controller.env
        take_away /etc/fairlead/access-server.env
        take_away_tree /etc/fairlead/tls
        for user in fairlead-controller fairlead-access; do
            if id "$user" >/dev/null 2>&1 && plan "remove the system user $user"; then
                userdel "$user" 2>/dev/null || deluser "$user" || :
            fi
        done
    fi
    take_away_empty /etc/fairlead
    remove_made
    if [ "$dry_run" = no ]; then
        if [ "$purge" = yes ]; then
            say "the servers and all their data are gone from $this_host"
        else
            say "the servers are gone from $this_host; their data stays in /var/lib/fairlead-controller, /var/lib/fairlead-access-server and /etc/fairlead (--purge removes it)"
        fi
    fi
}

# --- the beginning ---------------------------------------------------------------------------

# The value of an option, which must be there.
value() {
    if [ "$#" -lt 2 ]; then
        usage installer_usage "$1 needs a value"
    fi
}

parse() {
    while [ "$#" -gt 0 ]; do
        case $1 in
        FL1* | FA1* | *=FL1* | *=FA1*)
            usage installer_token_in_arguments "a token was passed as an argument, where everybody on this host can read it (ps)" \
                "revoke it, make a new one, and pass it as FAIRLEAD_JOIN_TOKEN or with --token-file FILE"
            ;;
        --*=*)
            # --flag=value is --flag value.
            parse_all=$1
            shift
            set -- "${parse_all%%=*}" "${parse_all#*=}" "$@"
            continue
            ;;
        --from | --bundle | --version | --channel | --key | --pin | --address | --token-file | --host-name | \
            --engine-socket | --prefix | --root | --init | --name | --port | --region | --certificate | \
            --certificate-key | --acme-contact)
            value "$@"
            case $2 in
            FL1* | FA1*) usage installer_token_in_arguments "a token was passed as an argument, where everybody on this host can read it (ps)" \
                "revoke it, make a new one, and pass it as FAIRLEAD_JOIN_TOKEN or with --token-file FILE" ;;
            *) ;;
            esac
            ;;
        *) ;;
        esac
        case $1 in
        --from) from=$2 ;;
        --bundle) bundle=$2 ;;
        --version) version=$2 ;;
        --channel) channel=$2 ;;
        --key) extra_keys="$extra_keys $2" ;;
        --pin) pin=$2 ;;
        --address) address=$2 ;;
        --token-file) token_file=$2 ;;
        --host-name) host_name=$2 ;;
        --engine-socket) engine_socket=$2 ;;
        --prefix) prefix=$2 ;;
        --root) root=$2 ;;
        --init) init=$2 ;;
        --name) name=$2 ;;
        --port) port=$2 ;;
        --region) region=$2 ;;
        --certificate) certificate=$2 ;;
        --certificate-key) certificate_key=$2 ;;
        --acme-contact) acme_contact=$2 ;;
        --acme-agree-tos) acme_agreed=true ;;
        --re-enrol) re_enrol=yes ;;
        --allow-unreachable) allow_unreachable=yes ;;
        --allow-downgrade) allow_downgrade=yes ;;
        --no-start) start=no ;;
        --dry-run) dry_run=yes ;;
        --no-dry-run) dry_run=no ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        --forget) forget=yes ;;
        --quiet) quiet=yes ;;
        --help | -h)
            help_text
            finished=yes
            return 0
            ;;
        *) usage installer_usage "there is no option $(printable "$1")" ;;
        esac
        case $1 in
        --from | --bundle | --version | --channel | --key | --pin | --address | --token-file | --host-name | \
            --engine-socket | --prefix | --root | --init | --name | --port | --region | --certificate | \
            --certificate-key | --acme-contact) shift 2 ;;
        *) shift ;;
        esac
    done
}

# Everything that comes from outside is looked at before it is used anywhere.
validate() {
    if [ "$purge" = yes ] && [ "$uninstall" = no ]; then
        usage installer_usage "--purge goes with --uninstall"
    fi
    if [ "$forget" = yes ] && { [ "$uninstall" = no ] || [ "$verb" != agent ]; }; then
        usage installer_usage "--forget goes with --uninstall of the agent"
    fi
    root=${root%/}
    if [ -n "$root" ] && { ! is_path "$root" || [ ! -d "$root" ]; }; then
        usage installer_usage "--root is the absolute path of a folder that is there, without blanks"
    fi
    if [ -n "$prefix" ] && ! is_path "$prefix"; then
        usage installer_usage "--prefix is an absolute path of letters, digits and . _ + -"
    fi
    prefix=${prefix%/}
    case $init in
    '' | systemd | openrc | none) ;;
    *) usage installer_usage "--init is systemd, openrc or none" ;;
    esac
    if [ -n "$version" ] && ! is_version "$version"; then
        usage installer_usage "this is not a version: $(printable "$version")"
    fi
    if [ -n "$channel" ] && ! only "$channel" 'a-z0-9-'; then
        usage installer_usage "this is not a channel: $(printable "$channel")"
    fi
    for key_one in $extra_keys; do
        is_key "$key_one" || usage installer_usage "--key is KEYID:BASE64, as fairlead agent keygen prints it"
    done
    keys="$stamped_keys $extra_keys"
    if [ -n "$pin" ]; then
        case $pin in
        sha256//*) only "${pin#sha256//}" 'A-Za-z0-9+/=' ;;
        *) false ;;
        esac || usage installer_usage "--pin is sha256//BASE64"
    fi
    if [ -n "$address" ]; then
        check_addresses "$address"
    fi
    if [ -n "$host_name" ] && { ! only "$host_name" 'A-Za-z0-9._-' || [ "${#host_name}" -gt 63 ]; }; then
        usage installer_usage "--host-name is at most 63 letters, digits and . _ -"
    fi
    if [ -n "$name" ] && { ! only "$name" 'A-Za-z0-9.-' || [ "${#name}" -gt 253 ]; }; then
        usage installer_usage "--name is a name of the DNS, for instance fleet.example.com"
    fi
    if ! is_address "x:${port:-443}"; then
        usage installer_usage "--port is a number from 1 to 65535"
    fi
    case $region in
    '') ;;
    -* | *-) false ;;
    *) only "$region" 'a-z0-9-' && [ "${#region}" -le 63 ] ;;
    esac || usage installer_usage "--region is a name of lower-case letters, digits and dashes"
    acme=
    if [ "$certificate$certificate_key" = acme ]; then
        acme=true certificate=
        if [ "$acme_agreed" != true ]; then
            usage installer_usage "--certificate acme asks Let's Encrypt for a certificate, and its terms of service have to be agreed to" \
                "read them at https://letsencrypt.org/repository/, then add --acme-agree-tos"
        fi
    elif [ -n "$acme_contact$acme_agreed" ]; then
        usage installer_usage "--acme-contact and --acme-agree-tos go with --certificate acme"
    fi
    case $acme_contact in
    '') ;;
    mailto:*) only "${acme_contact#mailto:}" 'A-Za-z0-9.@_+-' ;;
    *) false ;;
    esac || usage installer_usage "--acme-contact is an address for mail, for instance mailto:ops@example.com"
    if [ -n "$certificate$certificate_key" ] && { [ ! -r "$certificate" ] || [ ! -r "$certificate_key" ]; }; then
        usage installer_usage "--certificate and --certificate-key go together, and both files must be there"
    fi
    if [ -n "$engine_socket" ] && ! is_path "$engine_socket"; then
        usage installer_usage "--engine-socket is an absolute path"
    fi
    if [ -n "$proxy" ] && ! only "$proxy" 'A-Za-z0-9.:/@_~!*+,=%[]-'; then
        usage installer_usage "HTTPS_PROXY has characters that belong percent-encoded in it" "write them as %XX"
    fi
    if [ -n "$no_proxy_for" ] && ! only "$no_proxy_for" 'A-Za-z0-9.:/*, []_-'; then
        usage installer_usage "NO_PROXY is a list of names and networks"
    fi
    if ! is_number "$time_limit" || ! is_number "$wait_limit"; then
        usage installer_usage "FAIRLEAD_DOWNLOAD_TIMEOUT_S and FAIRLEAD_WAIT_S are numbers of seconds"
    fi
}

choose_source() {
    if [ -n "$bundle" ]; then
        source_kind=bundle
        source=$bundle
        if [ ! -f "$bundle" ] || [ ! -r "$bundle" ]; then
            usage installer_bundle "there is no file $(printable "$bundle")"
        fi
    else
        source=${from%/}
        case $from in
        https://*) source_kind=url ;;
        # In the clear only where it does not leave the machine.
        http://127.0.0.1:* | http://127.0.0.1/* | http://localhost:* | http://localhost/*) source_kind=url ;;
        http://*) usage installer_insecure_url "packages come through https, not http" "write --from https://…" ;;
        /*) source_kind=dir ;;
        '') usage installer_no_source "it was not said where the packages are" \
            "pass --from https://… (the line from fairlead host add has it) or --bundle FILE" ;;
        *) usage installer_usage "--from is an https address or the absolute path of a folder" ;;
        esac
        if [ "$source_kind" = url ] && ! only "$source" 'A-Za-z0-9.:/@_~%[]-'; then
            usage installer_usage "--from is an https address: $(printable "$source")"
        fi
        if [ "$source_kind" = dir ] && [ ! -d "$source" ]; then
            usage installer_usage "there is no folder $(printable "$source")"
        fi
    fi
    if [ -z "$stamped_version" ] && [ -z "$extra_keys" ]; then
        usage installer_unstamped "this install.sh comes from the sources and belongs to no version: it knows no key to believe" \
            "take the one that your controller serves; developers pass --key KEYID:BASE64 with --from or --bundle"
    fi
}

main() {
    # First of all: no program that is started here is to find the token in its environment.
    token=${FAIRLEAD_JOIN_TOKEN:-}
    unset FAIRLEAD_JOIN_TOKEN
    quiet=no dry_run=no purge=no forget=no uninstall=no start=yes re_enrol=no finished=no
    allow_unreachable=no allow_downgrade=no
    stage='' staging=no temporary='' made_dirs='' lock_made='' staged='' wrote_service=no committed=no explained=no
    init='' root='' extra_keys=${FAIRLEAD_KEY:-}
    from=${FAIRLEAD_FROM:-} bundle=${FAIRLEAD_BUNDLE:-} version=${FAIRLEAD_VERSION:-}
    channel=${FAIRLEAD_CHANNEL:-} pin=${FAIRLEAD_PIN:-} prefix=${FAIRLEAD_PREFIX:-}
    address=${FAIRLEAD_ADDRESS:-} host_name=${FAIRLEAD_HOST_NAME:-} name=${FAIRLEAD_NAME:-}
    port=${FAIRLEAD_PORT:-} region=${FAIRLEAD_REGION:-} certificate='' certificate_key='' acme_contact='' acme_agreed=''
    engine_socket=${FAIRLEAD_ENGINE_SOCKET:-} token_file=${FAIRLEAD_JOIN_TOKEN_FILE:-}
    time_limit=${FAIRLEAD_DOWNLOAD_TIMEOUT_S:-600} wait_limit=${FAIRLEAD_WAIT_S:-30}
    proxy=${HTTPS_PROXY:-${https_proxy:-}} no_proxy_for=${NO_PROXY:-${no_proxy:-}}
    source='' source_kind='' getter='' hasher=sha256sum min_free_mib=16 enrolled=no
    this_host=$(printable "$(uname -n)")
    agent_paths

    verb=agent
    case ${1:-} in
    server | check)
        verb=$1
        shift
        ;;
    print-unit)
        shift
        print_unit "$@"
        return 0
        ;;
    *) ;;
    esac
    parse "$@"
    if [ "$finished" = yes ]; then
        return 0
    fi
    validate
    if [ -n "$proxy" ]; then
        # The one spelling that curl, wget and the agent all know.
        https_proxy=$proxy
        export https_proxy
    fi
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    look_around
    if [ "$verb" = server ]; then
        prefix=${prefix:-/opt/fairlead-servers}
    else
        find_prefix
    fi
    if [ "$uninstall" = yes ]; then
        case $verb in
        server) uninstall_servers ;;
        *) uninstall_agent ;;
        esac
        return 0
    fi
    take_token
    packaged_servers=no
    if [ "$verb" = server ] && [ -z "$root" ] && is_packaged fairlead-controller; then
        packaged_servers=yes
        is_packaged fairlead-access-server ||
            die 1 installer_packaged "fairlead-controller is here as a package of the system, and fairlead-access-server is not" \
                "install the .deb of both, then run the same line again"
    elif [ "$verb" != check ] || [ -n "$from$bundle" ]; then
        choose_source
    fi
    case $verb in
    server) install_servers ;;
    *) install_agent ;;
    esac
}

main "$@"
exit 0
}
