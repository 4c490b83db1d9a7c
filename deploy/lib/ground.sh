# shellcheck shell=bash
# What deploy/demo and deploy/bench share: packages, the build, a lab of their own that goes away again.
# The caller has set `root`.

target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac

# Installs and builds what is missing, with lines that say so. Packages: everything, unless `base` is asked for;
# more names may follow.
ground_ready() {
    local kind=${1:-all} name
    [ "$(id -u)" = 0 ] || { echo 'this needs root, for network namespaces: run it with sudo' >&2; exit 77; }
    command -v cargo >/dev/null 2>&1 || {
        echo 'this needs Rust (cargo) to build Waypost: https://rustup.rs' >&2
        exit 69
    }
    echo '== packages'
    # shellcheck source=deploy/lib/packages.sh
    . "$root/deploy/lib/packages.sh"
    install_packages "$kind"
    shift || true
    for name in "$@"; do
        _package_present "$name" && continue
        _install_missing "$name"
        # Installed to be run by hand: not at the next start of the machine.
        _disable_new_units "$name.service"
    done
    # SQLite is C, and Rust links with the C compiler.
    command -v cc >/dev/null 2>&1 || _install_missing gcc libc6-dev
    echo '== build: profile release (optimised, no link-time optimisation)'
    (cd -- "$root" && cargo build --locked --release -p waypost -p e2e --bin waypost --bin demo)
}

# Runs the program in a lab with a prefix of its own. However it ends, nothing of the lab stays.
run_in_lab() {
    local prefix status=0 program=
    prefix=dm$(printf '%08x' $$)
    # In the background a shell's child ignores Ctrl-C, so it is passed on as a request to end.
    trap '[ -z "$program" ] || kill "$program" 2>/dev/null || true' INT TERM HUP
    "$target/release/demo" "$1" --prefix "$prefix" --waypost "$target/release/waypost" "${@:2}" <&0 &
    program=$!
    # A signal ends `wait` before the program has ended.
    while kill -0 "$program" 2>/dev/null; do
        status=0
        wait "$program" || status=$?
    done
    "$target/release/demo" clean --prefix "$prefix"
    exit "$status"
}
