# What a fresh Debian 12 machine needs before this project builds and runs, as functions. Sourced by
# launch/quickstart.sh and tests/run.sh. Every function does nothing where its work is already done,
# and ends the script where it cannot be. Sets `root`, the folder of the checkout, and `python`, the
# interpreter of its environment.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

packages=(
  g++ cmake ninja-build
  libopenmpi-dev openmpi-bin libhdf5-dev hdf5-tools
  libtomlplusplus-dev libfmt-dev libcli11-dev nlohmann-json3-dev libxxhash-dev doctest-dev
  python3-venv python3-pip
)

say() { printf '== %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Runs a command silently; shows what it printed and stops when it fails.
quietly() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    fail "this failed: $*"
  fi
  rm -f "$log"
}

# What tests/cluster brings up on emulated hosts, as root.
cluster_packages=(slurmctld slurmd slurm-client munge iproute2)

# missing_packages PACKAGE...
missing_packages() {
  local package
  for package; do
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || echo "$package"
  done
}

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

can_install() {
  command -v apt-get >/dev/null && { ((EUID == 0)) || command -v sudo >/dev/null; }
}

install_packages() {
  say "installing $*"
  quietly as_root apt-get update
  quietly as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "$@"
}

setup_packages() {
  local missing
  mapfile -t missing < <(missing_packages "${packages[@]}")
  ((${#missing[@]})) || return 0
  can_install || fail "these Debian packages are missing, and there is no apt-get or no sudo to" \
    "install them: ${missing[*]}"
  install_packages "${missing[@]}"
}

# Only where the tests that need them can run; without them they are skipped.
setup_cluster_packages() {
  local missing
  mapfile -t missing < <(missing_packages "${cluster_packages[@]}")
  if ((EUID == 0 && ${#missing[@]})) && can_install; then install_packages "${missing[@]}"; fi
}

# Makes .venv with the packages of launch/requirements.txt, whose checksum it keeps as a stamp.
setup_python() {
  local requirements=$root/launch/requirements.txt stamp=$root/.venv/requirements.sha256 interpreter
  sha256sum --check --status "$stamp" 2>/dev/null && return 0
  say "making the Python environment .venv"
  for interpreter in /usr/bin/python3 python3; do
    if "$interpreter" -c 'import ensurepip, venv' 2>/dev/null; then break; fi
  done
  quietly "$interpreter" -m venv --clear "$root/.venv"
  quietly "$python" -m pip install --disable-pip-version-check --requirement "$requirements"
  sha256sum "$requirements" >"$stamp"
}

# The toolkit's disassembler, where the toolkit came without it.
setup_cuda_tools() {
  command -v cuobjdump >/dev/null && return 0
  quietly "$python" -m pip install --disable-pip-version-check \
    --requirement "$root/tests/cuda_requirements.txt"
}

# setup_build PRESET [-DOPTION=VALUE...] [TARGET...]: configures and builds in build/PRESET, everything
# or these targets.
setup_build() {
  local preset=$1 options=()
  shift
  while [[ ${1:-} == -D* ]]; do
    options+=("$1")
    shift
  done
  say "building preset $preset in build/$preset"
  (
    cd "$root" || exit
    quietly cmake --preset "$preset" "${options[@]}"
    cmake --build --preset "$preset" ${1:+--target "$@"}
  ) || fail "the preset $preset does not build; see above"
}

# mpirun as root, with more ranks than cores, and with waits that leave the core to the other ranks.
mpi_environment() {
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
  export OMPI_MCA_btl=self,vader OMPI_MCA_hwloc_base_binding_policy=none
}

# setup_text FOLDER: unpacks the Debian packages with the quickstart's text into FOLDER/PACKAGE.
# They are not installed: that would need root, and some images leave documentation out.
setup_text() {
  local folder=$1 wanted=() package downloads
  for package in $("$python" "$root/launch/collect_text.py" --packages); do
    [[ -d $folder/$package ]] || wanted+=("$package")
  done
  ((${#wanted[@]})) || return 0
  command -v apt-get >/dev/null || fail "there is no apt-get to fetch the packages with the text," \
    "${wanted[*]}: unpack each into $folder/PACKAGE"
  say "downloading text: ${wanted[*]}"
  mkdir -p "$folder"
  downloads=$(mktemp -d "$folder/download.XXXXXX")
  if ! (cd "$downloads" && apt-get -qq download "${wanted[@]}" >/dev/null 2>&1); then
    can_install || fail "apt-get cannot fetch ${wanted[*]}: have root run apt-get update"
    quietly as_root apt-get update
    (cd "$downloads" && quietly apt-get download "${wanted[@]}")
  fi
  for package in "${wanted[@]}"; do
    mkdir "$downloads/$package"
    quietly dpkg-deb --extract "$downloads/${package}"_*.deb "$downloads/$package"
    mv "$downloads/$package" "$folder/$package"
  done
  rm -rf "$downloads"
}
