# shellcheck shell=bash
# Installs what the lab needs from Debian: mail servers, mail clients, tools.
#
#   . deploy/lib/packages.sh; install_packages            everything
#   . deploy/lib/packages.sh; install_packages base       without the graphical mail client
#
# Nothing is started and nothing is enabled: the lab runs its own copies of the servers, with its own
# configuration and state, inside network namespaces. A policy-rc.d that forbids every daemon stands only while
# apt runs. Prints what it installed; does nothing, and needs no network, when all is present.

# Cyrus and Dovecot both provide `imap-server` and conflict, so Cyrus is unpacked here, beside the system.
WAYPOST_CYRUS_ROOT=${WAYPOST_CYRUS_ROOT:-/opt/waypost-lab/cyrus}

_packages_base() {
    printf '%s\n' dovecot-imapd isync mutt curl ca-certificates python3 \
        iproute2 ethtool tcpdump procps util-linux e2fsprogs sasl2-bin libsasl2-modules openssl nftables iptables
}

_packages_graphical() { printf '%s\n' thunderbird libnss3-tools; }

_package_present() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Runs apt-get with daemons forbidden. In a subshell, so that the trap is ours and runs however we end.
_apt_quietly() (
    policy=/usr/sbin/policy-rc.d
    kept=
    restore() {
        rm -f "$policy"
        if [ -n "$kept" ]; then mv "$kept" "$policy"; fi
    }
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        kept=$policy.before-waypost-lab
        mv "$policy" "$kept"
    fi
    trap restore EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >&2
)

# Takes away the start at boot of units that an installation of ours has just switched on.
_disable_new_units() {
    local unit
    command -v deb-systemd-helper >/dev/null 2>&1 || return 0
    for unit in "$@"; do
        # The helper works only for a package's scripts, and wants to know whose it is.
        DPKG_MAINTSCRIPT_PACKAGE=${unit%.*} deb-systemd-helper disable "$unit" >/dev/null 2>&1 || true
    done
}

_install_missing() {
    local package missing=()
    for package in "$@"; do
        _package_present "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! _apt_quietly install --no-install-recommends "${missing[@]}"; then
        # A machine that has never asked for the package lists has nothing to install from.
        _apt_quietly update || return 1
        _apt_quietly install --no-install-recommends "${missing[@]}" || {
            echo "packages: apt-get could not install: ${missing[*]}. Its message stands above." >&2
            return 1
        }
    fi
    for package in "${missing[@]}"; do
        case $package in dovecot-imapd) _disable_new_units dovecot.service dovecot.socket ;; esac
        case $package in sasl2-bin) _disable_new_units saslauthd.service ;; esac
        printf 'installed %s %s\n' "$package" "$(dpkg-query -W -f '${Version}' "$package")"
    done
}

_install_cyrus() {
    local work deb depends version
    [ -x "$WAYPOST_CYRUS_ROOT/usr/lib/cyrus/bin/imapd" ] && return 0
    work=$(mktemp -d) || return 1
    # apt downloads as the user _apt, which must be able to write here.
    chmod 755 "$work"
    chown _apt "$work" 2>/dev/null || true
    if ! (cd "$work" && apt-get download -q cyrus-imapd cyrus-common >&2); then
        _apt_quietly update
        (cd "$work" && apt-get download -q cyrus-imapd cyrus-common >&2) || {
            rm -rf "$work"
            echo "packages: apt-get could not download cyrus-imapd and cyrus-common" >&2
            return 1
        }
    fi
    # Shared libraries only: the maintainer scripts, the service and the Perl tools stay out. The first of
    # alternatives is Debian's own preference.
    depends=$(for deb in "$work"/*.deb; do dpkg-deb -f "$deb" Depends; echo; done |
        tr ',' '\n' | sed 's/|.*//; s/([^)]*)//g; s/:any//; s/ //g' | grep -E '^lib' |
        grep -v -E 'cyrus|perl' | sort -u)
    # shellcheck disable=SC2086
    _install_missing $depends || { rm -rf "$work"; return 1; }
    mkdir -p "$WAYPOST_CYRUS_ROOT"
    for deb in "$work"/*.deb; do
        dpkg-deb -x "$deb" "$WAYPOST_CYRUS_ROOT" || { rm -rf "$work"; return 1; }
        version=$(dpkg-deb -f "$deb" Version)
        printf 'unpacked %s %s into %s\n' "$(dpkg-deb -f "$deb" Package)" "$version" "$WAYPOST_CYRUS_ROOT"
    done
    rm -rf "$work"
}

install_packages() {
    local wanted
    if [ "$(id -u)" != 0 ]; then
        echo "packages: installing needs root; run as root or install by hand: $(_packages_base | tr '\n' ' ')" >&2
        return 77
    fi
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "packages: this machine has no apt-get; the lab needs Debian or Ubuntu" >&2
        return 69
    fi
    wanted=$(_packages_base)
    [ "${1:-all}" = base ] || wanted="$wanted $(_packages_graphical)"
    # shellcheck disable=SC2086
    _install_missing $wanted && _install_cyrus
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -eu
    install_packages "$@"
fi
