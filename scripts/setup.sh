#!/usr/bin/env bash
# Makes .venv ready, or ends in one line that says what to do. The Makefile calls it:
#
#     scripts/setup.sh         what lessons and exercises need
#     scripts/setup.sh tests   that, and what only tests and authors need
#
# Three small files in .venv tell how it stands:
#     course-making    it is being filled by the process named inside; a folder that nobody fills any more
#                      was left half-made (Ctrl-C, power cut) and is made anew
#     course-made      it was made here, so that it may be removed; somebody's own .venv never is
#     course-ready-*   fingerprint of all that decides its contents: while it is right, a call costs
#                      milliseconds and no network
set -u
cd "$(dirname -- "$0")/.." || exit 1

kind=${1:-lessons}
oldest=11 newest=14 # of Python 3; above 3.14 PyTorch has no builds yet
py=.venv/bin/python
making=.venv/course-making made=.venv/course-made ready=.venv/course-ready-$kind
cpu_index=https://download.pytorch.org/whl/cpu
requirements=(-r requirements.txt)
[ "$kind" = tests ] && requirements+=(-r tests/requirements.txt)

# On a terminal one line of status is written over and over; a log file gets none of it.
status() { [ -t 1 ] && printf '\r\033[K%.79s' "$*"; }
clear_status() { [ -t 1 ] && printf '\r\033[K'; }

die() {
    clear_status
    printf '%s\n' "$*" >&2
    exit 1
}

# --- which Python -----------------------------------------------------------------------------------

version_of() { # "3.12", or nothing where it does not run
    "$1" -c 'import sys; print("%d.%d" % tuple(sys.version_info[:2]))' 2>/dev/null
}

suits() { # a version such as "3.12"
    case $1 in
        3.*) [ "${1#3.}" -ge "$oldest" ] && [ "${1#3.}" -le "$newest" ] ;;
        *) return 1 ;;
    esac
}

