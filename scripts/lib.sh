# Setting up, shared by scripts/demo and scripts/test: a Python, .venv, the packages, the embedded model. To be sourced.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'vstream: %s\n' "$*" >&2; exit 1; }

# Prints the first Python that is 3.11 or newer.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    command -v python3 >/dev/null || die "there is no python3; run: apt-get install python3 python3-venv"
    die "vstream needs Python 3.11 or newer, but this is $(python3 --version); where Debian or Ubuntu has it," \
        "run: apt-get install python3.11 python3.11-venv"
}

# Makes .venv, or says which system package is missing.
make_venv() {
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return
    local python version
    python="$(find_python)"
    version="$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python has no venv with pip in it; run: apt-get install $version-venv (or python3-venv)"
    say "making $VENV with $version"
    "$python" -m venv --clear "$VENV"
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet "$@"; }

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

# Installs vstream with the given extras ("", "test"), unless that was done already for this pyproject.toml in this place.
install_vstream() {
    local extras="${1:-}" torch="torch==2.13.0" stamp key
    has_gpu && torch="torch>=2.11"
    make_venv
    stamp="$VENV/.vstream-installed-${extras:-base}"
    key="$(printf '%s %s ' "$ROOT" "$torch" | cat - "$ROOT/pyproject.toml" | sha256sum)"
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
    say "installing $torch and vstream${extras:+ with [$extras]} (a minute or two, about 1 GB)"
    pip_install "$torch"
    pip_install --editable "$ROOT${extras:+[$extras]}"
    echo "$key" >"$stamp"
}

# Brings the embedded model into the user's cache; quick when it is there.
add_model() { "$VENV/bin/vstream" models add embedded; }
