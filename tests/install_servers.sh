#!/bin/sh
# Installs the servers that the tests start themselves, where they are missing and we may, or says
# what to install. Never starts a system service: the tests need only the programs.
set -eu

# program:package, as Debian and its children name them
needed="redis-server:redis-server openssl:openssl chromium:chromium curl:curl faketime:faketime"

missing=
for pair in $needed; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done

# Debian keeps PostgreSQL's own programs off the PATH, in a folder per version.
has_postgres() {
    command -v initdb >/dev/null && return
    for program in "${POSTGRESQL_LIB:-/usr/lib/postgresql}"/*/bin/initdb; do
        [ -x "$program" ] && return
    done
    return 1
}
has_postgres || missing="$missing postgresql"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "The tests need these programs on the PATH; please install them:$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "The tests need more packages; please run: sudo apt-get install -y$missing" >&2
    exit 1
fi

# Packages start their services through this policy; 101 means "not now".
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
    mv "$policy" "$policy.before-tests"
fi
restore() {
    rm -f "$policy"
    if [ -e "$policy.before-tests" ]; then
        mv "$policy.before-tests" "$policy"
    fi
}
trap restore EXIT
trap 'exit 1' HUP INT TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

echo "installing$missing for the tests ..."
export DEBIAN_FRONTEND=noninteractive
# The lists of a fresh machine are empty or old: then they are fetched, and it is tried once more.
# shellcheck disable=SC2086 # a list of packages
apt-get install -y -qq $missing >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq $missing >/dev/null
}

# Nor does one start with the machine the next time.
if command -v systemctl >/dev/null; then
    for package in $missing; do
        systemctl disable --quiet "$package.service" 2>/dev/null || true
    done
fi