find_python() { # prints the interpreter to use
    local candidate version candidates=(python3 python3.13 python3.12 python3.11 python3.14)
    [ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        suits "$(version_of "$candidate")" && echo "$candidate" && return
    done
    version=$(version_of "${candidates[0]}")
    die "The course needs Python 3.$oldest to 3.$newest, but ${candidates[0]} is ${version:-not there}:" \
        "install one and name it, as in: make lab PYTHON=python3.12"
}

# --- the environment --------------------------------------------------------------------------------

usable() { # can this .venv run and install? (a system upgrade or a moved folder can break one)
    suits "$(version_of "$py")" && "$py" -m pip --version >/dev/null 2>&1
}

other_python_asked() {
    [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$(version_of "$py")" ]
}

still_running() { # is the process named in `course-making` a live set-up?
    local pid
    pid=$(cat "$making" 2>/dev/null) && [ -n "$pid" ] || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline" || ps -p "$pid" -o args=; } 2>/dev/null | grep -q setup.sh
}

drop_unusable_venv() {
    [ -e .venv ] || return 0
    still_running && die "Another make is setting up .venv right now: wait for it to end, then try again."
    [ ! -e "$making" ] && usable && ! other_python_asked && return
    [ -e "$making" ] || [ -e "$made" ] || die "The folder .venv was not made by this Makefile and can't be" \
        "used (its Python: $(version_of "$py" | grep . || echo broken)): remove it, then try again."
    rm -rf .venv
}

make_venv() {
    local python free needed=3000 size="1 GB"
    python=$(find_python) || exit 1
    "$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python has no venv module: install it (Debian," \
        "Ubuntu: sudo apt install python$(version_of "$python")-venv), then try again."
    has_gpu && needed=9000 && size="4 GB"
    free=$(df -Pm . | awk 'NR == 2 { print $4 }')
    [ "${free:-$needed}" -ge "$needed" ] || die "Setting up takes $needed MB of disk, and $PWD has $free MB" \
        "free: make room, then try again."
    echo "Setting up .venv, once: about $size to download, some minutes."
    mkdir .venv || exit 1
    echo $$ >"$making"
    run "$python" -m venv .venv || give_up
}

# --- installing -------------------------------------------------------------------------------------

# Runs a command and shows its last line; keeps all of it in `output` (in memory: the disk may be full).
run() {
    local line code=1
    output=""
    while IFS= read -r line; do
        case $line in
            "exit code "*) code=${line#exit code } ;;
            *) output+=$line$'\n' && status "$line" ;;
        esac
    done < <(stoppable "$@")
    clear_status
    return "$code"
}

stoppable() { # ends the command when it is ended itself
    "$@" 2>&1 </dev/null &
    trap "kill $!" INT TERM HUP
    wait $!
    echo "exit code $?"
}

install() { run "$py" -m pip install --disable-pip-version-check --no-input "$@"; }

has_gpu() { nvidia-smi >/dev/null 2>&1; }

# PyPI's torch for Linux brings gigabytes of CUDA libraries. Without an NVIDIA GPU take the CPU build:
# one that is installed or lies where pip's find-links points, else from PyTorch's own index. Where that
# can't be reached, the ordinary build does as well.
install_torch() {
    local torch
    torch=$(grep '^torch[<>=~]' requirements.txt) && [ "$(uname -s)" = Linux ] && ! has_gpu || return 0
    install --no-deps --no-index "$torch" && return
    install --no-deps --retries 0 --timeout 15 --index-url "$cpu_index" "$torch" && return
    disk_is_full && give_up
    echo "PyTorch's index of CPU builds can't be reached: taking the ordinary build, about 3 GB more."
}

install_all() {
    export TMPDIR=$PWD/.venv/tmp # wheels are unpacked here: /tmp is often too small for them
    mkdir -p "$TMPDIR" || give_up
    install --retries 1 "setuptools>=77" || give_up # small and first: it tells whether there is a network
    install_torch
    install "${requirements[@]}" || give_up
    install --no-deps --no-build-isolation --editable . || give_up
    rm -rf "$TMPDIR"
}

# --- failing ----------------------------------------------------------------------------------------

disk_is_full() { grep -qE 'No space left|Errno 28|[Qq]uota exceeded' <<<"$output"; }

no_network() {
    grep -qE 'NewConnectionError|NameResolution|ConnectTimeout|ReadTimeout|Cannot connect to proxy|timed out' \
        <<<"$output"
}

give_up() { # ends in one line for what the failed command said; nothing half-made stays
    if [ -e "$made" ] && no_network; then
        rm -f "$making" # nothing was changed: what was there still works
    elif [ -e "$making" ]; then
        rm -rf .venv
    fi
    rm -rf .venv/tmp
    disk_is_full && die "The disk is full ($PWD, or pip's cache in your home): make room for 3 GB, then try again."
    no_network && die "No network: setting up needs pypi.org once and can't reach it. Connect, then try again."
    die "Setting up failed: $({ grep -iE '^ *(error|fatal)' <<<"$output" || echo "$output"; } | head -n 1)"
}

interrupted() {
    kill $! 2>/dev/null && wait $! 2>/dev/null
    output="error: interrupted" && give_up
}

# --- all of it --------------------------------------------------------------------------------------

fingerprint() { # what to install, with which Python, in which folder (the editable install points to it)
    cat requirements.txt tests/requirements.txt pyproject.toml scripts/setup.sh | cksum
    printf '%s\n' "$PWD" "$(version_of "$py")"
}

is_ready() {
    [ -e "$ready" ] && [ ! -e "$making" ] && [ "$(fingerprint)" = "$(cat "$ready")" ] && ! other_python_asked
}

is_ready && exit 0
trap interrupted INT TERM HUP
drop_unusable_venv
if [ -e .venv ]; then
    echo "Bringing .venv up to date."
    [ -e "$made" ] && echo $$ >"$making"
else
    make_venv
fi
install_all
for ready in .venv/course-ready-lessons "$ready"; do fingerprint >"$ready" || give_up; done
[ -e "$making" ] && mv "$making" "$made"
exit 0
